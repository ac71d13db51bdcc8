//! Renews the lease and stores checkpoints, in the one periodic write of a runner.
//!
//! A renewal checks the registration in the same multi. So a committed renewal proves that the session was alive and
//! registered. The multi also holds the checkpoints that are due. A checkpoint that is refused, as its record has
//! changed, is left out and the rest is sent again at once, so that it does not cost the lease. If no lease is needed,
//! only checkpoints are written.

use super::assignment_records::HeldRecords;
use super::attempt::{Attempt, has_begun};
use super::registration;
use super::state::RunnerState;
use super::write_lease::ActiveRegistration;
use crate::cluster::lease::LeaseTiming;
use crate::coord::{CoordError, Done, MULTI_BYTES_MAX, Op, Stat};
use crate::model::state_machine::{self, Checkpoint, TaskEvent};
use crate::model::{Record, Renewal, TaskId, TaskRecord, TaskState};
use blockhaul_engine::job::StopReason;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::Instrument;

/// Time between two checkpoints of a task.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for a record that its attempt is reading or writing: a small fraction of the lease.
const RECORD_WAIT: Duration = Duration::from_millis(100);
/// Time between two checks that the lease has ended.
const GUARD_EVERY: Duration = Duration::from_millis(250);

/// State of the renewal from one write to the next.
#[derive(Debug, Default)]
struct RenewalState {
    count: u64,
    /// Version of the lease's node; `None` when it has to be read.
    lease_version: Option<i32>,
    /// Registration that the version belongs to.
    registration: Option<ActiveRegistration>,
    /// Start of the last write.
    last_write: Option<Instant>,
    checkpoints: BTreeMap<TaskId, Instant>,
    /// Whether a checkpoint was left out: it is retried once, at once, after its record has been read again.
    retry_now: bool,
}

/// Checkpoint that is being written.
struct DueCheckpoint<'a> {
    attempt: &'a Attempt,
    known: MutexGuard<'a, Option<HeldRecords>>,
    current: HeldRecords,
    after: TaskRecord,
}

/// Renews and checkpoints for as long as it is polled.
pub(super) async fn renew(state: &RunnerState) {
    let mut renewal_state = RenewalState::default();
    loop {
        let registration = state.context.registration().await;
        if !renewal_state
            .registration
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(&known.write_lease, &registration.write_lease))
        {
            (renewal_state.registration, renewal_state.lease_version) = (Some(registration.clone()), None);
        }
        renewal_state.wait(state, &registration).await;
        if let Err(error) = renewal_state.write(state, &registration).await {
            tracing::debug!(%error, "renewal failed");
            state.context.wait_to_retry(&registration, &error).await;
            // Makes the next renewal and all checkpoints due at once.
            renewal_state.last_write = None;
            renewal_state.checkpoints.clear();
        }
    }
}

impl RenewalState {
    /// Waits until the next write is due.
    async fn wait(&self, state: &RunnerState, registration: &ActiveRegistration) {
        let timing = LeaseTiming::from(registration.session.timeout());
        let mut registrations = state.context.registration.subscribe();
        loop {
            let every = if state.needs_lease() { timing.renew_every } else { CHECKPOINT_EVERY };
            let wants_lease = state.needs_lease() && !registration.write_lease.is_open(state.context.now());
            let due = self.last_write.map_or_else(Instant::now, |last_write| last_write + every);
            if wants_lease || self.retry_now || due <= Instant::now() {
                return;
            }
            tokio::select! { biased;
                _ = registrations.wait_for(|now| !now.as_ref().is_some_and(|now| now.is_same(registration))) => return,
                () = state.context.renew.notified() => {}
                () = sleep_until(due) => return,
            }
        }
    }

    async fn write(&mut self, state: &RunnerState, registration: &ActiveRegistration) -> Result<(), CoordError> {
        self.last_write = Some(Instant::now());
        let may_retry = !std::mem::take(&mut self.retry_now);
        let needs_lease = state.needs_lease();
        let attempts = state.assignments.all();
        let mut checkpoints = self.checkpoints(state, registration, &attempts).await?;
        if needs_lease && self.lease_version.is_none() {
            self.lease_version = Some(registration::lease_version(state, &*registration.session).await?);
        }
        loop {
            let mut ops = vec![registration.check(&state.context.config.node)];
            if let Some(version) = self.lease_version.filter(|_| needs_lease) {
                self.count += 1;
                let data = registration::renewal(state, self.count).encode();
                ops.push(Op::Set { path: registration::lease_path(state), data, version });
            }
            let own_ops = ops.len();
            let mut owners = Vec::new();
            for (index, checkpoint) in checkpoints.iter().enumerate() {
                let more = checkpoint.current.ops(&checkpoint.after);
                owners.resize(owners.len() + more.len(), index);
                ops.extend(more);
            }
            if ops.len() == 1 {
                return Ok(());
            }
            let sent = state.context.now();
            match registration.session.multi(ops).await {
                Ok(done) => {
                    if needs_lease {
                        registration.write_lease.committed(sent);
                    }
                    self.committed(state, &done, own_ops, checkpoints);
                    return Ok(());
                }
                Err(CoordError::Refused { index, .. }) if index >= own_ops => {
                    let Some(&refused) = owners.get(index - own_ops) else { return Ok(()) };
                    // Dropping it leaves the record unknown, so the next checkpoint reads it again, and so does its
                    // attempt.
                    let attempt = checkpoints.remove(refused).attempt;
                    attempt.recheck_record();
                    self.checkpoints.remove(attempt.task());
                    self.retry_now = may_retry;
                }
                Err(error @ CoordError::Unknown(_)) if needs_lease => {
                    self.lease_version = None;
                    return if self.was_committed(state, registration).await? {
                        registration.write_lease.committed(sent);
                        Ok(())
                    } else {
                        Err(error)
                    };
                }
                Err(error) => {
                    // The outcome may be unknown: the lease's version is read before the next renewal.
                    self.lease_version = None;
                    return Err(error);
                }
            }
        }
    }

    /// Tells whether the last renewal is in the store.
    async fn was_committed(
        &mut self,
        state: &RunnerState,
        registration: &ActiveRegistration,
    ) -> Result<bool, CoordError> {
        registration.session.sync().await?;
        let Some(node) = registration.session.get(&registration::lease_path(state)).await? else { return Ok(false) };
        self.lease_version = Some(node.stat.version);
        let is_last =
            |renewal: Renewal| renewal.incarnation == state.context.config.incarnation && renewal.count == self.count;
        Ok(Renewal::decode(&node.data).is_ok_and(is_last))
    }

    /// Returns the checkpoints that are due, as many as one write has room for.
    async fn checkpoints<'a>(
        &mut self,
        state: &RunnerState,
        registration: &ActiveRegistration,
        attempts: &'a [Arc<Attempt>],
    ) -> Result<Vec<DueCheckpoint<'a>>, CoordError> {
        self.checkpoints.retain(|task, _| attempts.iter().any(|attempt| attempt.task() == task));
        let mut due = Vec::new();
        let mut bytes = 0;
        for attempt in attempts {
            let last = self.checkpoints.get(attempt.task());
            if last.is_some_and(|last| last.elapsed() < CHECKPOINT_EVERY) {
                continue;
            }
            if let Some(checkpoint) =
                checkpoint(state, registration, attempt).instrument(attempt.span().clone()).await?
            {
                bytes += checkpoint.after.encode().len() + 1024;
                if bytes > MULTI_BYTES_MAX / 2 {
                    break;
                }
                self.checkpoints.insert(attempt.task().clone(), Instant::now());
                due.push(checkpoint);
            }
        }
        Ok(due)
    }

    fn committed(&mut self, state: &RunnerState, done: &[Done], own_ops: usize, checkpoints: Vec<DueCheckpoint<'_>>) {
        let stat = |done: Option<&Done>| match done {
            Some(Done::Set(stat)) => Some(*stat),
            Some(Done::Plain) | None => None,
        };
        if own_ops > 1 {
            self.lease_version = stat(done.get(1)).map(|stat: Stat| stat.version);
        }
        let mut at = own_ops;
        for DueCheckpoint { attempt, mut known, current, after } in checkpoints {
            at += current.ops(&after).len();
            *known = stat(done.get(at - 1)).and_then(|stat| current.after(after, stat));
            state.context.notifier.changed(attempt.task());
        }
    }
}

/// Returns the checkpoint of an attempt, if its copy has made progress.
async fn checkpoint<'a>(
    state: &RunnerState,
    registration: &ActiveRegistration,
    attempt: &'a Arc<Attempt>,
) -> Result<Option<DueCheckpoint<'a>>, CoordError> {
    let Some(running) = attempt.running().filter(|_| !attempt.is_abandoned()) else { return Ok(None) };
    let map = running.durable();
    if map.is_empty() {
        return Ok(None);
    }
    let Some(mut known) = attempt.records.lock(RECORD_WAIT).await else { return Ok(None) };
    attempt.records.refresh(&*registration.session, &mut known).await?;
    let is_due = |current: &&mut HeldRecords| {
        let record = &current.record;
        let is_at_work = has_begun(record) || record.state == TaskState::Cancelling;
        is_at_work && (record.map != map || record.progress.durable != running.progress().durable)
    };
    if known.is_none() {
        // The task has another holder by now.
        attempt.recheck_record();
    }
    if known.as_mut().filter(is_due).is_none() {
        return Ok(None);
    }
    let Some(current) = known.take() else { return Ok(None) };
    let checkpoint = Checkpoint { progress: running.progress(), map };
    match state_machine::next(&current.record, TaskEvent::Checkpointed(checkpoint), state.context.unix_ms()) {
        Ok(after) => Ok(Some(DueCheckpoint { attempt, known, current, after })),
        Err(_) => {
            *known = Some(current);
            Ok(None)
        }
    }
}

/// Stops copies whose lease has ended, for as long as it is polled. Needs nothing but the clock.
pub(super) async fn guard_leases(state: &RunnerState) {
    let mut held = state.assignments.count();
    loop {
        let mut wait = GUARD_EVERY;
        for attempt in state.assignments.all() {
            let Some(write_lease) = attempt.write_lease() else { continue };
            let left = write_lease.left(state.context.now());
            if left.is_zero() {
                attempt.stop(StopReason::LeaseLost);
            } else {
                wait = wait.min(left);
            }
        }
        if *held.borrow_and_update() == 0 {
            let _ = held.changed().await;
        } else {
            let _ = timeout(wait, held.changed()).await;
        }
        sleep(Duration::from_millis(1)).await;
    }
}
