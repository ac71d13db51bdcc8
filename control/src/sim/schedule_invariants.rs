//! Checks the invariants of schedules, from the committed records alone.
//!
//! - Instants are decided in their order, and each fires at most once.
//! - The write that says that an instant has fired creates its task, unless that exists; no other write creates one.
//! - A schedule makes no task while its last one is live.
//! - A boot fires at most once.
//! - Nothing is forgotten: [`InvariantChecker::undecided`].

use super::invariants::{InvariantChecker, ObservedState};
use crate::coord::sim::Commit;
use crate::coord::{Znode, paths};
use crate::model::{NodeId, Record, ScheduleName, ScheduleRecord, ScheduleState, TaskRecord, Trigger};
use std::collections::BTreeSet;

/// Schedules as they were committed last, and what they have fired.
#[derive(Debug, Default)]
pub(super) struct ObservedSchedules {
    records: std::collections::BTreeMap<ScheduleName, ScheduleRecord>,
    instants: BTreeSet<(ScheduleName, u64)>,
    boots: BTreeSet<(ScheduleName, String)>,
}

impl ObservedSchedules {
    /// Starts over from a stored record after history went back.
    pub(super) fn restore(&mut self, record: ScheduleRecord) {
        self.records.insert(record.name.clone(), record);
    }
}

impl InvariantChecker {
    /// Checks a write of a schedule, before the tasks of the same write are applied.
    pub(super) fn observe_schedule(
        &self,
        observed: &mut ObservedState,
        commit: &Commit<'_>,
        path: &str,
        node: Option<&Znode>,
    ) {
        let Some(name) = path.strip_prefix("/schedules/").and_then(|name| ScheduleName::new(name).ok()) else { return };
        let before = observed.schedules.records.remove(&name);
        let Some(node) = node else { return };
        let after = match ScheduleRecord::decode(&node.data) {
            Ok(after) => after,
            Err(error) => return self.result.fail(format_args!("{path}: {error}")),
        };
        if let Some(before) = &before {
            self.check_schedule_step(observed, commit, before, &after);
        }
        observed.schedules.records.insert(name, after);
    }

    fn check_schedule_step(
        &self,
        observed: &mut ObservedState,
        commit: &Commit<'_>,
        before: &ScheduleRecord,
        after: &ScheduleRecord,
    ) {
        let name = &after.name;
        let fail = |what: String| self.result.fail(format_args!("schedule {name}: {what}"));
        if after.considered_ms < before.considered_ms {
            fail(format!("went back from {} to {}", before.considered_ms, after.considered_ms));
        }
        let last = before.last_task.as_ref().and_then(|id| observed.record(id));
        let is_live = last.is_some_and(|record| !record.state.is_terminal());
        if after.skipped > before.skipped {
            self.result.count("instants skipped");
            if !is_live {
                fail(format!("an instant was skipped for nothing: {}", after.reason));
            }
        }
        if after.fired == before.fired {
            return;
        }
        self.result.count("schedules fired");
        if is_live {
            fail(format!("fired while {:?} was live", before.last_task));
        }
        let is_new = match (&after.trigger, &after.seen_boot) {
            (Trigger::OnBoot(_) | Trigger::NextBoot(_), Some(boot)) => {
                observed.schedules.boots.insert((name.clone(), boot.clone()))
            }
            _ => observed.schedules.instants.insert((name.clone(), after.last_fired_ms.unwrap_or_default())),
        };
        if !is_new {
            fail(format!("fired {:?} of {:?} twice", after.last_fired_ms, after.seen_boot));
        }
        if let (Trigger::Every { interval_ms, from_ms: Some(from_ms) }, Some(fired_ms)) =
            (&after.trigger, after.last_fired_ms)
            && (fired_ms % interval_ms != from_ms % interval_ms || fired_ms != after.considered_ms)
        {
            fail(format!("fired at {fired_ms}, which is no instant of {:?}", after.trigger));
        }
        let Some(task) = &after.last_task else { return fail(String::from("fired and made no task")) };
        let path = paths::task(task);
        let is_made = commit.changes.iter().any(|(changed, node)| *changed == path && node.is_some());
        if !is_made && observed.record(task).is_none() {
            fail(format!("fired, and there is no task {task}"));
        }
    }

    /// Checks the creation of a task: if a schedule has made it, the same write says so.
    pub(super) fn check_made_by_schedule(&self, observed: &ObservedState, commit: &Commit<'_>, task: &TaskRecord) {
        let Some(name) = &task.schedule else { return };
        let path = paths::schedule(name);
        let is_told = commit.changes.iter().any(|(changed, _)| *changed == path)
            && observed.schedules.records.get(name).is_some_and(|record| record.last_task.as_ref() == Some(&task.id));
        self.result.expect(is_told, || format!("{} was made, and schedule {name} does not know", task.id));
    }

    /// Returns an active schedule that has not decided on an instant up to `until_ms`, or on the boot of a node.
    pub(super) fn undecided(&self, until_ms: u64) -> Option<String> {
        let observed = self.observed();
        let is_open = |record: &&ScheduleRecord| {
            let timer = record.timer().expect("the scenario's triggers are valid");
            let boot = record.trigger.boots_of().and_then(|node| observed.boot_of(node));
            let awaits = matches!(record.trigger, Trigger::OnBoot(_));
            timer.last(until_ms).is_some_and(|last| last > record.considered_ms)
                || (awaits && boot.is_some() && boot != record.seen_boot.as_deref())
        };
        let mut active = observed.schedules.records.values().filter(|record| record.state == ScheduleState::Active);
        active
            .find(is_open)
            .map(|record| format!("schedule {} has not decided on all up to {until_ms}: {record:?}", record.name))
    }

    /// Returns the names of the schedules.
    pub(super) fn schedules(&self) -> Vec<ScheduleName> {
        self.observed().schedules.records.keys().cloned().collect()
    }
}

impl ObservedState {
    fn boot_of(&self, node: &NodeId) -> Option<&str> {
        self.registration(node).map(|there| there.boot_id.as_str())
    }
}
