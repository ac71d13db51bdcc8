//! The one periodic write of a runner: that it lives, and how far its copies are.
//!
//! A renewal is committed with the registration checked, so that it says more than a connection does: the service has
//! heard this session and still believes in its registration. Checkpoints ride along; a checkpoint that does not fit its
//! record any more is left out at once, as it must not cost the lease. Without a lease to keep only checkpoints are
//! written, and without copies nothing.

use super::attempt::{Attempt, has_begun};
use super::context::Hub;
use super::grant::Known;
use super::registration;
use super::tenure::Seat;
use crate::cluster::lease::LeaseTerms;
use crate::coord::{CoordError, Done, MULTI_BYTES_MAX, Op, Stat};
use crate::model::state_machine::{self, Event, Mark};
use crate::model::{Record, Renewal, State, TaskId, TaskRecord};
use blockhaul_engine::job::Reason;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::Instrument;

/// Between two checkpoints of a task.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// For a record that its attempt is reading or writing: a small part of what a lease can spare.
const RECORD_WAIT: Duration = Duration::from_millis(100);
/// Between two looks at whether the lease has ended.
const GUARD_EVERY: Duration = Duration::from_millis(250);

/// What the renewal remembers from one write to the next.
#[derive(Debug, Default)]
struct Rhythm {
    count: u64,
    /// Of the lease's node; `None` when it has to be read.
    lease_version: Option<i32>,
    /// Of the registration that it is the version for.
    seat: Option<Seat>,
    /// When the last write began.
    wrote: Option<Instant>,
    checkpoints: BTreeMap<TaskId, Instant>,
    /// A checkpoint was left out: it is tried once more at once, with a record that was read anew.
    again: bool,
}

/// A checkpoint that is being written.
struct Checkpoint<'a> {
    attempt: &'a Attempt,
    known: MutexGuard<'a, Option<Known>>,
    current: Known,
    after: TaskRecord,
}

/// Renews and checkpoints for as long as it is polled.
pub(super) async fn renew(hub: &Hub) {
    let mut rhythm = Rhythm::default();
    loop {
        let seat = hub.seat().await;
        if !rhythm.seat.as_ref().is_some_and(|known| Arc::ptr_eq(&known.tenure, &seat.tenure)) {
            (rhythm.seat, rhythm.lease_version) = (Some(seat.clone()), None);
        }
        rhythm.wait(hub, &seat).await;
        if let Err(error) = rhythm.write(hub, &seat).await {
            tracing::debug!(%error, "a renewal was not committed");
            hub.outlast(&seat, &error).await;
            // Tried again as soon as that makes sense, with all that it was to say.
            rhythm.wrote = None;
            rhythm.checkpoints.clear();
        }
    }
}

impl Rhythm {
    /// Waits until the next write is due.
    async fn wait(&self, hub: &Hub, seat: &Seat) {
        let terms = LeaseTerms::from(seat.session.timeout());
        let mut seats = hub.seat.subscribe();
        loop {
            let every = if hub.needs_lease() { terms.renew_every } else { CHECKPOINT_EVERY };
            let wants_lease = hub.needs_lease() && !seat.tenure.is_open(hub.now());
            let due = self.wrote.map_or_else(Instant::now, |wrote| wrote + every);
            if wants_lease || self.again || due <= Instant::now() {
                return;
            }
            tokio::select! { biased;
                _ = seats.wait_for(|now| !now.as_ref().is_some_and(|now| now.is_same(seat))) => return,
                () = hub.renew.notified() => {}
                () = sleep_until(due) => return,
            }
        }
    }

    async fn write(&mut self, hub: &Hub, seat: &Seat) -> Result<(), CoordError> {
        self.wrote = Some(Instant::now());
        let may_repeat = !std::mem::take(&mut self.again);
        let needs_lease = hub.needs_lease();
        let attempts = hub.book.all();
        let mut checkpoints = self.checkpoints(hub, seat, &attempts).await?;
        if needs_lease && self.lease_version.is_none() {
            self.lease_version = Some(registration::lease_version(hub, &*seat.session).await?);
        }
        loop {
            let mut ops = vec![seat.check(&hub.config.node)];
            if let Some(version) = self.lease_version.filter(|_| needs_lease) {
                self.count += 1;
                let data = registration::renewal(hub, self.count).encode();
                ops.push(Op::Set { path: registration::lease_path(hub), data, version });
            }
            let own = ops.len();
            let mut owners = Vec::new();
            for (index, checkpoint) in checkpoints.iter().enumerate() {
                let more = checkpoint.current.ops(&checkpoint.after);
                owners.resize(owners.len() + more.len(), index);
                ops.extend(more);
            }
            if ops.len() == 1 {
                return Ok(());
            }
            let sent = hub.now();
            match seat.session.multi(ops).await {
                Ok(done) => {
                    if needs_lease {
                        seat.tenure.committed(sent);
                    }
                    self.committed(hub, &done, own, checkpoints);
                    return Ok(());
                }
                Err(CoordError::Refused { index, .. }) if index >= own => {
                    let Some(&refused) = owners.get(index - own) else { return Ok(()) };
                    // Dropped without being known: it is read again, by its attempt and by the next checkpoint.
                    let attempt = checkpoints.remove(refused).attempt;
                    attempt.look();
                    self.checkpoints.remove(attempt.task());
                    self.again = may_repeat;
                }
                Err(error @ CoordError::Unknown(_)) if needs_lease => {
                    self.lease_version = None;
                    return if self.was_committed(hub, seat).await? {
                        seat.tenure.committed(sent);
                        Ok(())
                    } else {
                        Err(error)
                    };
                }
                Err(error) => {
                    // Whatever became of it: the lease's node is read before the next one.
                    self.lease_version = None;
                    return Err(error);
                }
            }
        }
    }

    /// Whether the last renewal stands in the store.
    async fn was_committed(&mut self, hub: &Hub, seat: &Seat) -> Result<bool, CoordError> {
        seat.session.sync().await?;
        let Some(node) = seat.session.get(&registration::lease_path(hub)).await? else { return Ok(false) };
        self.lease_version = Some(node.stat.version);
        let is_last = |renewal: Renewal| renewal.incarnation == hub.config.incarnation && renewal.count == self.count;
        Ok(Renewal::decode(&node.data).is_ok_and(is_last))
    }

    /// Checkpoints that are due, as many as one write has room for.
    async fn checkpoints<'a>(
        &mut self,
        hub: &Hub,
        seat: &Seat,
        attempts: &'a [Arc<Attempt>],
    ) -> Result<Vec<Checkpoint<'a>>, CoordError> {
        self.checkpoints.retain(|task, _| attempts.iter().any(|attempt| attempt.task() == task));
        let mut due = Vec::new();
        let mut bytes = 0;
        for attempt in attempts {
            let last = self.checkpoints.get(attempt.task());
            if last.is_some_and(|last| last.elapsed() < CHECKPOINT_EVERY) {
                continue;
            }
            if let Some(checkpoint) = checkpoint(hub, seat, attempt).instrument(attempt.span().clone()).await? {
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

    fn committed(&mut self, hub: &Hub, done: &[Done], own: usize, checkpoints: Vec<Checkpoint<'_>>) {
        let stat = |done: Option<&Done>| match done {
            Some(Done::Set(stat)) => Some(*stat),
            Some(Done::Plain) | None => None,
        };
        if own > 1 {
            self.lease_version = stat(done.get(1)).map(|stat: Stat| stat.version);
        }
        let mut at = own;
        for Checkpoint { attempt, mut known, current, after } in checkpoints {
            at += current.ops(&after).len();
            *known = stat(done.get(at - 1)).and_then(|stat| current.after(after, stat));
            hub.hints.changed(attempt.task());
        }
    }
}

/// The checkpoint of an attempt, if its copy has anything new to say.
async fn checkpoint<'a>(
    hub: &Hub,
    seat: &Seat,
    attempt: &'a Arc<Attempt>,
) -> Result<Option<Checkpoint<'a>>, CoordError> {
    let Some(running) = attempt.running().filter(|_| !attempt.is_abandoned()) else { return Ok(None) };
    let map = running.durable();
    if map.is_empty() {
        return Ok(None);
    }
    let Some(mut known) = attempt.grant.lock(RECORD_WAIT).await else { return Ok(None) };
    attempt.grant.refresh(&*seat.session, &mut known).await?;
    let is_due = |current: &&mut Known| {
        let record = &current.record;
        let is_at_work = has_begun(record) || record.state == State::Cancelling;
        is_at_work && (record.map != map || record.progress.durable != running.progress().durable)
    };
    if known.is_none() {
        // Somebody else's by now.
        attempt.look();
    }
    if known.as_mut().filter(is_due).is_none() {
        return Ok(None);
    }
    let Some(current) = known.take() else { return Ok(None) };
    let mark = Mark { progress: running.progress(), map };
    match state_machine::next(&current.record, Event::Checkpointed(mark), hub.unix_ms()) {
        Ok(after) => Ok(Some(Checkpoint { attempt, known, current, after })),
        Err(_) => {
            *known = Some(current);
            Ok(None)
        }
    }
}

/// Stops copies whose lease ends, for as long as it is polled. Depends on clocks alone.
pub(super) async fn guard_leases(hub: &Hub) {
    let mut held = hub.book.count();
    loop {
        let mut wait = GUARD_EVERY;
        for attempt in hub.book.all() {
            let Some(tenure) = attempt.tenure() else { continue };
            let left = tenure.left(hub.now());
            if left.is_zero() {
                attempt.stop(Reason::LeaseLost);
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
