//! Explains why no node gets a task that is ready: names the node, or counts the nodes by what keeps each from it. Pure.

use super::cluster_state::ClusterState;
use super::fleet::Unavailability;
use super::now::Now;
use super::place::{EligibleNodes, eligible_nodes};
use super::quotas::Quota;
use super::tasks::TaskEntry;
use crate::model::{KindName, Labels, NodeId, Registration, TaskRecord};
use std::collections::BTreeMap;

/// Most nodes that a reason names; there may be a thousand.
const NODES_NAMED_MAX: usize = 4;

/// What keeps a registered node from a task; the first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// It does not have the labels that the task needs.
    Labels,
    /// Its `taskd` does not know this kind of task.
    Kind(KindName),
    /// It has failed the task, and another node is tried first.
    Failed,
    /// The task is to be moved away from it.
    MovedFrom,
    /// It can get no task, whichever it is.
    Unavailable(Unavailability),
    /// It has refused the task a moment ago.
    Refused,
    /// It has a task with the same key of `--apart-from`.
    Apart,
    /// It has as many tasks of the kind as the settings let it have.
    KindSlots(KindName),
    /// It has failed other tasks.
    Excluded,
}

/// Numbers of nodes by what keeps tasks from them, of tasks for which that depends on their labels and kind alone. Counted
/// once for all tasks that are explained together, as those of one page: with a thousand nodes, looking at each for every
/// task takes too long.
#[derive(Debug, Default)]
pub(crate) struct ObstacleCounts(BTreeMap<(Labels, KindName), BTreeMap<Obstacle, usize>>);

/// Explains why a ready task is not assigned; `None` if it is about to be.
pub(crate) fn unplaced_reason(
    cluster: &ClusterState,
    entry: &TaskEntry,
    now: Now,
    counts: &mut ObstacleCounts,
) -> Option<String> {
    let record = &entry.record;
    if let Some(node) = record.only_node().ok().flatten() {
        return pinned_reason(cluster, entry, &node, now);
    }
    let nodes = cluster.fleet.all().count();
    if nodes == 0 {
        return Some(String::from("waiting for a runner: none is registered"));
    }
    let obstacles = obstacles(cluster, entry, now, counts);
    let failed = failed_nodes(cluster, record);
    if obstacles.values().sum::<usize>() < nodes {
        // One of them gets it at once.
        return None;
    }
    let causes: Vec<String> = obstacles.iter().map(|(obstacle, count)| counted(*obstacle, *count, record)).collect();
    let from = record.moving.as_ref().and_then(|moving| moving.from.as_ref());
    let waiting = match (failed, from) {
        (Some(failed), _) => format!("waiting for a runner: {failed}; "),
        (None, Some(from)) => format!("waiting for another runner than {from}, from which it is to be moved; "),
        (None, None) => String::from("waiting for a runner: "),
    };
    Some(format!("{waiting}of {nodes} registered, {}", causes.join(", ")))
}

/// Returns the numbers of nodes that cannot have a task now, by what keeps them from it.
fn obstacles(
    cluster: &ClusterState,
    entry: &TaskEntry,
    now: Now,
    counts: &mut ObstacleCounts,
) -> BTreeMap<Obstacle, usize> {
    let (record, fleet) = (&entry.record, &cluster.fleet);
    let kind = KindName::from(&record.spec);
    let is_like_others = record.placement.apart_from.is_none()
        && record.moving.is_none()
        && record.failed_nodes().is_empty()
        && entry.runtime.backoffs.is_empty();
    if !is_like_others {
        return count_obstacles(cluster, entry, now);
    }
    let is_plain = record.placement.require.is_empty()
        && fleet.exclusions.is_empty()
        && fleet.quotas.most(kind).is_none()
        && !fleet.is_lacked(kind);
    if is_plain {
        // Nothing depends on the task.
        let unavailable = fleet.unavailable().iter().filter(|(_, count)| **count > 0);
        return unavailable.map(|(why, count)| (Obstacle::Unavailable(*why), *count)).collect();
    }
    let known = counts.0.entry((record.placement.require.clone(), kind));
    known.or_insert_with(|| count_obstacles(cluster, entry, now)).clone()
}

fn count_obstacles(cluster: &ClusterState, entry: &TaskEntry, now: Now) -> BTreeMap<Obstacle, usize> {
    let eligible = eligible_nodes(cluster, &entry.record);
    let mut counts = BTreeMap::new();
    for there in cluster.fleet.all() {
        if let Some(obstacle) = obstacle(cluster, entry, (there, &eligible), now) {
            *counts.entry(obstacle).or_default() += 1;
        }
    }
    counts
}

fn obstacle(
    cluster: &ClusterState,
    entry: &TaskEntry,
    (there, eligible): (&Registration, &EligibleNodes<'_>),
    now: Now,
) -> Option<Obstacle> {
    let (record, fleet, node) = (&entry.record, &cluster.fleet, &there.node);
    let is_full = |quota: &Quota| fleet.quotas.left(node, quota) == Some(0);
    if !record.placement.allow(&there.labels) {
        return Some(Obstacle::Labels);
    }
    let kind = KindName::from(&record.spec);
    if !fleet.can_run(there, kind) {
        return Some(Obstacle::Kind(kind));
    }
    if !record.may_run_on(node) {
        return Some(Obstacle::MovedFrom);
    }
    if !eligible.has(node) {
        return Some(Obstacle::Failed);
    }
    if let Some(why) = fleet.unavailability(node) {
        return Some(Obstacle::Unavailable(why));
    }
    if entry.runtime.backoffs.get(node).is_some_and(|backoff| backoff.until > now.boot) {
        return Some(Obstacle::Refused);
    }
    match Quota::of(record).find(is_full) {
        Some(Quota::Kind(kind)) => Some(Obstacle::KindSlots(kind)),
        Some(Quota::Apart(_)) => Some(Obstacle::Apart),
        None => fleet.exclusions.leaves_out(node).then_some(Obstacle::Excluded),
    }
}

/// Says how many nodes an obstacle keeps from a task.
fn counted(obstacle: Obstacle, count: usize, record: &TaskRecord) -> String {
    let (is, has, lacks) = if count == 1 { ("is", "has", "lacks") } else { ("are", "have", "lack") };
    let labels = || record.placement.require.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
    match obstacle {
        Obstacle::Labels => format!("{count} {lacks} {}", labels().join(" ")),
        Obstacle::Kind(kind) => format!("{count} {has} a taskd that cannot run a {}", <&str>::from(kind)),
        Obstacle::Failed => format!("{count} {has} failed it"),
        Obstacle::MovedFrom => format!("{count} {is} to run it no longer"),
        Obstacle::Unavailable(Unavailability::Stopping) => format!("{count} {is} stopping"),
        Obstacle::Unavailable(Unavailability::Draining) => format!("{count} {is} draining"),
        Obstacle::Unavailable(Unavailability::Refusing) => format!("{count} {has} refused a task"),
        Obstacle::Unavailable(Unavailability::Full) => format!("{count} {has} no free slot"),
        Obstacle::Excluded => format!("{count} {has} failed other tasks"),
        Obstacle::Refused => format!("{count} {has} refused it"),
        Obstacle::Apart => format!("{count} {has} a task that it stays apart from"),
        Obstacle::KindSlots(kind) => format!("{count} {has} no slot left for a {}", <&str>::from(kind)),
    }
}

/// Explains what the only node that can run a task waits for.
fn pinned_reason(cluster: &ClusterState, entry: &TaskEntry, node: &NodeId, now: Now) -> Option<String> {
    let fleet = &cluster.fleet;
    let Some(there) = fleet.get(node) else { return Some(format!("waiting for {node}, which is not registered")) };
    let obstacle = obstacle(cluster, entry, (there, &EligibleNodes::All), now)?;
    let why = match obstacle {
        Obstacle::Unavailable(Unavailability::Refusing) | Obstacle::Refused => match fleet.conflicting_node(node) {
            Some(other) => {
                let address = &there.address;
                return Some(format!("waiting for {node}: {other} has registered the same address, {address}"));
            }
            None => String::from("has refused it"),
        },
        // It is tried all the same: no other node can run the task.
        Obstacle::Excluded => return None,
        other => counted(other, 1, &entry.record).split_off("1 ".len()),
    };
    Some(format!("waiting for {node}, which {why}"))
}

/// Names the nodes that have failed a task by faults of their own, and the eligible ones.
pub(crate) fn failed_nodes(cluster: &ClusterState, record: &TaskRecord) -> Option<String> {
    let failed = record.failed_nodes();
    if failed.is_empty() || !matches!(record.spec.kind().node(), Ok(None)) {
        return None;
    }
    let failed: Vec<&str> = failed.into_iter().map(NodeId::as_str).collect();
    let failed = failed.join(", ");
    let next = match eligible_nodes(cluster, record) {
        EligibleNodes::These(nodes) if cluster.fleet.all().count() > 1 => {
            let nodes: Vec<&str> = nodes.into_iter().take(NODES_NAMED_MAX).map(NodeId::as_str).collect();
            format!("next on {}", nodes.join(", "))
        }
        EligibleNodes::These(_) | EligibleNodes::All => String::from("no other node is registered"),
        EligibleNodes::None => String::from("no other node is left"),
    };
    Some(format!("failed on {failed}, {next}"))
}
