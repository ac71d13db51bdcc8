//! Places ready tasks on runners: the part of a decision that concerns more than one task. Does no I/O.

use super::backoff::Backoff;
use super::cluster_state::{ClusterState, held_claim, places_claim};
use super::decision::{Budget, Decision};
use super::fleet::RunnerLoad;
use super::held_places::{AssignedSlots, HeldPlaces};
use super::now::Now;
use super::queue::{QueueClass, Rank};
use super::quotas::Quota;
use super::tasks::TaskEntry;
use crate::model::state_machine::TaskEvent;
use crate::model::{Failure, Holder, KindName, NodeId, Registration, TaskId, TaskRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most tasks that a decision passes over because only nodes that have failed them have a free slot. Further ones wait
/// for [`NO_SLOT_WAIT`].
const PASSED_OVER_MAX: usize = 256;
/// Wait of a task for which no eligible node has a free slot.
const NO_SLOT_WAIT: Duration = Duration::from_secs(2);

/// Queues of ready tasks, merged in the order of ranks.
struct QueueHeads<'a> {
    queues: Vec<(&'a QueueClass, std::collections::btree_set::Iter<'a, Rank>)>,
    heads: BTreeSet<(&'a Rank, usize)>,
}

impl<'a> QueueHeads<'a> {
    /// Opens the queues that a runner with a free slot can serve.
    fn new(cluster: &'a ClusterState) -> Self {
        let fleet = &cluster.fleet;
        let can_serve = |class: &QueueClass| match &class.node {
            None => !fleet.open().is_empty(),
            Some(node) => fleet.load(node).is_some(),
        };
        let open = cluster.queue.classes.iter().filter(|(class, _)| can_serve(class));
        let queues = open.map(|(class, queue)| (class, queue.iter())).collect();
        let mut this = Self { queues, heads: BTreeSet::new() };
        (0..this.queues.len()).for_each(|queue| this.advance(queue));
        this
    }

    fn advance(&mut self, queue: usize) {
        if let Some(rank) = self.queues[queue].1.next() {
            self.heads.insert((rank, queue));
        }
    }
}

/// Assigns ready tasks to runners with free slots, in the order of their ranks; members of groups that hold their place
/// go first, as slots are kept free for them.
pub(crate) fn assign_ready(cluster: &ClusterState, now: Now, budget: &mut Budget, decisions: &mut Vec<Decision>) {
    let mut assigner = Assigner::new(cluster, now, budget, decisions);
    let mut is_decided = BTreeSet::new();
    for id in assigner.slots.held.members() {
        let Some(class) = cluster.queue.class(id) else { continue };
        match assigner.consider(id, class) {
            Next::Task => is_decided.insert(id),
            Next::Queue => continue,
            Next::Nothing => return,
        };
    }
    let mut heads = QueueHeads::new(cluster);
    while let Some((rank, queue)) = heads.heads.pop_first() {
        if is_decided.contains(&rank.task) {
            heads.advance(queue);
            continue;
        }
        match assigner.consider(&rank.task, heads.queues[queue].0) {
            Next::Task => heads.advance(queue),
            Next::Queue => {}
            Next::Nothing => return,
        }
    }
}

/// What to consider after a task.
enum Next {
    /// The next task of its queue.
    Task,
    /// Another queue: no task of this one can get a slot.
    Queue,
    /// Nothing more: the budget is spent.
    Nothing,
}

/// Decides about one ready task after the other.
struct Assigner<'a> {
    cluster: &'a ClusterState,
    now: Now,
    budget: &'a mut Budget,
    decisions: &'a mut Vec<Decision>,
    slots: FreeSlots<'a>,
    places: FreePlaces<'a>,
    claims: BTreeSet<String>,
    passed_over: usize,
}

impl<'a> Assigner<'a> {
    fn new(cluster: &'a ClusterState, now: Now, budget: &'a mut Budget, decisions: &'a mut Vec<Decision>) -> Self {
        Self {
            cluster,
            now,
            budget,
            decisions,
            slots: FreeSlots { cluster, assigned: AssignedSlots::default(), held: HeldPlaces::new(cluster) },
            places: FreePlaces { cluster, taken: BTreeMap::new() },
            claims: BTreeSet::new(),
            passed_over: 0,
        }
    }

    fn consider(&mut self, id: &TaskId, class: &QueueClass) -> Next {
        let cluster = self.cluster;
        let Some(entry) = cluster.tasks.get(id).filter(|entry| !entry.runtime.is_busy) else { return Next::Task };
        if let Some(group) = self.places.full_group(&entry.record) {
            self.decisions.push(Decision::Await(id.clone(), places_claim(group)));
            return Next::Task;
        }
        if let Some(group) = self.slots.held.keeper(&entry.record) {
            self.decisions.push(Decision::Await(id.clone(), held_claim(group.as_str())));
            return Next::Task;
        }
        if !self.slots.held.take(&entry.record, &self.slots.assigned) {
            return Next::Task;
        }
        let decision = match self.slots.choose(entry, class.node.as_ref(), self.now) {
            Choice::NoFreeSlot => return Next::Queue,
            Choice::InBackoff(until) => Decision::WakeAt(id.clone(), until),
            Choice::EligibleFull if self.passed_over < PASSED_OVER_MAX => {
                self.passed_over += 1;
                return Next::Task;
            }
            Choice::EligibleFull => Decision::WakeAt(id.clone(), self.now.boot + NO_SLOT_WAIT),
            Choice::NoneEligible(error) => {
                Decision::Transition { task: id.clone(), events: vec![TaskEvent::Rejected(error)] }
            }
            Choice::Runner(to) => place(cluster, entry, to, &mut self.claims),
        };
        if !self.budget.spend(&decision) {
            return Next::Nothing;
        }
        if let Decision::Transition { .. } | Decision::Resolve(..) = decision {
            self.slots.count(&decision, &entry.record);
            self.places.count(&entry.record);
        }
        self.decisions.push(decision);
        Next::Task
    }
}

/// Decides how a ready task gets to a runner: it is assigned, blocked by a claim, or its destination is resolved first.
fn place(cluster: &ClusterState, entry: &TaskEntry, to: Holder, new_claims: &mut BTreeSet<String>) -> Decision {
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
    if let Some(claim) = claims.iter().find(|claim| new_claims.contains(*claim)) {
        return Decision::Block(record.id.clone(), claim.clone());
    }
    new_claims.extend(claims.iter().cloned());
    Decision::Transition { task: record.id.clone(), events: vec![TaskEvent::Assigned { to, claims }] }
}

/// Choice of a runner for a ready task.
enum Choice {
    /// No runner has a free slot for any further task of this queue.
    NoFreeSlot,
    /// All eligible runners with a free slot are in backoff for this task; the first of these ends then.
    InBackoff(Duration),
    /// Only nodes that have failed the task have a free slot; an eligible node has none now.
    EligibleFull,
    /// Every registered node has failed the task for good, with this error at last.
    NoneEligible(Failure),
    /// This runner gets the task.
    Runner(Holder),
}

/// Numbers of further members of each group that may run, less those that this decision assigns.
struct FreePlaces<'a> {
    cluster: &'a ClusterState,
    taken: BTreeMap<&'a TaskId, usize>,
}

impl<'a> FreePlaces<'a> {
    /// Returns the group of a task that has not run yet, if as many other members run as may.
    fn full_group(&self, record: &'a TaskRecord) -> Option<&'a TaskId> {
        // One that has run holds its place until it ends.
        let group = record.group.as_ref().filter(|_| record.is_unstarted()).map(|member| &member.group)?;
        let left = self.cluster.places_left(group)?;
        (left <= self.taken.get(group).copied().unwrap_or_default()).then_some(group)
    }

    fn count(&mut self, record: &'a TaskRecord) {
        if let Some(member) = record.group.as_ref().filter(|_| record.is_unstarted()) {
            *self.taken.entry(&member.group).or_default() += 1;
        }
    }
}

/// Free slots of the runners, less those that this decision assigns and those that are kept free for groups.
struct FreeSlots<'a> {
    cluster: &'a ClusterState,
    assigned: AssignedSlots<'a>,
    held: HeldPlaces<'a>,
}

impl<'a> FreeSlots<'a> {
    fn choose(&self, entry: &TaskEntry, pinned: Option<&NodeId>, now: Now) -> Choice {
        let (fleet, rules) = (&self.cluster.fleet, &entry.record.placement);
        let backoff = |node: &NodeId| entry.runtime.backoffs.get(node).filter(|backoff| backoff.until > now.boot);
        // What else keeps this task from a slot keeps all of its queue from one.
        let no_slot = || if rules.apart_from.is_some() { Choice::EligibleFull } else { Choice::NoFreeSlot };
        let kind = KindName::from(&entry.record.spec);
        let is_able = |there: &Registration| rules.allow(&there.labels) && fleet.can_run(there, kind);
        let is_able_node = |node: &NodeId| fleet.get(node).is_some_and(is_able);
        if let Some(node) = pinned {
            let load = fleet.load(node).filter(|_| is_able_node(node));
            return load
                .and_then(|load| self.with_assigned(load, &entry.record))
                .map_or_else(no_slot, |_| self.holder(node));
        }
        let eligible = eligible_nodes(self.cluster, &entry.record);
        if let (EligibleNodes::None, Some(error)) = (&eligible, &entry.record.error) {
            return Choice::NoneEligible(error.clone());
        }
        let accepts = |there: &Registration| !there.stopping && !fleet.drains.contains_key(&there.node);
        let is_fit = |node: &NodeId| eligible.has(node) && is_able_node(node);
        let is_fit_now = |node: &NodeId| is_fit(node) && !fleet.exclusions.leaves_out(node);
        // What no other node can run goes to an excluded one, and shows whether that works again.
        let excludes =
            !fleet.exclusions.is_empty() && fleet.all().any(|there| accepts(there) && is_fit_now(&there.node));
        let is_fit = |node: &NodeId| if excludes { is_fit_now(node) } else { is_fit(node) };
        let is_assigned = |node: &NodeId| self.assigned.slots.contains_key(node);
        let others = fleet.open().iter().filter(|load| !is_assigned(&load.node) && !self.held.keeps(&load.node));
        let others = others.filter(|load| self.has_quotas(&load.node, &entry.record));
        let in_use = self.assigned.slots.keys().copied().chain(self.held.nodes().filter(|node| !is_assigned(node)));
        let in_use = in_use.filter_map(|node| fleet.load(node));
        let (others, in_use) = (others.filter(|load| is_fit(&load.node)), in_use.filter(|load| is_fit(&load.node)));
        let is_available = |load: &&RunnerLoad| backoff(&load.node).is_none();
        let liking = |load: &RunnerLoad| fleet.get(&load.node).map_or(0, |there| rules.preference(&there.labels));
        let order = |one: &RunnerLoad, other: &RunnerLoad| (liking(other), one).cmp(&(liking(one), other));
        let mut free = others.clone().filter(is_available);
        let best =
            if rules.prefer.is_empty() { free.next() } else { free.min_by(|one, other| order(one, other)) }.cloned();
        let in_use = in_use.filter(is_available).filter_map(|load| self.with_assigned(load, &entry.record));
        if let Some(load) = in_use.chain(best).min_by(order) {
            return self.holder(&load.node);
        }
        let wakes = others.filter_map(|load| backoff(&load.node)).map(|backoff: &Backoff| backoff.until).min();
        match wakes {
            Some(until) => Choice::InBackoff(until),
            None if matches!(eligible, EligibleNodes::All) && !excludes => no_slot(),
            None => Choice::EligibleFull,
        }
    }

    fn with_assigned(&self, load: &RunnerLoad, record: &TaskRecord) -> Option<RunnerLoad> {
        let runner = self.cluster.fleet.get(&load.node)?;
        let used = load.used + self.assigned.slots.get(&load.node).copied().unwrap_or_default();
        let slots = self.cluster.fleet.slots(runner);
        let has_slot = used + self.held.kept_slots(&load.node, record) < slots;
        (has_slot && self.has_quotas(&load.node, record)).then(|| RunnerLoad { used, ..load.clone() })
    }

    /// Tells whether each quota of a node that the task needs a part of has one left.
    fn has_quotas(&self, node: &NodeId, record: &TaskRecord) -> bool {
        Quota::of(record).all(|quota| {
            self.cluster.fleet.quotas.left(node, &quota).is_none_or(|left| left > self.assigned.of(node, &quota))
        })
    }

    fn holder(&self, node: &NodeId) -> Choice {
        self.cluster.fleet.get(node).map_or(Choice::NoFreeSlot, |registration| {
            Choice::Runner(Holder { node: registration.node.clone(), incarnation: registration.incarnation.clone() })
        })
    }

    fn count(&mut self, decision: &Decision, record: &'a TaskRecord) {
        let node = match decision {
            Decision::Resolve(_, to) => &to.node,
            Decision::Transition { events, .. } => match &events[..] {
                [TaskEvent::Assigned { to, .. }] => &to.node,
                _ => return,
            },
            _ => return,
        };
        if let Some(registration) = self.cluster.fleet.get(node) {
            self.assigned.add(&registration.node, record);
            self.held.use_slot(&registration.node, record);
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
    /// None: every registered node with the labels that it needs has failed the task for good.
    None,
}

impl EligibleNodes<'_> {
    pub(crate) fn has(&self, node: &NodeId) -> bool {
        match self {
            Self::All => true,
            Self::These(nodes) => nodes.contains(node),
            Self::None => false,
        }
    }
}

/// Returns the nodes that may try a task: those that have failed it least often by faults of their own. A stopping or
/// draining node does not make the task wait for it if another node can try again. Any node that has not failed the
/// task for good keeps it from being rejected. A task that is to be moved does not return to the node that had it.
pub(crate) fn eligible_nodes<'a>(cluster: &'a ClusterState, record: &TaskRecord) -> EligibleNodes<'a> {
    if record.moving.is_none() && record.attempts.iter().all(|attempt| attempt.node_fault.is_none()) {
        return EligibleNodes::All;
    }
    let fleet = &cluster.fleet;
    let faults = |registration: &Registration| {
        record.faults_of(&Holder { node: registration.node.clone(), incarnation: registration.incarnation.clone() })
    };
    let kind = KindName::from(&record.spec);
    let is_able = |there: &&Registration| record.placement.allow(&there.labels) && fleet.can_run(there, kind);
    let mut able = fleet.all().filter(is_able).peekable();
    if able.peek().is_none() {
        // One that can run it may still register.
        return EligibleNodes::These(BTreeSet::new());
    }
    let mut left: Vec<_> = able
        .map(|registration| (registration, faults(registration)))
        .filter(|(_, faults)| !faults.is_lasting)
        .collect();
    if left.is_empty() {
        return EligibleNodes::None;
    }
    left.retain(|(registration, _)| record.may_run_on(&registration.node));
    let accepts =
        |registration: &Registration| !registration.stopping && !fleet.drains.contains_key(&registration.node);
    let least = left.iter().filter(|(registration, _)| accepts(registration)).map(|(_, faults)| faults.passing).min();
    let is_least = |passing: usize| least.is_none_or(|least| passing <= least);
    EligibleNodes::These(
        left.into_iter()
            .filter(|(_, faults)| is_least(faults.passing))
            .map(|(registration, _)| &registration.node)
            .collect(),
    )
}
