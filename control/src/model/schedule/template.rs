//! Describes the tasks that a schedule makes, with patterns in the names of their volumes. Of a batch it describes the
//! group; [`MemberTemplate`](super::MemberTemplate) describes the members.

use super::time_pattern::resolve_volume;
use super::trigger::local_time;
use crate::model::{PlacementRules, ScheduleName, SignedOrder, Submission, TaskId, TaskSpec, TaskTimes};
use crate::timestamp::Timestamp;
use blockhaul_engine::error::{Error, Result};
use jiff::Zoned;
use serde::{Deserialize, Serialize};

/// Task that a schedule makes again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Work, with patterns in the names of its volumes.
    pub spec: TaskSpec,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Failures without progress after which a task fails.
    pub max_attempts: u32,
    /// Delay from an instant to the start of its task, and deadline.
    #[serde(default, skip_serializing_if = "TaskTimes::is_unset")]
    pub times: TaskTimes,
    /// Where a task may run.
    #[serde(default, skip_serializing_if = "PlacementRules::is_unset")]
    pub placement: PlacementRules,
    /// Windows inside of which a task may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<String>,
    /// What its client has signed, for all of its tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<SignedOrder>,
}

impl Template {
    /// Takes what a client has submitted as a template.
    ///
    /// # Errors
    /// `EBadRequest`: it depends on other tasks, belongs to a group, or starts at one time.
    pub(crate) fn new(submission: Submission) -> Result<Self> {
        let Submission {
            id: _,
            priority,
            max_attempts,
            spec,
            after,
            group,
            times,
            placement,
            windows,
            retry_of,
            notifies: _,
            order,
        } = submission;
        if !after.is_empty() || group.is_some() || retry_of.is_some() {
            return Err(Error::bad_request("the tasks of a schedule wait for no other tasks"));
        }
        if times.start_at_ms.is_some() {
            return Err(Error::bad_request(
                "the trigger of a schedule says when its tasks start: leave out --start-at",
            ));
        }
        Ok(Self { spec, priority, max_attempts, times, placement, windows, order })
    }

    /// Returns the task of an instant, under this id.
    ///
    /// # Errors
    /// `EBadRequest`: its names make no valid task at this instant.
    pub(crate) fn task(&self, id: TaskId, at: &Zoned) -> Result<Submission> {
        let spec = spec_at(&self.spec, at)?;
        let (times, placement, windows) = (self.times, self.placement.clone(), self.windows.clone());
        let order = self.order.clone();
        Ok(Submission {
            times,
            placement,
            windows,
            order,
            ..Submission::new(id, self.priority, self.max_attempts, spec)
        })
    }
}

impl TaskSpec {
    /// Returns the work of a schedule's template at an instant, in UTC.
    ///
    /// # Errors
    /// `EBadRequest`: its names make no valid task at this instant.
    pub fn at(&self, instant: Timestamp) -> Result<Self> {
        spec_at(self, &local_time(instant.0, "UTC")?)
    }
}

/// Returns the work of a template at an instant.
///
/// # Errors
/// `EBadRequest`: its names make no valid task at this instant.
pub(crate) fn spec_at(template: &TaskSpec, at: &Zoned) -> Result<TaskSpec> {
    let mut spec = template.clone();
    spec.kind_mut().rename_volumes(&|name| resolve_volume(name, at))?;
    spec.kind().validate()?;
    Ok(spec)
}

/// Returns the id of the task of an instant, which names the instant in UTC.
///
/// # Errors
/// `EBadRequest`: the instant has no name, as it is after the year 9999.
pub(crate) fn instant_id(schedule: &ScheduleName, at: &Zoned) -> Result<TaskId> {
    TaskId::new(format!("{schedule}.{}", at.timestamp().strftime("%Y%m%dT%H%M%SZ")))
}

/// Returns the id of the task of a boot. Its 8 digits depend on the kernel's boot id alone, so that each leader computes
/// the same.
///
/// # Errors
/// None for the name of a schedule.
pub(crate) fn boot_id(schedule: &ScheduleName, boot: &str) -> Result<TaskId> {
    let hash = blake3::hash(boot.as_bytes());
    let number = hash.as_bytes().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    TaskId::new(format!("{schedule}.boot-{:08}", number % 100_000_000))
}
