//! What the leader does next: a pure function of what it knows and the time.
//!
//! Only tasks that are due are looked at, and only the heads of the queue, so that a decision costs the same with ten
//! tasks as with fifty thousand. Whoever enacts a decision changes the view, so that it is not made twice; `decide` is
//! called until it says nothing more.

use super::cluster_state::{Cut, Now, View};
use super::place;
use super::tasks::{Entry, Told};
use crate::model::state_machine::{Event, Mark, Proof};
use crate::model::volume::node_of;
use crate::model::{Attempt, Failure, Fence, Holder, NodeId, State, TaskId, TaskRecord, Wish};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::time::Duration;

/// How often a runner is asked or nudged that has not answered or obeyed.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often a runner is asked that has accepted a task and not begun it.
pub(crate) const REMIND_EVERY: Duration = Duration::from_secs(5);

/// And at least so often before its retention has passed.
const RETENTION_LOOK_MAX: Duration = Duration::from_secs(60 * 60);
/// How often an ended task is looked at while nobody knows what time it is.
const RETENTION_LOOK: Duration = Duration::from_secs(10);

/// How often a task is looked at that rests after a failure.
const REST_LOOK_EVERY: Duration = Duration::from_secs(10);

/// Times and bounds of decisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// See [`Config`](super::Config).
    pub(crate) retention: Duration,
    /// The same.
    pub(crate) quiet_after: Duration,
    /// The same.
    pub(crate) hold_off: Duration,
    /// The same.
    pub(crate) answer_within: Duration,
    /// The same.
    pub(crate) tasks_max: usize,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Write what has happened to a task.
    Move {
        /// Which task.
        task: TaskId,
        /// In this order, in one write.
        events: Vec<Event>,
    },
    /// Remove a task's record.
    Purge(TaskId),
    /// Ask the runner how it calls the task's destination; it is likely to get the task.
    Resolve(TaskId, Holder),
    /// Tell the holder that the task is its own.
    Tell(TaskId, Holder),
    /// Ask the holder what it knows of the task.
    Ask(TaskId, Holder),
    /// Let the holder look at the task's record.
    Nudge(TaskId, Holder),
    /// Run the program that cuts a lost runner off.
    Cut(Holder),
    /// Ask a runner to give everything back.
    Interrupt(NodeId),
    /// The task could run, on that node or anywhere.
    Queue(TaskId, Option<NodeId>),
    /// The task waits for that claim of another one.
    Block(TaskId, String),
    /// Nothing until then.
    Nap(TaskId, Duration),
    /// Nothing until something changes.
    Rest(TaskId),
}

/// What to do now, with room for so many more writes and calls.
pub(crate) fn decide(view: &View, terms: &Terms, now: Now, room: Room) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let mut room = room;
    for (node, at) in &view.interrupts {
        if *at <= now.boot && room.take_call() {
            decisions.push(Decision::Interrupt(node.clone()));
        }
    }
    for id in view.due(now.boot) {
        let Some(entry) = view.tasks.get(id) else { continue };
        let decision = attend(view, entry, terms, now);
        if !room.take(&decision) {
            break;
        }
        decisions.push(decision);
    }
    purge_surplus(view, terms, now, &mut room, &mut decisions);
    place::fill(view, now, &mut room, &mut decisions);
    decisions
}

/// Makes room by the tasks that ended and came first, where there are more than there should be.
fn purge_surplus(view: &View, terms: &Terms, now: Now, room: &mut Room, decisions: &mut Vec<Decision>) {
    let surplus = view.tasks.len().saturating_sub(terms.tasks_max);
    if surplus == 0 {
        return;
    }
    let is_settled = |id: &&TaskId| view.tasks.get(id).is_some_and(|entry| entry.record.claims.is_empty());
    for id in view.tasks.ended().filter(is_settled).take(surplus) {
        let is_free = |entry: &Entry| !entry.note.is_busy && entry.note.hold_until <= now.boot;
        let decision = Decision::Purge(id.clone());
        if view.tasks.get(id).is_some_and(is_free) && !decisions.contains(&decision) {
            if !room.take(&decision) {
                return;
            }
            decisions.push(decision);
        }
    }
}

/// How many more requests may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Writes of the store.
    pub(crate) writes: usize,
    /// Calls of runners.
    pub(crate) calls: usize,
}

impl Room {
    /// Whether there is room for a decision; then there is less of it.
    pub(crate) fn take(&mut self, decision: &Decision) -> bool {
        match decision {
            Decision::Move { .. } | Decision::Purge(_) => take_one(&mut self.writes),
            Decision::Resolve(..) | Decision::Tell(..) | Decision::Ask(..) | Decision::Nudge(..) => self.take_call(),
            Decision::Interrupt(_) | Decision::Cut(_) => self.take_call(),
            Decision::Queue(..) | Decision::Block(..) | Decision::Nap(..) | Decision::Rest(_) => true,
        }
    }

    fn take_call(&mut self) -> bool {
        take_one(&mut self.calls)
    }
}

fn take_one(left: &mut usize) -> bool {
    let has_one = *left > 0;
    *left -= usize::from(has_one);
    has_one
}

/// What one task that is due needs.
fn attend(view: &View, entry: &Entry, terms: &Terms, now: Now) -> Decision {
    let record = &entry.record;
    let id = || record.id.clone();
    if entry.note.is_busy {
        return Decision::Rest(id());
    }
    if entry.note.hold_until > now.boot {
        return Decision::Nap(id(), entry.note.hold_until);
    }
    if let Some(quieted) = quieted(record, entry, terms, now) {
        return quieted;
    }
    let (decision, again) = match record.state {
        State::Pending => (pending(view, entry, now), None),
        State::Assigned => assigned(view, entry, terms, now),
        State::Running | State::Verifying => running(view, entry, now),
        State::Cancelling if record.has_begun() => running(view, entry, now),
        State::Cancelling => assigned(view, entry, terms, now),
        State::Lost => lost(view, entry, terms, now),
        State::Paused => (Decision::Rest(id()), None),
        State::Succeeded | State::Failed | State::Cancelled => (ended(record, terms, now), None),
    };
    let Decision::Rest(_) = decision else { return decision };
    let quiet_at = entry.note.unquiet.iter().map(|(_, since)| *since + terms.quiet_after).min();
    let quiet_at = quiet_at.filter(|_| record.spec.fence() == Fence::Lease);
    match [again, quiet_at].into_iter().flatten().min() {
        Some(at) => Decision::Nap(id(), at),
        None => decision,
    }
}

/// Attempts under a lease whose last requests must have died by now. Locks and proofs tell about all others.
fn quieted(record: &TaskRecord, entry: &Entry, terms: &Terms, now: Now) -> Option<Decision> {
    if record.spec.fence() != Fence::Lease {
        return None;
    }
    let is_over = |attempt: &Attempt| {
        let seen = entry.note.unquiet.iter().find(|(grant, _)| *grant == attempt.epoch);
        let is_waiting = !attempt.quiet && attempt.ended_ms.is_some();
        is_waiting && seen.is_some_and(|(_, since)| *since + terms.quiet_after <= now.boot)
    };
    let over = record.attempts.iter().enumerate().filter(|(_, attempt)| is_over(attempt));
    let events: Vec<Event> = over.map(|(index, _)| Event::Quieted { attempt: index }).collect();
    (!events.is_empty()).then(|| Decision::Move { task: record.id.clone(), events })
}

fn pending(view: &View, entry: &Entry, now: Now) -> Decision {
    let (record, note) = (&entry.record, &entry.note);
    let id = record.id.clone();
    if note.is_calling {
        return Decision::Rest(id);
    }
    if let Some((to, claims)) = &note.resolved
        && view.fleet.get(&to.node).is_some_and(|there| there.incarnation == to.incarnation && !there.stopping)
    {
        let assigned = Event::Assigned { to: to.clone(), claims: claims.clone() };
        return Decision::Move { task: id, events: vec![assigned] };
    }
    if let Told::Refused { code, why } = &note.told {
        return Decision::Move { task: id, events: vec![Event::Rejected(failure(*code, why))] };
    }
    if let Some(until) = entry.rests_until(now) {
        // Looked at before that, in case that the clock is set meanwhile.
        return Decision::Nap(id, until.min(now.boot + REST_LOOK_EVERY));
    }
    match node_of(&record.spec) {
        Err(error) => Decision::Move { task: id, events: vec![Event::Rejected(Failure::from(&error))] },
        Ok(Some(node)) => match note.avoid.get(&node) {
            Some(rest) if rest.until > now.boot => Decision::Nap(id, rest.until),
            _ => Decision::Queue(id, Some(node)),
        },
        Ok(None) => Decision::Queue(id, None),
    }
}

/// Given to a runner that has not begun: it is told, asked, and if it does not have it, it is taken back.
fn assigned(view: &View, entry: &Entry, terms: &Terms, now: Now) -> (Decision, Option<Duration>) {
    let (record, note) = (&entry.record, &entry.note);
    let Some(holder) = &record.holder else { return rest(record, None) };
    let moved = |event| (Decision::Move { task: record.id.clone(), events: vec![event] }, None);
    if view.fleet.peer(holder).is_none() {
        return moved(Event::Vanished);
    }
    if let Told::Refused { code, why } = &note.told {
        let is_only = matches!(node_of(&record.spec), Ok(Some(_)));
        if is_only && is_final(*code) && record.wish == Wish::Run {
            return moved(failed(record, failure(*code, why)));
        }
        return moved(Event::Revoked { code: *code, why: format!("{}: {why}", holder.node) });
    }
    if note.told != Told::Accepted && note.since + terms.answer_within <= now.boot {
        let why = format!("{} did not answer in {} s", holder.node, terms.answer_within.as_secs());
        return moved(Event::Revoked { code: Code::Unreachable, why });
    }
    if note.is_calling {
        return rest(record, Some(note.since + terms.answer_within));
    }
    if note.next_call > now.boot {
        return rest(record, Some(note.next_call));
    }
    let (id, holder) = (record.id.clone(), holder.clone());
    match note.told {
        Told::No if record.state == State::Assigned => (Decision::Tell(id, holder), None),
        Told::Accepted if record.wish != Wish::Run => (Decision::Nudge(id, holder), None),
        _ => (Decision::Ask(id, holder), None),
    }
}

/// At work: it is lost with its runner, and nudged until it obeys.
fn running(view: &View, entry: &Entry, now: Now) -> (Decision, Option<Duration>) {
    let (record, note) = (&entry.record, &entry.note);
    let Some(holder) = &record.holder else { return rest(record, None) };
    if view.fleet.peer(holder).is_none() {
        return (Decision::Move { task: record.id.clone(), events: vec![Event::Vanished] }, None);
    }
    if (record.wish == Wish::Run && !note.owes_nudge) || note.is_calling {
        return rest(record, None);
    }
    if note.next_call > now.boot {
        return rest(record, Some(note.next_call));
    }
    (Decision::Nudge(record.id.clone(), holder.clone()), None)
}

/// Its runner is gone: it is fenced as the task asks for, and then goes by its client's wish.
fn lost(view: &View, entry: &Entry, terms: &Terms, now: Now) -> (Decision, Option<Duration>) {
    let (record, note) = (&entry.record, &entry.note);
    let moved = |event| (Decision::Move { task: record.id.clone(), events: vec![event] }, None);
    let Some(runner) = record.attempts.last().map(|attempt| &attempt.runner) else { return rest(record, None) };
    let there = view.fleet.get(&runner.node);
    match record.spec.fence() {
        Fence::Local => match there {
            Some(there) if there.incarnation == runner.incarnation && record.holder.is_some() => moved(Event::Returned),
            Some(_) => moved(Event::Fenced(Proof::NodeBack)),
            None if record.wish == Wish::Run => rest(record, None),
            None if note.since + terms.quiet_after <= now.boot => moved(Event::Fenced(Proof::Waited)),
            None => rest(record, Some(note.since + terms.quiet_after)),
        },
        Fence::Lease if note.since + terms.hold_off <= now.boot => moved(Event::Fenced(Proof::LeaseOver)),
        Fence::Lease => rest(record, Some(note.since + terms.hold_off)),
        Fence::Command => match view.cuts.get(&(runner.node.clone(), runner.incarnation.0.clone())) {
            Some(Cut::Done) => moved(Event::Fenced(Proof::Command)),
            Some(Cut::Running) => rest(record, None),
            Some(Cut::Failed { rest: again, .. }) if again.until > now.boot => rest(record, Some(again.until)),
            Some(Cut::Failed { .. }) | None => (Decision::Cut(runner.clone()), None),
        },
        Fence::Manual => rest(record, None),
    }
}

fn ended(record: &TaskRecord, terms: &Terms, now: Now) -> Decision {
    if !record.claims.is_empty() {
        return Decision::Rest(record.id.clone());
    }
    let retention_ms = u64::try_from(terms.retention.as_millis()).unwrap_or(u64::MAX);
    let end_ms = record.updated_ms.saturating_add(retention_ms);
    let left = match now.sure_ms {
        Some(sure_ms) if end_ms <= sure_ms => return Decision::Purge(record.id.clone()),
        // Clocks may be set right meanwhile.
        Some(sure_ms) => Duration::from_millis(end_ms - sure_ms).min(RETENTION_LOOK_MAX),
        None => RETENTION_LOOK,
    };
    Decision::Nap(record.id.clone(), now.boot + left)
}

fn rest(record: &TaskRecord, again: Option<Duration>) -> (Decision, Option<Duration>) {
    (Decision::Rest(record.id.clone()), again)
}

/// Whether asking the same runner again cannot help.
pub(crate) fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::Permission
            | Code::NotFound
            | Code::BadRequest
            | Code::Unsupported
            | Code::SameVolume
            | Code::ReadOnly
            | Code::SizeMismatch
            | Code::Exists
    )
}

fn failure(code: Code, why: &str) -> Failure {
    Failure::from(&Error::new(code, Side::Caller, Operation::Open, why))
}

fn failed(record: &TaskRecord, error: Failure) -> Event {
    let mark = Mark { progress: record.progress, map: record.map.clone() };
    Event::Failed { error, retry_at_ms: 0, mark, report: None }
}
