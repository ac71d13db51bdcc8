//! Counts the tasks of each node that share a quota there. Pure.
//!
//! | quota | which tasks | at most |
//! | --- | --- | --- |
//! | kind | of one kind | the setting `slots.KIND`, if it is set |
//! | apart | with one key of `--apart-from` | 1 |

use crate::model::{KindName, NodeId, Settings, TaskRecord};
use std::collections::BTreeMap;

/// What tasks of a node share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quota {
    /// The slots for tasks of one kind.
    Kind(KindName),
    /// The place of the only one of the tasks with this key.
    Apart(String),
}

impl Quota {
    /// Returns the quotas that a task needs a part of.
    pub(crate) fn of(record: &TaskRecord) -> impl Iterator<Item = Self> {
        let apart = record.placement.apart_from.clone().map(Self::Apart);
        [Self::Kind(KindName::from(&record.spec))].into_iter().chain(apart)
    }
}

/// Numbers of tasks by quota and node.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    used: BTreeMap<Quota, BTreeMap<NodeId, u32>>,
    kinds: BTreeMap<KindName, u32>,
}

impl Quotas {
    /// Applies the settings.
    pub(crate) fn set_limits(&mut self, settings: &Settings) {
        let of = |kind| settings.slots_of(kind).map(|slots| (kind, slots));
        self.kinds = [KindName::Copy, KindName::Verify, KindName::Run].into_iter().filter_map(of).collect();
    }

    /// Returns how many tasks of a kind each node may have; `None`: any number.
    pub(crate) fn most(&self, kind: KindName) -> Option<u32> {
        self.kinds.get(&kind).copied()
    }

    /// Counts a task that a node has, or is to have.
    pub(crate) fn add(&mut self, node: &NodeId, record: &TaskRecord) {
        for quota in Quota::of(record) {
            *self.used.entry(quota).or_default().entry(node.clone()).or_default() += 1;
        }
    }

    /// Counts it no longer.
    pub(crate) fn remove(&mut self, node: &NodeId, record: &TaskRecord) {
        for quota in Quota::of(record) {
            let Some(nodes) = self.used.get_mut(&quota) else { continue };
            match nodes.get_mut(node) {
                Some(used) if *used > 1 => *used -= 1,
                _ => drop(nodes.remove(node)),
            }
            if nodes.is_empty() {
                self.used.remove(&quota);
            }
        }
    }

    /// Returns how many further tasks a quota lets a node have; `None`: any number.
    pub(crate) fn left(&self, node: &NodeId, quota: &Quota) -> Option<u32> {
        let most = match quota {
            Quota::Kind(kind) => *self.kinds.get(kind)?,
            Quota::Apart(_) => 1,
        };
        let used = self.used.get(quota).and_then(|nodes| nodes.get(node)).copied().unwrap_or_default();
        Some(most.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NoopTask, PlacementRules, SettingName, Submission, TaskId, TaskSpec, VerifyTask};

    fn record(spec: TaskSpec, key: Option<&str>) -> TaskRecord {
        let placement = PlacementRules { apart_from: key.map(str::to_owned), ..PlacementRules::default() };
        TaskRecord::new(Submission { placement, ..Submission::new(TaskId::new("t").unwrap(), 0, 5, spec) }, 1)
    }

    #[test]
    fn a_quota_is_free_again_when_its_last_task_is_gone() {
        let node = NodeId::new("n1").unwrap();
        let mut settings = Settings::default();
        settings.set(SettingName::SlotsVerify, "2", 0).unwrap();
        let mut quotas = Quotas::default();
        quotas.set_limits(&settings);
        let verify = record(TaskSpec::Verify(VerifyTask::example("/a", "/b")), Some("k"));
        let (kind, apart) = (Quota::Kind(KindName::Verify), Quota::Apart(String::from("k")));
        assert_eq!((quotas.left(&node, &kind), quotas.left(&node, &apart)), (Some(2), Some(1)));
        // A task that is being assigned counts twice until its reservation ends.
        quotas.add(&node, &verify);
        quotas.add(&node, &verify);
        assert_eq!((quotas.left(&node, &kind), quotas.left(&node, &apart)), (Some(0), Some(0)));
        quotas.remove(&node, &verify);
        assert_eq!((quotas.left(&node, &kind), quotas.left(&node, &apart)), (Some(1), Some(0)));
        quotas.remove(&node, &verify);
        assert_eq!((quotas.left(&node, &kind), quotas.left(&node, &apart)), (Some(2), Some(1)));
        quotas.add(&node, &record(TaskSpec::Noop(NoopTask::new(1, None)), None));
        assert_eq!(quotas.left(&node, &Quota::Kind(KindName::Noop)), None);
    }
}
