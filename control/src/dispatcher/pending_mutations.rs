//! What clients want of tasks: one write at a time and task, each on the record as it is then.

use super::Dispatcher;
use super::cluster_state::Now;
use super::handle::{Reply, Wanted, not_leader};
use super::outcome::Purpose;
use super::write::Denial;
use crate::coord::{CoordError, Refusal};
use crate::model::state_machine::{self, Event, Illegal, Proof};
use crate::model::{Change, NodeId, State, TaskId, TaskRecord};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A client is told of a store that does not answer after so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// One client's wish.
#[derive(Debug)]
pub(crate) struct Want {
    wanted: Wanted,
    until: Duration,
    reply: Reply<Arc<TaskRecord>>,
    /// What a task that is to be removed said last: its removal is under way, or has happened.
    removed: Option<Arc<TaskRecord>>,
}

/// Wishes that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Wants(BTreeMap<TaskId, VecDeque<Want>>, Option<Duration>);

impl Wants {
    /// When a wish should be tried again.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.1
    }
}

impl Dispatcher {
    /// A client wants something of a task.
    pub(crate) fn want(&mut self, id: TaskId, wanted: Wanted, reply: Reply<Arc<TaskRecord>>) {
        let until = self.clock.boot_time() + PATIENCE;
        self.wants.0.entry(id).or_default().push_back(Want { wanted, until, reply, removed: None });
    }

    /// Starts the writes of all wishes whose tasks are free.
    pub(crate) fn pursue_wants(&mut self, now: Now) {
        self.wants.1 = None;
        let ids: Vec<TaskId> = self.wants.0.keys().cloned().collect();
        for id in ids {
            let Some(mut line) = self.wants.0.remove(&id) else { continue };
            while !line.is_empty() && self.is_free(&id, now) {
                if let Some(want) = line.pop_front() {
                    self.pursue(&id, want, now);
                }
            }
            if !line.is_empty() {
                self.wants.0.insert(id, line);
            }
        }
    }

    fn is_free(&mut self, id: &TaskId, now: Now) -> bool {
        let Some(entry) = self.view.tasks.get(id) else { return true };
        if entry.note.hold_until > now.boot {
            let next = self.wants.1.map_or(entry.note.hold_until, |next| next.min(entry.note.hold_until));
            self.wants.1 = Some(next);
            return false;
        }
        !entry.note.is_busy
    }

    fn pursue(&mut self, id: &TaskId, want: Want, now: Now) {
        let Some(entry) = self.view.tasks.get(id) else {
            let _ = want.reply.send(want.removed.ok_or_else(|| not_found(id)));
            return;
        };
        if want.wanted == Wanted::Remove {
            return self.remove(id, want);
        }
        match wished(&entry.record, &want.wanted, now.unix_ms) {
            Err(error) => {
                let _ = want.reply.send(Err(error));
            }
            Ok(after) if after == *entry.record => self.answer(id, want.reply),
            Ok(after) => {
                self.view.unqueue(id);
                self.write(id, after.sealed(), Purpose::Wanted(want));
            }
        }
    }

    /// Deletes a task's record, unless it is needed.
    fn remove(&mut self, id: &TaskId, want: Want) {
        let Some(entry) = self.view.tasks.get(id) else { return };
        let record = entry.record.clone();
        let refused = match want.removed {
            // Another task has the name by now.
            Some(removed) if !record.state.is_terminal() => Some(Ok(removed)),
            _ if !record.state.is_terminal() => {
                Some(Err(busy(format!("{id} is {}: cancel it first", record.state.as_str()))))
            }
            _ if !record.claims.is_empty() => {
                let message = format!("an earlier attempt of {id} may still write its destination: ask again later");
                Some(Err(Error { retryable: true, ..busy(message) }))
            }
            _ => None,
        };
        if let Some(answer) = refused {
            let _ = want.reply.send(answer);
            return;
        }
        tracing::info!(task = %id, "is removed as its client asks");
        self.delete(id, Purpose::Wanted(Want { removed: Some(record), ..want }));
    }

    fn answer(&mut self, id: &TaskId, reply: Reply<Arc<TaskRecord>>) {
        let _ = reply.send(self.shown(id).ok_or_else(|| not_found(id)));
    }

    /// A write has happened.
    pub(crate) fn after_done(&mut self, id: &TaskId, purpose: Purpose) {
        match purpose {
            Purpose::Decided => {
                // Whoever holds it has not made this change: it waits for quiet attempts, or has come back.
                self.owe_nudge(id);
            }
            Purpose::Wanted(want) => {
                self.owe_nudge(id);
                self.answer(id, want.reply);
            }
            Purpose::Submitted => self.answer_submitters(id),
        }
    }

    fn owe_nudge(&mut self, id: &TaskId) {
        if let Some(entry) = self.view.tasks.get_mut(id)
            && entry.record.holder.is_some()
            && entry.record.has_begun()
        {
            (entry.note.owes_nudge, entry.note.next_call) = (true, Duration::ZERO);
        }
    }

    /// Somebody else has changed the record: the wish is judged again by what it says now.
    pub(crate) fn after_changed(&mut self, id: &TaskId, purpose: Purpose) {
        match purpose {
            Purpose::Decided => {}
            Purpose::Wanted(want) => self.wants.0.entry(id.clone()).or_default().push_front(want),
            Purpose::Submitted => self.answer_submitters(id),
        }
    }

    /// Nothing was written, and asking again does not help before an operator has changed something.
    pub(crate) fn after_denied(&mut self, id: &TaskId, purpose: Purpose, denial: &Denial) {
        let code = if denial.why == Refusal::QuotaExceeded { Code::NoSpace } else { Code::Permission };
        let error = Error::new(code, Side::Coordination, Operation::Write, format!("{denial}: nothing has changed"));
        match purpose {
            Purpose::Decided => {}
            Purpose::Wanted(want) => {
                let _ = want.reply.send(Err(error));
            }
            Purpose::Submitted => self.refuse_submitters(id, &error),
        }
    }

    /// Nothing was written: the wish is tried again until its time is over.
    pub(crate) fn after_failed(&mut self, id: &TaskId, purpose: Purpose, error: &CoordError) {
        let is_retryable = matches!(error, CoordError::NotConnected);
        match purpose {
            Purpose::Decided => {}
            Purpose::Wanted(want) if is_retryable && want.until > self.clock.boot_time() => {
                self.wants.0.entry(id.clone()).or_default().push_front(want);
            }
            Purpose::Wanted(want) => {
                let _ = want.reply.send(Err(unreachable(error)));
            }
            Purpose::Submitted => self.refuse_submitters(id, &unreachable(error)),
        }
    }
}

/// The record as the client wants it; equal to what it is if that is so already.
fn wished(record: &TaskRecord, wanted: &Wanted, now_ms: u64) -> Result<TaskRecord> {
    let step = |event| state_machine::apply(record, event, now_ms).map_err(|illegal| refusal(record, &illegal));
    match wanted {
        Wanted::Change(Change::Cancel) if record.state.is_terminal() => Ok(record.clone()),
        Wanted::Change(Change::Cancel) => step(Event::CancelAsked),
        Wanted::Change(Change::Pause) => step(Event::PauseAsked),
        Wanted::Change(Change::Resume) => step(Event::ResumeAsked),
        Wanted::Change(Change::Limit(Some(0))) => {
            Err(Error::bad_request("a limit of 0 would never end: pause the task instead"))
        }
        Wanted::Change(Change::Limit(limit)) => step(Event::LimitAsked(*limit)),
        Wanted::Remove => Ok(record.clone()),
        Wanted::Confirm(node) => confirmed(record, node, now_ms).map_err(|illegal| refusal(record, &illegal)),
    }
}

/// The record of a task whose node is off: no attempt there writes any more.
fn confirmed(record: &TaskRecord, node: &NodeId, now_ms: u64) -> std::result::Result<TaskRecord, Illegal> {
    let mut after = record.clone();
    if after.state.is_held() && after.state != State::Lost && after.node() == Some(node) {
        after = state_machine::apply(&after, Event::Vanished, now_ms)?;
    }
    if after.state == State::Lost && after.attempts.last().is_some_and(|attempt| attempt.runner.node == *node) {
        after = state_machine::apply(&after, Event::Fenced(Proof::Operator), now_ms)?;
    }
    for index in 0..after.attempts.len() {
        let attempt = &after.attempts[index];
        if attempt.runner.node == *node && !attempt.quiet && attempt.ended_ms.is_some() {
            after = state_machine::apply(&after, Event::Quieted { attempt: index }, now_ms)?;
        }
    }
    Ok(after)
}

/// What a client is told of what cannot be.
fn refusal(record: &TaskRecord, illegal: &Illegal) -> Error {
    let code = match illegal {
        Illegal::NotACopy(_) => Code::Unsupported,
        Illegal::State { .. } | Illegal::NotQuiet | Illegal::NoProof { .. } | Illegal::NoAttempt(_) => Code::Busy,
    };
    Error { code, ..busy(format!("{}: {illegal}", record.id)) }
}

/// Not as the task is.
fn busy(message: String) -> Error {
    Error { retryable: false, ..Error::new(Code::Busy, Side::Caller, Operation::Parse, message) }
}

/// There is no such task.
pub(crate) fn not_found(id: &TaskId) -> Error {
    Error::new(Code::NotFound, Side::Caller, Operation::Parse, format!("there is no task {id}"))
}

/// The store does not answer, or not any more.
pub(crate) fn unreachable(error: &CoordError) -> Error {
    match error {
        CoordError::Ended(_) => not_leader(),
        CoordError::TooLarge { .. } => Error::bad_request(error.to_string()),
        _ => {
            let message = format!("{error}: nothing has changed; ask again");
            Error::new(Code::Unreachable, Side::Coordination, Operation::Write, message)
        }
    }
}
