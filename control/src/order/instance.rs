//! Computes the work that an order has for a task of some name. Pure.
//!
//! An order without a trigger is for the task whose id it names. One of a schedule is for the tasks that the schedule makes:
//! their ids name the instant, from which their work is computed anew, and which the trigger has to have. The tasks of boots
//! name no time, so their templates must not depend on one.

use super::content::{Order, OrderTrigger};
use super::refused;
use crate::model::schedule::{boot_id, instant_id, local_time, spec_at};
use crate::model::{NodeId, ScheduleName, TaskId, TaskSpec, Trigger};
use blockhaul_engine::error::{Error, Result};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// How far the leader's clock, by which schedules fire, may be ahead of this node's.
const AHEAD_MAX_MS: u64 = 60_000;
/// Two times that differ in every pattern of a name.
const SOME_TIMES_MS: [u64; 2] = [0, 62_744_523_000];

/// What a task is one of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instance {
    /// A task by itself.
    Single,
    /// The task of a schedule at an instant, in milliseconds since 1970.
    Instant(u64),
    /// The task of a schedule after a boot of this node.
    Boot(ScheduleName, NodeId),
}

impl Order {
    /// Returns the work that a task of this id has by the order. `here` is the node of plain paths where there is only one.
    ///
    /// # Errors
    /// `EPermission` if the order is for other tasks.
    pub(super) fn work(&self, id: &TaskId, here: Option<&NodeId>) -> Result<(TaskSpec, Instance)> {
        let mut spec = self.spec.clone();
        if let Some(here) = here {
            spec.kind_mut().imply_node(here);
        }
        let invalid = |error: Error| refused(format!("its work is invalid: {}", error.message));
        let Some(trigger) = &self.trigger else {
            if self.id != id.as_str() {
                return Err(refused(format!("it was signed for another task than {id}")));
            }
            spec.kind().validate().map_err(invalid)?;
            return Ok((spec, Instance::Single));
        };
        let schedule = ScheduleName::new(self.id.as_str()).map_err(|_| refused("it names no schedule"))?;
        if let Some(node) = trigger.when.boots_of() {
            let spec = timeless(&spec, trigger)?;
            return Ok((spec, Instance::Boot(schedule, node.clone())));
        }
        let at_ms = trigger.instant_of(&schedule, id)?;
        let at = local_time(at_ms, &trigger.zone).map_err(invalid)?;
        Ok((spec_at(&spec, &at).map_err(invalid)?, Instance::Instant(at_ms)))
    }

    /// Checks that an order can be that of a schedule which makes these tasks.
    ///
    /// # Errors
    /// `EPermission` if it is for something else, or no runner could check the tasks.
    pub(super) fn check_schedule(
        &self,
        name: &ScheduleName,
        (when, zone): (&Trigger, &str),
        template: &TaskSpec,
        here: Option<&NodeId>,
    ) -> Result<()> {
        let Some(trigger) = self.trigger.as_ref().filter(|_| self.id == name.as_str()) else {
            return Err(refused(format!("it was signed for something else than schedule {name}")));
        };
        if (&trigger.when, trigger.zone.as_str()) != (when, zone) {
            return Err(refused("it was signed with another trigger"));
        }
        trigger.check_phase()?;
        let mut spec = self.spec.clone();
        if let Some(here) = here {
            spec.kind_mut().imply_node(here);
        }
        if !spec.is_same_work(template) {
            return Err(refused("it was signed with another template"));
        }
        if let Some(node) = when.boots_of() {
            timeless(&spec, trigger)?;
            if spec.node().ok().flatten().as_ref() != Some(node) {
                let why = format!("no other node than {node} knows its boots: name it by --node");
                return Err(refused(format!("its tasks could run elsewhere, and {why}")));
            }
        }
        Ok(())
    }
}

impl OrderTrigger {
    /// Refuses a trigger whose instants depend on when the leader has stored it.
    fn check_phase(&self) -> Result<()> {
        match self.when {
            Trigger::Every { from_ms: None, .. } => {
                Err(refused("an interval that is signed counts from a time that is signed, too: add --from"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the instant that the id of a task names, if this trigger has it.
    fn instant_of(&self, schedule: &ScheduleName, id: &TaskId) -> Result<u64> {
        self.check_phase()?;
        let other = || refused(format!("{id} is no task of schedule {schedule}"));
        let text = id.as_str().strip_prefix(schedule.as_str()).and_then(|rest| rest.strip_prefix('.'));
        let local = DateTime::strptime("%Y%m%dT%H%M%SZ", text.ok_or_else(other)?).map_err(|_| other())?;
        let at = local.to_zoned(TimeZone::UTC).map_err(|_| other())?;
        if instant_id(schedule, &at).ok().as_ref() != Some(id) {
            return Err(other());
        }
        let at_ms = u64::try_from(at.timestamp().as_millisecond()).map_err(|_| other())?;
        let timer = self.when.timer(&self.zone, 0).map_err(|error| refused(error.message))?;
        if timer.last(at_ms) != Some(at_ms) {
            return Err(refused(format!("schedule {schedule} has no such instant as {id} names")));
        }
        if at_ms < self.from_ms {
            return Err(refused(format!("the instant that {id} names had passed when the order was signed")));
        }
        Ok(at_ms)
    }
}

impl Instance {
    /// Checks that the instant has come, or that the node has booted, as the node itself knows.
    ///
    /// # Errors
    /// `EPermission`.
    pub(super) fn check_now(&self, id: &TaskId, now_ms: u64, node: &NodeId, boot: &str) -> Result<()> {
        match self {
            Self::Instant(at_ms) if *at_ms > now_ms.saturating_add(AHEAD_MAX_MS) => {
                Err(refused(format!("the instant that {id} names has not come")))
            }
            Self::Boot(schedule, booted) if booted != node || boot_id(schedule, boot).ok().as_ref() != Some(id) => {
                Err(refused(format!("{id} is not the task of the last boot of this node")))
            }
            Self::Single | Self::Instant(_) | Self::Boot(..) => Ok(()),
        }
    }
}

/// Returns the work of a template that is the same at all times.
fn timeless(template: &TaskSpec, trigger: &OrderTrigger) -> Result<TaskSpec> {
    let at = |unix_ms| local_time(unix_ms, &trigger.zone).and_then(|at| spec_at(template, &at));
    let [first, second] = SOME_TIMES_MS.map(|unix_ms| at(unix_ms).map_err(|error| refused(error.message)));
    let first = first?;
    if first != second? {
        return Err(refused("the time of a boot is not signed: leave the patterns out of its names"));
    }
    Ok(first)
}
