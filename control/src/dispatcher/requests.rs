//! Answers the requests of clients and operators, and applies the hints and the telemetry of runners.

use super::event::WriteOrigin;
use super::handle::{Mutation, PAGE_MAX, Page, Query, Reply, Request};
use super::level::check_level;
use super::pending_mutations::not_found;
use super::status::{RunnerSummary, RunningTotals, Status};
use super::tasks::TaskEntry;
use super::unplaced::ObstacleCounts;
use super::{Dispatcher, explain};
use crate::model::{
    Actor, Dependency, DesiredState, FenceMethod, GroupName, Membership, NodeId, Record, ScheduleName, SignedOrder,
    Submission, TaskId, TaskRecord, TaskState, Transitions,
};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::flow::graph::Condition;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strum::VariantArray;
use tokio::sync::{oneshot, watch};

/// Largest record of a new task in bytes, without its dependencies and transitions, which have bounds of their own: leaves room for its
/// durable map, attempts and errors.
pub(crate) const NEW_BYTES_MAX: usize = 4 << 10;
/// Largest record of a new task that is signed, in bytes: its work is in there twice, and what happens to it later has to fit.
const SIGNED_BYTES_MAX: usize = 6 << 10;

impl Dispatcher {
    /// Serves one request, or starts the write that it needs.
    pub(crate) fn serve(&mut self, request: Request) {
        match request {
            Request::Submit(submission, by, reply) => self.submit(*submission, by, reply),
            Request::Get(id, reply) => {
                let _ = reply.send(self.describe(&id).ok_or_else(|| not_found(&id)));
            }
            Request::List(query, reply) => {
                let _ = reply.send(Ok(self.list(&query)));
            }
            Request::Watch(id, reply) => {
                let _ = reply.send(self.watch(&id));
            }
            Request::Feed(reply) => {
                let _ = reply.send(Ok(self.reader()));
            }
            Request::Snapshot(reply) => {
                let _ = reply.send(Ok(self.snapshot()));
            }
            Request::Mutate(id, mutation, by, reply) => self.queue_mutation(id, mutation, by, reply),
            Request::Runners(reply) => {
                // No watch tells of refused processes: whoever asks again sees them.
                self.reads.queue_fleet_read();
                let _ = reply.send(Ok(self.runners()));
            }
            Request::Include(node, reply) => {
                let was_excluded = self.cluster.fleet.exclusions.succeeded(&node);
                tracing::info!(%node, was_excluded, "operator includes a node");
                let _ = reply.send(Ok(was_excluded));
            }
            Request::Drain { node, mode, lasts, reply } => self.drain(node, mode, lasts, reply),
            Request::DrainIdle { count, lasts, reply } => {
                let _ = reply.send(Ok(self.drain_idle(count, lasts)));
            }
            Request::Fence(node, by, reply) => {
                let _ = reply.send(self.fence(&node, &by));
            }
            Request::Status(reply) => {
                let _ = reply.send(Ok(self.status()));
            }
            Request::Settings { changes, if_version, reply } => self.change_settings(changes, if_version, reply),
            Request::Schedule(name, command, by, reply) => self.queue_schedule_request(name, command, by, reply),
            Request::GetSchedule(name, reply) => self.answer_about_schedule(&name, reply),
            Request::ListSchedules(after, reply) => {
                let _ = reply.send(Ok(self.list_schedules(after.as_ref())));
            }
            Request::Changed(ids) => ids.into_iter().for_each(|id| self.reads.queue_read(id)),
            Request::Progress(updates) => {
                for (id, progress) in updates {
                    if self.cluster.observe_progress(&id, progress) {
                        self.notify(&id);
                    }
                }
            }
        }
    }

    /// Returns a task as clients see it: with telemetry, and with the reason why it is not running.
    pub(crate) fn describe(&self, id: &TaskId) -> Option<Arc<TaskRecord>> {
        self.cluster.tasks.get(id).map(|entry| explain::describe(&self.cluster, entry, self.now()))
    }

    pub(crate) fn submit(&mut self, submission: Submission, by: Actor, reply: Reply<Arc<TaskRecord>>) {
        let record = match self.new_record(submission.clone(), by) {
            Ok(record) => record,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let id = record.id.clone();
        let waiting = self.submitters.entry(id.clone()).or_default();
        waiting.push((submission.clone(), reply));
        if waiting.len() > 1 {
            return;
        }
        if self.cluster.tasks.get(&id).is_some() {
            return self.answer_submitters(&id);
        }
        self.cluster.announce(&submission);
        self.start_write(id, WriteOrigin::Submitted, move |writer| writer.create(record));
    }

    /// Refuses a task whose fence is a program that this node does not have.
    pub(crate) fn check_fence(&self, submission: &Submission) -> Result<()> {
        if submission.spec.kind().fence() == FenceMethod::Command && self.config.fence.is_none() {
            let message = "no fence program: start every taskd with --fence-command FILE, or use another fence";
            return Err(Error::new(Code::Unsupported, Side::Caller, Operation::Parse, message));
        }
        Ok(())
    }

    fn new_record(&self, submission: Submission, by: Actor) -> Result<TaskRecord> {
        self.check_fence(&submission)?;
        let live = self.cluster.tasks.len() - self.cluster.tasks.ended().len();
        let members = submission.spec.kind().group().map_or(0, |group| group.members as usize);
        if self.cluster.tasks.get(&submission.id).is_none() && live + members >= self.config.tasks_max {
            let message = format!("too many tasks: {live} have not ended; wait for some, or cancel them");
            return Err(Error::new(Code::Overloaded, Side::Coordination, Operation::Write, message));
        }
        if self.cluster.tasks.get(&submission.id).is_none() {
            check_level(&self.cluster, &submission)?;
        }
        self.check_retry(&submission)?;
        let (after, group) = (self.dependencies(&submission)?, self.membership(&submission, &by)?);
        let now_ms = self.clock.unix_ms();
        let transitions = Transitions::created(now_ms, by);
        let record = TaskRecord { after, group, transitions, ..TaskRecord::new(submission, now_ms) };
        check_size(&record)?;
        Ok(record)
    }

    /// Returns the dependencies of a new task. The tasks that it depends on must exist.
    fn dependencies(&self, submission: &Submission) -> Result<Vec<Dependency>> {
        let one = |(task, condition): &(TaskId, Condition)| match self.cluster.tasks.get(task) {
            // Its record may be on its way out.
            Some(entry) if entry.record.state.is_terminal() && entry.runtime.is_busy => {
                let message = format!("the record of task {task} is being changed: retry");
                let error = Error::new(Code::Busy, Side::Coordination, Operation::Parse, message);
                Err(Error { retryable: true, ..error })
            }
            Some(entry) => {
                Ok(Dependency { task: task.clone(), condition: *condition, created_ms: entry.record.created_ms })
            }
            None => {
                let message = format!("it is to wait for task {task}, which does not exist");
                Err(Error::new(Code::NotFound, Side::Caller, Operation::Parse, message))
            }
        };
        // A task that is submitted again may depend on tasks that are gone by now.
        if self.cluster.tasks.get(&submission.id).is_some() {
            return Ok(Vec::new());
        }
        submission.after.iter().map(one).collect()
    }

    /// Refuses to try a task again that has not ended, that has succeeded, or that is a member of a group.
    fn check_retry(&self, submission: &Submission) -> Result<()> {
        let Some(first) = &submission.retry_of else { return Ok(()) };
        if self.cluster.tasks.get(&submission.id).is_some() {
            return Ok(());
        }
        let Some(entry) = self.cluster.tasks.get(first) else { return Err(not_found(first)) };
        let record = &entry.record;
        let refused = |message| Err(Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message));
        if let Some(member) = &record.group {
            return refused(format!("{first} is a member of {}, and is not tried again alone", member.group));
        }
        match record.state {
            TaskState::Succeeded => refused(format!("{first} has succeeded: submit it anew with another ID")),
            state if state.is_terminal() => Ok(()),
            state => {
                let message = format!("{first} is {}: a task is tried again when it has ended", state.as_str());
                let error = Error::new(Code::Busy, Side::Caller, Operation::Parse, message);
                Err(Error { retryable: true, ..error })
            }
        }
    }

    /// Returns the membership of a new task: its group must be there, must not be complete, and must not be ending.
    fn membership(&self, submission: &Submission, by: &Actor) -> Result<Option<Membership>> {
        let Some(GroupName { id, clean_up }) = &submission.group else { return Ok(None) };
        // A member that is submitted again may be in a group that is sealed by now.
        if self.cluster.tasks.get(&submission.id).is_some() {
            return Ok(None);
        }
        let refused = |code, message| Err(Error::new(code, Side::Caller, Operation::Parse, message));
        let Some(entry) = self.cluster.tasks.get(id) else {
            return refused(Code::NotFound, format!("it is to be a member of {id}, which does not exist"));
        };
        let record = &entry.record;
        let Some(spec) = record.spec.kind().group() else {
            return refused(Code::BadRequest, format!("{id} is no group, and can have no members"));
        };
        if submission.spec.kind().group().is_some() {
            return refused(Code::BadRequest, format!("{} is a group: a group cannot be a member", submission.id));
        }
        if let Some(schedule) = record.schedule.as_ref().filter(|_| *by != Actor::Dispatcher) {
            return refused(
                Code::BadRequest,
                format!("{id} is of schedule {schedule}, which stores its members itself"),
            );
        }
        let stored = self.cluster.groups.get(id).map_or(0, |members| members.ids().len());
        if record.state != TaskState::Pending || stored >= spec.members as usize {
            let message = format!("{id} takes no further members: it is {}, and has {stored}", record.state.as_str());
            let error = Error::new(Code::Busy, Side::Caller, Operation::Parse, message);
            return Err(Error { retryable: false, ..error });
        }
        let (group, created_ms) = (id.clone(), record.created_ms);
        Ok(Some(Membership { group, created_ms, clean_up: *clean_up, desired_state: DesiredState::Run }))
    }

    /// Answers the clients that have submitted a task of this id, which is stored by now: those with other work get
    /// `EExists`.
    pub(crate) fn answer_submitters(&mut self, id: &TaskId) {
        let now = self.clock.boot_time();
        for (submission, reply) in self.submitters.remove(id).unwrap_or_default() {
            self.cluster.retract(&submission, now);
            let answer = match self.cluster.tasks.get(id) {
                Some(entry) if is_same_request(&entry.record, &submission) => {
                    self.describe(id).ok_or_else(|| not_found(id))
                }
                _ => {
                    let message = format!("another task has the ID {id}: choose another ID");
                    Err(Error::new(Code::Exists, Side::Caller, Operation::Parse, message))
                }
            };
            let _ = reply.send(answer);
        }
    }

    /// Answers the clients whose task could not be stored.
    pub(crate) fn refuse_submitters(&mut self, id: &TaskId, error: &Error) {
        let now = self.clock.boot_time();
        for (submission, reply) in self.submitters.remove(id).unwrap_or_default() {
            self.cluster.retract(&submission, now);
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn list(&self, query: &Query) -> Page {
        let limit = if query.limit == 0 { PAGE_MAX } else { query.limit.min(PAGE_MAX) };
        let now = self.now();
        let is_listed = |entry: &&TaskEntry| {
            query.group.is_none() || entry.record.group.as_ref().map(|member| &member.group) == query.group.as_ref()
        };
        let mut entries = self.cluster.tasks.page(query.state, query.after.as_ref()).filter(is_listed);
        let mut counts = ObstacleCounts::default();
        let describe = |entry: &TaskEntry| explain::describe_among(&self.cluster, entry, now, &mut counts);
        let tasks: Vec<_> = entries.by_ref().take(limit).map(describe).collect();
        let next = entries.next().and_then(|_| tasks.last().map(|last| last.id.clone()));
        Page { tasks, next }
    }

    fn watch(&mut self, id: &TaskId) -> Result<watch::Receiver<Arc<TaskRecord>>> {
        let shown = self.describe(id).ok_or_else(|| not_found(id))?;
        let watcher = self.watchers.entry(id.clone()).or_insert_with(|| watch::Sender::new(shown.clone()));
        watcher.send_replace(shown);
        Ok(watcher.subscribe())
    }

    fn runners(&self) -> Vec<RunnerSummary> {
        let now = self.now();
        let fleet = &self.cluster.fleet;
        let skew = self.config.clock_skew.as_ref().map(|skew| skew.borrow().clone()).unwrap_or_default();
        let nodes: BTreeSet<&NodeId> =
            fleet.all().map(|there| &there.node).chain(fleet.drains.keys()).chain(fleet.unreadable()).collect();
        let summary = |node: &NodeId| {
            let drain = fleet.drains.get(node).map(|(drain, _)| drain.clone());
            let tasks = fleet.tasks(node).count();
            let clock_offset_ms = skew.offsets.get(node).copied();
            let excluded = fleet.exclusions.get(node).map(|exclusion| {
                let left = exclusion.until.saturating_sub(now.boot).as_millis();
                (now.unix_ms.saturating_add(u64::try_from(left).unwrap_or(u64::MAX)), exclusion.why.clone())
            });
            let registration = fleet.get(node).cloned();
            let last_ended = fleet.last_ended(node).map(|(at_ms, task)| (task.clone(), *at_ms));
            let is_idle = tasks == 0 && registration.is_some();
            RunnerSummary {
                level: registration.as_ref().map_or(0, |there| fleet.level_of(there)),
                registration,
                node: node.clone(),
                tasks,
                drain,
                clock_offset_ms,
                excluded,
                is_unreadable: fleet.is_unreadable(node),
                idle_since_ms: last_ended.as_ref().map(|(_, at_ms)| *at_ms).filter(|_| is_idle),
                last_ended,
                failures: fleet.exclusions.failures(node),
                refused: fleet.refused.get(node).into_iter().flatten().cloned().collect(),
            }
        };
        nodes.into_iter().map(summary).collect()
    }

    fn status(&self) -> Status {
        let fleet = &self.cluster.fleet;
        let tasks = &self.cluster.tasks;
        let running = tasks.of(TaskState::Running).iter().filter_map(|id| tasks.get(id));
        let undecodable = tasks.undecodable.iter().chain(&fleet.undecodable).chain(&self.cluster.schedules.undecodable);
        Status {
            leader: self.writer.leader_term.leader().clone(),
            epoch: self.writer.leader_term.epoch(),
            tasks: TaskState::VARIANTS
                .iter()
                .copied()
                .map(|state| (state, self.cluster.tasks.of(state).len()))
                .collect(),
            undecodable: undecodable.map(|(path, why)| (path.clone(), why.clone())).collect(),
            runners: fleet.all().count(),
            level: self.cluster.level.as_ref().map(|level| level.meta.schema),
            restarts: fleet.all().map(|there| there.restarts).fold(0, u64::saturating_add),
            last_successes: self.last_successes(),
            running: running.fold(RunningTotals::default(), |totals, entry| {
                totals.plus(&entry.telemetry().unwrap_or(entry.record.progress))
            }),
            metrics: self.config.metrics.clone(),
        }
    }

    fn last_successes(&self) -> BTreeMap<ScheduleName, u64> {
        let mut last = BTreeMap::new();
        let tasks = &self.cluster.tasks;
        for record in tasks.of(TaskState::Succeeded).iter().filter_map(|id| tasks.get(id)).map(|entry| &entry.record) {
            let Some(schedule) = record.schedule.as_ref().filter(|_| record.group.is_none()) else { continue };
            let ended_ms: &mut u64 = last.entry(schedule.clone()).or_default();
            *ended_ms = record.updated_ms.max(*ended_ms);
        }
        last
    }

    fn fence(&mut self, node: &NodeId, by: &Actor) -> Result<Vec<oneshot::Receiver<Result<Arc<TaskRecord>>>>> {
        if self.cluster.fleet.get(node).is_some() || self.cluster.fleet.is_unreadable(node) {
            let message =
                format!("{node} is registered, so it is not off: stop it, or wait until its registration ends");
            return Err(Error { retryable: true, ..Error::new(Code::Busy, Side::Caller, Operation::Parse, message) });
        }
        let concerns = |id: &&TaskId| {
            let Some(entry) = self.cluster.tasks.get(id) else { return false };
            let record = &entry.record;
            let is_lost =
                record.state == TaskState::Lost && record.attempts.last().is_some_and(|last| last.runner.node == *node);
            let is_undrained = record.attempts.iter().any(|attempt| attempt.runner.node == *node && !attempt.quiet);
            is_lost || is_undrained || record.node() == Some(node)
        };
        let ids: Vec<TaskId> = self.cluster.tasks.ids().filter(concerns).cloned().collect();
        let mut answers = Vec::new();
        for id in ids {
            let (reply, answer) = oneshot::channel();
            self.queue_mutation(id, Mutation::Confirm(node.clone()), by.clone(), reply);
            answers.push(answer);
        }
        tracing::warn!(%node, tasks = answers.len(), "operator confirmed that the node is off");
        Ok(answers)
    }
}

/// Returns how many bytes a signed order takes in a record.
pub(crate) fn order_bytes(order: Option<&SignedOrder>) -> usize {
    order.map_or(0, |order| serde_json::to_vec(order).map_or(0, |text| text.len()))
}

/// Refuses a new task whose record would leave no room for what is added later.
pub(crate) fn check_size(record: &TaskRecord) -> Result<()> {
    if record.order.is_some() && record.encode().len() > SIGNED_BYTES_MAX {
        let message = format!("with its signed order the task takes more than {SIGNED_BYTES_MAX} bytes");
        return Err(Error::bad_request(message).advise("shorten its names, its input or what it waits for"));
    }
    let own = TaskRecord { after: Vec::new(), transitions: Transitions::default(), order: None, ..record.clone() };
    match own.encode().len() {
        0..=NEW_BYTES_MAX => Ok(()),
        bytes => Err(Error::bad_request(format!("the task has {bytes} bytes, at most {NEW_BYTES_MAX} fit"))),
    }
}

/// Tells whether a stored task was made from a request for the same work after the same tasks in the same group.
fn is_same_request(record: &TaskRecord, submission: &Submission) -> bool {
    let stored = record.after.iter().map(|dependency| (&dependency.task, dependency.condition));
    let group = record.group.as_ref().map(|member| (&member.group, member.clean_up));
    record.spec.is_same_work(&submission.spec)
        && stored.eq(submission.after.iter().map(|(task, condition)| (task, *condition)))
        && group == submission.group.as_ref().map(|group| (&group.id, group.clean_up))
        && record.submitted_times.unwrap_or(record.times) == submission.times
        && record.retry_of == submission.retry_of
        && record.placement == submission.placement
        && record.windows == submission.windows
}
