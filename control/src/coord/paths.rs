//! Names the paths of all records in the coordination service, below the center's chroot.
//!
//! | path | life | record | written by |
//! | --- | --- | --- | --- |
//! | `/meta` | persistent | [`Meta`] | the first `taskd` |
//! | `/leader_epoch` | persistent, never deleted | [`Leader`]; its `modified` is the leader's epoch | the winner of an election |
//! | `/leader` | ephemeral | [`Leader`] | the same, in the same write |
//! | `/runners/NODE` | ephemeral | [`Registration`] | that runner |
//! | `/lease/NODE` | persistent | [`Renewal`] | that runner |
//! | `/drain/NODE` | persistent | [`Drain`] | the leader |
//! | `/claims/SHARD/HASH` | until its task ends | [`Claim`]; its `modified` is the epoch of the grant | leader; its holder, to clear it |
//! | `/tasks/SHARD/ID` | persistent, until retention has passed | [`TaskRecord`] | leader and holder |
//!
//! [`Meta`]: crate::model::Meta
//! [`Leader`]: crate::model::Leader
//! [`Registration`]: crate::model::Registration
//! [`Renewal`]: crate::model::Renewal
//! [`Drain`]: crate::model::Drain
//! [`Claim`]: crate::model::Claim
//! [`TaskRecord`]: crate::model::TaskRecord
//!
//! A shard is two hexadecimal digits of the name's BLAKE3 hash: 256 folders keep listings short.

use crate::model::TaskId;

/// The schema of the records.
pub const META: &str = "/meta";
/// Who led last.
pub const LEADER_EPOCH: &str = "/leader_epoch";
/// Who leads.
pub const LEADER: &str = "/leader";
/// Runners that are there.
pub const RUNNERS: &str = "/runners";
/// Renewals of leases.
pub const LEASES: &str = "/lease";
/// Nodes that get no new tasks.
pub const DRAINS: &str = "/drain";
/// Rights to write destinations.
pub const CLAIMS: &str = "/claims";
/// Tasks.
pub const TASKS: &str = "/tasks";

/// Folders that every center has, parents first, shards of claims and tasks besides.
pub const FOLDERS: [&str; 5] = [RUNNERS, LEASES, DRAINS, CLAIMS, TASKS];

/// Every shard's name.
pub fn shards() -> impl Iterator<Item = String> {
    (0..=255_u8).map(|shard| format!("{shard:02x}"))
}

/// Everything that is there before the first record: [`FOLDERS`] and the shards.
#[cfg(test)]
pub(crate) fn all_folders() -> impl Iterator<Item = String> {
    let sharded = [CLAIMS, TASKS].into_iter().flat_map(|folder| shards().map(move |shard| format!("{folder}/{shard}")));
    FOLDERS.map(str::to_owned).into_iter().chain(sharded)
}

/// A runner's registration.
#[must_use]
pub fn runner(node: &str) -> String {
    format!("{RUNNERS}/{node}")
}

/// A runner's renewals.
#[must_use]
pub fn lease(node: &str) -> String {
    format!("{LEASES}/{node}")
}

/// The wish that a node gets no new tasks.
#[must_use]
pub fn drain(node: &str) -> String {
    format!("{DRAINS}/{node}")
}

/// A task.
#[must_use]
pub fn task(id: &TaskId) -> String {
    format!("{TASKS}/{}/{id}", shard(id.as_str()))
}

/// The claim on a destination, by the canonical text of its identity.
#[must_use]
pub fn claim(destination: &str) -> String {
    let hash = blake3::hash(destination.as_bytes()).to_hex();
    format!("{CLAIMS}/{}/{}", shard(destination), &hash[..32])
}

fn shard(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..2].to_owned()
}
