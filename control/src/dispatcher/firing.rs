//! Takes the steps of schedules: stores each together with the task that it makes, and applies the outcome.

use super::Dispatcher;
use super::TermEnd;
use super::event::{Event, ScheduleOrigin};
use super::now::Now;
use super::pending_mutations::store_error;
use super::write_schedule::{ScheduleUpdate, ScheduleWritten};
use crate::coord::{CoordError, Refusal, paths};
use crate::model::schedule::{SkipCause, Step};
use crate::model::{Actor, OpId, ScheduleName, ScheduleRecord, Submission, TaskId, TaskRecord, Transitions};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::time::Duration;

/// Wait before the next write of a schedule after one that failed.
const WRITE_RETRY: Duration = Duration::from_millis(250);
/// Wait for the record of a task that has changed.
const READ_WAIT: Duration = Duration::from_millis(100);
/// Wait after a write that cannot succeed soon.
const DENIED_RETRY: Duration = Duration::from_secs(5);

impl Dispatcher {
    /// Starts the write of a schedule's next step.
    pub(crate) fn take_step(&mut self, name: &ScheduleName, step: Step, now: Now) {
        let Some(entry) = self.cluster.schedules.get(name) else { return };
        let record = entry.record.after(&step, now.unix_ms);
        let task = match &step {
            Step::Fire(_, task) => Some(self.task_of_schedule(name, (**task).clone(), Actor::Dispatcher, now)),
            Step::Skip(..) | Step::End => None,
        };
        let (after, known) = (Some(ScheduleRecord { op: OpId::fresh(), ..record }), Some(entry.version));
        // The end of the last task may not be known here yet.
        let unchanged = match &step {
            Step::Skip(_, SkipCause::Live(last)) => self.cluster.tasks.get(&last.id),
            Step::Fire(..) | Step::Skip(..) | Step::End => None,
        };
        let unchanged = unchanged.map(|entry| (entry.record.id.clone(), entry.version));
        let update = ScheduleUpdate { name: name.clone(), known, after, members: None, task, unchanged };
        self.write_schedule(update, ScheduleOrigin::Decided(step));
    }

    /// Returns the record of a task that a schedule makes.
    pub(crate) fn task_of_schedule(&self, name: &ScheduleName, task: Submission, by: Actor, now: Now) -> TaskRecord {
        let transitions = Transitions::created(now.unix_ms, by);
        TaskRecord { schedule: Some(name.clone()), transitions, ..TaskRecord::new(task, now.unix_ms) }
    }

    /// Starts a write of a schedule.
    pub(crate) fn write_schedule(&mut self, update: ScheduleUpdate, origin: ScheduleOrigin) {
        self.cluster.schedules.begin_write(&update.name);
        self.writes_inflight += 1;
        let writer = self.writer.clone();
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let written = writer.update_schedule(update.clone()).await;
            Event::ScheduleWritten { update: Box::new(update), origin, written }
        });
    }

    /// Applies the outcome of a write of a schedule.
    pub(crate) fn apply_schedule_written(
        &mut self,
        update: ScheduleUpdate,
        origin: ScheduleOrigin,
        written: ScheduleWritten,
    ) {
        let now = self.now();
        let name = update.name.clone();
        self.cluster.schedules.end_write(&name);
        match written {
            ScheduleWritten::Done(version) => self.apply_schedule(update, version, origin, now),
            ScheduleWritten::TaskExists => {
                // It was made before, or by a client: the instant counts as fired.
                if let Some(task) = &update.task {
                    tracing::info!(schedule = %name, task = %task.id, "task of an instant exists already");
                    self.reads.queue_read(task.id.clone());
                }
                self.write_schedule(ScheduleUpdate { task: None, ..update }, origin);
            }
            ScheduleWritten::Outdated(task) => {
                self.reads.queue_read(task);
                self.cluster.schedules.make_ready(&name, now.boot + READ_WAIT);
            }
            ScheduleWritten::Denied(denial) => {
                let code = if denial.why == Refusal::QuotaExceeded { Code::NoSpace } else { Code::Permission };
                let message = format!("{denial}: nothing has changed");
                let error = Error::new(code, Side::Coordination, Operation::Write, message);
                self.on_schedule_failed(&name, origin, error, now.boot + DENIED_RETRY);
            }
            ScheduleWritten::Failed(error) => {
                if let CoordError::Ended(_) = error {
                    self.ending = Some(TermEnd::SessionOver);
                }
                self.on_schedule_failed(&name, origin, store_error(&error), now.boot + WRITE_RETRY);
            }
            ScheduleWritten::LostLeadership => self.ending = Some(TermEnd::LostLeadership),
            ScheduleWritten::HistoryLost => self.on_history_lost(&paths::schedule(&name)),
        }
    }

    /// Applies a change that has been stored.
    fn apply_schedule(&mut self, update: ScheduleUpdate, version: i32, origin: ScheduleOrigin, now: Now) {
        let ScheduleUpdate { name, after, task, .. } = update;
        match after {
            Some(record) => {
                let last = record.last_task.clone();
                self.observe_schedule(record, version, now);
                // It may be a group that this schedule has to complete, and that was there before.
                last.iter().for_each(|task| self.cluster.make_due(task, now.boot));
            }
            None => self.cluster.schedules.forget(&name),
        }
        if let Some(task) = task {
            self.observe(task, 0, None);
        }
        match origin {
            ScheduleOrigin::Decided(step) => self.log_step(&name, &step),
            ScheduleOrigin::Client { reply, removed, cancelled, by } => {
                if let Some(task) = cancelled {
                    self.cancel_task_of_schedule(task, by);
                }
                match removed {
                    Some(view) => drop(reply.send(Ok(*view))),
                    None => self.answer_about_schedule(&name, reply),
                }
            }
        }
    }

    /// Applies the record of a schedule; one that cannot be acted on is reported and left alone.
    pub(crate) fn observe_schedule(&mut self, record: ScheduleRecord, version: i32, now: Now) {
        let path = paths::schedule(&record.name);
        match self.cluster.schedules.observe(record, version, now) {
            Ok(()) => {
                self.cluster.schedules.undecodable.remove(&path);
            }
            Err(error) => {
                tracing::error!(path, %error, "cannot decode a record: leaving it alone");
                self.cluster.schedules.undecodable.insert(path, error.message);
            }
        }
    }

    fn on_schedule_failed(&mut self, name: &ScheduleName, origin: ScheduleOrigin, error: Error, retry_at: Duration) {
        match origin {
            ScheduleOrigin::Decided(_) => {
                let failure = Some(format!("its record cannot be written: {}", error.message));
                if let Some(entry) = self.cluster.schedules.get_mut(name)
                    && std::mem::replace(&mut entry.failure, failure.clone()) != failure
                {
                    tracing::warn!(schedule = %name, %error, "write of a schedule failed");
                }
                self.cluster.schedules.make_ready(name, retry_at);
            }
            ScheduleOrigin::Client { reply, .. } => {
                self.cluster.schedules.make_ready(name, retry_at);
                let _ = reply.send(Err(error));
            }
        }
    }

    fn log_step(&self, name: &ScheduleName, step: &Step) {
        match step {
            Step::Fire(_, task) => {
                self.config.metrics.schedules_fired.inc();
                tracing::info!(schedule = %name, task = %task.id, "schedule fired");
            }
            Step::Skip(..) => {
                self.config.metrics.schedules_skipped.inc();
                let reason = self.cluster.schedules.get(name).map_or("", |entry| &entry.record.reason);
                tracing::warn!(schedule = %name, reason, "schedule made no task");
            }
            Step::End => tracing::info!(schedule = %name, "schedule ended"),
        }
    }

    fn cancel_task_of_schedule(&mut self, task: TaskId, by: Actor) {
        let (reply, _) = tokio::sync::oneshot::channel();
        let cancel = super::handle::Mutation::Command(crate::model::TaskCommand::Cancel);
        self.queue_mutation(task, cancel, by, reply);
    }
}
