//! Controls one pass: supplies the workers with segments, makes durable what they have written, and ends the pass when
//! all is done or the job has to stop. A pass is one run over both volumes by all workers, to copy or to compare.
//!
//! ```text
//! Moving -> Halting -> FinalRecord -> Releasing -> over
//!    (checkpoints)  |
//!                   `-- the drain limit passes: over, not quiesced
//! ```
//! A pass controller is a state machine without a thread. [`PassController::turn`] handles what has happened, acts,
//! and says when it wants to be called again. The job's thread calls it in production. The simulation calls it under a
//! clock of its own.
//!
//! **The order of a record.** The set to make durable is taken _before_ its flush is asked for. When the flush is done
//! the set is appended to the recorder. Only when it is recorded does it count. A flush that failed is never repeated:
//! the kernel may have dropped the pages, so nothing since the last good flush counts.
//!
//! **What a server may have lost.** Written ranges carry the destination's generation of the moment when they were
//! started. The generation is compared once, after the flush was answered and before the ranges are appended. If it has
//! grown, the server that flushed may not be the one that took the data, and the segment source plans these ranges
//! again. So on such a destination every record follows a flush, and workers are halted only when everything is
//! recorded.

use super::rate::{RateMeter, ServerWindowController};
use super::recorder::Recorder;
use super::segments::{Refill, SegmentSource};
use crate::error::{Error, Result};
use crate::extent::{ByteRange, RangeSet};
use crate::limits::{DRAIN_LIMIT, LOOK_AGAIN, SEGMENTS_AHEAD_PER_CORE, TICK, WRITTEN_RANGES_MAX};
use crate::pass::durable_sample::DurableSample;
use crate::pass::state::{PassState, WrittenRange};
use crate::pass::written_batch::{WrittenBatch, bytes_of};
use crate::ring::Instant;
use crate::spec::CheckpointEvery;
use crate::worker::WorkerInbox;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

/// Workers that serve the pass.
pub(crate) type WorkerInboxes = Arc<[Arc<WorkerInbox>]>;

/// Rules for making written ranges durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordingPolicy {
    /// Interval; what is written in between is held in memory.
    pub every: CheckpointEvery,
    /// Whether the destination is flushed before each record: then the record is a checkpoint.
    pub flush_each: bool,
    /// Whether it is flushed before the last one. Then what was flushed is called durable.
    pub flush_last: bool,
    /// Whether the destination may lose what was not flushed: see [`crate::volume::Volume::generation`].
    pub may_lose: bool,
}

/// Time at which the pass controller must run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TurnOutcome {
    /// After this long, or when notified.
    Wait(Duration),
    /// Never: the pass is over.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PassPhase {
    Moving,
    Halting,
    FinalRecord,
    Releasing,
    Over,
}

/// Progress of the record that is being made.
#[derive(Debug)]
enum RecordStep {
    Idle,
    Flushing(WrittenBatch),
    Appending(WrittenBatch),
}

/// The state machine that runs one pass.
#[derive(Debug)]
pub(crate) struct PassController<L> {
    pass: Arc<PassState>,
    workers: WorkerInboxes,
    segment_source: Box<dyn SegmentSource>,
    recorder: L,
    recording: RecordingPolicy,
    phase: PassPhase,
    record_step: RecordStep,
    /// Written and not yet part of a record.
    next: WrittenBatch,
    /// Bytes settled, of the pass's size.
    settled: u64,
    /// Bytes recorded, of the pass's size.
    recorded: u64,
    /// The part of these ranges that no flush has covered yet.
    unflushed: RangeSet,
    /// Leaves of what is being appended, or appended and not covered by a flush yet.
    staged: DurableSample,
    /// Ranges that are being appended.
    appending: Vec<ByteRange>,
    last_record: Instant,
    stopping_since: Instant,
    drained_after: Duration,
    quiesced: bool,
    /// Whether a flush, an append or the last check of the source failed: nothing can be recorded any more.
    recording_over: bool,
    /// The segment source settled leaves by itself the last time, or scanned as much as it may: it has more to do at
    /// once.
    unfinished: bool,
    /// The segment source waited for extents the last time.
    waits: bool,
    rate: RateMeter,
    server_window: Option<ServerWindowController>,
}

impl<L: Recorder> PassController<L> {
    /// A pass of which `done` bytes are settled and recorded already. Hands it to the workers.
    pub(crate) fn new(
        pass: Arc<PassState>,
        workers: WorkerInboxes,
        segment_source: Box<dyn SegmentSource>,
        recorder: L,
        recording: RecordingPolicy,
        done: u64,
        now: Instant,
    ) -> Self {
        let server_window = ServerWindowController::of(&pass, now);
        workers.iter().for_each(|inbox| inbox.serve(Arc::clone(&pass)));
        Self {
            pass,
            workers,
            segment_source,
            recorder,
            recording,
            phase: PassPhase::Moving,
            record_step: RecordStep::Idle,
            next: WrittenBatch::default(),
            settled: done,
            recorded: done,
            unflushed: RangeSet::new(),
            staged: DurableSample::default(),
            appending: Vec::new(),
            last_record: now,
            stopping_since: now,
            drained_after: Duration::ZERO,
            quiesced: true,
            recording_over: false,
            unfinished: false,
            waits: false,
            rate: RateMeter::default(),
            server_window,
        }
    }

    /// Returns whether every byte of the pass is settled and recorded, and nothing spoke against it at the end: a
    /// source that has changed, a last flush that failed.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_settled() && self.is_recorded() && !self.recording_over
    }

    fn is_settled(&self) -> bool {
        self.settled == self.pass.params.size
    }

    fn is_recorded(&self) -> bool {
        self.recorded == self.pass.params.size
    }

    /// Returns whether nothing of the pass is in flight. Only false at the end if a device did not answer.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.quiesced
    }

    /// Returns the time from the stop to the last operation in flight.
    pub(crate) fn drain_time(&self) -> Duration {
        self.drained_after
    }

    /// The recorder, when the pass is over.
    pub(crate) fn into_recorder(self) -> L {
        self.recorder
    }

    /// Handles all events since the last turn, and returns when to run again.
    pub(crate) fn turn(&mut self, now: Instant) -> TurnOutcome {
        self.collect();
        self.advance_record(now);
        match self.phase {
            PassPhase::Moving => self.moving(now),
            PassPhase::Halting => self.halting(now),
            PassPhase::FinalRecord => self.final_record(now),
            PassPhase::Releasing => self.releasing(now),
            PassPhase::Over => {}
        }
        self.rate.sample(now, &self.pass);
        if let Some(server_window) = &mut self.server_window {
            server_window.tick(now, &self.pass);
        }
        if self.phase == PassPhase::Over { TurnOutcome::Over } else { TurnOutcome::Wait(self.next_look(now)) }
    }

    fn moving(&mut self, now: Instant) {
        let more = self.refill().unwrap_or_else(|error| {
            self.pass.fail(error);
            false
        });
        if self.pass.is_halting() || (self.is_settled() && (!self.recording.may_lose || self.is_recorded())) {
            self.phase = PassPhase::Halting;
            self.stopping_since = now;
            self.pass.ask_halt();
            self.wake();
        } else if more {
            self.wake();
        }
        self.start_record_if_due(now);
    }

    fn halting(&mut self, now: Instant) {
        // The last record changes the destination: it waits for the gate, unless the job has given up.
        let waits = self.pass.is_gate_closed() && !self.pass.is_given_up();
        if self.pass.halted_workers() == self.workers.len() && matches!(self.record_step, RecordStep::Idle) && !waits {
            self.collect();
            self.drained_after = now.saturating_sub(self.stopping_since);
            // The flush of what was drained has a limit of its own.
            self.stopping_since = now;
            self.phase = PassPhase::FinalRecord;
            self.start_final_record(now);
        } else {
            self.give_up_if_late(now);
        }
    }

    fn final_record(&mut self, now: Instant) {
        if matches!(self.record_step, RecordStep::Idle) {
            self.phase = PassPhase::Releasing;
            self.stopping_since = now;
            self.pass.ask_release();
            self.wake();
        } else {
            self.give_up_if_late(now);
        }
    }

    fn releasing(&mut self, now: Instant) {
        if self.pass.released_workers() == self.workers.len() {
            self.phase = PassPhase::Over;
        } else {
            self.give_up_if_late(now);
        }
    }

    fn give_up_if_late(&mut self, now: Instant) {
        if self.is_settled() && self.pass.control.cancelled().is_none() {
            // Nothing but a flush is in flight: it may take long, and no stop was asked for yet.
            self.stopping_since = now;
        }
        if now.saturating_sub(self.stopping_since) > DRAIN_LIMIT {
            self.drained_after = now.saturating_sub(self.stopping_since);
            self.quiesced = false;
            self.pass.ask_release();
            self.phase = PassPhase::Over;
        }
    }

    /// Collects the reports of workers.
    fn collect(&mut self) {
        let before = self.next.moved.len();
        self.pass.collect(&mut self.next.moved);
        let bytes = bytes_of(&self.next.moved[before..]);
        self.next.moved_bytes += bytes;
        self.settled += bytes;
    }

    /// Keeps the queue of segments filled, unless the job is paused: some segment sources do the work themselves. Says
    /// whether workers may be waiting for what was added.
    fn refill(&mut self) -> Result<bool> {
        let queued = self.pass.queued();
        let wanted = SEGMENTS_AHEAD_PER_CORE * self.workers.len();
        let full = queued > self.pass.params.low_water || self.next.len() >= 2 * WRITTEN_RANGES_MAX;
        if full || self.pass.is_halting() || self.pass.control.is_paused() || self.pass.is_gate_closed() {
            return Ok(false);
        }
        let mut found = Refill::default();
        self.segment_source.refill(wanted - queued, &mut found)?;
        let more = found.waits || !found.segments.is_empty();
        self.unfinished = found.has_scanned() || !(found.skipped.is_empty() && found.cloned.is_empty());
        self.waits = found.waits;
        self.pass.offer(found.segments);
        let counters = &self.pass.control.counters;
        counters.cloned.fetch_add(bytes_of(&found.cloned), Relaxed);
        if self.pass.params.copies {
            counters.skipped.fetch_add(bytes_of(&found.skipped), Relaxed);
        }
        self.count_settled(found.skipped);
        self.count_settled(found.cloned);
        Ok(more)
    }

    /// Counts what needed no worker.
    fn count_settled(&mut self, written: Vec<WrittenRange>) {
        let bytes = bytes_of(&written);
        if self.pass.params.copies {
            self.pass.control.count_without_io(bytes);
        } else {
            self.pass.control.counters.verified.fetch_add(bytes, Release);
        }
        self.settled += bytes;
        self.next.settled.extend(written);
    }

    fn start_record_if_due(&mut self, now: Instant) {
        let every = self.recording.every;
        // Half of each bound: while a record is being made, the other half may be written.
        let due = self.next.moved_bytes >= every.bytes / 2
            || now.saturating_sub(self.last_record) >= every.time / 2
            || self.next.len() >= WRITTEN_RANGES_MAX
            || self.is_settled();
        if due && self.phase == PassPhase::Moving && !self.next.is_empty() {
            let RecordingPolicy { flush_each, flush_last, .. } = self.recording;
            self.start_record(if self.is_settled() { flush_last } else { flush_each }, now);
        }
    }

    /// The last record: of what was written since the one before, and of the end of a complete pass.
    fn start_final_record(&mut self, now: Instant) {
        let complete = self.is_settled();
        // What may get lost was flushed and recorded before workers were halted, and nothing was written since.
        let flushed = self.recording.may_lose && self.is_recorded();
        if complete && self.pass.is_gate_closed() {
            // Cancelled just before: a later run has nothing to do but this.
            self.recording_over = true;
        } else if complete && let Err(error) = self.segment_source.finish() {
            self.fail_recording(error);
        } else if (complete && !flushed) || !self.next.is_empty() {
            self.start_record(self.recording.flush_last, now);
        }
    }

    fn start_record(&mut self, flush: bool, now: Instant) {
        if !matches!(self.record_step, RecordStep::Idle) || self.recording_over {
            return;
        }
        let batch = WrittenBatch { flushed: flush, ..std::mem::take(&mut self.next) };
        if flush {
            self.pass.ask_flush();
            self.wake();
            self.record_step = RecordStep::Flushing(batch);
        } else {
            self.append(batch, now);
        }
    }

    fn advance_record(&mut self, now: Instant) {
        match std::mem::replace(&mut self.record_step, RecordStep::Idle) {
            RecordStep::Idle => {}
            RecordStep::Flushing(batch) => match self.pass.take_flushed() {
                None => self.record_step = RecordStep::Flushing(batch),
                Some(Ok(())) => self.append(batch, now),
                Some(Err(error)) => self.fail_recording(error),
            },
            RecordStep::Appending(batch) => match self.recorder.appended() {
                None => self.record_step = RecordStep::Appending(batch),
                Some(Ok(())) => self.count_recorded(&batch, now),
                Some(Err(error)) => self.fail_recording(error),
            },
        }
    }

    fn append(&mut self, mut batch: WrittenBatch, now: Instant) {
        // Compared after the flush, if there was one.
        let lost = batch.split_lost(self.pass.generation());
        self.redo_lost(lost);
        if batch.is_empty() {
            // The last flush of a pass whose leaves were all recorded before, or all of it is to be done again.
            return self.count_recorded(&batch, now);
        }
        let runs = batch.runs();
        self.appending.extend(runs.iter().map(|run| run.range));
        let leaf_bytes = self.pass.params.block_bytes.into();
        if self.pass.params.copies {
            runs.iter().for_each(|run| self.staged.add_run(run, leaf_bytes));
        }
        self.recorder.append(runs);
        self.record_step = RecordStep::Appending(batch);
    }

    /// Plans leaves again that the destination may have lost.
    fn redo_lost(&mut self, lost: WrittenBatch) {
        if lost.is_empty() {
            return;
        }
        self.settled -= lost.bytes();
        self.pass.recorded(lost.moved_bytes);
        self.pass.control.take_back(lost.bytes());
        self.pass.control.counters.skipped.fetch_sub(bytes_of(&lost.settled), Relaxed);
        self.segment_source.redo(lost.leaves().map(|written| written.range).collect());
    }

    fn count_recorded(&mut self, batch: &WrittenBatch, now: Instant) {
        self.recorded += batch.bytes();
        self.appending.drain(..).for_each(|range| self.unflushed.insert(range));
        self.pass.recorded(batch.moved_bytes);
        self.last_record = now;
        if batch.flushed && self.recording.flush_last {
            // The flush covered what was recorded without one before.
            self.pass.control.counters.durable.store(self.recorded, Release);
            self.pass.control.make_durable(std::mem::take(&mut self.unflushed).iter());
            self.pass.control.add_durable_sample(&std::mem::take(&mut self.staged));
        }
        self.wake();
    }

    fn fail_recording(&mut self, error: Error) {
        self.recording_over = true;
        self.pass.fail(error);
    }

    fn wake(&self) {
        self.workers.iter().for_each(|inbox| inbox.wake());
    }

    fn next_look(&mut self, now: Instant) -> Duration {
        if std::mem::take(&mut self.unfinished) && self.phase == PassPhase::Moving {
            return Duration::ZERO;
        }
        if std::mem::take(&mut self.waits) && self.phase == PassPhase::Moving {
            return LOOK_AGAIN;
        }
        let due = self.last_record + self.recording.every.time / 2;
        due.saturating_sub(now).clamp(Duration::from_millis(1), TICK)
    }
}
