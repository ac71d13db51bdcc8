//! Keeps slots and destinations free for groups that hold their place: the first member of such a group starts only when
//! all that its copies need is free, and that stays free for them. Pure.
//!
//! Nothing is remembered: what a group holds follows from its record and from those of its members, so that a new leader
//! keeps the same free. Destinations are compared by their names.
//!
//! A group needs the following, but at most as many slots as its batch lets run at once, and as a node has:
//! - for each copy that has not ended and that no runner has: its destination, and a slot of its node, or of any, unless it
//!   waits for another task, which may need that slot;
//! - one slot of each node where only other members are left, such as a hook that thaws what was frozen.
//!
//! A group whose turn it is and that lacks nothing but slots collects those that become free, so that it starts although
//! other tasks keep coming.

use super::cluster_state::{ClusterState, destination_key};
use super::quotas::Quota;
use crate::model::{KindName, Labels, NodeId, Registration, TaskId, TaskRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is kept free for groups.
#[derive(Debug)]
pub(crate) struct HeldPlaces<'a> {
    cluster: &'a ClusterState,
    /// Number of slots, by node and group.
    slots: BTreeMap<NodeId, BTreeMap<&'a TaskId, u32>>,
    /// Group that each destination is kept for, by the destination's name.
    destinations: BTreeMap<String, &'a TaskId>,
    /// Destinations of the tasks that are assigned by the present decision, and the groups of these tasks.
    assigned_writers: BTreeMap<String, (&'a TaskId, Option<&'a TaskId>)>,
    /// Groups whose members may start.
    taken: BTreeSet<&'a TaskId>,
    /// Groups that lack something.
    lacking: BTreeSet<&'a TaskId>,
}

/// Slots that are assigned by the present decision, by node, and the parts of quotas with them.
#[derive(Debug, Default)]
pub(crate) struct AssignedSlots<'a> {
    pub(crate) slots: BTreeMap<&'a NodeId, u32>,
    quotas: BTreeMap<(&'a NodeId, Quota), u32>,
}

impl<'a> AssignedSlots<'a> {
    /// Counts a task that gets a slot of a node.
    pub(crate) fn add(&mut self, node: &'a NodeId, record: &TaskRecord) {
        *self.slots.entry(node).or_default() += 1;
        for quota in Quota::of(record) {
            *self.quotas.entry((node, quota)).or_default() += 1;
        }
    }

    /// Returns the number of these tasks of a node that need a part of a quota.
    pub(crate) fn of(&self, node: &NodeId, quota: &Quota) -> u32 {
        let is_it = |((of, found), _): &(&(&NodeId, Quota), &u32)| *of == node && found == quota;
        self.quotas.iter().find(is_it).map_or(0, |(_, count)| *count)
    }
}

/// What a group needs, as far as it is free.
#[derive(Debug, Default)]
struct Place {
    slots: BTreeMap<NodeId, u32>,
    destinations: BTreeSet<String>,
    lack: Option<Lack>,
}

/// What kind of slot a member needs, and where. The ones with most labels sort last.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    node: Option<NodeId>,
    labels: usize,
    require: Labels,
    kind: KindName,
}

impl Need {
    fn of(record: &TaskRecord) -> Self {
        let node = record.only_node().ok().flatten();
        let require = if node.is_some() { Labels::new() } else { record.placement.require.clone() };
        Self { node, labels: require.len(), require, kind: KindName::from(&record.spec) }
    }
}

impl Place {
    /// Notes the first lack; one of slots alone counts only if there is no other one.
    fn lacks(&mut self, lack: Lack) {
        if matches!(self.lack, None | Some(Lack::Slots { .. }))
            && !matches!((&self.lack, &lack), (Some(_), Lack::Slots { .. }))
        {
            self.lack = Some(lack);
        }
    }
}

/// What a group lacks.
#[derive(Debug)]
enum Lack {
    /// Slots of a node, or of any.
    Slots { node: Option<NodeId>, free: u32, needed: u32 },
    /// The node of a member is not registered.
    Node(NodeId),
    /// The `taskd` of a member's node does not know its kind.
    Kind { node: NodeId, kind: KindName },
    /// Another task has the destination, or a group keeps it.
    Destination { volume: String, task: TaskId },
}

impl<'a> HeldPlaces<'a> {
    /// Returns what is kept free for the groups whose first member has started.
    pub(crate) fn new(cluster: &'a ClusterState) -> Self {
        let mut this = Self {
            cluster,
            slots: BTreeMap::new(),
            destinations: BTreeMap::new(),
            assigned_writers: BTreeMap::new(),
            taken: BTreeSet::new(),
            lacking: BTreeSet::new(),
        };
        let has_started = |member: &TaskRecord| !member.is_unstarted() || cluster.is_being_assigned(&member.id);
        for group in cluster.groups.holding().filter(|group| cluster.members(group).any(has_started)) {
            let place = this.place(group, &AssignedSlots::default());
            this.keep(group, place);
            this.taken.insert(group);
        }
        this
    }

    /// Returns the members of the groups that have taken their place.
    pub(crate) fn members(&self) -> Vec<&'a TaskId> {
        self.taken.iter().flat_map(|group| self.cluster.members(group)).map(|record| &record.id).collect()
    }

    /// Returns the nodes of which slots are kept free.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.slots.keys()
    }

    /// Tells whether slots of a node are kept free.
    pub(crate) fn keeps(&self, node: &NodeId) -> bool {
        self.slots.contains_key(node)
    }

    /// Returns the number of slots of a node that are kept free for other groups than that of a task.
    pub(crate) fn kept_slots(&self, node: &NodeId, record: &TaskRecord) -> u32 {
        self.kept_from(node, record.group.as_ref().map(|member| &member.group))
    }

    fn kept_from(&self, node: &NodeId, group: Option<&TaskId>) -> u32 {
        let kept = self.slots.get(node).into_iter().flatten();
        kept.filter(|(holder, _)| Some(**holder) != group).map(|(_, slots)| slots).sum()
    }

    /// Returns the other group for which a task's destination is kept free. A task that has claimed its destination already
    /// comes first: the group waits for it.
    pub(crate) fn keeper(&self, record: &TaskRecord) -> Option<&'a TaskId> {
        if !record.claims.is_empty() {
            return None;
        }
        let group = record.group.as_ref().map(|member| &member.group);
        let keeper = *self.destinations.get(&destination_key(record)?)?;
        (Some(keeper) != group).then_some(keeper)
    }

    /// Notes that a task gets its destination and a slot of a node: if one was kept free for it, that is no longer so.
    pub(crate) fn use_slot(&mut self, node: &NodeId, record: &'a TaskRecord) {
        if let Some(volume) = destination_key(record) {
            let group = record.group.as_ref().map(|member| &member.group);
            self.assigned_writers.insert(volume, (&record.id, group));
        }
        let Some(member) = &record.group else { return };
        if let Some(slots) = self.slots.get_mut(node).and_then(|kept| kept.get_mut(&member.group)) {
            *slots = slots.saturating_sub(1);
        }
    }

    /// Takes the place of a task's group, if it holds one, or collects slots for it. Returns whether the task may start.
    pub(crate) fn take(&mut self, record: &TaskRecord, assigned: &AssignedSlots<'_>) -> bool {
        let Some(group) = self.holding_group(record).filter(|group| !self.taken.contains(group)) else { return true };
        if self.lacking.contains(group) {
            return false;
        }
        let place = self.place(group, assigned);
        let is_complete = place.lack.is_none();
        if is_complete {
            self.taken.insert(group);
        } else {
            self.lacking.insert(group);
        }
        if matches!(place.lack, None | Some(Lack::Slots { .. })) {
            self.keep(group, place);
        }
        is_complete
    }

    fn holding_group(&self, record: &TaskRecord) -> Option<&'a TaskId> {
        let group = &self.cluster.group(record)?.id;
        self.cluster.groups.is_holding(group).then_some(group)
    }

    fn keep(&mut self, group: &'a TaskId, place: Place) {
        for (node, slots) in place.slots {
            self.slots.entry(node).or_default().insert(group, slots);
        }
        self.destinations.extend(place.destinations.into_iter().map(|volume| (volume, group)));
    }

    /// Returns what a group needs and does not have.
    fn place(&self, group: &TaskId, assigned: &AssignedSlots<'_>) -> Place {
        let cluster = self.cluster;
        let waits = |record: &&TaskRecord| {
            !record.state.is_terminal() && record.holder.is_none() && !cluster.is_being_assigned(&record.id)
        };
        let waiting: Vec<&TaskRecord> = cluster.members(group).filter(waits).collect();
        let (copies, others): (Vec<&TaskRecord>, Vec<&TaskRecord>) =
            waiting.into_iter().partition(|record| destination_key(record).is_some());
        // Whom a member waits for may need the slot.
        let blocked_by = |record: &TaskRecord| cluster.tasks.get(&record.id)?.runtime.blocked_by.as_ref();
        let is_free = |record: &&TaskRecord| blocked_by(record).is_none();
        let mut place = Place::default();
        for copy in &copies {
            let Some(volume) = destination_key(copy) else { continue };
            if let Some(task) = self.destinations.get(&volume).copied().filter(|keeper| *keeper != group) {
                place.lacks(Lack::Destination { volume: volume.clone(), task: task.clone() });
            }
            let assigned_writer = self.assigned_writers.get(&volume).filter(|(_, of)| *of != Some(group));
            let writer = cluster.claiming_writer(&volume, group).or(assigned_writer.map(|(task, _)| *task));
            if let Some(task) = writer {
                place.lacks(Lack::Destination { volume: volume.clone(), task: task.clone() });
            }
            if let Some(task) = blocked_by(copy).and_then(|claim| cluster.claimed.get(claim)) {
                place.lacks(Lack::Destination { volume: volume.clone(), task: task.clone() });
            }
            place.destinations.insert(volume);
        }
        let at_once = cluster.places_left(group).unwrap_or(usize::MAX);
        let mut needed: BTreeMap<Need, u32> = BTreeMap::new();
        for copy in copies.into_iter().filter(is_free).take(at_once) {
            *needed.entry(Need::of(copy)).or_default() += 1;
        }
        for other in others.into_iter().filter(is_free) {
            let need = Need::of(other);
            let is_covered = |known: &Need| known.node == need.node && known.require == need.require;
            if !needed.keys().any(is_covered) {
                needed.insert(need, 1);
            }
        }
        // What can run anywhere comes last: it takes what the others leave.
        let (anywhere, of_node): (Vec<_>, Vec<_>) = needed.into_iter().partition(|(need, _)| need.node.is_none());
        for (need, count) in of_node.iter().chain(anywhere.iter().rev()) {
            match &need.node {
                Some(node) => self.add_slots_of(node, need, *count, (group, assigned), &mut place),
                None => self.add_slots_anywhere(need, *count, (group, assigned), &mut place),
            }
        }
        place
    }

    fn add_slots_of(
        &self,
        node: &NodeId,
        need: &Need,
        count: u32,
        (group, assigned): (&TaskId, &AssignedSlots<'_>),
        place: &mut Place,
    ) {
        let fleet = &self.cluster.fleet;
        let Some(there) = fleet.get(node) else { return place.lacks(Lack::Node(node.clone())) };
        if !fleet.can_run(there, need.kind) {
            return place.lacks(Lack::Kind { node: node.clone(), kind: need.kind });
        }
        let needed = count.min(fleet.slots_for(there, need.kind));
        let kept = place.slots.get(node).copied().unwrap_or_default();
        let free = self.free_slots(node, need.kind, group, assigned).saturating_sub(kept).min(needed);
        if free < needed {
            place.lacks(Lack::Slots { node: Some(node.clone()), free, needed });
        }
        *place.slots.entry(node.clone()).or_default() += free;
    }

    fn add_slots_anywhere(
        &self,
        need: &Need,
        count: u32,
        (group, assigned): (&TaskId, &AssignedSlots<'_>),
        place: &mut Place,
    ) {
        let kept = |place: &Place, node: &NodeId| place.slots.get(node).copied().unwrap_or_default();
        let fleet = &self.cluster.fleet;
        let has_labels = |labels: &Labels| need.require.iter().all(|(key, value)| labels.get(key) == Some(value));
        let is_able = |there: &Registration| has_labels(&there.labels) && fleet.can_run(there, need.kind);
        let able_nodes = fleet.all().filter(|there| is_able(there));
        let most = able_nodes
            .map(|there| fleet.slots_for(there, need.kind).saturating_sub(kept(place, &there.node)))
            .fold(0, u32::saturating_add);
        let needed = count.min(most);
        let mut left = needed;
        for load in fleet.open() {
            if left == 0 {
                break;
            }
            if !fleet.get(&load.node).is_some_and(is_able) {
                continue;
            }
            let free = self.free_slots(&load.node, need.kind, group, assigned);
            let more = free.saturating_sub(kept(place, &load.node)).min(left);
            if more > 0 {
                *place.slots.entry(load.node.clone()).or_default() += more;
                left -= more;
            }
        }
        if left > 0 {
            place.lacks(Lack::Slots { node: None, free: needed - left, needed });
        }
    }

    /// Returns the number of slots of a node that a member of a group could get.
    fn free_slots(&self, node: &NodeId, kind: KindName, group: &TaskId, assigned: &AssignedSlots<'_>) -> u32 {
        let (Some(there), Some(load)) = (self.cluster.fleet.get(node), self.cluster.fleet.load(node)) else { return 0 };
        let used =
            load.used + assigned.slots.get(node).copied().unwrap_or_default() + self.kept_from(node, Some(group));
        let quota = Quota::Kind(kind);
        let of_kind = self.cluster.fleet.quotas.left(node, &quota);
        let of_kind = of_kind.map_or(u32::MAX, |left| left.saturating_sub(assigned.of(node, &quota)));
        self.cluster.fleet.slots(there).saturating_sub(used).min(of_kind)
    }
}

/// Explains what the group of a task, or a group itself, lacks before its first member may start; `None`: nothing.
pub(crate) fn lack_reason(cluster: &ClusterState, record: &TaskRecord) -> Option<String> {
    let group = if record.is_group() { Some(record) } else { cluster.group(record) }?;
    if !cluster.groups.is_holding(&group.id) {
        return None;
    }
    let places = HeldPlaces::new(cluster);
    if places.taken.contains(&group.id) {
        return None;
    }
    let lack = places.place(&group.id, &AssignedSlots::default()).lack?;
    Some(format!("waiting until all that {} needs is free: {lack}", group.id))
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots { node: Some(node), free, needed } => write!(f, "{node} has {free} of {needed} slots free"),
            Self::Slots { node: None, free, needed } => write!(f, "{free} of {needed} slots are free"),
            Self::Node(node) => write!(f, "{node} is not registered"),
            Self::Kind { node, kind } => write!(f, "{node} has a taskd that cannot run a {}", <&str>::from(kind)),
            Self::Destination { volume, task } => write!(f, "task {task} writes {volume}"),
        }
    }
}
