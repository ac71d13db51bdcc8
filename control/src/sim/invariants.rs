//! Checks the invariants of the records in every committed write, before any process can act on it.
//!
//! | invariant | what is checked |
//! | --- | --- |
//! | I1 one holder | no two tasks with a holder have one destination; claims and record name the same holder |
//! | I2 epochs | a record's epoch is the number of the write that granted its claims; [`Disks`] checks the writes |
//! | I3 success | every attempt has drained, and the destination holds the source's data ([`Disks::seal`]) |
//! | I4 ends | a terminal state is final; failures fall only with progress; interruptions are not charged |
//! | I5 liveness | every task that can proceed does within a minute, once no fault is active: [`InvariantChecker::stuck`] |
//! | I7 dependencies | a task starts when every predecessor is settled and ended as it has to; a skipped one never starts |
//! | I8 groups | see [`group_invariants`](super::group_invariants) |
//! | I9 hooks | one that runs at most once is not assigned again once it has begun; [`HookRuns`] checks the runs |
//! | I10 schedules | see [`schedule_invariants`](super::schedule_invariants) |
//! | I11 placement | see [`placement_invariants`](super::placement_invariants) |
//! | I6 guards | every operation names a version; whatever changes a task or a claim checks its term or registration |
//!
//! Also: the author of every transition may make it, bytes recorded as durable are durable and are not copied again,
//! the next attempt after a lost lease waits for the hold-off, and a claim is removed only when its task ends. The
//! checks use only the specification and the committed data.
//!
//! [`HookRuns`]: super::hooks::HookRuns

use super::allowed_transitions::{Author, is_allowed};
use super::disk::{Disks, Writer};
use super::hooks::HookTask;
use super::run_result::RunResult;
use super::schedule_invariants::ObservedSchedules;
use super::volume_name::VolumeName;
use crate::coord::paths;
use crate::coord::sim::Commit;
use crate::coord::{Op, Znode, Zxid};
use crate::model::{
    Attempt, Claim, Dependency, DesiredState, Epoch, FenceMethod, Holder, Leader, NodeFault, NodeId, Record,
    Registration, ScheduleRecord, TaskId, TaskRecord, TaskSpec, TaskState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Least time from the loss of a runner to the next attempt under a lease.
const HOLD_OFF: Duration = Duration::from_secs(2);
/// Longest time without a change of a task that can proceed.
const STUCK: Duration = Duration::from_secs(60);

/// Task as it was committed last.
#[derive(Clone, Debug)]
pub(super) struct CommittedTask {
    pub(super) record: TaskRecord,
    pub(super) changed: Instant,
}

#[derive(Debug, Default)]
pub(super) struct ObservedState {
    tasks: BTreeMap<TaskId, CommittedTask>,
    claims: BTreeMap<String, (Claim, Zxid)>,
    /// Grants by write: task and holder.
    grants: BTreeMap<Epoch, BTreeMap<TaskId, Holder>>,
    leader: Option<Leader>,
    runners: BTreeMap<String, Registration>,
    granted: BTreeMap<Epoch, Instant>,
    /// Nodes that an operator has confirmed to be off.
    confirmed: BTreeSet<String>,
    /// Times at which tasks were last seen to wait for something that may take its time.
    waited: BTreeMap<TaskId, Instant>,
    pub(super) schedules: ObservedSchedules,
    /// Times at which each process has registered last.
    registered: BTreeMap<String, Instant>,
    /// Times at which the registrations of each process were deleted.
    gone: BTreeMap<String, Vec<Instant>>,
}

/// Checks the invariants; see the module's head.
#[derive(Clone, Debug)]
pub(super) struct InvariantChecker {
    observed: Arc<Mutex<ObservedState>>,
    disks: Disks,
    pub(super) result: RunResult,
}

impl InvariantChecker {
    pub(super) fn new(disks: Disks, result: RunResult) -> Self {
        Self { observed: Arc::default(), disks, result }
    }

    pub(super) fn observed(&self) -> std::sync::MutexGuard<'_, ObservedState> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the committed tasks.
    pub(super) fn tasks(&self) -> Vec<CommittedTask> {
        self.observed().tasks.values().cloned().collect()
    }

    /// Returns the current or last leader.
    pub(super) fn leader(&self) -> Option<Leader> {
        self.observed().leader.clone()
    }

    /// Starts over from the stored nodes after history went back.
    pub(super) fn restart(&self, nodes: &[(String, Znode)]) {
        let mut observed = self.observed();
        let ObservedState { confirmed, granted, gone, .. } = std::mem::take(&mut *observed);
        *observed = ObservedState { confirmed, granted, gone, ..ObservedState::default() };
        let now = Instant::now();
        for (path, node) in nodes {
            if let (true, Ok(record)) = (path.starts_with("/tasks/"), TaskRecord::decode(&node.data)) {
                observed.tasks.insert(record.id.clone(), CommittedTask { record, changed: now });
            } else if let (true, Ok(claim)) = (path.starts_with("/claims/"), Claim::decode(&node.data)) {
                observed.note_claim(path, claim, node.stat.modified);
            } else if let (true, Ok(leader)) = (path == paths::LEADER_EPOCH, Leader::decode(&node.data)) {
                observed.leader = Some(leader);
            } else if let (true, Ok(there)) = (path.starts_with("/runners/"), Registration::decode(&node.data)) {
                observed.runners.insert(path.clone(), there);
            } else if let (true, Ok(schedule)) = (path.starts_with("/schedules/"), ScheduleRecord::decode(&node.data)) {
                observed.schedules.restore(schedule);
            }
        }
    }

    /// Returns the number of times that history has gone back.
    pub(super) fn era(&self) -> u32 {
        self.disks.era()
    }

    /// Tells whether history has gone back: then the store may have lost what was acknowledged.
    pub(super) fn has_lost_history(&self) -> bool {
        self.era() > 0
    }

    /// Records an operator's confirmation that a node is off.
    pub(super) fn confirmed(&self, node: &NodeId) {
        self.observed().confirmed.insert(node.to_string());
    }

    /// Checks a write.
    pub(super) fn observe(&self, commit: &Commit<'_>) {
        let mut observed = self.observed();
        self.check_guards(&observed, commit);
        let author = if checks(commit, paths::LEADER_EPOCH) { Author::Leader } else { Author::Runner };
        let mut ended = Vec::new();
        for &(path, node) in commit.changes {
            match path.split('/').nth(1) {
                Some("claims") => self.observe_claim(&mut observed, commit, path, node, &mut ended),
                Some("runners") => self.observe_runner(&mut observed, path, node),
                Some("schedules") => self.observe_schedule(&mut observed, commit, path, node),
                _ if path == paths::LEADER_EPOCH => self.observe_leader(&mut observed, commit, node),
                _ => {}
            }
        }
        let mut changed = Vec::new();
        for &(path, node) in commit.changes.iter().filter(|(path, _)| path.starts_with("/tasks/") && is_leaf(path)) {
            changed.extend(self.observe_task(&mut observed, commit, author, path, node));
        }
        for id in changed {
            self.check_holder(&observed, &id);
        }
        for claim in ended {
            let is_over = observed.tasks.get(&claim.task).is_none_or(|seen| seen.record.state.is_terminal());
            self.result
                .expect(is_over, || format!("the claim on {} went before {} ended", claim.destination, claim.task));
        }
    }

    /// Checks I6.
    fn check_guards(&self, observed: &ObservedState, commit: &Commit<'_>) {
        let unversioned = commit.ops.iter().any(|op| match op {
            Op::Check { version, .. } | Op::Set { version, .. } | Op::Delete { version, .. } => *version < 0,
            Op::Create { .. } => false,
        });
        self.result.expect(!unversioned, || format!("a write without a version: {:?}", commit.ops));
        let is_decision = |path: &str| {
            (path.starts_with("/tasks/") || path.starts_with("/claims/")) && is_leaf(path)
                || path.starts_with("/schedules/")
        };
        if !commit.changes.iter().any(|(path, _)| is_decision(path)) {
            return;
        }
        if checks(commit, paths::LEADER_EPOCH) {
            let is_leader = observed.leader.as_ref().is_some_and(|leader| leader.node.as_str() == commit.node);
            self.result
                .expect(is_leader, || format!("{} wrote as leader and is none: {:?}", commit.node, observed.leader));
            let is_first = matches!(commit.ops.first(), Some(Op::Check { path, .. }) if path == paths::LEADER_EPOCH);
            self.result.expect(is_first, || format!("the leader_term is not checked first: {:?}", commit.ops));
        } else {
            let is_runner = checks(commit, &paths::runner(commit.node));
            self.result
                .expect(is_runner, || format!("{} wrote without term or registration: {:?}", commit.node, commit.ops));
        }
    }

    fn observe_leader(&self, observed: &mut ObservedState, commit: &Commit<'_>, node: Option<&Znode>) {
        observed.leader = node.and_then(|node| Leader::decode(&node.data).ok());
        self.result.note(format_args!("{} leads with epoch {}", commit.node, commit.zxid.0));
    }

    fn observe_runner(&self, observed: &mut ObservedState, path: &str, node: Option<&Znode>) {
        let registration = node.and_then(|node| Registration::decode(&node.data).ok());
        let is_renewed = node.is_some_and(|node| node.stat.version == 0);
        let before = observed.runners.remove(path);
        if let Some(before) = before.filter(|_| node.is_none() || is_renewed) {
            observed.gone.entry(before.incarnation.0).or_default().push(Instant::now());
        }
        match registration {
            Some(there) => {
                self.result.note(format_args!("{path}: {} stopping={}", &there.incarnation.0[..6], there.stopping));
                observed.registered.insert(there.incarnation.0.clone(), Instant::now());
                observed.runners.insert(path.to_owned(), there);
            }
            None => self.result.note(format_args!("{path}: gone")),
        }
    }

    fn observe_claim(
        &self,
        observed: &mut ObservedState,
        commit: &Commit<'_>,
        path: &str,
        node: Option<&Znode>,
        ended: &mut Vec<Claim>,
    ) {
        if !is_leaf(path) {
            return;
        }
        let before = observed.claims.remove(path);
        let Some(node) = node else {
            ended.extend(before.map(|(claim, _)| claim));
            return;
        };
        let Ok(claim) = Claim::decode(&node.data) else {
            return self.result.fail(format_args!("{path} cannot be read"));
        };
        if let Some((before, epoch)) = before {
            self.result
                .expect(before.task == claim.task, || format!("{path} went from {} to {}", before.task, claim.task));
            self.result.expect(epoch < commit.zxid, || format!("{path}: its epoch fell"));
        }
        self.result.expect(path == paths::claim(&claim.destination), || format!("{path} claims {}", claim.destination));
        observed.note_claim(path, claim, commit.zxid);
    }

    fn observe_task(
        &self,
        observed: &mut ObservedState,
        commit: &Commit<'_>,
        author: Author,
        path: &str,
        node: Option<&Znode>,
    ) -> Option<TaskId> {
        let Some(node) = node else {
            let gone = observed.tasks.iter().find(|(id, _)| paths::task(id) == path).map(|(id, _)| id.clone())?;
            let seen = observed.tasks.remove(&gone)?;
            self.result.expect(seen.record.state.is_terminal(), || {
                format!("{gone} was removed while {:?}", seen.record.state)
            });
            return None;
        };
        let after = match TaskRecord::decode(&node.data) {
            Ok(after) => after,
            Err(error) => {
                self.result.fail(format_args!("{path}: {error}"));
                return None;
            }
        };
        let before = observed.tasks.get(&after.id).map(|seen| seen.record.clone());
        if before.as_ref().map(|before| (before.state, &before.holder)) != Some((after.state, &after.holder)) {
            let holder = after.holder.as_ref().map(|holder| holder.node.to_string()).unwrap_or_default();
            self.result.note(format_args!(
                "{}: {} -> {} {holder} by {author:?} {} failures={} {}",
                after.id,
                before.as_ref().map_or("", |before| before.state.as_str()),
                after.state.as_str(),
                commit.node,
                after.failures,
                after.reason
            ));
        }
        match before {
            None => {
                let is_new = after.state == TaskState::Pending && author == Author::Leader;
                self.result.expect(is_new, || format!("{} began as {:?} by {author:?}", after.id, after.state));
                self.check_made_by_schedule(observed, commit, &after);
            }
            Some(before) => self.check_step(observed, commit, author, &before, &after),
        }
        if after.state == TaskState::Succeeded
            && observed.tasks.get(&after.id).is_none_or(|seen| seen.record.state != after.state)
        {
            self.check_success(&after);
        }
        let id = after.id.clone();
        observed.tasks.insert(id.clone(), CommittedTask { record: after, changed: Instant::now() });
        Some(id)
    }

    fn check_step(
        &self,
        observed: &ObservedState,
        commit: &Commit<'_>,
        author: Author,
        before: &TaskRecord,
        after: &TaskRecord,
    ) {
        let id = &after.id;
        let fail = |what: String| self.result.fail(format_args!("{id}: {what}"));
        self.count(before, after);
        // I4.
        if before.state.is_terminal()
            && (after.state != before.state || after.report != before.report || after.map != before.map)
        {
            fail(format!("{:?} became {:?}", before.state, after.state));
        }
        let has_progressed = after.durable_best > before.durable_best && after.progress.durable >= after.durable_best;
        let fell = after.failures < before.failures && !(has_progressed && after.failures <= 1);
        if fell || after.durable_best < before.durable_best || after.created_ms != before.created_ms {
            fail(format!("failures fell from {} to {}", before.failures, after.failures));
        }
        if after.failures < before.failures {
            self.result.count("failures forgiven after progress");
        }
        // After history went back, versions repeat: a runner's known version may be that of another record.
        if !is_allowed(author, before, after) && (author == Author::Leader || !self.has_lost_history()) {
            fail(format!("{author:?} took it from {:?} to {:?}", before.state, after.state));
        }
        if after.failures > before.failures {
            let outcome = after.attempts.last().and_then(|attempt| attempt.outcome.as_deref());
            if after.failures != before.failures + 1
                || matches!(outcome, Some("ERunnerInterrupt" | "ECancelled" | "succeeded"))
            {
                fail(format!("{outcome:?} was charged: {} to {} failures", before.failures, after.failures));
            }
        }
        if author == Author::Runner {
            let is_holder = before.holder.as_ref().is_some_and(|holder| holder.node.as_str() == commit.node);
            if !is_holder {
                fail(format!("{} wrote the record of {:?}", commit.node, before.holder));
            }
        }
        if after.after != before.after {
            fail(format!("its dependencies became {:?}", after.after));
        }
        if !before.state.is_terminal() && !self.has_lost_history() {
            self.check_dependencies(observed, before, after);
            self.check_retry_start(observed, before, after);
            self.check_member_start(observed, before, after);
            self.check_group(observed, before, after);
        }
        if before.state == TaskState::Pending && after.state == TaskState::Assigned {
            let is_its = |attempt: &&Attempt| Some(&attempt.runner) == after.holder.as_ref();
            let is_unfit = |attempt: &Attempt| attempt.node_fault == Some(NodeFault::Lasting);
            self.check_apart(observed, after);
            if before.attempts.iter().filter(is_its).any(is_unfit) {
                fail(format!("was given to {:?} again, which cannot do it", after.holder));
            }
        }
        if let TaskSpec::Run(run) = &after.spec {
            let has_begun = before.attempts.iter().any(|attempt| attempt.epoch.is_some());
            let is_again = has_begun && after.attempts.len() > before.attempts.len();
            if run.at_most_once && is_again && !self.has_lost_history() {
                fail(String::from("was assigned again, has begun, and runs at most once"));
            }
        }
        if before.state == TaskState::Lost && after.state != TaskState::Lost {
            self.check_fence(observed, before, after);
        }
        if after.map != before.map {
            self.check_map(after);
        }
        // After history went back, the destination may have been written by an attempt that is in no record.
        let begins =
            before.state == TaskState::Assigned && after.state == TaskState::Running && !self.has_lost_history();
        if begins && after.map.bytes() < before.map.bytes() {
            let (kept, known) = (after.map.bytes(), before.map.bytes());
            fail(format!("began with {kept} of {known} bytes that were durable"));
        }
    }

    fn count(&self, before: &TaskRecord, after: &TaskRecord) {
        let is_over = |record: &TaskRecord| record.attempts.last().is_some_and(|attempt| attempt.ended_ms.is_some());
        let outcome = after.attempts.last().and_then(|attempt| attempt.outcome.as_deref());
        match after.state {
            state if before.state == state => {}
            TaskState::Lost => self.result.count("tasks lost"),
            TaskState::Pending if after.attempts.last().is_some_and(|last| last.node_fault.is_some()) => {
                self.result.count("tasks that their nodes could not do");
            }
            TaskState::Running if before.state == TaskState::Lost => {
                self.result.count("local copies continued by their runners")
            }
            TaskState::Running if !after.map.is_empty() => self.result.count("copies resumed from a map"),
            TaskState::Running => self.result.count("copies begun"),
            TaskState::Verifying => self.result.count("successes that waited for other attempts to drain"),
            TaskState::Succeeded => self.result.count("tasks succeeded"),
            TaskState::Failed => self.result.count("tasks failed"),
            TaskState::Cancelled => self.result.count("tasks cancelled"),
            TaskState::Skipped => self.result.count("tasks skipped"),
            TaskState::Pending | TaskState::Assigned | TaskState::Paused | TaskState::Cancelling => {}
        }
        if !is_over(before) && is_over(after) && outcome == Some("ERunnerInterrupt") {
            self.result.count("attempts returned or revoked");
        }
    }

    /// Checks that a lost task is assigned again only when its runner is fenced as the task's fence demands.
    fn check_fence(&self, observed: &ObservedState, before: &TaskRecord, after: &TaskRecord) {
        let Some(last) = before.attempts.last() else { return };
        let granted = last.epoch.and_then(|epoch| observed.granted.get(&epoch));
        let is_since = |gone: &&Instant| granted.is_none_or(|granted| *gone >= granted);
        // The leader may have seen a registration that is gone again by now.
        let lost_at = observed.tasks.get(&before.id).map(|seen| seen.changed);
        let is_there = observed.runners.values().any(|there| there.incarnation == last.runner.incarnation)
            || observed.registered.get(&last.runner.incarnation.0).copied() >= lost_at;
        let gone = observed.gone.get(&last.runner.incarnation.0).into_iter().flatten().find(is_since);
        let is_back = matches!(after.state, TaskState::Running | TaskState::Cancelling) && after.holder.is_some();
        let is_fine = match after.spec.kind().fence() {
            FenceMethod::Local if is_back => is_there,
            _ if observed.confirmed.contains(last.runner.node.as_str()) => !is_back && gone.is_some(),
            FenceMethod::Lease => gone.is_some_and(|gone| gone.elapsed() >= HOLD_OFF),
            FenceMethod::Local | FenceMethod::Command | FenceMethod::Manual => !is_back && gone.is_some(),
        };
        self.result.expect(is_fine, || {
            let since = gone.map(Instant::elapsed);
            format!("{}: {:?} after LOST, its runner {is_there}, gone since {since:?}", after.id, after.state)
        });
    }

    /// Checks that the bytes of a record's durable map are durable.
    fn check_map(&self, after: &TaskRecord) {
        let Some(name) = VolumeName::destination(&after.spec) else { return };
        if self.has_lost_history() && self.disks.is_remote(&name) {
            // Lost attempts may have written it since, and an export has no stored epoch.
            return;
        }
        let invented = self.disks.not_durable(&name, &after.map, &VolumeName::data(&after.spec, &self.disks));
        self.result
            .expect(invented.is_empty(), || format!("{}: blocks {invented:?} of {name} are not durable", after.id));
    }

    fn check_success(&self, after: &TaskRecord) {
        let unquiet = after.attempts.iter().filter(|attempt| !attempt.quiet).count();
        self.result.expect(unquiet == 0, || format!("{} succeeded with {unquiet} attempts that may write", after.id));
        if let (Some(name), Some(epoch)) = (VolumeName::destination(&after.spec), after.epoch) {
            self.disks.seal(&name, &after.id, epoch, &VolumeName::data(&after.spec, &self.disks));
        } else if let TaskSpec::Copy(_) = after.spec {
            self.result.fail(format_args!("{} succeeded without an epoch", after.id));
        }
    }

    /// Checks I1 and the epoch of I2 for a task after a write.
    fn check_holder(&self, observed: &ObservedState, id: &TaskId) {
        let Some(CommittedTask { record, .. }) = observed.tasks.get(id) else { return };
        if record.holder.is_none() {
            return;
        }
        let destination = VolumeName::destination(&record.spec);
        for other in observed.tasks.values().map(|seen| &seen.record) {
            let is_rival = other.id != *id && other.holder.is_some() && destination.is_some();
            if is_rival && VolumeName::destination(&other.spec) == destination {
                self.result.fail(format_args!("{id} and {} both hold {destination:?}", other.id));
            }
        }
        for claimed in &record.claims {
            let claim = observed.claims.get(&paths::claim(claimed));
            let is_right = claim.is_some_and(|(claim, epoch)| {
                claim.task == *id
                    && claim.holder == record.holder
                    && record.epoch.is_none_or(|held| held == Epoch::from(*epoch))
            });
            self.result.expect(is_right, || {
                format!(
                    "{id} is {:?} by {:?} under {:?}, and its claim is {claim:?}",
                    record.state, record.holder, record.epoch
                )
            });
        }
        self.result.expect(!record.claims.is_empty(), || format!("{id} has a holder and no claim"));
    }

    /// Checks that a writer's epoch was granted to it in the store, and that its task has begun.
    pub(super) fn check_writer(&self, by: &Writer) {
        if by.era != self.disks.era() {
            return;
        }
        let Writer { task, epoch, holder, .. } = by;
        let observed = self.observed();
        let granted = observed.grants.get(epoch).and_then(|tasks| tasks.get(task));
        self.result.expect(granted == Some(holder), || format!("{by:?} writes by a grant to {granted:?}"));
        let has_begun = observed.tasks.get(task).is_some_and(|seen| {
            seen.record.epoch == Some(*epoch)
                || seen.record.attempts.iter().any(|attempt| attempt.epoch == Some(*epoch))
        });
        self.result.expect(has_begun, || format!("{task} was written under {epoch} before RUNNING was stored"));
    }

    /// Returns what the checks of a hook need of its task's record.
    pub(super) fn hook_task(&self, id: &TaskId, created_ms: u64) -> HookTask {
        let observed = self.observed();
        let spec = observed.tasks.get(id).map(|seen| &seen.record.spec);
        let run = match spec {
            Some(TaskSpec::Run(run)) => Some(run),
            Some(TaskSpec::Copy(_) | TaskSpec::Noop(_) | TaskSpec::Verify(_) | TaskSpec::Group(_)) | None => None,
        };
        let is_leased = run.is_none_or(|run| run.node.is_none());
        HookTask { created_ms, is_leased, is_once: run.is_some_and(|run| run.at_most_once) }
    }

    /// Checks I7: a task starts only when every dependency is met by a settled predecessor, and is skipped only when one
    /// cannot be met any more.
    fn check_dependencies(&self, observed: &ObservedState, before: &TaskRecord, after: &TaskRecord) {
        let id = &after.id;
        if before.attempts.is_empty() && !after.attempts.is_empty() {
            for dependency in &after.after {
                let predecessor = observed.predecessor(dependency);
                let is_met = predecessor.is_some_and(|predecessor| {
                    observed.is_settled(predecessor) && dependency.condition.is_met_by(predecessor.outcome())
                });
                self.result
                    .expect(is_met, || format!("{id} started, and {dependency:?} is not met by {predecessor:?}"));
            }
            if !after.after.is_empty() {
                self.result.count("starts after other tasks");
            }
        }
        if after.state == TaskState::Skipped {
            self.result.expect(after.attempts.is_empty(), || format!("{id} was skipped after it had started"));
            let is_broken = |dependency: &Dependency| match observed.predecessor(dependency) {
                Some(predecessor) => {
                    predecessor.state.is_terminal() && !dependency.condition.is_met_by(predecessor.outcome())
                }
                None => true,
            };
            let is_orphan = after
                .group
                .as_ref()
                .is_some_and(|member| observed.record(&member.group).is_none_or(|group| group.state.is_terminal()));
            let has_reason = is_orphan || after.after.iter().any(is_broken);
            self.result.expect(has_reason, || format!("{id} was skipped without a reason"));
        }
    }

    /// Checks I5 once all faults are repaired at `since`: describes a task that could proceed and has not changed for a
    /// minute.
    pub(super) fn stuck(&self, since: Instant, unix_ms: u64) -> Option<String> {
        let mut observed = self.observed();
        let rests = |record: &TaskRecord| record.not_before_ms > unix_ms || observed.waits(record);
        let waiting = observed.tasks.values().map(|seen| &seen.record);
        let waiting = waiting
            .filter(|record| (record.state == TaskState::Pending && rests(record)) || observed.waits_in_group(record));
        let waiting: Vec<TaskId> = waiting.map(|record| record.id.clone()).collect();
        let now = Instant::now();
        observed.waited.extend(waiting.into_iter().map(|id| (id, now)));
        let is_stuck = |seen: &&CommittedTask| {
            let CommittedTask { record, changed } = seen;
            // What it waited for may have ended a moment ago.
            let since = observed.waited.get(&record.id).map_or(since, |waited| since.max(*waited));
            let is_asleep = record.state.is_terminal()
                || (record.state == TaskState::Paused && record.desired() == DesiredState::Pause);
            !is_asleep && (*changed).max(since).elapsed() > STUCK
        };
        let stuck = observed.tasks.values().find(is_stuck)?;
        let CommittedTask { record, changed } = stuck;
        Some(format!(
            "{} is {} for {:?} (desired_state {:?}, holder {:?}, reason '{}')",
            record.id,
            record.state.as_str(),
            changed.elapsed(),
            record.desired_state,
            record.holder,
            record.reason
        ))
    }

    /// Tells whether every task has ended.
    pub(super) fn all_done(&self) -> bool {
        self.observed().tasks.values().all(|seen| seen.record.state.is_terminal())
    }
}

impl ObservedState {
    fn note_claim(&mut self, path: &str, claim: Claim, zxid: Zxid) {
        if let Some(holder) = &claim.holder {
            self.grants.entry(Epoch::from(zxid)).or_default().insert(claim.task.clone(), holder.clone());
            self.granted.entry(Epoch::from(zxid)).or_insert_with(Instant::now);
        }
        self.claims.insert(path.to_owned(), (claim, zxid));
    }

    pub(super) fn record(&self, id: &TaskId) -> Option<&TaskRecord> {
        self.tasks.get(id).map(|seen| &seen.record)
    }

    pub(super) fn registration(&self, node: &NodeId) -> Option<&Registration> {
        self.runners.get(&paths::runner(node.as_str()))
    }

    /// Returns the time since the last write of a record.
    pub(super) fn since_change(&self, id: &TaskId) -> Option<Duration> {
        self.tasks.get(id).map(|seen| seen.changed.elapsed())
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &TaskRecord> {
        self.tasks.values().map(|seen| &seen.record)
    }

    fn predecessor(&self, dependency: &Dependency) -> Option<&TaskRecord> {
        let record = &self.tasks.get(&dependency.task)?.record;
        (record.created_ms == dependency.created_ms).then_some(record)
    }

    /// Tells whether a task has ended, and none of its writes can land any more.
    pub(super) fn is_settled(&self, record: &TaskRecord) -> bool {
        let is_over = |attempt: &Attempt| {
            let there = self.runners.get(&paths::runner(attempt.runner.node.as_str()));
            attempt.quiet || there.is_some_and(|there| there.incarnation != attempt.runner.incarnation)
        };
        record.state.is_terminal() && record.claims.is_empty() && record.attempts.iter().all(is_over)
    }

    /// Tells whether a task waits for another one, for the destination of another one, or for a slot.
    fn waits(&self, record: &TaskRecord) -> bool {
        let is_open = |dependency: &Dependency| {
            self.predecessor(dependency).is_some_and(|predecessor| !self.is_settled(predecessor))
        };
        if (record.attempts.is_empty() && record.after.iter().any(is_open)) || self.waits_for_slot(record) {
            return true;
        }
        let destination = VolumeName::destination(&record.spec);
        let holds = |other: &TaskRecord| {
            other.id != record.id
                && (other.state.is_held() || other.state == TaskState::Paused || !other.claims.is_empty())
        };
        let mut others = self.tasks.values().map(|seen| &seen.record).filter(|other| holds(other));
        others.any(|other| destination.is_some() && VolumeName::destination(&other.spec) == destination)
    }
}

impl ObservedState {
    /// Tells whether every node that may run a task has as many tasks as slots, or slots may be kept free for a group.
    fn waits_for_slot(&self, record: &TaskRecord) -> bool {
        let holds = |group: &TaskRecord| {
            !group.state.is_terminal() && group.spec.kind().group().is_some_and(|group| group.hold)
        };
        let held = |there: &Registration| self.records().filter(|other| other.node() == Some(&there.node)).count();
        let is_full = |there: &Registration| held(there) >= there.slots as usize;
        let is_elsewhere = |there: &Registration| {
            record.only_node().ok().flatten().is_some_and(|only| there.node != only) || !record.may_run_on(&there.node)
        };
        let is_taken = |there: &Registration| is_elsewhere(there) || is_full(there) || self.keeps_apart(there, record);
        self.records().any(holds) || self.runners.values().all(is_taken)
    }
}

fn is_leaf(path: &str) -> bool {
    path.matches('/').count() == 3
}

/// Tells whether a write checks the version of the node at a path.
fn checks(commit: &Commit<'_>, wanted: &str) -> bool {
    commit.ops.iter().any(|op| match op {
        Op::Check { path, .. } | Op::Set { path, .. } => path == wanted,
        Op::Create { .. } | Op::Delete { .. } => false,
    })
}
