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

use super::ledger::Ledger;
use super::round::{Landed, LeafContent, Round};
use super::supply::{Found, Supply};
use crate::error::{Error, Result};
use crate::extent::ByteRange;
use crate::journal::{Content, Run};
use crate::limits::{DRAIN_LIMIT, LANDED_MAX, SEGMENTS_AHEAD_PER_CORE, TICK};
use crate::ring::Instant;
use crate::spec::CheckpointEvery;
use crate::worker::Inbox;
use std::collections::VecDeque;
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
    /// Whether it is flushed before the last one.
    pub flush_last: bool,
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

#[derive(Debug, Default)]
struct Batch {
    landed: Vec<Landed>,
    /// Of these, bytes that workers moved.
    moved: u64,
    flushed: bool,
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
    last_record: Instant,
    stopping_since: Instant,
    drained_after: Duration,
    quiesced: bool,
    /// A flush, an append or the last look at the source failed: nothing can be recorded any more.
    sealed: bool,
    /// The supply settled leaves by itself the last time: it has more to do at once.
    unfinished: bool,
    rate: Rate,
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
            last_record: now,
            stopping_since: now,
            drained_after: Duration::ZERO,
            quiesced: true,
            sealed: false,
            unfinished: false,
            rate: Rate::default(),
        }
    }

    /// Whether every byte of the round is settled and recorded, and nothing spoke against it at the end: a source that
    /// has changed, a last flush that failed.
    pub(crate) fn is_complete(&self) -> bool {
        let size = self.round.terms.size;
        self.settled == size && self.recorded == size && !self.sealed
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
        if self.phase == Phase::Over { Turn::Over } else { Turn::Wait(self.patience(now)) }
    }

    fn moving(&mut self, now: Instant) {
        let more = self.refill().unwrap_or_else(|error| {
            self.round.fail(error);
            false
        });
        if self.round.is_halting() || self.settled == self.round.terms.size {
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
        if self.round.halted_workers() == self.crew.len() && matches!(self.cycle, Cycle::Idle) {
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
        if self.settled == self.round.terms.size && self.round.control.cancelled().is_none() {
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
        let before = self.next.landed.len();
        self.round.collect(&mut self.next.landed);
        let moved: u64 = self.next.landed[before..].iter().map(|landed| landed.range.len()).sum();
        self.next.moved += moved;
        self.settled += moved;
    }

    /// Keeps the queue of segments filled, unless the job is paused: some supplies do the work themselves. Says whether
    /// workers may be waiting for what was added.
    fn refill(&mut self) -> Result<bool> {
        let queued = self.round.queued();
        let wanted = SEGMENTS_AHEAD_PER_CORE * self.crew.len();
        let full = queued > self.round.terms.low_water || self.next.landed.len() >= 2 * LANDED_MAX;
        if full || self.round.is_halting() || self.round.control.is_paused() {
            return Ok(false);
        }
        let mut found = Found::default();
        self.supply.refill(wanted - queued, &mut found)?;
        let more = !found.segments.is_empty();
        self.unfinished = !found.landed.is_empty();
        self.round.offer(found.segments);
        for landed in found.landed {
            self.settle(landed);
        }
        Ok(more)
    }

    /// Counts what needed no worker.
    fn settle(&mut self, landed: Landed) {
        let counters = &self.round.control.counters;
        let bytes = landed.range.len();
        if self.round.terms.copies {
            let counter = if landed.content == LeafContent::Zeros { &counters.skipped } else { &counters.cloned };
            counter.fetch_add(bytes, Relaxed);
            self.round.control.pass(bytes);
        } else {
            counters.verified.fetch_add(bytes, Release);
        }
        self.settled += bytes;
        self.next.landed.push(landed);
    }

    fn start_cycle_if_due(&mut self, now: Instant) {
        let every = self.recording.every;
        // Half of each bound: while a record is being made, the other half may be written.
        let due = self.next.moved >= every.bytes / 2
            || now.saturating_sub(self.last_record) >= every.time / 2
            || self.next.landed.len() >= LANDED_MAX;
        if due && self.phase == Phase::Moving && !self.next.landed.is_empty() {
            self.start_cycle(self.recording.flush_each, now);
        }
    }

    /// The last record: of what landed since the one before, and of the end of a complete round.
    fn seal(&mut self, now: Instant) {
        let complete = self.settled == self.round.terms.size;
        if complete && let Err(error) = self.supply.seal() {
            self.lose(error);
        } else if complete || !self.next.landed.is_empty() {
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
        if batch.landed.is_empty() {
            // The last flush of a round whose leaves were all recorded before.
            return self.count(&batch, now);
        }
        self.ledger.append(runs_of(&mut batch.landed));
        self.cycle = Cycle::Appending(batch);
    }

    fn count(&mut self, batch: &Batch, now: Instant) {
        self.recorded += batch.landed.iter().map(|landed| landed.range.len()).sum::<u64>();
        self.round.recorded(batch.moved);
        self.last_record = now;
        if batch.flushed {
            // The flush covered what was recorded without one before.
            self.round.control.counters.durable.store(self.recorded, Release);
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
        let due = self.last_record + self.recording.every.time / 2;
        due.saturating_sub(now).clamp(Duration::from_millis(1), TICK)
    }
}

/// Leaves that landed, in any order, as the fewest runs.
fn runs_of(landed: &mut [Landed]) -> Vec<Run> {
    landed.sort_unstable_by_key(|landed| landed.range.start());
    let mut runs: Vec<Run> = Vec::new();
    for Landed { range, content } in landed.iter() {
        let last = runs.last_mut().filter(|last| last.range.end() == range.start());
        match (last, content) {
            (Some(Run { range: run, content: Content::Zeros }), LeafContent::Zeros)
            | (Some(Run { range: run, content: Content::Undigested }), LeafContent::Undigested) => {
                *run = ByteRange::new(run.start(), range.end());
            }
            (Some(Run { range: run, content: Content::Leaves(leaves) }), LeafContent::Digest(digest)) => {
                *run = ByteRange::new(run.start(), range.end());
                leaves.push(*digest);
            }
            (_, content) => runs.push(Run {
                range: *range,
                content: match content {
                    LeafContent::Zeros => Content::Zeros,
                    LeafContent::Digest(digest) => Content::Leaves(vec![*digest]),
                    LeafContent::Undigested => Content::Undigested,
                },
            }),
        }
    }
    runs
}

/// The rate over the last second.
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(1);

    fn sample(&mut self, now: Instant, round: &Round) {
        let counters = &round.control.counters;
        let bytes = counters.landed.load(Relaxed) + counters.verified.load(Relaxed);
        if self.samples.back().is_some_and(|&(last, _)| now.saturating_sub(last) < TICK / 2) {
            return;
        }
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|&(at, _)| now.saturating_sub(at) >= Self::WINDOW)
        {
            self.samples.pop_front();
        }
        if let Some(&(since, before)) = self.samples.front() {
            let took = now.saturating_sub(since).as_micros();
            let rate = (u128::from(bytes.saturating_sub(before)) * 1_000_000).checked_div(took).unwrap_or(0);
            counters.rate.store(u64::try_from(rate).unwrap_or(u64::MAX), Relaxed);
        }
    }
}
