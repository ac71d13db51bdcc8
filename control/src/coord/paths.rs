//! Names the paths of all records in the coordination service, below the center's chroot.
//!
//! | path | life | record | written by |
//! | --- | --- | --- | --- |
//! | `/meta` | persistent | [`Meta`] | the first `taskd`; the leader, to raise the level |
//! | `/leader_epoch` | persistent, never deleted | [`Leader`]; its `modified` is the leader's epoch | the winner of an election |
//! | `/leader` | ephemeral | [`Leader`] | the same, in the same write |
//! | `/runners/NODE` | ephemeral | [`Registration`] | that runner |
//! | `/able/NODE` | ephemeral | [`Abilities`] | that runner, together with its registration |
//! | `/refused/NODE@INCARNATION` | ephemeral | [`Registration`] | a process that another one of its name keeps from registering |
//! | `/lease/NODE` | persistent | [`Renewal`] | that runner |
//! | `/drain/NODE` | persistent | [`Drain`] | the leader |
//! | `/schedules/NAME` | until it is removed | [`ScheduleRecord`] | the leader |
//! | `/schedules/NAME/N` | as long as its schedule | [`MemberTemplate`]s of its batch | the leader |
//! | `/settings` | from the first change on | [`Settings`] | the leader |
//! | `/claims/SHARD/HASH` | until its task ends | [`Claim`]; its `modified` is the epoch of the grant | leader; its holder, to clear it |
//! | `/tasks/SHARD/ID` | persistent, until retention has passed | [`TaskRecord`] | leader and holder |
//!
//! [`Meta`]: crate::model::Meta
//! [`Leader`]: crate::model::Leader
//! [`Registration`]: crate::model::Registration
//! [`Abilities`]: crate::model::Abilities
//! [`Renewal`]: crate::model::Renewal
//! [`Drain`]: crate::model::Drain
//! [`ScheduleRecord`]: crate::model::ScheduleRecord
//! [`MemberTemplate`]: crate::model::MemberTemplate
//! [`Settings`]: crate::model::Settings
//! [`Claim`]: crate::model::Claim
//! [`TaskRecord`]: crate::model::TaskRecord
//!
//! A shard is two hexadecimal digits of the name's BLAKE3 hash: 256 folders keep listings short.

use crate::model::{ScheduleName, TaskId};

/// Path of the schema of the records.
pub const META: &str = "/meta";
/// Path of the last leader.
pub const LEADER_EPOCH: &str = "/leader_epoch";
/// Path of the current leader.
pub const LEADER: &str = "/leader";
/// Folder of the registered runners.
pub const RUNNERS: &str = "/runners";
/// Folder of what the registered runners can do.
pub const ABILITIES: &str = "/able";
/// Folder of the processes that are kept from registering by another one of their name.
pub const REFUSED: &str = "/refused";
/// Folder of the renewals of leases.
pub const LEASES: &str = "/lease";
/// Folder of the nodes that get no new tasks.
pub const DRAINS: &str = "/drain";
/// Path of the settings.
pub const SETTINGS: &str = "/settings";
/// Folder of the schedules.
pub const SCHEDULES: &str = "/schedules";
/// Folder of the claims on destinations.
pub const CLAIMS: &str = "/claims";
/// Folder of the tasks.
pub const TASKS: &str = "/tasks";

/// Folders of every center, parents first, without the shards of claims and tasks.
pub const FOLDERS: [&str; 8] = [RUNNERS, ABILITIES, REFUSED, LEASES, DRAINS, SCHEDULES, CLAIMS, TASKS];

/// Returns every shard's name.
pub fn shards() -> impl Iterator<Item = String> {
    (0..=255_u8).map(|shard| format!("{shard:02x}"))
}

/// Returns all folders that exist before the first record: [`FOLDERS`] and the shards.
#[cfg(test)]
pub(crate) fn all_folders() -> impl Iterator<Item = String> {
    let sharded = [CLAIMS, TASKS].into_iter().flat_map(|folder| shards().map(move |shard| format!("{folder}/{shard}")));
    FOLDERS.map(str::to_owned).into_iter().chain(sharded)
}

/// Returns the path of a runner's registration.
#[must_use]
pub fn runner(node: &str) -> String {
    format!("{RUNNERS}/{node}")
}

/// Returns the path of what a runner can do.
#[must_use]
pub fn abilities(node: &str) -> String {
    format!("{ABILITIES}/{node}")
}

/// Returns the path of a process that another one of its name keeps from registering.
#[must_use]
pub fn refused(node: &str, incarnation: &str) -> String {
    format!("{REFUSED}/{node}@{incarnation}")
}

/// Returns the path of a runner's renewals.
#[must_use]
pub fn lease(node: &str) -> String {
    format!("{LEASES}/{node}")
}

/// Returns the path of a node's drain record.
#[must_use]
pub fn drain(node: &str) -> String {
    format!("{DRAINS}/{node}")
}

/// Returns the path of a schedule.
#[must_use]
pub fn schedule(name: &ScheduleName) -> String {
    format!("{SCHEDULES}/{name}")
}

/// Returns the path of a part of a schedule's batch, by its number.
#[must_use]
pub fn schedule_part(name: &ScheduleName, part: usize) -> String {
    format!("{SCHEDULES}/{name}/{part:04}")
}

/// Returns the path of a task.
#[must_use]
pub fn task(id: &TaskId) -> String {
    format!("{TASKS}/{}/{id}", shard(id.as_str()))
}

/// Returns the path of the claim on a destination, by the canonical text of its identity.
#[must_use]
pub fn claim(destination: &str) -> String {
    let hash = blake3::hash(destination.as_bytes()).to_hex();
    format!("{CLAIMS}/{}/{}", shard(destination), &hash[..32])
}

fn shard(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..2].to_owned()
}
