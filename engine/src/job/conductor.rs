//! Leads one round from its first segment to the moment when no worker knows it any more.
//!
//! ```text
//! Moving -> Halting -> Sealing -> Releasing -> over
//!    (checkpoints)  |
//!                   `-- the drain limit passes: over, not quiesced
//! ```
//! A conductor is a state machine without a thread: [`Conductor::turn`] looks at what has happened, acts, and says
//! when it wants to look again. The job's thread drives it for real, the simulation drives it under a clock of its own.
//!
//! **The order of a record.** What to make durable is taken _before_ its flush is asked for; when the flush is done it
//! is appended to the ledger; only when that is recorded does it count. A flush that failed is never repeated: the
//! kernel may have dropped the pages, so nothing since the last good flush counts.
//!
//! **What a server may have lost.** Leaves carry the destination's generation of the moment they were started. It is
//! compared once, after their flush was answered and before they are appended: if it has grown, nobody knows whether
//! the server that flushed is the one that took them, and the supply has them done again. What was appended is stable.
//! So on such a destination every record follows a flush, and workers are halted only when everything is recorded.

use super::batch::{Batch, bytes_of};
use super::ledger::Ledger;
use super::rate::{Pacing, Rate};
use super::round::{Landed, Round};
use super::sample::DurableSample;
use super::supply::{Found, Supply};
use crate::error::{Error, Result};
use crate::extent::{ByteRange, RangeSet};
use crate::limits::{DRAIN_LIMIT, LANDED_MAX, LOOK_AGAIN, SEGMENTS_AHEAD_PER_CORE, TICK};
use crate::ring::Instant;
use crate::spec::CheckpointEvery;
use crate::worker::Inbox;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

/// Workers that serve the round.
pub(crate) type Crew = Arc<[Arc<Inbox>]>;

/// When and how what has landed is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recording {
    /// How often; what lands in between is held in memory.
    pub every: CheckpointEvery,
    /// Whether the destination is flushed before each record: then the record is a checkpoint.
    pub flush_each: bool,
    /// Whether it is flushed before the last one. Then what was flushed is called durable.
    pub flush_last: bool,
    /// Whether the destination may lose what was not flushed: see [`crate::volume::Volume::generation`].
    pub may_lose: bool,
}

/// When the conductor wants to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// After this long, or when notified.
    Wait(Duration),
    /// Never: the round is over.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Moving,
    Halting,
    Sealing,
    Releasing,
    Over,
}

/// What is on its way to being durable.
#[derive(Debug)]
enum Cycle {
    Idle,
    Flushing(Batch),
    Appending(Batch),
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Conductor<L> {
    round: Arc<Round>,
    crew: Crew,
    supply: Box<dyn Supply>,
    ledger: L,
    recording: Recording,
    phase: Phase,
    cycle: Cycle,
    /// Landed and not yet in a cycle.
    next: Batch,
    /// Bytes settled, of the round's size.
    settled: u64,
    /// Bytes recorded, of the round's size.
    recorded: u64,
    /// Of these, what no flush has covered yet.
    unflushed: RangeSet,
    /// Leaves of what is being appended, or appended and not covered by a flush yet.
    staged: DurableSample,
    /// What is being appended.
    appending: Vec<ByteRange>,
    last_record: Instant,
    stopping_since: Instant,
    drained_after: Duration,
    quiesced: bool,
    /// A flush, an append or the last look at the source failed: nothing can be recorded any more.
    sealed: bool,
    /// The supply settled leaves by itself the last time, or scanned as much as it may: it has more to do at once.
    unfinished: bool,
    /// The supply waited for extents the last time.
    waits: bool,
    rate: Rate,
    pacing: Option<Pacing>,
}

impl<L: Ledger> Conductor<L> {
    /// A round of which `done` bytes are settled and recorded already. Hands it to the crew.
    pub(crate) fn new(
        round: Arc<Round>,
        crew: Crew,
        supply: Box<dyn Supply>,
        ledger: L,
        recording: Recording,
        done: u64,
        now: Instant,
    ) -> Self {
        let pacing = Pacing::of(&round, now);
        crew.iter().for_each(|inbox| inbox.serve(Arc::clone(&round)));
        Self {
            round,
            crew,
            supply,
            ledger,
            recording,
            phase: Phase::Moving,
            cycle: Cycle::Idle,
            next: Batch::default(),
            settled: done,
            recorded: done,
            unflushed: RangeSet::new(),
            staged: DurableSample::default(),
            appending: Vec::new(),
            last_record: now,
            stopping_since: now,
            drained_after: Duration::ZERO,
            quiesced: true,
            sealed: false,
            unfinished: false,
            waits: false,
            rate: Rate::default(),
            pacing,
        }
    }

    /// Whether every byte of the round is settled and recorded, and nothing spoke against it at the end: a source that
    /// has changed, a last flush that failed.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_settled() && self.is_recorded() && !self.sealed
    }

    fn is_settled(&self) -> bool {
        self.settled == self.round.terms.size
    }

    fn is_recorded(&self) -> bool {
        self.recorded == self.round.terms.size
    }

    /// Whether nothing of the round is in flight. Only false at the end if a device did not answer.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.quiesced
    }

    /// From the first look at the stop to the last operation in flight.
    pub(crate) fn drain_time(&self) -> Duration {
        self.drained_after
    }

    /// The ledger, when the round is over.
    pub(crate) fn into_ledger(self) -> L {
        self.ledger
    }

    /// Looks, acts, and says when to look again.
    pub(crate) fn turn(&mut self, now: Instant) -> Turn {
        self.collect();
        self.advance_cycle(now);
        match self.phase {
            Phase::Moving => self.moving(now),
            Phase::Halting => self.halting(now),
            Phase::Sealing => self.sealing(now),
            Phase::Releasing => self.releasing(now),
            Phase::Over => {}
        }
        self.rate.sample(now, &self.round);
        if let Some(pacing) = &mut self.pacing {
            pacing.tick(now, &self.round);
        }
        if self.phase == Phase::Over { Turn::Over } else { Turn::Wait(self.patience(now)) }
    }

    fn moving(&mut self, now: Instant) {
        let more = self.refill().unwrap_or_else(|error| {
            self.round.fail(error);
            false
        });
        if self.round.is_halting() || (self.is_settled() && (!self.recording.may_lose || self.is_recorded())) {
            self.phase = Phase::Halting;
            self.stopping_since = now;
            self.round.ask_halt();
            self.wake();
        } else if more {
            self.wake();
        }
        self.start_cycle_if_due(now);
    }

    fn halting(&mut self, now: Instant) {
        // The seal changes the destination: it waits for the gate, but for nobody who has given up.
        let waits = self.round.is_shut() && !self.round.is_given_up();
        if self.round.halted_workers() == self.crew.len() && matches!(self.cycle, Cycle::Idle) && !waits {
            self.collect();
            self.drained_after = now.saturating_sub(self.stopping_since);
            // The flush of what was drained has a limit of its own.
            self.stopping_since = now;
            self.phase = Phase::Sealing;
            self.seal(now);
        } else {
            self.give_up_if_late(now);
        }
    }

    fn sealing(&mut self, now: Instant) {
        if matches!(self.cycle, Cycle::Idle) {
            self.phase = Phase::Releasing;
            self.stopping_since = now;
            self.round.ask_release();
            self.wake();
        } else {
            self.give_up_if_late(now);
        }
    }

    fn releasing(&mut self, now: Instant) {
        if self.round.released_workers() == self.crew.len() {
            self.phase = Phase::Over;
        } else {
            self.give_up_if_late(now);
        }
    }

    fn give_up_if_late(&mut self, now: Instant) {
        if self.is_settled() && self.round.control.cancelled().is_none() {
            // Nothing but a flush is under way: it may take long, and nobody has asked for a stop yet.
            self.stopping_since = now;
        }
        if now.saturating_sub(self.stopping_since) > DRAIN_LIMIT {
            self.drained_after = now.saturating_sub(self.stopping_since);
            self.quiesced = false;
            self.round.ask_release();
            self.phase = Phase::Over;
        }
    }

    /// Takes over what workers report.
    fn collect(&mut self) {
        let before = self.next.moved.len();
        self.round.collect(&mut self.next.moved);
        let bytes = bytes_of(&self.next.moved[before..]);
        self.next.moved_bytes += bytes;
        self.settled += bytes;
    }

    /// Keeps the queue of segments filled, unless the job is paused: some supplies do the work themselves. Says whether
    /// workers may be waiting for what was added.
    fn refill(&mut self) -> Result<bool> {
        let queued = self.round.queued();
        let wanted = SEGMENTS_AHEAD_PER_CORE * self.crew.len();
        let full = queued > self.round.terms.low_water || self.next.len() >= 2 * LANDED_MAX;
        if full || self.round.is_halting() || self.round.control.is_paused() || self.round.is_shut() {
            return Ok(false);
        }
        let mut found = Found::default();
        self.supply.refill(wanted - queued, &mut found)?;
        let more = found.waits || !found.segments.is_empty();
        self.unfinished = found.has_scanned() || !(found.skipped.is_empty() && found.cloned.is_empty());
        self.waits = found.waits;
        self.round.offer(found.segments);
        let counters = &self.round.control.counters;
        counters.cloned.fetch_add(bytes_of(&found.cloned), Relaxed);
        if self.round.terms.copies {
            counters.skipped.fetch_add(bytes_of(&found.skipped), Relaxed);
        }
        self.settle(found.skipped);
        self.settle(found.cloned);
        Ok(more)
    }

    /// Counts what needed no worker.
    fn settle(&mut self, landed: Vec<Landed>) {
        let bytes = bytes_of(&landed);
        if self.round.terms.copies {
            self.round.control.pass(bytes);
        } else {
            self.round.control.counters.verified.fetch_add(bytes, Release);
        }
        self.settled += bytes;
        self.next.settled.extend(landed);
    }

    fn start_cycle_if_due(&mut self, now: Instant) {
        let every = self.recording.every;
        // Half of each bound: while a record is being made, the other half may be written.
        let due = self.next.moved_bytes >= every.bytes / 2
            || now.saturating_sub(self.last_record) >= every.time / 2
            || self.next.len() >= LANDED_MAX
            || self.is_settled();
        if due && self.phase == Phase::Moving && !self.next.is_empty() {
            let Recording { flush_each, flush_last, .. } = self.recording;
            self.start_cycle(if self.is_settled() { flush_last } else { flush_each }, now);
        }
    }

    /// The last record: of what landed since the one before, and of the end of a complete round.
    fn seal(&mut self, now: Instant) {
        let complete = self.is_settled();
        // What may get lost was flushed and recorded before workers were halted, and nothing was written since.
        let flushed = self.recording.may_lose && self.is_recorded();
        if complete && self.round.is_shut() {
            // Cancelled just before: a later run has nothing to do but this.
            self.sealed = true;
        } else if complete && let Err(error) = self.supply.seal() {
            self.lose(error);
        } else if (complete && !flushed) || !self.next.is_empty() {
            self.start_cycle(self.recording.flush_last, now);
        }
    }

    fn start_cycle(&mut self, flush: bool, now: Instant) {
        if !matches!(self.cycle, Cycle::Idle) || self.sealed {
            return;
        }
        let batch = Batch { flushed: flush, ..std::mem::take(&mut self.next) };
        if flush {
            self.round.ask_flush();
            self.wake();
            self.cycle = Cycle::Flushing(batch);
        } else {
            self.append(batch, now);
        }
    }

    fn advance_cycle(&mut self, now: Instant) {
        match std::mem::replace(&mut self.cycle, Cycle::Idle) {
            Cycle::Idle => {}
            Cycle::Flushing(batch) => match self.round.take_flushed() {
                None => self.cycle = Cycle::Flushing(batch),
                Some(Ok(())) => self.append(batch, now),
                Some(Err(error)) => self.lose(error),
            },
            Cycle::Appending(batch) => match self.ledger.appended() {
                None => self.cycle = Cycle::Appending(batch),
                Some(Ok(())) => self.count(&batch, now),
                Some(Err(error)) => self.lose(error),
            },
        }
    }

    fn append(&mut self, mut batch: Batch, now: Instant) {
        // Looked at after the flush was, if there was one.
        let lost = batch.split_lost(self.round.generation());
        self.unsettle(lost);
        if batch.is_empty() {
            // The last flush of a round whose leaves were all recorded before, or all of it is to be done again.
            return self.count(&batch, now);
        }
        let runs = batch.runs();
        self.appending.extend(runs.iter().map(|run| run.range));
        let leaf_bytes = self.round.terms.block_bytes.into();
        if self.round.terms.copies {
            runs.iter().for_each(|run| self.staged.add_run(run, leaf_bytes));
        }
        self.ledger.append(runs);
        self.cycle = Cycle::Appending(batch);
    }

    /// Has leaves done again that the destination may have lost.
    fn unsettle(&mut self, lost: Batch) {
        if lost.is_empty() {
            return;
        }
        self.settled -= lost.bytes();
        self.round.recorded(lost.moved_bytes);
        self.round.control.take_back(lost.bytes());
        self.round.control.counters.skipped.fetch_sub(bytes_of(&lost.settled), Relaxed);
        self.supply.again(lost.leaves().map(|landed| landed.range).collect());
    }

    fn count(&mut self, batch: &Batch, now: Instant) {
        self.recorded += batch.bytes();
        self.appending.drain(..).for_each(|range| self.unflushed.insert(range));
        self.round.recorded(batch.moved_bytes);
        self.last_record = now;
        if batch.flushed && self.recording.flush_last {
            // The flush covered what was recorded without one before.
            self.round.control.counters.durable.store(self.recorded, Release);
            self.round.control.make_durable(std::mem::take(&mut self.unflushed).iter());
            self.round.control.make_known(&std::mem::take(&mut self.staged));
        }
        self.wake();
    }

    fn lose(&mut self, error: Error) {
        self.sealed = true;
        self.round.fail(error);
    }

    fn wake(&self) {
        self.crew.iter().for_each(|inbox| inbox.wake());
    }

    fn patience(&mut self, now: Instant) -> Duration {
        if std::mem::take(&mut self.unfinished) && self.phase == Phase::Moving {
            return Duration::ZERO;
        }
        if std::mem::take(&mut self.waits) && self.phase == Phase::Moving {
            return LOOK_AGAIN;
        }
        let due = self.last_record + self.recording.every.time / 2;
        due.saturating_sub(now).clamp(Duration::from_millis(1), TICK)
    }
}
