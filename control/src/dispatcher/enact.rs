//! Enacts decisions: starts writes and calls, and changes the cluster state so that nothing is decided twice.

use super::Dispatcher;
use super::backoff::Backoff;
use super::cluster_state::FenceProgress;
use super::decide::{self, CALL_EVERY, Deadline};
use super::decision::Decision;
use super::event::{Call, CallResult, Event, WriteOrigin};
use super::now::Now;
use super::rollback_detection::RecordVersion;
use super::write::{RecordUpdate, Writer, Written};
use crate::model::state_machine::{self, TaskEvent};
use crate::model::{Actor, Epoch, Holder, NodeId, TaskId, TaskRecord};
use crate::peers::{Assignment, Peer, RunnerClient};
use blockhaul_engine::error::Code;
use std::future::Future;
use std::time::Duration;

/// Wait after a decision that the state machine refuses: a defect, which must not spin.
const DEFECT_WAIT: Duration = Duration::from_secs(5);

/// Time after which a task is decided about again for which the runners are read.
const RUNNERS_CHECK: Duration = Duration::from_millis(100);

impl Dispatcher {
    /// Enacts one decision.
    pub(crate) fn enact(&mut self, decision: Decision, now: Now) {
        tracing::trace!(?decision, "decided");
        match decision {
            Decision::Transition { task, events } => self.transition(&task, events, now),
            Decision::Purge(task) => {
                if let Some(entry) = self.cluster.tasks.get(&task) {
                    let (state, ended_ms) = (entry.record.state.as_str(), entry.record.updated_ms);
                    tracing::info!(%task, state, ended_ms, tasks = self.cluster.tasks.len(), "purging an ended task");
                }
                self.delete(&task, WriteOrigin::Decided);
            }
            Decision::Resolve(task, to) => self.resolve(task, to, now),
            Decision::Assign(task, holder) => self.call(Call::Assign, task, holder),
            Decision::Query(task, holder) => self.call(Call::Query, task, holder),
            Decision::Notify(task, holder) => self.call(Call::Notify, task, holder),
            Decision::Fence(holder) => self.fence_runner(holder),
            Decision::RaiseLevel => self.raise_level(now),
            Decision::Interrupt(node) => self.interrupt(node, now.boot),
            Decision::Queue(task, node) => {
                self.cluster.clear_due(&task);
                self.cluster.unqueue(&task);
                self.cluster.unreserve(&task, now.boot);
                if let Some(entry) = self.cluster.tasks.get_mut(&task) {
                    entry.runtime.resolved = None;
                    self.cluster.enqueue(&task, node);
                }
                self.watch_deadline(&task, now);
            }
            Decision::Block(task, claim) => {
                self.cluster.block(&task, claim);
                self.watch_deadline(&task, now);
            }
            Decision::Await(task, condition) => {
                self.cluster.await_condition(&task, condition, now.boot);
                self.watch_deadline(&task, now);
            }
            Decision::ReadRunners(task) => {
                self.cluster.clear_due(&task);
                self.reads.queue_fleet_read();
                self.cluster.make_due(&task, now.boot + RUNNERS_CHECK);
            }
            Decision::WakeAt(task, until) => {
                self.cluster.clear_due(&task);
                self.cluster.queue.remove(&task);
                self.cluster.release_resolved(&task, now.boot);
                self.cluster.make_due(&task, until);
            }
            Decision::Idle(task) => {
                self.cluster.clear_due(&task);
                // It was ready, until its group was paused.
                self.cluster.unqueue(&task);
                self.cluster.release_resolved(&task, now.boot);
            }
            Decision::NotifyFailure(task) => {
                self.cluster.clear_due(&task);
                self.notify_failure(&task, now);
            }
            Decision::Schedule(name, step) => self.take_step(&name, step, now),
            Decision::ReadMembers(name) => self.read_members(&name),
            Decision::StoreMembers(group, members) => self.store_members(&group, members, now),
            Decision::ScheduleWakeAt(name, at) => self.cluster.schedules.make_ready(&name, at),
            Decision::ScheduleIdle(name) => self.cluster.schedules.set_idle(&name),
        }
    }

    /// Makes a task that waits due when its deadline passes.
    fn watch_deadline(&mut self, id: &TaskId, now: Now) {
        let Some(entry) = self.cluster.tasks.get(id) else { return };
        if let Some(Deadline::At(at)) = decide::deadline(&entry.record, now) {
            self.cluster.make_due(id, at);
        }
    }

    /// Starts the write of the record that `events` lead to.
    pub(crate) fn transition(&mut self, id: &TaskId, events: Vec<TaskEvent>, now: Now) {
        let Some(entry) = self.cluster.tasks.get(id) else { return };
        let moved = events.iter().try_fold((*entry.record).clone(), |record, event| {
            state_machine::next(&record, event.clone(), now.unix_ms)
        });
        let mut after = match moved {
            Ok(after) => after,
            Err(why) => {
                tracing::error!(task = %id, %why, ?events, "illegal transition decided");
                let until = now.boot + DEFECT_WAIT;
                self.cluster.delay_writes(id, until);
                return;
            }
        };
        let holder = entry.record.holder.clone();
        for event in &events {
            match (event, &holder) {
                (TaskEvent::Sealed, _) => {
                    after.transitions.attribute(Actor::Dispatcher);
                    self.drop_members(id);
                }
                (TaskEvent::MemberFailed(error), _) => tracing::warn!(group = %id, %error, "member of a group failed"),
                (TaskEvent::Assigned { to, claims }, _) => {
                    self.cluster.unqueue(id);
                    self.cluster.reserve(id, &to.node, claims);
                }
                (TaskEvent::Revoked { code: Code::Unreachable, .. }, Some(holder)) => {
                    self.start_backoff(id, &holder.node, Code::Unreachable);
                }
                _ => {}
            }
        }
        self.write(id, after, WriteOrigin::Decided);
    }

    /// Starts the write that replaces the known record with `after`.
    pub(crate) fn write(&mut self, id: &TaskId, after: TaskRecord, origin: WriteOrigin) {
        self.cluster.clear_due(id);
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        entry.runtime.is_busy = true;
        let update = RecordUpdate { before: entry.record.clone(), known: RecordVersion::of(entry), after };
        let id = id.clone();
        self.start_write(id, origin, move |writer| writer.update(update));
    }

    /// Starts a write of a task's node.
    pub(crate) fn start_write<F>(&mut self, task: TaskId, origin: WriteOrigin, write: impl FnOnce(Writer) -> F)
    where
        F: Future<Output = Written> + Send + 'static,
    {
        self.writes_inflight += 1;
        let write = write(self.writer.clone());
        let clock = self.clock.clone();
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let started = clock.boot_time();
            let written = write.await;
            Event::Written { task, origin, written, took: clock.boot_time().saturating_sub(started) }
        });
    }

    /// Starts the deletion of a record, if it is still the known one.
    pub(crate) fn delete(&mut self, id: &TaskId, origin: WriteOrigin) {
        self.cluster.clear_due(id);
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        entry.runtime.is_busy = true;
        let (known, task) = (RecordVersion::of(entry), id.clone());
        self.start_write(id.clone(), origin, move |writer| writer.purge(task, known));
    }

    fn resolve(&mut self, id: TaskId, to: Holder, now: Now) {
        self.cluster.clear_due(&id);
        self.cluster.unqueue(&id);
        let Some(entry) = self.cluster.tasks.get_mut(&id) else { return };
        let Some(peer) = self.cluster.fleet.peer(&to) else {
            self.cluster.make_due(&id, now.boot);
            return;
        };
        entry.runtime.is_calling = true;
        let record = entry.record.clone();
        self.cluster.reserve(&id, &to.node, &[]);
        let (calls, leader) = (self.calls.clone(), self.writer.leader_term.epoch());
        self.calls_inflight += 1;
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let answer = calls.resolve(&peer, leader, &record.spec).await;
            Event::Resolved { task: id, to, answer }
        });
    }

    fn call(&mut self, call: Call, id: TaskId, holder: Holder) {
        self.cluster.clear_due(&id);
        let peer = self.cluster.fleet.peer(&holder);
        let (Some(entry), Some(peer)) = (self.cluster.tasks.get_mut(&id), peer) else { return };
        entry.runtime.is_calling = true;
        let (record, grant) = (entry.record.clone(), entry.grant);
        let (calls, writer) = (self.calls.clone(), self.writer.clone());
        self.calls_inflight += 1;
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let (grant, result) = make_call(call, &*calls, &writer, &peer, &record, &holder, grant).await;
            Event::CallEnded { call, task: id, holder, grant, result }
        });
    }

    /// Starts the fence program for a lost runner, once for all tasks that were lost with it. The end of the program
    /// makes these tasks due again.
    fn fence_runner(&mut self, holder: Holder) {
        self.cluster.clear_lost_due(&holder);
        let key = (holder.node.clone(), holder.incarnation.0.clone());
        let backoff = match self.cluster.fences.get(&key) {
            Some(FenceProgress::Running | FenceProgress::Done) => return,
            Some(FenceProgress::Failed { backoff, .. }) => *backoff,
            None => Backoff::default(),
        };
        self.cluster.fences.insert(key, FenceProgress::Running);
        let program = self.config.fence.clone();
        let clock = self.clock.clone();
        self.calls_inflight += 1;
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let result = match program {
                Some(program) => program.fence_runner(&holder).await,
                None => Err(String::from("taskd runs without --fence-command")),
            };
            let backoff = backoff.again(clock.boot_time());
            let progress = result.map_or_else(|why| FenceProgress::Failed { backoff, why }, |()| FenceProgress::Done);
            Event::Fenced(holder, progress)
        });
    }

    fn interrupt(&mut self, node: NodeId, now: Duration) {
        let is_wanted = self.cluster.fleet.drains.get(&node).is_some_and(|(drain, _)| drain.now);
        let peer = self.cluster.fleet.get(&node).map(Peer::from);
        match peer {
            Some(peer) if is_wanted && self.cluster.fleet.tasks(&node).next().is_some() => {
                self.cluster.interrupts.insert(node.clone(), now + CALL_EVERY);
                let (calls, leader) = (self.calls.clone(), self.writer.leader_term.epoch());
                self.calls_inflight += 1;
                crate::async_spawn::spawn_into(&mut self.jobs, async move {
                    let result = calls.interrupt(&peer, leader).await;
                    Event::Interrupted(node, result)
                });
            }
            _ => {
                self.cluster.interrupts.remove(&node);
            }
        }
    }
}

/// Makes a call about a task. Returns its result, and the holder's grant, which is read from the claim if `grant` is
/// `None`.
async fn make_call(
    call: Call,
    calls: &dyn RunnerClient,
    writer: &Writer,
    peer: &Peer,
    record: &TaskRecord,
    holder: &Holder,
    grant: Option<Epoch>,
) -> (Option<Epoch>, CallResult) {
    let leader = writer.leader_term.epoch();
    if call == Call::Notify {
        let answer = calls.notify(peer, leader, &record.id).await;
        return (grant, answer.map_or_else(CallResult::Failed, |()| CallResult::Notified));
    }
    let grant = match grant {
        Some(grant) => Some(grant),
        None => writer.grant(record).await.ok().flatten(),
    };
    let Some(epoch) = grant else { return (None, CallResult::NoGrant) };
    let assignment = Assignment { task: record.id.clone(), epoch, incarnation: holder.incarnation.clone(), leader };
    let result = match call {
        Call::Assign => calls.assign(peer, assignment).await.map(CallResult::Answered),
        Call::Query | Call::Notify => calls.query(peer, assignment).await.map(CallResult::Status),
    };
    (grant, result.unwrap_or_else(CallResult::Failed))
}
