//! Tracks the registered runners, the tasks of each, and their free slots.

use super::backoff::Backoff;
use super::exclusion::Exclusions;
use super::quotas::Quotas;
use crate::model::level::LEVEL_MIN;
use crate::model::{Abilities, Drain, Holder, KindName, NodeId, Placement, Registration, Settings, TaskId, TaskRecord};
use crate::peers::Peer;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use strum::VariantArray;

/// Load of a runner; the one that gets the next task sorts first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunnerLoad {
    /// Sum of the sizes of the sources that it copies.
    pub(crate) bytes: u64,
    /// Slots in use.
    pub(crate) used: u32,
    /// All slots.
    pub(crate) slots: u32,
    pub(crate) placement: Placement,
    /// The runner.
    pub(crate) node: NodeId,
}

impl RunnerLoad {
    /// Returns what decides which runner gets the next task: the least goes first.
    fn rank(&self) -> (u64, u32, &NodeId) {
        let free = self.slots.saturating_sub(self.used);
        match self.placement {
            Placement::Spread => (self.bytes, u32::MAX - free, &self.node),
            Placement::Fill => (0, free, &self.node),
        }
    }
}

impl PartialOrd for RunnerLoad {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RunnerLoad {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// Why a registered node can get no task, whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unavailability {
    /// It returns its tasks.
    Stopping,
    /// An operator drains it.
    Draining,
    /// It has refused a task for a reason of its own a moment ago.
    Refusing,
    /// It has no free slot.
    Full,
}

/// Runners and their load. The tasks of a runner count also while it is not registered.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    runners: BTreeMap<NodeId, Registration>,
    /// What the runners announce that they can do.
    abilities: BTreeMap<NodeId, Abilities>,
    /// Level of the center, if it has one.
    level: Option<u32>,
    /// Kinds of tasks that at least one registered process cannot run.
    lacked: BTreeSet<KindName>,
    /// Nodes whose registrations cannot be decoded: they are there, and get no tasks.
    unreadable: BTreeSet<NodeId>,
    /// Addresses of processes that are kept from registering, by their node's name.
    pub(crate) refused: BTreeMap<NodeId, BTreeSet<String>>,
    /// When an attempt has ended last on each node, in milliseconds since 1970, and of which task.
    last_ended: BTreeMap<NodeId, (u64, TaskId)>,
    /// Drain records of operators, and their versions.
    pub(crate) drains: BTreeMap<NodeId, (Drain, i32)>,
    /// Numbers of drains that are being stored.
    drains_underway: BTreeMap<NodeId, usize>,
    loads: BTreeMap<NodeId, NodeLoad>,
    /// Tasks that are being assigned to a runner.
    reserved: BTreeMap<TaskId, (NodeId, Arc<TaskRecord>)>,
    /// Last backoff of each runner, until it accepts a task.
    backoffs: BTreeMap<NodeId, Backoff>,
    /// Runners that are in backoff now.
    in_backoff: BTreeSet<NodeId>,
    /// Nodes that fail one task after the other.
    pub(crate) exclusions: Exclusions,
    open: BTreeSet<RunnerLoad>,
    placement: Placement,
    /// Most tasks of a node, whatever its own slots are.
    slots_max: Option<u32>,
    pub(crate) quotas: Quotas,
    loads_open: BTreeMap<NodeId, RunnerLoad>,
    unavailability_of: BTreeMap<NodeId, Unavailability>,
    unavailable: BTreeMap<Unavailability, usize>,
    /// Nodes that have registered one address, by that address, as they were reported last.
    pub(crate) conflicts: BTreeMap<String, BTreeSet<NodeId>>,
    /// Registrations that cannot be decoded, by path, and why.
    pub(crate) undecodable: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct NodeLoad {
    /// Size of each task that it holds, in bytes.
    tasks: BTreeMap<TaskId, u64>,
    bytes: u64,
    reserved: u32,
}

impl NodeLoad {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.reserved == 0
    }
}

impl Fleet {
    pub(crate) fn get(&self, node: &NodeId) -> Option<&Registration> {
        self.runners.get(node)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Registration> {
        self.runners.values()
    }

    /// Returns the number of tasks that a runner may have at once.
    pub(crate) fn slots(&self, runner: &Registration) -> u32 {
        self.slots_max.map_or(runner.slots, |most| most.min(runner.slots))
    }

    /// Sets the order in which nodes get tasks, and how many of them.
    pub(crate) fn set_policy(&mut self, settings: &Settings) {
        (self.placement, self.slots_max) = (settings.placement, settings.slots);
        self.quotas.set_limits(settings);
        let nodes: Vec<NodeId> = self.runners.keys().cloned().collect();
        nodes.iter().for_each(|node| self.refresh(node));
    }

    /// Returns how a holder can be reached; `None` if that process is not registered.
    pub(crate) fn peer(&self, holder: &Holder) -> Option<Peer> {
        self.get(&holder.node).filter(|registration| registration.incarnation == holder.incarnation).map(Peer::from)
    }

    /// Applies what the runners announce that they can do.
    pub(crate) fn set_abilities(&mut self, abilities: BTreeMap<NodeId, Abilities>) {
        self.abilities = abilities;
        self.find_lacked();
    }

    /// Applies the level of the center.
    pub(crate) fn set_level(&mut self, level: Option<u32>) {
        self.level = level;
        self.find_lacked();
    }

    /// Notes the nodes whose registrations cannot be decoded. Returns those of before.
    pub(crate) fn set_unreadable(&mut self, nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        std::mem::replace(&mut self.unreadable, nodes)
    }

    /// Returns the nodes whose registrations cannot be decoded.
    pub(crate) fn unreadable(&self) -> &BTreeSet<NodeId> {
        &self.unreadable
    }

    /// Tells whether a node has a registration that cannot be decoded.
    pub(crate) fn is_unreadable(&self, node: &NodeId) -> bool {
        self.unreadable.contains(node)
    }

    /// Notes the attempts of a task that have ended.
    pub(crate) fn note_ended(&mut self, record: &TaskRecord) {
        for attempt in &record.attempts {
            let Some(ended_ms) = attempt.ended_ms else { continue };
            let node = &attempt.runner.node;
            if self.last_ended.get(node).is_none_or(|(known_ms, _)| *known_ms < ended_ms) {
                self.last_ended.insert(node.clone(), (ended_ms, record.id.clone()));
            }
        }
    }

    /// Returns when an attempt has ended last on a node, in milliseconds since 1970, and of which task.
    pub(crate) fn last_ended(&self, node: &NodeId) -> Option<&(u64, TaskId)> {
        self.last_ended.get(node)
    }

    /// Returns the level that a registered process announces.
    pub(crate) fn level_of(&self, runner: &Registration) -> u32 {
        self.announced(runner).map_or(LEVEL_MIN, |able| able.level)
    }

    /// Tells whether a registered process knows a kind of task, and the level of the center.
    pub(crate) fn can_run(&self, runner: &Registration, kind: KindName) -> bool {
        match self.announced(runner) {
            Some(able) => able.knows(kind) && self.level.is_none_or(|level| level <= able.level),
            // It has come in between the look at the others and the raise.
            None if self.level.is_some_and(|level| level > LEVEL_MIN) => false,
            None => Abilities::unannounced(runner.incarnation.clone()).knows(kind),
        }
    }

    /// Tells whether there are registered processes that cannot run a kind of task.
    pub(crate) fn is_lacked(&self, kind: KindName) -> bool {
        self.lacked.contains(&kind)
    }

    /// Notes the kinds that some cannot run: once for each change of the processes, not for each task that is explained.
    fn find_lacked(&mut self) {
        let is_lacked = |kind: &KindName| self.runners.values().any(|runner| !self.can_run(runner, *kind));
        self.lacked = KindName::VARIANTS.iter().copied().filter(is_lacked).collect();
    }

    fn announced(&self, runner: &Registration) -> Option<&Abilities> {
        self.abilities.get(&runner.node).filter(|able| able.incarnation == runner.incarnation)
    }

    /// Returns the tasks that a node holds.
    pub(crate) fn tasks(&self, node: &NodeId) -> impl Iterator<Item = &TaskId> {
        self.loads.get(node).into_iter().flat_map(|load| load.tasks.keys())
    }

    /// Returns how many tasks of a kind a runner may have at once.
    pub(crate) fn slots_for(&self, runner: &Registration, kind: KindName) -> u32 {
        self.slots(runner).min(self.quotas.most(kind).unwrap_or(u32::MAX))
    }

    /// Returns the runners with free slots, the least loaded first.
    pub(crate) fn open(&self) -> &BTreeSet<RunnerLoad> {
        &self.open
    }

    /// Returns the load of a runner, if it has a free slot.
    pub(crate) fn load(&self, node: &NodeId) -> Option<&RunnerLoad> {
        self.loads_open.get(node)
    }

    /// Replaces the registrations; returns the nodes whose process has appeared, disappeared or changed.
    pub(crate) fn replace(&mut self, runners: BTreeMap<NodeId, Registration>) -> BTreeSet<NodeId> {
        let before = std::mem::replace(&mut self.runners, runners);
        let nodes: BTreeSet<NodeId> = before.keys().chain(self.runners.keys()).cloned().collect();
        let process =
            |registration: Option<&Registration>| registration.map(|registration| registration.incarnation.clone());
        let has_changed = |node: &NodeId| process(before.get(node)) != process(self.runners.get(node));
        let changed: BTreeSet<NodeId> = nodes.iter().filter(|node| has_changed(node)).cloned().collect();
        for node in &changed {
            self.backoffs.remove(node);
            self.in_backoff.remove(node);
        }
        nodes.iter().for_each(|node| self.refresh(node));
        self.find_lacked();
        changed
    }

    /// Finds addresses that several nodes have registered: at most one of them can be reached there. Returns the new
    /// ones.
    pub(crate) fn find_conflicts(&mut self) -> Vec<(String, BTreeSet<NodeId>)> {
        let mut nodes: BTreeMap<String, BTreeSet<NodeId>> = BTreeMap::new();
        for registration in self.runners.values() {
            nodes.entry(registration.address.clone()).or_default().insert(registration.node.clone());
        }
        nodes.retain(|_, nodes| nodes.len() > 1);
        let before = std::mem::replace(&mut self.conflicts, nodes);
        let is_new = |(address, nodes): &(&String, &BTreeSet<NodeId>)| before.get(*address) != Some(nodes);
        self.conflicts.iter().filter(is_new).map(|(address, nodes)| (address.clone(), nodes.clone())).collect()
    }

    /// Returns another node that has registered the address of a node.
    pub(crate) fn conflicting_node(&self, node: &NodeId) -> Option<&NodeId> {
        let nodes = self.conflicts.get(&self.get(node)?.address)?;
        nodes.iter().find(|other| *other != node)
    }

    /// Counts a task as held by a node.
    pub(crate) fn hold(&mut self, node: &NodeId, task: &TaskId, bytes: u64) {
        let load = self.loads.entry(node.clone()).or_default();
        let before = load.tasks.insert(task.clone(), bytes).unwrap_or_default();
        load.bytes = load.bytes - before + bytes;
        self.refresh(node);
    }

    /// Removes a task from a node.
    pub(crate) fn release(&mut self, node: &NodeId, task: &TaskId) {
        let Some(load) = self.loads.get_mut(node) else { return };
        load.bytes -= load.tasks.remove(task).unwrap_or_default();
        if load.is_empty() {
            self.loads.remove(node);
        }
        self.refresh(node);
    }

    /// Reserves a slot of a node for a task.
    pub(crate) fn reserve(&mut self, node: &NodeId, record: &Arc<TaskRecord>) {
        self.unreserve(&record.id);
        self.quotas.add(node, record);
        self.reserved.insert(record.id.clone(), (node.clone(), record.clone()));
        self.loads.entry(node.clone()).or_default().reserved += 1;
        self.refresh(node);
    }

    /// Releases the slot that was reserved for a task.
    pub(crate) fn unreserve(&mut self, task: &TaskId) {
        let Some((node, record)) = self.reserved.remove(task) else { return };
        self.quotas.remove(&node, &record);
        if let Some(load) = self.loads.get_mut(&node) {
            load.reserved -= 1;
            if load.is_empty() {
                self.loads.remove(&node);
            }
        }
        self.refresh(&node);
    }

    /// Treats a runner that returns its tasks as stopping until its registration has been read again.
    pub(crate) fn mark_stale(&mut self, node: &NodeId) {
        if let Some(runner) = self.runners.get_mut(node) {
            runner.stopping = true;
            self.refresh(node);
        }
    }

    /// Starts the backoff of a runner that has refused a task for a reason of its own.
    pub(crate) fn start_backoff(&mut self, node: &NodeId, now: Duration) {
        let backoff = self.backoffs.get(node).copied().unwrap_or_default().again(now);
        self.backoffs.insert(node.clone(), backoff);
        self.in_backoff.insert(node.clone());
        self.refresh(node);
    }

    /// Ends the backoff of a runner that has accepted a task.
    pub(crate) fn clear_backoff(&mut self, node: &NodeId) {
        if self.backoffs.remove(node).is_some() {
            self.in_backoff.remove(node);
            self.refresh(node);
        }
    }

    /// Makes the runners available again whose backoff or exclusion is over.
    pub(crate) fn end_backoffs(&mut self, now: Duration) {
        for node in self.exclusions.end(now) {
            tracing::info!(%node, "node gets tasks again: its exclusion is over");
        }
        let is_over = |node: &NodeId| self.backoffs.get(node).is_none_or(|backoff| backoff.until <= now);
        let over: Vec<NodeId> = self.in_backoff.iter().filter(|node| is_over(node)).cloned().collect();
        for node in over {
            self.in_backoff.remove(&node);
            self.refresh(&node);
        }
    }

    /// Returns when the next backoff or exclusion ends.
    pub(crate) fn next_backoff_end(&self) -> Option<Duration> {
        let backoff =
            self.in_backoff.iter().filter_map(|node| self.backoffs.get(node)).map(|backoff| backoff.until).min();
        [backoff, self.exclusions.next_end()].into_iter().flatten().min()
    }

    /// Returns the nodes that are drained, or are about to be.
    pub(crate) fn drained(&self) -> impl Iterator<Item = &NodeId> {
        let stored = self.drains.keys().filter(|node| !self.drains_underway.contains_key(*node));
        stored.chain(self.drains_underway.keys())
    }

    /// Returns the nodes that hold no task and could get one.
    pub(crate) fn idle(&self) -> impl Iterator<Item = &NodeId> {
        self.loads_open.keys().filter(|node| !self.loads.contains_key(*node))
    }

    /// Lets a node have no tasks while its drain is being stored.
    pub(crate) fn begin_drain(&mut self, node: &NodeId) {
        *self.drains_underway.entry(node.clone()).or_default() += 1;
        self.refresh(node);
    }

    /// Notes that its drain is stored, or is not.
    pub(crate) fn end_drain(&mut self, node: &NodeId) {
        match self.drains_underway.get_mut(node) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.drains_underway.remove(node)),
        }
        self.refresh(node);
    }

    /// Sets or removes a node's drain record.
    pub(crate) fn set_drain(&mut self, node: &NodeId, drain: Option<(Drain, i32)>) {
        match drain {
            Some(drain) => self.drains.insert(node.clone(), drain),
            None => self.drains.remove(node),
        };
        self.refresh(node);
    }

    /// Returns the numbers of registered nodes that can get no task now, whichever it is, by why that is so.
    pub(crate) fn unavailable(&self) -> &BTreeMap<Unavailability, usize> {
        &self.unavailable
    }

    /// Returns why a registered node can get no task now, whichever it is.
    pub(crate) fn unavailability(&self, node: &NodeId) -> Option<Unavailability> {
        self.unavailability_of.get(node).copied()
    }

    fn find_unavailability(&self, runner: &Registration, used: u32) -> Option<Unavailability> {
        let node = &runner.node;
        if runner.stopping {
            return Some(Unavailability::Stopping);
        }
        if self.drains.contains_key(node) || self.drains_underway.contains_key(node) {
            return Some(Unavailability::Draining);
        }
        if self.in_backoff.contains(node) {
            return Some(Unavailability::Refusing);
        }
        (used >= self.slots(runner)).then_some(Unavailability::Full)
    }

    fn refresh(&mut self, node: &NodeId) {
        if let Some(before) = self.unavailability_of.remove(node)
            && let Some(count) = self.unavailable.get_mut(&before)
        {
            *count -= 1;
        }
        if let Some(load) = self.loads_open.remove(node) {
            self.open.remove(&load);
        }
        let Some(runner) = self.runners.get(node) else { return };
        let load = self.loads.get(node);
        let used = load.map_or(0, |load| u32::try_from(load.tasks.len()).unwrap_or(u32::MAX) + load.reserved);
        let slots = self.slots(runner);
        if let Some(unavailability) = self.find_unavailability(runner, used) {
            self.unavailability_of.insert(node.clone(), unavailability);
            *self.unavailable.entry(unavailability).or_default() += 1;
            return;
        }
        let bytes = load.map_or(0, |load| load.bytes);
        let load = RunnerLoad { bytes, used, slots, placement: self.placement, node: node.clone() };
        self.open.insert(load.clone());
        self.loads_open.insert(node.clone(), load);
    }
}
