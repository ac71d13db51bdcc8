//! Excludes nodes that fail one task after the other from getting further ones, for a while. Pure.
//!
//! | event | what follows |
//! | --- | --- |
//! | a failure of the node's engine, resources or state directory | counts |
//! | any other failure of an attempt that the node has accepted | counts once another node has got further with the task |
//! | a failure that may be the node's own | the node gets nothing for 1 s, then for twice as long each time, at most 30 s |
//! | three that count in a row, of at least two tasks | excluded for 5 min, then twice as long each time, at most 1 h |
//! | a success | counts nothing any more, and ends an exclusion |
//!
//! At most a third of the registered nodes are excluded at once. A task that no other node can run goes to an excluded one
//! all the same, and shows whether that works again. All of this is in the leader's memory: the next one starts afresh.

use crate::model::{NodeId, TaskId};
use blockhaul_engine::backoff::ExponentialBackoff;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Failures in a row that exclude a node.
const FAILURES: usize = 3;
/// Least number of tasks that these failures are of.
const TASKS: usize = 2;
/// Length of the first exclusion, and of the longest one.
const FIRST: Duration = Duration::from_secs(5 * 60);
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Pauses after failures that may be the node's own.
const PAUSES: ExponentialBackoff = ExponentialBackoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };
/// Part of the nodes that may be excluded at once: one of so many.
const SHARE: usize = 3;

/// Exclusion of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exclusion {
    /// Boot time at which it ends.
    pub(crate) until: Duration,
    /// Last failure before it.
    pub(crate) why: String,
}

/// Failures of the nodes in a row, and the exclusions that followed.
#[derive(Debug, Default)]
pub(crate) struct Exclusions {
    nodes: BTreeMap<NodeId, History>,
    excluded: BTreeMap<NodeId, Exclusion>,
    /// Boot time until which each node gets nothing after its last failures, and their number.
    paused: BTreeMap<NodeId, (Duration, u32)>,
    /// Failures that do not count by themselves, by task.
    unproven: BTreeMap<TaskId, BTreeMap<NodeId, AttemptFailure>>,
}

/// Failure of an attempt that its node had accepted.
#[derive(Clone, Debug)]
pub(crate) struct AttemptFailure {
    pub(crate) why: String,
    /// Whether it had begun: its volumes were open.
    pub(crate) had_begun: bool,
    /// Whether it is the node's own, whichever task it was.
    pub(crate) is_defect: bool,
    /// Whether another node may succeed.
    pub(crate) is_node_fault: bool,
}

/// What a node has failed since its last success.
#[derive(Debug, Default)]
struct History {
    failed: Vec<TaskId>,
    exclusions: u32,
}

impl Exclusions {
    pub(crate) fn get(&self, node: &NodeId) -> Option<&Exclusion> {
        self.excluded.get(node)
    }

    /// Returns the number of failures of a node in a row that count.
    pub(crate) fn failures(&self, node: &NodeId) -> usize {
        self.nodes.get(node).map_or(0, |history| history.failed.len())
    }

    /// Tells whether a node gets nothing now that another node can run.
    pub(crate) fn leaves_out(&self, node: &NodeId) -> bool {
        self.excluded.contains_key(node) || self.paused.get(node).is_some_and(|(until, _)| !until.is_zero())
    }

    /// Tells whether no node is left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.excluded.is_empty() && self.paused.values().all(|(until, _)| until.is_zero())
    }

    /// Notes a failed attempt. Returns the node if that excludes it, among `registered` ones.
    pub(crate) fn failed(
        &mut self,
        (node, task): (&NodeId, &TaskId),
        failure: AttemptFailure,
        (registered, now): (usize, Duration),
    ) -> Option<NodeId> {
        if failure.is_node_fault {
            let (until, failures) = self.paused.entry(node.clone()).or_default();
            *failures = failures.saturating_add(1);
            *until = now + PAUSES.wait(*failures);
        }
        if failure.is_defect {
            return self.count(node, task, failure.why, registered, now);
        }
        self.unproven.entry(task.clone()).or_default().insert(node.clone(), failure);
        None
    }

    /// Notes that a node has opened the volumes of a task, or has made bytes of it durable: failures of other nodes that
    /// did not get so far were their own. Returns the nodes that this excludes.
    pub(crate) fn advanced(
        &mut self,
        (node, task): (&NodeId, &TaskId),
        has_only_begun: bool,
        (registered, now): (usize, Duration),
    ) -> Vec<NodeId> {
        let Some(failures) = self.unproven.remove(task) else { return Vec::new() };
        let is_proven =
            |other: &NodeId, failure: &AttemptFailure| other != node && !(has_only_begun && failure.had_begun);
        let (proven, open): (BTreeMap<_, _>, _) =
            failures.into_iter().partition(|(other, failure)| is_proven(other, failure));
        if !open.is_empty() {
            self.unproven.insert(task.clone(), open);
        }
        proven
            .into_iter()
            .filter_map(|(other, failure)| self.count(&other, task, failure.why, registered, now))
            .collect()
    }

    /// Notes that a node has brought a task to its end. Returns whether that ends an exclusion.
    pub(crate) fn succeeded(&mut self, node: &NodeId) -> bool {
        self.nodes.remove(node);
        self.paused.remove(node);
        self.excluded.remove(node).is_some()
    }

    /// Forgets a task that has ended or is gone.
    pub(crate) fn forget(&mut self, task: &TaskId) {
        self.unproven.remove(task);
    }

    /// Ends the pauses and exclusions that are over; returns the nodes that were excluded.
    pub(crate) fn end(&mut self, now: Duration) -> Vec<NodeId> {
        self.paused.values_mut().filter(|(until, _)| *until <= now).for_each(|(until, _)| *until = Duration::ZERO);
        let over: Vec<NodeId> = self
            .excluded
            .iter()
            .filter(|(_, exclusion)| exclusion.until <= now)
            .map(|(node, _)| node.clone())
            .collect();
        over.iter().for_each(|node| drop(self.excluded.remove(node)));
        over
    }

    /// Returns when the next pause or exclusion ends.
    pub(crate) fn next_end(&self) -> Option<Duration> {
        let paused = self.paused.values().map(|(until, _)| *until).filter(|until| !until.is_zero());
        self.excluded.values().map(|exclusion| exclusion.until).chain(paused).min()
    }

    fn count(&mut self, node: &NodeId, task: &TaskId, why: String, registered: usize, now: Duration) -> Option<NodeId> {
        let history = self.nodes.entry(node.clone()).or_default();
        history.failed.push(task.clone());
        let tasks: BTreeSet<&TaskId> = history.failed.iter().collect();
        let is_too_much = history.failed.len() >= FAILURES && tasks.len() >= TASKS;
        let has_room = self.excluded.len() < registered / SHARE;
        if !is_too_much || !has_room || self.excluded.contains_key(node) {
            // The oldest ones say nothing more.
            let surplus = history.failed.len().saturating_sub(FAILURES * 2);
            history.failed.drain(..surplus);
            return None;
        }
        history.failed.clear();
        let length = FIRST.saturating_mul(1 << history.exclusions.min(8)).min(LONGEST);
        history.exclusions += 1;
        self.excluded.insert(node.clone(), Exclusion { until: now + length, why });
        Some(node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: usize = 4;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn task(name: &str) -> TaskId {
        TaskId::new(name).unwrap()
    }

    fn at(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn failure(is_defect: bool, had_begun: bool) -> AttemptFailure {
        AttemptFailure { why: String::from("no such host"), had_begun, is_defect, is_node_fault: !is_defect }
    }

    fn fail(exclusions: &mut Exclusions, of: &str, tasks: &[&str], minutes: u64) -> Option<NodeId> {
        let mut excluded = None;
        for name in tasks {
            let failed = exclusions.failed((&node(of), &task(name)), failure(true, false), (NODES, at(minutes)));
            excluded = excluded.or(failed);
        }
        excluded
    }

    #[test]
    fn three_failures_in_a_row_of_two_tasks_exclude_a_node_for_longer_and_longer() {
        let mut exclusions = Exclusions::default();
        assert_eq!(fail(&mut exclusions, "n1", &["a", "a", "a", "a"], 0), None, "of one task");
        assert_eq!(fail(&mut exclusions, "n1", &["b"], 0), Some(node("n1")));
        assert_eq!(exclusions.next_end(), Some(at(5)));
        for (begin, end) in [(5, 15), (15, 35), (35, 75), (75, 135), (135, 195)] {
            assert_eq!(exclusions.end(at(begin)), [node("n1")]);
            assert_eq!(fail(&mut exclusions, "n1", &["a", "b", "c"], begin), Some(node("n1")));
            assert_eq!(exclusions.next_end(), Some(at(end)));
        }
        assert!(exclusions.succeeded(&node("n1")) && exclusions.is_empty());
        assert_eq!(fail(&mut exclusions, "n1", &["a", "b", "c"], 200), Some(node("n1")));
        assert_eq!(exclusions.next_end(), Some(at(205)), "a success starts it afresh");
    }

    #[test]
    fn a_success_in_between_starts_the_count_afresh() {
        let mut exclusions = Exclusions::default();
        assert_eq!(fail(&mut exclusions, "n1", &["a", "b"], 0), None);
        assert!(!exclusions.succeeded(&node("n1")));
        assert_eq!(fail(&mut exclusions, "n1", &["a", "b"], 0), None);
    }

    #[test]
    fn at_most_a_third_of_the_nodes_is_excluded() {
        let mut exclusions = Exclusions::default();
        assert!(fail(&mut exclusions, "n1", &["a", "b", "c"], 0).is_some());
        assert_eq!(fail(&mut exclusions, "n2", &["a", "b", "c"], 0), None);
        exclusions.end(at(5));
        assert_eq!(fail(&mut exclusions, "n2", &["d"], 5), Some(node("n2")), "its failures still count");
    }

    #[test]
    fn a_failure_that_another_node_disproves_counts() {
        let mut exclusions = Exclusions::default();
        let fleet = (NODES, at(0));
        for (name, had_begun) in [("a", false), ("b", false), ("c", false), ("d", true)] {
            assert_eq!(exclusions.failed((&node("n1"), &task(name)), failure(false, had_begun), fleet), None);
        }
        let mut advance =
            |of: &str, name: &str, has_only_begun| exclusions.advanced((&node(of), &task(name)), has_only_begun, fleet);
        assert!(advance("n1", "a", false).is_empty(), "it went on by itself");
        assert!(advance("n2", "b", true).is_empty());
        assert!(advance("n2", "d", true).is_empty() && advance("n3", "c", true).is_empty());
        assert_eq!(advance("n3", "d", false), [node("n1")], "the other one got no further before");
        assert_eq!(exclusions.get(&node("n1")).unwrap().why, "no such host");
    }

    #[test]
    fn failures_that_may_be_the_nodes_own_pause_it_until_it_succeeds() {
        let mut exclusions = Exclusions::default();
        let second = Duration::from_secs;
        let mut now = second(0);
        for length in [1, 2, 4, 8, 16, 30, 30] {
            exclusions.failed((&node("n1"), &task("a")), failure(false, false), (NODES, now));
            assert!(exclusions.leaves_out(&node("n1")) && exclusions.next_end() == Some(now + second(length)));
            now += second(length);
            assert!(exclusions.end(now).is_empty() && !exclusions.leaves_out(&node("n1")));
        }
        assert!(!exclusions.succeeded(&node("n1")) && exclusions.is_empty());
    }
}
