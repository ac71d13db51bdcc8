//! Decides when the level of the center is raised, and refuses what an earlier `taskd` would ignore before that. Pure but
//! for the one write.
//!
//! What always holds: the level is raised only when every registered process announces the new one, and no node is away that
//! was there lately: it may come back as it was.

use super::Dispatcher;
use super::cluster_state::ClusterState;
use super::decision::Decision;
use super::event::Event;
use super::now::Now;
use crate::cluster::election::CommitError;
use crate::coord::{Op, paths};
use crate::model::level::{LEVEL, beyond_first_level};
use crate::model::{Meta, Record, Submission};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time after which a node that is away does not count any more. An upgrade of a center is shorter.
const AWAY_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Wait before it is tried again to raise the level.
const RAISE_RETRY: Duration = Duration::from_secs(5);
/// Most nodes that a message names.
const NODES_NAMED_MAX: usize = 4;

/// Level of the center as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CenterLevel {
    pub(crate) meta: Meta,
    /// Version of its node.
    pub(crate) version: i32,
    /// When each node that is away has renewed its lease last, in milliseconds since 1970. Read only below the highest
    /// level.
    pub(crate) absent: BTreeMap<String, u64>,
}

/// Decides whether the level is to be raised now.
pub(crate) fn decide_level(cluster: &ClusterState, now: Now) -> Option<Decision> {
    let level = cluster.level.as_ref().filter(|level| level.meta.schema < LEVEL)?;
    let is_time = cluster.raise_level_at <= now.boot && cluster.fleet.all().next().is_some();
    (is_time && behind(cluster, level, now.unix_ms).next().is_none()).then_some(Decision::RaiseLevel)
}

/// Returns what keeps the level from being raised.
fn behind<'a>(cluster: &'a ClusterState, level: &'a CenterLevel, now_ms: u64) -> impl Iterator<Item = String> + 'a {
    let fleet = &cluster.fleet;
    let old = fleet
        .all()
        .filter(|there| fleet.level_of(there) < LEVEL)
        .map(|there| format!("{} is of level {}", there.node, fleet.level_of(there)));
    let unreadable = fleet.unreadable().iter().map(|node| format!("{node} has a registration that cannot be read"));
    let is_recent = move |last_ms: u64| last_ms.saturating_add(AWAY_MAX_MS) > now_ms;
    let absent = level.absent.iter().filter(move |(node, last_ms)| {
        is_recent(**last_ms) && !fleet.unreadable().iter().any(|there| there.as_str() == *node)
    });
    old.chain(unreadable).chain(absent.map(|(node, _)| format!("{node} is away")))
}

/// Refuses a new task that a `taskd` of an earlier level would not treat as its client wants, while there may be one.
///
/// # Errors
/// `EUnsupported`, with what of the task it is, and the nodes.
pub(crate) fn check_level(cluster: &ClusterState, submission: &Submission) -> Result<()> {
    let Some(level) = cluster.level.as_ref().filter(|level| level.meta.schema < LEVEL) else { return Ok(()) };
    let Some(what) = beyond_first_level(submission) else { return Ok(()) };
    let behind: Vec<String> = behind(cluster, level, 0).take(NODES_NAMED_MAX).collect();
    let why = if behind.is_empty() { String::from("it is about to be raised") } else { behind.join(", ") };
    let message = format!("{what} needs a center of level {LEVEL}, and this one has {}: {why}", level.meta.schema);
    let error = Error::new(Code::Unsupported, Side::Coordination, Operation::Write, message);
    Err(error.advise("upgrade every node"))
}

impl Dispatcher {
    /// Starts to raise the level.
    pub(crate) fn raise_level(&mut self, now: Now) {
        let Some(CenterLevel { meta, version, .. }) = self.cluster.level.clone() else { return };
        self.cluster.raise_level_at = now.boot + RAISE_RETRY;
        let data = Meta { schema: LEVEL, ..meta }.encode();
        let op = Op::Set { path: paths::META.to_owned(), data, version };
        let leader_term = self.writer.leader_term.clone();
        self.writes_inflight += 1;
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            Event::LevelRaised(leader_term.commit(vec![op]).await.map(drop))
        });
    }

    /// Applies the outcome: the level is read again, whatever it was.
    pub(crate) fn apply_level_raised(&mut self, result: std::result::Result<(), CommitError>) {
        self.writes_inflight -= 1;
        match result {
            Ok(()) => {
                tracing::info!(level = LEVEL, "level of the center raised: an earlier taskd cannot join any more")
            }
            Err(CommitError::LostLeadership) => self.ending = Some(super::TermEnd::LostLeadership),
            Err(CommitError::Store(error)) => tracing::warn!(%error, "cannot raise the level of the center"),
        }
        self.reads.queue_fleet_read();
    }
}
