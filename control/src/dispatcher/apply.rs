//! Applies the results of reads, writes and calls to the cluster state, and answers the clients that wait for them.

use super::cluster_state::FenceProgress;
use super::decide::{CALL_EVERY, QUERY_EVERY, is_final};
use super::event::{Call, CallResult, Event, WriteOrigin};
use super::exclusion::AttemptFailure;
use super::now::Now;
use super::rollback_detection::RecordVersion;
use super::tasks::{AssignReply, WriteFailure};
use super::write::Written;
use super::{Dispatcher, NOTIFY_GROUPS_EVERY, TermEnd};
use crate::coord::paths;
use crate::coord::{CoordError, Znode, Zxid};
use crate::model::{Epoch, Holder, NodeId, Record, TaskId, TaskRecord, TaskState};
use crate::peers::{AssignResponse, AssignmentStatus, CallError};
use blockhaul_engine::error::Code;
use std::time::Duration;

/// Wait before the next write of a task after one that failed.
const WRITE_RETRY: Duration = Duration::from_millis(250);
/// Wait after a write that cannot succeed soon: it was denied, is too large, or met a claim of an unknown task.
const DENIED_RETRY: Duration = Duration::from_secs(5);

/// Time after which a lasting write failure of a task is logged again.
const LOG_EVERY: Duration = Duration::from_secs(30);

impl Dispatcher {
    /// Applies one event.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Listed(listed) => self.apply_list(listed),
            Event::Read { read, task, known } => self.apply_read(&task, known.as_ref(), read),
            Event::Fleet(read) => self.apply_fleet(read),
            Event::Written { task, origin, written, took } => {
                self.writes_inflight -= 1;
                self.config.metrics.store.observe(took.as_secs_f64());
                self.apply_written(&task, origin, written);
            }
            Event::Resolved { task, to, answer } => {
                self.calls_inflight -= 1;
                self.apply_resolved(&task, &to, answer);
            }
            Event::CallEnded { call, task, holder, grant, result } => {
                self.calls_inflight -= 1;
                self.apply_call_result(call, &task, &holder, grant, result);
            }
            Event::Fenced(holder, progress) => {
                self.calls_inflight -= 1;
                if let FenceProgress::Failed { why, .. } = &progress {
                    tracing::error!(node = %holder.node, why, "fencing a lost runner failed");
                }
                self.cluster.fences.insert((holder.node.clone(), holder.incarnation.0.clone()), progress);
                self.cluster.make_lost_due(&holder, self.clock.boot_time());
            }
            Event::Interrupted(node, result) => {
                self.calls_inflight -= 1;
                if let Err(error) = result {
                    tracing::info!(%node, %error, "cannot ask a runner to return its tasks");
                }
            }
            Event::ScheduleWritten { update, origin, written } => {
                self.writes_inflight -= 1;
                self.apply_schedule_written(*update, origin, written);
            }
            Event::MembersRead { schedule, version, read } => self.apply_members_read(&schedule, version, read),
            Event::LevelRaised(result) => self.apply_level_raised(result),
            Event::SettingsStored { result, reply } => self.apply_stored_settings(result, reply),
            Event::Drained { node, is_drain, result, reply } => self.apply_drain((&node, is_drain), result, reply),
        }
    }

    /// Applies a record's node as it was read; `None` if it does not exist.
    pub(crate) fn observe_node(&mut self, id: &TaskId, node: Option<Znode>) {
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
            Ok(record) => return self.drop_undecodable(id, format!("names itself {}", record.id)),
            Err(error) => return self.drop_undecodable(id, error.to_string()),
        };
        self.cluster.tasks.undecodable.remove(&path);
        self.observe(record, node.stat.version, Some(node.stat.created));
    }

    /// Forgets a task whose record cannot be decoded any more, and reports that record.
    fn drop_undecodable(&mut self, id: &TaskId, why: String) {
        self.forget(id);
        self.report_undecodable(paths::task(id), why);
    }

    /// Logs that a record cannot be decoded, and lists it in the status; once for each reason.
    pub(crate) fn report_undecodable(&mut self, path: String, why: String) {
        if self.cluster.tasks.undecodable.get(&path) != Some(&why) {
            tracing::error!(path, why, "cannot decode a record: leaving it alone");
            self.cluster.tasks.undecodable.insert(path, why);
        }
    }

    fn forget(&mut self, id: &TaskId) {
        self.feed_removal(id);
        self.cluster.forget(id, self.clock.boot_time());
        self.watchers.remove(id);
    }

    /// Ends the dispatcher because the store has another history than this leader has seen. The next term reads
    /// everything.
    pub(crate) fn on_history_lost(&mut self, path: &str) {
        if self.ending.replace(TermEnd::HistoryLost) == Some(TermEnd::HistoryLost) {
            return;
        }
        tracing::warn!(
            path,
            epoch = self.writer.leader_term.epoch().0,
            "committed history of the coordination service lost, as after a restored backup: resigning; the next leader \
        starts from what is stored now; check tasks that were submitted, changed or ended lately"
        );
    }

    /// Applies a committed record, and sends it to the clients that watch the task.
    pub(crate) fn observe(&mut self, record: TaskRecord, version: i32, created: Option<Zxid>) {
        let id = record.id.clone();
        let seen = RecordVersion { version, created, op: record.op.clone() };
        if self.cluster.tasks.get(&id).is_some_and(|entry| RecordVersion::of(entry).clashes_with(&seen)) {
            return self.on_history_lost(&paths::task(&id));
        }
        let known = self.cluster.tasks.get(&id).map(|entry| entry.record.clone());
        let before = known.as_ref().map(|record| record.state);
        let earlier = known.clone();
        let returned_by = known.and_then(|before| returning_node(&before, &record).cloned());
        let now = self.now();
        if !self.cluster.observe(record, version, created, now) {
            return;
        }
        self.latest = Some(id.clone());
        self.feed_change(&id, earlier.as_deref());
        if let Some(before) = earlier {
            self.note_attempt(&before, &id, now.boot);
        }
        if let Some(node) = returned_by {
            self.cluster.fleet.mark_stale(&node);
            self.reads.queue_fleet_read();
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

    /// Notes what a change of a task's record says about the node that had it.
    fn note_attempt(&mut self, before: &TaskRecord, id: &TaskId, now: Duration) {
        let Some(after) = self.cluster.tasks.get(id).map(|entry| entry.record.clone()) else { return };
        let fleet = &mut self.cluster.fleet;
        let registered = fleet.all().count();
        let is_with_runner = matches!(before.state, TaskState::Assigned | TaskState::Running | TaskState::Verifying);
        let mut excluded = Vec::new();
        if let Some(node) = before.node().filter(|_| is_with_runner) {
            let (told, fleet_now) = ((node, id), (registered, now));
            let has_succeeded = after.state == TaskState::Succeeded;
            if has_succeeded && fleet.exclusions.succeeded(node) {
                tracing::info!(%node, "node gets tasks again: it has succeeded with one");
            }
            let has_advanced = has_succeeded || after.durable_best > before.durable_best;
            let has_begun = !before.has_begun() && after.has_begun();
            if has_advanced || has_begun {
                excluded = fleet.exclusions.advanced(told, !has_advanced, fleet_now);
            }
            let is_charged = after.failures > before.failures && after.state != TaskState::Lost;
            if let Some(error) = after.error.as_ref().filter(|_| is_charged) {
                let failure = AttemptFailure {
                    why: format!("{}: {}", error.code, error.message),
                    had_begun: before.has_begun(),
                    is_defect: error.is_node_defect(),
                    is_node_fault: error.node_fault().is_some(),
                };
                excluded.extend(fleet.exclusions.failed(told, failure, fleet_now));
            }
        }
        if after.state.is_terminal() {
            fleet.exclusions.forget(id);
        }
        for node in excluded {
            let exclusion = fleet.exclusions.get(&node);
            let (seconds, why) =
                exclusion.map_or((0, ""), |found| (found.until.saturating_sub(now).as_secs(), &found.why));
            tracing::warn!(%node, seconds, why, "node excluded: it failed several tasks in a row");
        }
    }

    /// Sends a task to the clients that watch it, and its group, a little later, to those that watch the group.
    pub(crate) fn notify(&mut self, id: &TaskId) {
        if let Some(member) = self.cluster.tasks.get(id).and_then(|entry| entry.record.group.as_ref())
            && self.watchers.contains_key(&member.group)
        {
            self.changed_groups.insert(member.group.clone());
        }
        self.notify_watchers(id);
    }

    /// Sends the groups whose members have changed to the clients that watch them: seldom, as each is a sum over all
    /// members.
    pub(crate) fn notify_groups(&mut self, now: Duration) {
        if self.changed_groups.is_empty() || now < self.groups_notified_at + NOTIFY_GROUPS_EVERY {
            return;
        }
        self.groups_notified_at = now;
        std::mem::take(&mut self.changed_groups).iter().for_each(|group| self.notify_watchers(group));
    }

    fn notify_watchers(&mut self, id: &TaskId) {
        let Some(watcher) = self.watchers.get(id) else { return };
        match self.describe(id) {
            Some(record) if watcher.receiver_count() > 0 => {
                watcher.send_replace(record);
            }
            _ => {
                self.watchers.remove(id);
            }
        }
    }

    fn apply_written(&mut self, id: &TaskId, origin: WriteOrigin, written: Written) {
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
                // A read may have returned this record while the write was under way: then `observe` changes nothing,
                // and nothing else makes the task due.
                self.cluster.make_due(id, now.boot);
                if let (Some(entry), Some(grant)) = (self.cluster.tasks.get_mut(id), grant) {
                    entry.grant = Some(grant);
                }
                self.on_written(id, origin);
            }
            Written::Changed(node) => {
                // The stored record counts even if its version is lower than the known one: `observe` would ignore it.
                let known = self.cluster.tasks.get(id).map(|entry| entry.version);
                if node.as_ref().is_some_and(|node| Some(node.stat.version) < known) {
                    self.feed_removal(id);
                    self.cluster.forget(id, now.boot);
                }
                let is_stuck = node.as_ref().is_some_and(|node| Some(node.stat.version) == known);
                self.observe_node(id, node);
                self.cluster.unreserve(id, now.boot);
                self.cluster.make_due(id, now.boot);
                if is_stuck {
                    // The record is unchanged: a claim that keeps changing has refused the write.
                    self.cluster.delay_writes(id, now.boot + WRITE_RETRY);
                }
                self.on_conflict(id, origin);
            }
            Written::Denied(denial) => {
                self.cluster.unreserve(id, now.boot);
                self.note_write_failure(id, format!("{denial}; the task continues once that is changed"), now.boot);
                self.cluster.delay_writes(id, now.boot + DENIED_RETRY);
                self.on_denied(id, origin, &denial);
            }
            Written::Claimed(claim) => {
                self.cluster.unreserve(id, now.boot);
                self.note_write_failure(
                    id,
                    format!("the destination is claimed by an unknown task: {claim}"),
                    now.boot,
                );
                self.cluster.delay_writes(id, now.boot + DENIED_RETRY);
                self.on_failed(id, origin, &CoordError::NotConnected);
            }
            Written::Failed(error) => {
                self.note_write_failure(id, error.to_string(), now.boot);
                if let CoordError::Ended(_) = error {
                    self.ending = Some(TermEnd::SessionOver);
                }
                self.cluster.unreserve(id, now.boot);
                let is_hopeless = matches!(error, CoordError::TooLarge { .. });
                self.cluster.delay_writes(id, now.boot + if is_hopeless { DENIED_RETRY } else { WRITE_RETRY });
                self.on_failed(id, origin, &error);
            }
            Written::LostLeadership => self.ending = Some(TermEnd::LostLeadership),
            Written::HistoryLost => self.on_history_lost(&paths::task(id)),
        }
    }

    /// Notes that a task's record cannot be written: shown in its reason until a write succeeds, and logged now and
    /// then.
    fn note_write_failure(&mut self, id: &TaskId, why: String, now: Duration) {
        let logged = self.cluster.tasks.get(id).and_then(|entry| entry.runtime.write_failure.as_ref());
        let is_logged = logged.is_some_and(|logged| logged.why == why && now < logged.at + LOG_EVERY);
        if !is_logged {
            tracing::warn!(task = %id, why, "write failed");
        }
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        if !is_logged {
            entry.runtime.write_failure = Some(WriteFailure { why, at: now });
            self.notify(id);
        }
    }

    /// Counts an assignment, and measures how long the task has waited for it.
    fn count(&mut self, after: &TaskRecord, grant: Option<Epoch>, now: Now) {
        if grant.is_some() && after.state == TaskState::Assigned {
            self.config.metrics.assignments.inc();
            let since = self.cluster.tasks.get(&after.id).map_or(now.unix_ms, |entry| entry.record.updated_ms);
            let waited = Duration::from_millis(now.unix_ms.saturating_sub(since));
            self.config.metrics.queue_wait.observe(waited.as_secs_f64());
        }
    }

    fn apply_resolved(&mut self, id: &TaskId, to: &Holder, answer: Result<Vec<String>, CallError>) {
        let now = self.clock.boot_time();
        let Some(entry) = self.cluster.tasks.get_mut(id) else {
            return self.cluster.unreserve(id, now);
        };
        entry.runtime.is_calling = false;
        let claims = match answer {
            Ok(claims) if is_plausible(&claims) => claims,
            Ok(claims) => {
                let why = format!("invalid identities of the destination from {}: {claims:?}", to.node);
                return self.apply_refusal(id, &to.node, Code::Protocol, why.chars().take(200).collect());
            }
            Err(CallError::Refused { code, why }) => return self.apply_refusal(id, &to.node, code, why),
            Err(CallError::NoAnswer(why) | CallError::Misdirected(why)) => {
                return self.apply_refusal(id, &to.node, Code::Unreachable, why);
            }
        };
        if entry.record.state != TaskState::Pending || entry.runtime.is_busy {
            self.cluster.unreserve(id, now);
            return self.cluster.make_due(id, now);
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
        self.cluster.make_due(id, now);
    }

    /// Applies the refusal of a runner that was to resolve a task's destination and then to get the task.
    fn apply_refusal(&mut self, id: &TaskId, node: &NodeId, code: Code, why: String) {
        let now = self.clock.boot_time();
        self.cluster.unreserve(id, now);
        self.start_backoff(id, node, code);
        let is_pinned = self.cluster.tasks.get(id).is_some_and(|entry| {
            entry.record.state == TaskState::Pending && matches!(entry.record.spec.kind().node(), Ok(Some(_)))
        });
        if let Some(entry) = self.cluster.tasks.get_mut(id)
            && is_pinned
            && is_final(code)
        {
            entry.runtime.assign_reply = AssignReply::Refused { code, why };
        }
        self.cluster.make_due(id, now);
    }

    /// Starts the backoff of a node that has refused a task: for this task, and for all tasks if the reason is not the
    /// task.
    pub(crate) fn start_backoff(&mut self, id: &TaskId, node: &NodeId, code: Code) {
        let now = self.clock.boot_time();
        if matches!(code, Code::Overloaded | Code::RunnerInterrupt | Code::Fenced | Code::Unreachable) {
            self.cluster.fleet.start_backoff(node, now);
            self.reads.queue_fleet_read();
        }
        if let Some(entry) = self.cluster.tasks.get_mut(id) {
            let backoff = entry.runtime.backoffs.get(node).copied().unwrap_or_default();
            entry.runtime.backoffs.insert(node.clone(), backoff.again(now));
        }
    }

    fn apply_call_result(
        &mut self,
        call: Call,
        id: &TaskId,
        holder: &Holder,
        grant: Option<Epoch>,
        result: CallResult,
    ) {
        let now = self.clock.boot_time();
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        entry.runtime.is_calling = false;
        self.cluster.make_due(id, now);
        let Some(entry) = self.cluster.tasks.get_mut(id) else { return };
        if entry.record.holder.as_ref() != Some(holder) || (entry.grant.is_some() && grant != entry.grant) {
            return;
        }
        entry.grant = grant;
        let (code, why) = match result {
            CallResult::Answered(AssignResponse::Accepted) => {
                let took = now.saturating_sub(entry.runtime.since);
                entry.runtime.backoffs.clear();
                (entry.runtime.assign_reply, entry.runtime.next_call) = (AssignReply::Accepted, now + QUERY_EVERY);
                self.config.metrics.assignment.observe(took.as_secs_f64());
                return self.cluster.fleet.clear_backoff(&holder.node);
            }
            CallResult::Status(status @ (AssignmentStatus::Held | AssignmentStatus::Waits(_))) => {
                entry.runtime.next_call =
                    now + if entry.record.state == TaskState::Assigned { QUERY_EVERY } else { Duration::ZERO };
                entry.runtime.assign_reply = AssignReply::Accepted;
                let AssignmentStatus::Waits(stage) = status else {
                    // The task has begun, and the hint about its record may have been lost.
                    return self.reads.queue_read(id.clone());
                };
                if entry.runtime.start_stage.replace(stage) != Some(stage) {
                    self.notify(id);
                }
                return;
            }
            CallResult::Notified => {
                entry.runtime.needs_notification = false;
                entry.runtime.next_call = now + CALL_EVERY;
                if !entry.record.has_begun() {
                    entry.runtime.assign_reply = AssignReply::NoAnswer;
                }
                return;
            }
            CallResult::Status(AssignmentStatus::Ended) | CallResult::NoGrant => {
                entry.runtime.next_call = now + CALL_EVERY;
                return self.reads.queue_read(id.clone());
            }
            CallResult::Failed(CallError::NoAnswer(why) | CallError::Misdirected(why)) => {
                tracing::debug!(task = %id, node = %holder.node, why, "no answer");
                entry.runtime.next_call = now + CALL_EVERY;
                if call != Call::Notify && entry.runtime.assign_reply != AssignReply::Accepted {
                    entry.runtime.assign_reply = AssignReply::NoAnswer;
                }
                return;
            }
            CallResult::Failed(CallError::Refused { why, .. }) if call == Call::Notify => {
                tracing::info!(task = %id, node = %holder.node, why, "notification refused");
                entry.runtime.next_call = now + CALL_EVERY;
                return self.reads.queue_read(id.clone());
            }
            // Without a backoff: the runner has never received the assignment, or has returned the task.
            CallResult::Status(AssignmentStatus::Unknown) => {
                let why = String::from("the runner does not know the task");
                entry.runtime.assign_reply = AssignReply::Refused { code: Code::RunnerInterrupt, why };
                return;
            }
            CallResult::Answered(AssignResponse::Refused { code, why })
            | CallResult::Failed(CallError::Refused { code, why }) => (code, why),
        };
        entry.runtime.assign_reply = AssignReply::Refused { code, why };
        self.start_backoff(id, &holder.node, code);
    }
}

/// Returns the node that has returned a task because it stops: no watch fires when its registration says so.
fn returning_node<'a>(before: &'a TaskRecord, after: &TaskRecord) -> Option<&'a NodeId> {
    let outcome = after.attempts.last().and_then(|attempt| attempt.outcome.as_deref());
    let is_returned = after.holder.is_none() && outcome == Some(Code::RunnerInterrupt.as_str());
    before.node().filter(|_| is_returned)
}

/// Tells whether claims fit into a record: 1 to 8 of them, each of 1 to 300 bytes.
fn is_plausible(claims: &[String]) -> bool {
    (1..=8).contains(&claims.len()) && claims.iter().all(|claim| (1..=300).contains(&claim.len()))
}
