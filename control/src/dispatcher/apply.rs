//! Applies what reads, writes and calls have brought to the cluster state, and answers the clients that wait for it.

use super::cluster_state::FenceProgress;
use super::decide::{ASK_EVERY, REMIND_EVERY, is_final};
use super::event::{Call, CallResult, Event, Purpose};
use super::history::Known;
use super::now::Now;
use super::tasks::{AssignReply, WriteFailure};
use super::write::Written;
use super::{Dispatcher, Ending};
use crate::coord::paths;
use crate::coord::{CoordError, Node, Zxid};
use crate::model::{Epoch, Holder, NodeId, Record, TaskId, TaskRecord, TaskState};
use crate::peers::{AssignResponse, AssignmentStatus, CallError};
use blockhaul_engine::error::Code;
use std::time::Duration;

/// After a write that failed.
const WRITE_AGAIN: Duration = Duration::from_millis(250);
/// After a write that met another task's claim, which this leader did not know of.
const CLAIM_AGAIN: Duration = Duration::from_secs(5);

/// The log says again so often that a task cannot be written.
const SAY_AGAIN: Duration = Duration::from_secs(30);

impl Dispatcher {
    /// Takes one.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Listed(listed) => self.take_list(listed),
            Event::Read { read, task, known } => self.take_read(&task, known.as_ref(), read),
            Event::Fleet(read) => self.take_fleet(read),
            Event::Written { task, purpose, written, took } => {
                self.writes_inflight -= 1;
                self.store.add(took);
                self.take_written(&task, purpose, written);
            }
            Event::Resolved { task, to, answer } => {
                self.calls_inflight -= 1;
                self.take_resolved(&task, &to, answer);
            }
            Event::CallEnded { call, task, holder, grant, called } => {
                self.calls_inflight -= 1;
                self.take_called(call, &task, &holder, grant, called);
            }
            Event::Fenced(holder, fence_runner) => {
                self.calls_inflight -= 1;
                if let FenceProgress::Failed { why, .. } = &fence_runner {
                    tracing::error!(node = %holder.node, why, "fencing a lost runner failed");
                }
                self.cluster.fences.insert((holder.node.clone(), holder.incarnation.0.clone()), fence_runner);
                self.cluster.touch_lost(&holder, self.clock.boot_time());
            }
            Event::Interrupted(node, result) => {
                self.calls_inflight -= 1;
                if let Err(error) = result {
                    tracing::info!(%node, %error, "cannot ask a runner to return its tasks");
                }
            }
            Event::Drained { node, result, reply } => self.take_drained(&node, result, reply),
        }
    }

    /// Takes a record's node as it was read.
    pub(crate) fn observe_node(&mut self, id: &TaskId, node: Option<Node>) {
        let path = paths::task(id);
        let Some(node) = node else {
            self.cluster.tasks.undecodable.remove(&path);
            if self.cluster.tasks.get(id).is_some_and(|entry| !entry.runtime.is_busy) {
                self.forget(id);
            }
            return;
        };
        let record = match TaskRecord::decode(&node.data) {
            Ok(record) if record.id == *id => record,
            Ok(record) => return self.lose_sight(id, format!("names itself {}", record.id)),
            Err(error) => return self.lose_sight(id, error.to_string()),
        };
        self.cluster.tasks.undecodable.remove(&path);
        self.observe(record, node.stat.version, Some(node.stat.created));
    }

    /// A record that makes no sense any more is kept aside.
    fn lose_sight(&mut self, id: &TaskId, why: String) {
        self.forget(id);
        self.keep_aside(paths::task(id), why);
    }

    /// Reports a record that cannot be decoded, once.
    pub(crate) fn keep_aside(&mut self, path: String, why: String) {
        if self.cluster.tasks.undecodable.get(&path) != Some(&why) {
            tracing::error!(path, why, "cannot decode a record: leaving it alone");
            self.cluster.tasks.undecodable.insert(path, why);
        }
    }

    fn forget(&mut self, id: &TaskId) {
        self.cluster.forget(id, self.clock.boot_time());
        self.watchers.remove(id);
    }

    /// The store is not what this leader knows: it does nothing more, and whoever is elected next reads everything.
    pub(crate) fn lose_history(&mut self, id: &TaskId) {
        if self.ending.replace(Ending::HistoryLost) == Some(Ending::HistoryLost) {
            return;
        }
        tracing::warn!(
            task = %id, epoch = self.writer.leader_term.epoch().0,
            "committed history of the coordination service lost, as after a restored backup: resigning; the next leader \
        starts from what is stored now; check tasks that were submitted, changed or ended lately"
        );
    }

    /// Takes a record, and tells who watches it.
    pub(crate) fn observe(&mut self, record: TaskRecord, version: i32, created: Option<Zxid>) {
        let id = record.id.clone();
        let seen = Known { version, created, op: record.op.clone() };
        if self.cluster.tasks.get(&id).is_some_and(|entry| Known::of(entry).clashes_with(&seen)) {
            return self.lose_history(&id);
        }
        let known = self.cluster.tasks.get(&id).map(|entry| entry.record.clone());
        let before = known.as_ref().map(|record| record.state);
        let giver = known.and_then(|before| gives_back(&before, &record).cloned());
        let now = self.now();
        if !self.cluster.observe(record, version, created, now) {
            return;
        }
        self.latest = Some(id.clone());
        if let Some(node) = giver {
            self.cluster.fleet.mark_stale(&node);
            self.reads.want_fleet();
        }
        if let Some(entry) = self.cluster.tasks.get(&id)
            && self.reads.is_loaded
            && before != Some(entry.record.state)
        {
            let from = before.map_or("", TaskState::as_str);
            let node = entry.record.node().map_or("", NodeId::as_str);
            let (to, attempt) = (entry.record.state.as_str(), entry.record.attempts.len());
            let epoch = entry.record.epoch.map(|epoch| epoch.0);
            tracing::info!(task = %id, from, to, node, attempt, epoch, reason = entry.record.reason, "task");
        }
        self.notify(&id);
    }

    /// Tells who watches a task.
    pub(crate) fn notify(&mut self, id: &TaskId) {
        let Some(watcher) = self.watchers.get(id) else { return };
        match self.shown(id) {
            Some(record) if watcher.receiver_count() > 0 => {
                watcher.send_replace(record);
            }
            _ => {
                self.watchers.remove(id);
            }
        }
    }

    fn take_written(&mut self, id: &TaskId, purpose: Purpose, written: Written) {
        let now = self.now();
        if let Some(entry) = self.cluster.tasks.get_mut(id) {
            entry.runtime.is_busy = false;
            entry.runtime.resolved = None;
            if matches!(written, Written::Done { .. } | Written::Changed(_)) {
                entry.runtime.write_failure = None;
            }
        }
        match written {
            Written::Done { record, version, created, grant } => {
                self.count(&record, grant, now);
                self.observe(*record, version, created);
                self.cluster.unreserve(id, now.boot);
                // A reading may have brought the record before: then it was news while the write was still under way.
                self.cluster.touch(id, now.boot);
                if let (Some(entry), Some(grant)) = (self.cluster.tasks.get_mut(id), grant) {
                    entry.grant = Some(grant);
                }
                self.after_done(id, purpose);
            }
            Written::Changed(node) => {
                // An older record than the known one: nothing that is known is worth more than what refused the write.
                let known = self.cluster.tasks.get(id).map(|entry| entry.version);
                if node.as_ref().is_some_and(|node| Some(node.stat.version) < known) {
                    self.cluster.forget(id, now.boot);
                }
                let is_stuck = node.as_ref().is_some_and(|node| Some(node.stat.version) == known);
                self.observe_node(id, node);
                self.cluster.unreserve(id, now.boot);
                self.cluster.touch(id, now.boot);
                if is_stuck {
                    // Not the record was in the way, but a claim that keeps changing.
                    self.cluster.hold(id, now.boot + WRITE_AGAIN);
                }
                self.after_changed(id, purpose);
            }
            Written::Denied(denial) => {
                self.cluster.unreserve(id, now.boot);
                self.impede(id, format!("{denial}; the task continues once that is changed"), now.boot);
                self.cluster.hold(id, now.boot + CLAIM_AGAIN);
                self.after_denied(id, purpose, &denial);
            }
            Written::Taken(claim) => {
                self.cluster.unreserve(id, now.boot);
                self.impede(id, format!("the destination is claimed by an unknown task: {claim}"), now.boot);
                self.cluster.hold(id, now.boot + CLAIM_AGAIN);
                self.after_failed(id, purpose, &CoordError::NotConnected);
            }
            Written::Failed(error) => {
                self.impede(id, error.to_string(), now.boot);
                if let CoordError::Ended(_) = error {
                    self.ending = Some(Ending::SessionOver);
                }
                self.cluster.unreserve(id, now.boot);
                let is_hopeless = matches!(error, CoordError::TooLarge { .. });
                self.cluster.hold(id, now.boot + if is_hopeless { CLAIM_AGAIN } else { WRITE_AGAIN });
                self.after_failed(id, purpose, &error);
            }
            Written::LostLeadership => self.ending = Some(Ending::LostLeadership),
            Written::HistoryLost => self.lose_history(id),
        }
    }

    /// Nothing can be written of a task: its reason says so until something is, and the log now and then.
    fn impede(&mut self, id: &TaskId, why: String, now: Duration) {
        let said = self.cluster.tasks.get(id).and_then(|entry| entry.runtime.write_failure.as_ref());
        let is_said = said.is_some_and(|said| said.why == why && now < said.at + SAY_AGAIN);
        if !is_said {
            tracing::warn!(task = %id, why, "write failed");
        }
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        if !is_said {
            entry.runtime.write_failure = Some(WriteFailure { why, at: now });
            self.notify(id);
        }
    }

    /// Measures how long tasks wait.
    fn count(&mut self, after: &TaskRecord, grant: Option<Epoch>, now: Now) {
        if grant.is_some() && after.state == TaskState::Assigned {
            self.assignments += 1;
            let since = self.cluster.tasks.get(&after.id).map_or(now.unix_ms, |entry| entry.record.updated_ms);
            self.queue_wait.add(Duration::from_millis(now.unix_ms.saturating_sub(since)));
        }
    }

    fn take_resolved(&mut self, id: &TaskId, to: &Holder, answer: Result<Vec<String>, CallError>) {
        let now = self.clock.boot_time();
        let Some(entry) = self.cluster.tasks.get_mut(id) else {
            return self.cluster.unreserve(id, now);
        };
        entry.runtime.is_calling = false;
        let claims = match answer {
            Ok(claims) if is_plausible(&claims) => claims,
            Ok(claims) => {
                let why = format!("invalid identities of the destination from {}: {claims:?}", to.node);
                return self.refused(id, &to.node, Code::Protocol, why.chars().take(200).collect());
            }
            Err(CallError::Refused { code, why }) => return self.refused(id, &to.node, code, why),
            Err(CallError::NoAnswer(why) | CallError::Misdirected(why)) => {
                return self.refused(id, &to.node, Code::Unreachable, why);
            }
        };
        if entry.record.state != TaskState::Pending || entry.runtime.is_busy {
            self.cluster.unreserve(id, now);
            return self.cluster.touch(id, now);
        }
        let is_foreign = |claim: &&String| self.cluster.claimed.get(*claim).is_some_and(|task| task != id);
        if let Some(claim) = claims.iter().find(is_foreign).cloned() {
            self.cluster.unreserve(id, now);
            return self.cluster.block(id, claim);
        }
        self.cluster.reserve(id, &to.node, &claims);
        if let Some(entry) = self.cluster.tasks.get_mut(id) {
            entry.runtime.resolved = Some((to.clone(), claims));
        }
        self.cluster.touch(id, now);
    }

    /// A runner will not have a task that has not been given to it.
    fn refused(&mut self, id: &TaskId, node: &NodeId, code: Code, why: String) {
        let now = self.clock.boot_time();
        self.cluster.unreserve(id, now);
        self.avoid(id, node, code);
        let is_pinned = self.cluster.tasks.get(id).is_some_and(|entry| {
            entry.record.state == TaskState::Pending && matches!(entry.record.spec.kind().node(), Ok(Some(_)))
        });
        if let Some(entry) = self.cluster.tasks.get_mut(id)
            && is_pinned
            && is_final(code)
        {
            entry.runtime.assign_reply = AssignReply::Refused { code, why };
        }
        self.cluster.touch(id, now);
    }

    /// Whoever refused is left alone for a while: by that task, or by all if it is not about the task.
    pub(crate) fn avoid(&mut self, id: &TaskId, node: &NodeId, code: Code) {
        let now = self.clock.boot_time();
        if matches!(code, Code::Overloaded | Code::RunnerInterrupt | Code::Fenced | Code::Unreachable) {
            self.cluster.fleet.rest(node, now);
            self.reads.want_fleet();
        }
        if let Some(entry) = self.cluster.tasks.get_mut(id) {
            let rest = entry.runtime.avoid.get(node).copied().unwrap_or_default();
            entry.runtime.avoid.insert(node.clone(), rest.again(now));
        }
    }

    fn take_called(&mut self, call: Call, id: &TaskId, holder: &Holder, grant: Option<Epoch>, called: CallResult) {
        let now = self.clock.boot_time();
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        entry.runtime.is_calling = false;
        self.cluster.touch(id, now);
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        if entry.record.holder.as_ref() != Some(holder) || (entry.grant.is_some() && grant != entry.grant) {
            return;
        }
        entry.grant = grant;
        let (code, why) = match called {
            CallResult::Answered(AssignResponse::Accepted) => {
                let took = now.saturating_sub(entry.runtime.since);
                entry.runtime.avoid.clear();
                (entry.runtime.assign_reply, entry.runtime.next_call) = (AssignReply::Accepted, now + REMIND_EVERY);
                self.assignment.add(took);
                return self.cluster.fleet.clear_backoff(&holder.node);
            }
            CallResult::Status(standing @ (AssignmentStatus::Held | AssignmentStatus::Waits(_))) => {
                entry.runtime.next_call =
                    now + if entry.record.state == TaskState::Assigned { REMIND_EVERY } else { Duration::ZERO };
                entry.runtime.assign_reply = AssignReply::Accepted;
                let AssignmentStatus::Waits(step) = standing else {
                    // It has begun, and the hint has been lost.
                    return self.reads.want(id.clone());
                };
                if entry.runtime.waits.replace(step) != Some(step) {
                    self.notify(id);
                }
                return;
            }
            CallResult::Notified => {
                entry.runtime.owes_notification = false;
                entry.runtime.next_call = now + ASK_EVERY;
                if !entry.record.has_begun() {
                    entry.runtime.assign_reply = AssignReply::Unclear;
                }
                return;
            }
            CallResult::Status(AssignmentStatus::Ended) | CallResult::NoGrant => {
                entry.runtime.next_call = now + ASK_EVERY;
                return self.reads.want(id.clone());
            }
            CallResult::Failed(CallError::NoAnswer(why) | CallError::Misdirected(why)) => {
                tracing::debug!(task = %id, node = %holder.node, why, "no answer");
                entry.runtime.next_call = now + ASK_EVERY;
                if call != Call::Notify && entry.runtime.assign_reply != AssignReply::Accepted {
                    entry.runtime.assign_reply = AssignReply::Unclear;
                }
                return;
            }
            CallResult::Failed(CallError::Refused { why, .. }) if call == Call::Notify => {
                tracing::info!(task = %id, node = %holder.node, why, "notification refused");
                entry.runtime.next_call = now + ASK_EVERY;
                return self.reads.want(id.clone());
            }
            // No fault of the runner: it has never heard of it, or has given it back.
            CallResult::Status(AssignmentStatus::Unknown) => {
                let why = String::from("the runner does not know the task");
                entry.runtime.assign_reply = AssignReply::Refused { code: Code::RunnerInterrupt, why };
                return;
            }
            CallResult::Answered(AssignResponse::Refused { code, why })
            | CallResult::Failed(CallError::Refused { code, why }) => (code, why),
        };
        entry.runtime.assign_reply = AssignReply::Refused { code, why };
        self.avoid(id, &holder.node, code);
    }
}

/// The node that has given a task back because it stops: no watch tells that its registration says so.
fn gives_back<'a>(before: &'a TaskRecord, after: &TaskRecord) -> Option<&'a NodeId> {
    let outcome = after.attempts.last().and_then(|attempt| attempt.outcome.as_deref());
    let is_given = after.holder.is_none() && outcome == Some(Code::RunnerInterrupt.as_str());
    before.node().filter(|_| is_given)
}

/// At most 8 names that fit into a record.
fn is_plausible(claims: &[String]) -> bool {
    (1..=8).contains(&claims.len()) && claims.iter().all(|claim| (1..=300).contains(&claim.len()))
}
