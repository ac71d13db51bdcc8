//! Does what was decided: starts writes and calls, and changes the view so that it is not decided again.

use super::cluster_state::{Cut, Now};
use super::decide::{ASK_EVERY, Decision};
use super::history::Known;
use super::outcome::{Outcome, Purpose};
use super::write::{Change, Writer, Written};
use super::{Dispatcher, tasks};
use crate::model::state_machine::{self, Event};
use crate::model::{Epoch, Holder, NodeId, TaskId, TaskRecord};
use crate::peers::{Answer, Assignment, CallError, Peer, RunnerCalls, Standing};
use blockhaul_engine::error::Code;
use std::future::Future;
use std::time::Duration;

/// After a decision that turns out to be impossible: a defect that must not spin.
const DEFECT_REST: Duration = Duration::from_secs(5);

/// What a call about a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Tell,
    Ask,
    Nudge,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Called {
    Answered(Answer),
    Stands(Standing),
    Nudged,
    /// The claim does not name the holder: the record has changed.
    NoGrant,
    Failed(CallError),
}

impl Dispatcher {
    /// Does one thing.
    pub(crate) fn enact(&mut self, decision: Decision, now: Now) {
        tracing::trace!(?decision, "decided");
        match decision {
            Decision::Move { task, events } => self.move_task(&task, events, now),
            Decision::Purge(task) => {
                if let Some(entry) = self.view.tasks.get(&task) {
                    let (state, ended_ms) = (entry.record.state.as_str(), entry.record.updated_ms);
                    tracing::info!(%task, state, ended_ms, tasks = self.view.tasks.len(), "purges an ended task");
                }
                self.delete(&task, Purpose::Decided);
            }
            Decision::Resolve(task, to) => self.resolve(task, to, now),
            Decision::Tell(task, holder) => self.call(Call::Tell, task, holder),
            Decision::Ask(task, holder) => self.call(Call::Ask, task, holder),
            Decision::Nudge(task, holder) => self.call(Call::Nudge, task, holder),
            Decision::Cut(holder) => self.cut(holder),
            Decision::Interrupt(node) => self.interrupt(node, now.boot),
            Decision::Queue(task, node) => {
                self.view.calm(&task);
                self.view.unqueue(&task);
                self.view.unreserve(&task, now.boot);
                if let Some(entry) = self.view.tasks.get_mut(&task) {
                    entry.note.resolved = None;
                    self.view.enqueue(&task, node);
                }
            }
            Decision::Block(task, claim) => self.view.block(&task, claim),
            Decision::Nap(task, until) => {
                self.view.calm(&task);
                self.view.queue.remove(&task);
                self.view.touch(&task, until);
            }
            Decision::Rest(task) => self.view.calm(&task),
        }
    }

    /// Writes the record after `events`.
    fn move_task(&mut self, id: &TaskId, events: Vec<Event>, now: Now) {
        let Some(entry) = self.view.tasks.get(id) else { return };
        let moved = events.iter().try_fold((*entry.record).clone(), |record, event| {
            state_machine::next(&record, event.clone(), now.unix_ms)
        });
        let after = match moved {
            Ok(after) => after,
            Err(why) => {
                tracing::error!(task = %id, %why, ?events, "decided what cannot be");
                let until = now.boot + DEFECT_REST;
                self.view.hold(id, until);
                return;
            }
        };
        let holder = entry.record.holder.clone();
        for event in &events {
            match (event, &holder) {
                (Event::Assigned { to, claims }, _) => {
                    self.view.unqueue(id);
                    self.view.reserve(id, &to.node, claims);
                }
                (Event::Revoked { code: Code::Unreachable, .. }, Some(holder)) => {
                    self.avoid(id, &holder.node, Code::Unreachable);
                }
                _ => {}
            }
        }
        self.write(id, after, Purpose::Decided);
    }

    /// Starts the write of a record in place of the one that is known.
    pub(crate) fn write(&mut self, id: &TaskId, after: TaskRecord, purpose: Purpose) {
        self.view.calm(id);
        let Some(entry) = self.view.tasks.get_mut(id) else { return };
        entry.note.is_busy = true;
        let change = Change { before: entry.record.clone(), known: Known::of(entry), after };
        let id = id.clone();
        self.start_write(id, purpose, move |writer| writer.change(change));
    }

    /// Starts a write of a task's node.
    pub(crate) fn start_write<F>(&mut self, task: TaskId, purpose: Purpose, write: impl FnOnce(Writer) -> F)
    where
        F: Future<Output = Written> + Send + 'static,
    {
        self.writes_inflight += 1;
        let write = write(self.writer.clone());
        let clock = self.clock.clone();
        crate::process::spawn_into(&mut self.jobs, async move {
            let started = clock.boot_time();
            let written = write.await;
            Outcome::Written { task, purpose, written, took: clock.boot_time().saturating_sub(started) }
        });
    }

    /// Starts the removal of a record as it is known.
    pub(crate) fn delete(&mut self, id: &TaskId, purpose: Purpose) {
        self.view.calm(id);
        let Some(entry) = self.view.tasks.get_mut(id) else { return };
        entry.note.is_busy = true;
        let (known, task) = (Known::of(entry), id.clone());
        self.start_write(id.clone(), purpose, move |writer| writer.purge(task, known));
    }

    fn resolve(&mut self, id: TaskId, to: Holder, now: Now) {
        self.view.calm(&id);
        self.view.unqueue(&id);
        let Some(entry) = self.view.tasks.get_mut(&id) else { return };
        let Some(peer) = self.view.fleet.peer(&to) else {
            self.view.touch(&id, now.boot);
            return;
        };
        entry.note.is_calling = true;
        let record = entry.record.clone();
        self.view.reserve(&id, &to.node, &[]);
        let (calls, leader) = (self.calls.clone(), self.writer.reign.epoch());
        self.calls_inflight += 1;
        crate::process::spawn_into(&mut self.jobs, async move {
            let answer = calls.resolve(&peer, leader, &record.spec).await;
            Outcome::Resolved { task: id, to, answer }
        });
    }

    fn call(&mut self, call: Call, id: TaskId, holder: Holder) {
        self.view.calm(&id);
        let peer = self.view.fleet.peer(&holder);
        let (Some(entry), Some(peer)) = (self.view.tasks.get_mut(&id), peer) else { return };
        entry.note.is_calling = true;
        let (record, grant) = (entry.record.clone(), entry.grant);
        let (calls, writer) = (self.calls.clone(), self.writer.clone());
        self.calls_inflight += 1;
        crate::process::spawn_into(&mut self.jobs, async move {
            let (grant, called) = called(call, &*calls, &writer, &peer, &record, &holder, grant).await;
            Outcome::Called { call, task: id, holder, grant, called }
        });
    }

    /// Once for all tasks that were lost with that runner: its end is what makes them due again.
    fn cut(&mut self, holder: Holder) {
        self.view.calm_lost(&holder);
        let key = (holder.node.clone(), holder.incarnation.0.clone());
        let rest = match self.view.cuts.get(&key) {
            Some(Cut::Running | Cut::Done) => return,
            Some(Cut::Failed { rest, .. }) => *rest,
            None => tasks::Rest::default(),
        };
        self.view.cuts.insert(key, Cut::Running);
        let program = self.config.fence.clone();
        let clock = self.clock.clone();
        self.calls_inflight += 1;
        crate::process::spawn_into(&mut self.jobs, async move {
            let result = match program {
                Some(program) => program.cut(&holder).await,
                None => Err(String::from("taskd runs without --fence-command")),
            };
            let rest = rest.again(clock.boot_time());
            let cut = result.map_or_else(|why| Cut::Failed { rest, why }, |()| Cut::Done);
            Outcome::Cut(holder, cut)
        });
    }

    fn interrupt(&mut self, node: NodeId, now: Duration) {
        let is_wanted = self.view.fleet.drains.get(&node).is_some_and(|(drain, _)| drain.now);
        let peer = self.view.fleet.get(&node).map(Peer::from);
        match peer {
            Some(peer) if is_wanted && self.view.fleet.tasks(&node).next().is_some() => {
                self.view.interrupts.insert(node.clone(), now + ASK_EVERY);
                let (calls, leader) = (self.calls.clone(), self.writer.reign.epoch());
                self.calls_inflight += 1;
                crate::process::spawn_into(&mut self.jobs, async move {
                    let result = calls.interrupt(&peer, leader).await;
                    Outcome::Interrupted(node, result)
                });
            }
            _ => {
                self.view.interrupts.remove(&node);
            }
        }
    }
}

async fn called(
    call: Call,
    calls: &dyn RunnerCalls,
    writer: &Writer,
    peer: &Peer,
    record: &TaskRecord,
    holder: &Holder,
    grant: Option<Epoch>,
) -> (Option<Epoch>, Called) {
    let leader = writer.reign.epoch();
    if call == Call::Nudge {
        let answer = calls.nudge(peer, leader, &record.id).await;
        return (grant, answer.map_or_else(Called::Failed, |()| Called::Nudged));
    }
    let grant = match grant {
        Some(grant) => Some(grant),
        None => writer.grant(record).await.ok().flatten(),
    };
    let Some(epoch) = grant else { return (None, Called::NoGrant) };
    let assignment = Assignment { task: record.id.clone(), epoch, incarnation: holder.incarnation.clone(), leader };
    let called = match call {
        Call::Tell => calls.assign(peer, assignment).await.map(Called::Answered),
        Call::Ask | Call::Nudge => calls.ask(peer, assignment).await.map(Called::Stands),
    };
    (grant, called.unwrap_or_else(Called::Failed))
}
