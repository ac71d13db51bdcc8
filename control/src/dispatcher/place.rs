//! Places ready tasks on runners: the part of a decision that concerns more than one task. Does no I/O.

use super::backoff::Backoff;
use super::cluster_state::ClusterState;
use super::decision::{Budget, Decision};
use super::fleet::RunnerLoad;
use super::now::Now;
use super::queue::Rank;
use super::tasks::TaskEntry;
use crate::model::state_machine::TaskEvent;
use crate::model::{Failure, Holder, NodeId, Registration, TaskRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most tasks that a decision passes over because only nodes that have failed them have a free slot. Further ones wait
/// for [`LOOK_AGAIN`].
const PASSED_OVER_MAX: usize = 256;
/// Wait of a task for which no eligible node has a free slot.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Queues of ready tasks, merged in the order of ranks.
struct Heads<'a> {
    lines: Vec<(Option<&'a NodeId>, std::collections::btree_set::Iter<'a, Rank>)>,
    heads: BTreeSet<(&'a Rank, usize)>,
}

impl<'a> Heads<'a> {
    /// Opens the queues that a runner with a free slot can serve.
    fn new(cluster: &'a ClusterState) -> Self {
        let mut lines = Vec::new();
        if !cluster.fleet.open().is_empty() {
            lines.push((None, cluster.queue.any.iter()));
            for (node, line) in &cluster.queue.pinned {
                if cluster.fleet.load(node).is_some() {
                    lines.push((Some(node), line.iter()));
                }
            }
        }
        let mut this = Self { lines, heads: BTreeSet::new() };
        (0..this.lines.len()).for_each(|line| this.advance(line));
        this
    }

    fn advance(&mut self, line: usize) {
        if let Some(rank) = self.lines[line].1.next() {
            self.heads.insert((rank, line));
        }
    }
}

/// Assigns ready tasks to runners with free slots, in the order of their ranks.
pub(crate) fn load(cluster: &ClusterState, now: Now, budget: &mut Budget, decisions: &mut Vec<Decision>) {
    let mut heads = Heads::new(cluster);
    let mut slots = Slots { cluster, taken: BTreeMap::new() };
    let mut claims = BTreeSet::new();
    let mut passed_over = 0;
    while let Some((rank, line)) = heads.heads.pop_first() {
        let Some(entry) = cluster.tasks.get(&rank.task).filter(|entry| !entry.runtime.is_busy) else {
            heads.advance(line);
            continue;
        };
        let pinned = heads.lines[line].0;
        let decision = match slots.choose(entry, pinned, now) {
            Choice::Full => continue,
            Choice::Later(until) => Decision::WakeAt(rank.task.clone(), until),
            Choice::Other if passed_over < PASSED_OVER_MAX => {
                passed_over += 1;
                heads.advance(line);
                continue;
            }
            Choice::Other => Decision::WakeAt(rank.task.clone(), now.boot + LOOK_AGAIN),
            Choice::Nobody(error) => {
                Decision::Move { task: rank.task.clone(), events: vec![TaskEvent::Rejected(error)] }
            }
            Choice::Runner(to) => place(cluster, entry, to, &mut claims),
        };
        if !budget.take(&decision) {
            return;
        }
        if let Decision::Move { .. } | Decision::Resolve(..) = decision {
            slots.take(&decision);
        }
        decisions.push(decision);
        heads.advance(line);
    }
}

/// Decides how a ready task gets to a runner: it is assigned, blocked by a claim, or its destination is resolved first.
fn place(cluster: &ClusterState, entry: &TaskEntry, to: Holder, fresh: &mut BTreeSet<String>) -> Decision {
    let record = &entry.record;
    let known = if record.claims.is_empty() {
        record.spec.kind().known_claims(&record.id)
    } else {
        Some(record.claims.clone())
    };
    let Some(claims) = known else { return Decision::Resolve(record.id.clone(), to) };
    let is_foreign = |claim: &&String| cluster.claimed.get(*claim).is_some_and(|task| *task != record.id);
    if let Some(claim) = claims.iter().find(is_foreign) {
        return Decision::Block(record.id.clone(), claim.clone());
    }
    if let Some(claim) = claims.iter().find(|claim| fresh.contains(*claim)) {
        return Decision::Block(record.id.clone(), claim.clone());
    }
    fresh.extend(claims.iter().cloned());
    Decision::Move { task: record.id.clone(), events: vec![TaskEvent::Assigned { to, claims }] }
}

/// Choice of a runner for a ready task.
enum Choice {
    /// No runner has a free slot for any further task of this queue.
    Full,
    /// All eligible runners with a free slot are in backoff for this task; the first of these ends then.
    Later(Duration),
    /// Only nodes that have failed the task have a free slot; an eligible node has none now.
    Other,
    /// Every registered node has failed the task for good, with this error at last.
    Nobody(Failure),
    /// This runner gets the task.
    Runner(Holder),
}

/// Free slots of the runners, less those that this decision assigns.
struct Slots<'a> {
    cluster: &'a ClusterState,
    taken: BTreeMap<&'a NodeId, u32>,
}

impl<'a> Slots<'a> {
    fn choose(&self, entry: &TaskEntry, pinned: Option<&NodeId>, now: Now) -> Choice {
        let rest = |node: &NodeId| entry.runtime.avoid.get(node).filter(|rest| rest.until > now.boot);
        if let Some(node) = pinned {
            let load = self.cluster.fleet.load(node).and_then(|load| self.with_taken(load));
            return load.map_or(Choice::Full, |_| self.holder(node));
        }
        let fleet = &self.cluster.fleet;
        let able = able(self.cluster, &entry.record);
        if let (EligibleNodes::None, Some(error)) = (&able, &entry.record.error) {
            return Choice::Nobody(error.clone());
        }
        let untouched = fleet.open().iter().filter(|load| !self.taken.contains_key(&load.node));
        let touched = self.taken.keys().filter_map(|node| fleet.load(node));
        let (untouched, touched) =
            (untouched.filter(|load| able.has(&load.node)), touched.filter(|load| able.has(&load.node)));
        let is_welcome = |load: &&RunnerLoad| rest(&load.node).is_none();
        let best = untouched.clone().find(is_welcome).cloned();
        let best = touched.filter(is_welcome).filter_map(|load| self.with_taken(load)).chain(best).min();
        if let Some(load) = best {
            return self.holder(&load.node);
        }
        let wakes = untouched.filter_map(|load| rest(&load.node)).map(|rest: &Backoff| rest.until).min();
        match wakes {
            Some(until) => Choice::Later(until),
            None if matches!(able, EligibleNodes::All) => Choice::Full,
            None => Choice::Other,
        }
    }

    fn with_taken(&self, load: &RunnerLoad) -> Option<RunnerLoad> {
        let runner = self.cluster.fleet.get(&load.node)?;
        let used = load.used + self.taken.get(&load.node).copied().unwrap_or_default();
        (used < runner.slots).then(|| RunnerLoad { used, ..load.clone() })
    }

    fn holder(&self, node: &NodeId) -> Choice {
        self.cluster.fleet.get(node).map_or(Choice::Full, |there| {
            Choice::Runner(Holder { node: there.node.clone(), incarnation: there.incarnation.clone() })
        })
    }

    fn take(&mut self, decision: &Decision) {
        let node = match decision {
            Decision::Resolve(_, to) => &to.node,
            Decision::Move { events, .. } => match &events[..] {
                [TaskEvent::Assigned { to, .. }] => &to.node,
                _ => return,
            },
            _ => return,
        };
        if let Some(there) = self.cluster.fleet.get(node) {
            *self.taken.entry(&there.node).or_default() += 1;
        }
    }
}

/// Nodes that may try a task that is not pinned to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EligibleNodes<'a> {
    /// Every node: none has failed the task by a fault of its own.
    All,
    /// Nodes that have failed the task least often, and not for good.
    These(BTreeSet<&'a NodeId>),
    /// None: every registered node has failed the task for good.
    None,
}

impl EligibleNodes<'_> {
    fn has(&self, node: &NodeId) -> bool {
        match self {
            Self::All => true,
            Self::These(nodes) => nodes.contains(node),
            Self::None => false,
        }
    }
}

/// Returns the nodes that may try a task: those that have failed it least often by faults of their own. A stopping or
/// draining node does not make the task wait for it if another node can try again. Any node that has not failed the
/// task for good keeps it from being rejected.
pub(crate) fn able<'a>(cluster: &'a ClusterState, record: &TaskRecord) -> EligibleNodes<'a> {
    if record.attempts.iter().all(|attempt| attempt.node_fault.is_none()) {
        return EligibleNodes::All;
    }
    let fleet = &cluster.fleet;
    let faults = |there: &Registration| {
        record.faults_of(&Holder { node: there.node.clone(), incarnation: there.incarnation.clone() })
    };
    let left: Vec<_> =
        fleet.all().map(|there| (there, faults(there))).filter(|(_, faults)| !faults.is_lasting).collect();
    if left.is_empty() {
        return EligibleNodes::None;
    }
    let takes = |there: &Registration| !there.stopping && !fleet.drains.contains_key(&there.node);
    let least = left.iter().filter(|(there, _)| takes(there)).map(|(_, faults)| faults.passing).min();
    let is_least = |passing: usize| least.is_none_or(|least| passing <= least);
    EligibleNodes::These(
        left.into_iter().filter(|(_, faults)| is_least(faults.passing)).map(|(there, _)| &there.node).collect(),
    )
}
