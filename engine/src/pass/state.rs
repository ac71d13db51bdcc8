//! Holds the state of one pass that the job's thread and the workers share.
//!
//! A copy is one pass, its verification a second one. The pass controller fills the queue of segments. Workers claim
//! segments and report written ranges. A pass ends in two steps, each acknowledged by every worker: _halt_ (no new
//! blocks, none in flight; only flushes may follow) and _release_ (the worker drops the pass, and with it the files).

use super::control::JobControl;
use crate::channel::{Channel, ChannelKind};
use crate::error::{Error, Result};
use crate::extent::ByteRange;
use crate::journal::LeafDigest;
use crate::pass::latency::Latency;
use crate::progress::Difference;
use crate::ring::ZeroMode;
use crate::sync::lock;
use crate::write_gate::WriteGate;
use std::collections::VecDeque;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
    Ordering::Release,
};
use std::sync::{Arc, Mutex};

/// Ranges listed when volumes differ.
const DIFFERENCES_MAX: usize = 100;

/// Treatment of zeros found in data, on a destination that is known to hold them already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DetectedZeros {
    /// They are left as they are.
    Skip,
    /// Their space was reserved and is released.
    Punch,
    /// They must be allocated, and space could not be reserved: they are written.
    Write,
}

/// Kind of work on a segment.
#[derive(Debug)]
pub(crate) enum SegmentWork {
    /// Read `read`, write its data.
    Copy { read: ByteRange, found: DetectedZeros },
    /// Zero the segment by request.
    Zero,
    /// Zero the segment by writing zeros.
    WriteZeros,
    /// Compare with the same range of the source.
    CompareSource,
    /// Compare with these leaf digests.
    CompareDigests(Vec<LeafDigest>),
    /// Compare with zeros.
    CompareZeros,
}

/// Leaves that one core claims at once.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Range of the segment, on the leaf grid.
    pub range: ByteRange,
    pub work: SegmentWork,
}

/// Content of a leaf, known when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeafContent {
    Zeros,
    Digest(LeafDigest),
    Undigested,
}

/// Leaves that the destination has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrittenRange {
    pub range: ByteRange,
    pub content: LeafContent,
    /// Generation of the destination when the first operation on these leaves was started: if it has grown since
    /// without a flush in between, they may be lost. `None`: they cannot be lost.
    pub generation: Option<u64>,
}

/// Parameters of a pass.
#[derive(Debug)]
pub(crate) struct PassParams {
    pub size: u64,
    /// The block of the pass, which is its leaf.
    pub block_bytes: u32,
    /// Whether leaves are digested.
    pub digest: bool,
    /// Whether every byte of the destination that this pass does not write reads as zero.
    pub known_zero: bool,
    /// Mode of zeroing the destination, if it can be zeroed by request.
    pub zero_mode: ZeroMode,
    /// Bytes behind the end of the copy up to the destination's alignment. Shorter than that: zeros follow.
    pub tail: Vec<u8>,
    /// Bytes that may be issued and not yet recorded.
    pub unrecorded_max: u64,
    /// Whether the pass copies, or only compares.
    pub copies: bool,
    /// Workers that take part: as many as the servers of both sides accept.
    pub workers: usize,
    /// Number of queued segments at which the pass controller is woken for more.
    pub low_water: usize,
}

/// Method of zeroing the destination. `EOPNOTSUPP` leads to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroMethod {
    Request(ZeroMode),
    Data,
}

/// State of one pass.
#[derive(Debug)]
pub(crate) struct PassState {
    pub control: Arc<JobControl>,
    pub source: Channel,
    pub destination: Channel,
    pub params: PassParams,
    /// Gate of changes to the destination; `None`: always open.
    pub gate: Option<Arc<WriteGate>>,
    segments: Mutex<VecDeque<Segment>>,
    written_ranges: Mutex<Vec<WrittenRange>>,
    differences: Mutex<Vec<Difference>>,
    failure: Mutex<Option<Error>>,
    failed: AtomicBool,
    halt: AtomicBool,
    halted: AtomicUsize,
    release: AtomicBool,
    /// Workers that have dropped the pass.
    released: Arc<AtomicUsize>,
    /// Number of flushes requested so far.
    flush: AtomicU64,
    /// Workers that still have to start the last flush.
    flush_takers: AtomicUsize,
    /// Workers that still have to complete the last flush, and the result so far.
    flushed: Mutex<(usize, Result<()>)>,
    unrecorded: AtomicU64,
    /// Workers that may still take part.
    places_left: AtomicUsize,
    /// Number of methods of zeroing that are not supported.
    zeroing: AtomicU8,
    latency: Mutex<Latency>,
}

impl PassState {
    pub(crate) fn new(control: Arc<JobControl>, source: Channel, destination: Channel, params: PassParams) -> Self {
        let gate = control.gate().filter(|_| params.copies).cloned();
        Self {
            control,
            source,
            destination,
            gate,
            segments: Mutex::default(),
            written_ranges: Mutex::default(),
            differences: Mutex::default(),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
            halt: AtomicBool::new(false),
            halted: AtomicUsize::new(0),
            release: AtomicBool::new(false),
            released: Arc::default(),
            flush: AtomicU64::new(0),
            flush_takers: AtomicUsize::new(0),
            flushed: Mutex::new((0, Ok(()))),
            unrecorded: AtomicU64::new(0),
            places_left: AtomicUsize::new(params.workers),
            zeroing: AtomicU8::new(0),
            params,
            latency: Mutex::new(Latency::new()),
        }
    }

    // For the pass controller.

    pub(crate) fn queued(&self) -> usize {
        lock(&self.segments).len()
    }

    pub(crate) fn offer(&self, segments: impl IntoIterator<Item = Segment>) {
        lock(&self.segments).extend(segments);
    }

    /// Appends the ranges written since the last call to `into`.
    pub(crate) fn collect(&self, into: &mut Vec<WrittenRange>) {
        into.append(&mut lock(&self.written_ranges));
    }

    /// Returns the current generation of the destination; a comparison has none.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.params.copies.then(|| self.destination.generation())
    }

    /// Requests a flush. Over connections every worker flushes its own writes: only the same connection proves that the
    /// server was not restarted in between. Otherwise one flush covers all workers.
    pub(crate) fn ask_flush(&self) {
        let takers = if self.destination.kind == ChannelKind::Nbd { self.params.workers } else { 1 };
        *lock(&self.flushed) = (takers, Ok(()));
        self.flush_takers.store(takers, Release);
        self.flush.fetch_add(1, Release);
    }

    /// Returns the result of the requested flush, once all workers have completed it.
    pub(crate) fn take_flushed(&self) -> Option<Result<()>> {
        let (missing, result) = &*lock(&self.flushed);
        (*missing == 0).then(|| result.clone())
    }

    /// Notes that `bytes` of the issued bytes are recorded.
    pub(crate) fn recorded(&self, bytes: u64) {
        self.unrecorded.fetch_sub(bytes, AcqRel);
    }

    pub(crate) fn ask_halt(&self) {
        self.halt.store(true, Release);
    }

    pub(crate) fn halted_workers(&self) -> usize {
        self.halted.load(Acquire)
    }

    pub(crate) fn ask_release(&self) {
        self.release.store(true, Release);
    }

    pub(crate) fn released_workers(&self) -> usize {
        self.released.load(Acquire)
    }

    /// Fails the pass, unless it has failed before: the first error is the cause, later ones follow from it.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Release);
        self.control.notify();
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        lock(&self.failure).clone()
    }

    pub(crate) fn differences(&self) -> Vec<Difference> {
        let mut found = lock(&self.differences).clone();
        found.sort_unstable_by_key(|difference| difference.offset);
        found
    }

    pub(crate) fn latency(&self) -> Latency {
        lock(&self.latency).clone()
    }

    // For workers.

    /// Returns whether no further block may be issued. Checked before every block.
    pub(crate) fn is_halting(&self) -> bool {
        self.halt.load(Acquire) || self.failed.load(Acquire) || self.control.cancelled().is_some()
    }

    /// Returns whether the pass will not be completed: its operations are neither retried nor held back any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.failed.load(Acquire) || self.control.cancelled().is_some() || self.is_release_asked()
    }

    /// Returns whether no change of the destination may be submitted now. Checked immediately before each submission.
    pub(crate) fn is_gate_closed(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| !gate.is_open())
    }

    /// Returns whether one more worker takes part. The others only acknowledge.
    pub(crate) fn join(&self) -> bool {
        self.places_left.fetch_update(AcqRel, Acquire, |left| left.checked_sub(1)).is_ok()
    }

    /// Returns whether the pass controller requests the acknowledgement of a halt.
    pub(crate) fn is_halt_asked(&self) -> bool {
        self.halt.load(Acquire)
    }

    pub(crate) fn is_release_asked(&self) -> bool {
        self.release.load(Acquire)
    }

    /// Claims the next segment; wakes the pass controller when few are left.
    pub(crate) fn claim(&self) -> Option<Segment> {
        let mut segments = lock(&self.segments);
        let segment = segments.pop_front();
        let left = segments.len();
        drop(segments);
        if left <= self.params.low_water {
            self.control.notify();
        }
        segment
    }

    /// Reserves `bytes` that must be recorded later; `false` if there is no room.
    pub(crate) fn enter_unrecorded(&self, bytes: u64) -> bool {
        let max = self.params.unrecorded_max;
        let entered = self.unrecorded.fetch_update(AcqRel, Acquire, |before| {
            (before == 0 || before.saturating_add(bytes) <= max).then_some(before + bytes)
        });
        if entered.is_err() {
            self.control.notify();
        }
        entered.is_ok()
    }

    /// Counts bytes that must be recorded, whatever the bound.
    pub(crate) fn force_unrecorded(&self, bytes: u64) {
        self.unrecorded.fetch_add(bytes, AcqRel);
    }

    /// Reports leaves that were written; empties `batch`, keeping its memory. Wakes the pass controller when no segment is
    /// left: these may be the last ones.
    pub(crate) fn report_written(&self, batch: &mut Vec<WrittenRange>) {
        if batch.is_empty() {
            return;
        }
        if self.params.copies {
            let bytes: u64 = batch.iter().map(|written| written.range.len()).sum();
            self.control.counters.acknowledged.fetch_add(bytes, Release);
        }
        lock(&self.written_ranges).append(batch);
        if self.queued() == 0 {
            self.control.notify();
        }
    }

    pub(crate) fn add_difference(&self, range: ByteRange) {
        let mut differences = lock(&self.differences);
        if differences.len() < DIFFERENCES_MAX {
            differences.push(Difference { offset: range.start(), length: range.len() });
        }
    }

    /// Returns whether a worker that has handled `seen` flushes must make the next one.
    pub(crate) fn take_flush(&self, seen: &mut u64) -> bool {
        let asked = self.flush.load(Acquire);
        let is_new = std::mem::replace(seen, asked) != asked;
        is_new && self.flush_takers.fetch_update(AcqRel, Acquire, |left| left.checked_sub(1)).is_ok()
    }

    /// Completes one worker's part of a flush; the first failure counts.
    pub(crate) fn set_flushed(&self, answer: Result<()>) {
        let (missing, result) = &mut *lock(&self.flushed);
        *missing -= 1;
        if result.is_ok() {
            *result = answer;
        }
        self.control.notify();
    }

    /// Returns the method of zeroing to use now.
    pub(crate) fn zero_method(&self) -> ZeroMethod {
        match (self.zeroing.load(Relaxed), self.params.zero_mode) {
            (0, mode) => ZeroMethod::Request(mode),
            (1, ZeroMode::Hole) => ZeroMethod::Request(ZeroMode::Allocated),
            _ => ZeroMethod::Data,
        }
    }

    /// Switches to the next method of zeroing, as `mode` is not supported.
    pub(crate) fn zero_method_unsupported(&self, mode: ZeroMode) {
        let step = u8::from(mode != self.params.zero_mode) + 1;
        let last = if self.params.zero_mode == ZeroMode::Hole { 2 } else { 1 };
        self.zeroing.fetch_max(step.min(last), Relaxed);
    }

    pub(crate) fn acknowledge_halt(&self) {
        self.halted.fetch_add(1, AcqRel);
        self.control.notify();
    }

    /// Returns the acknowledgement of the release, to be called once the pass was dropped: a thread that waits for all
    /// releases relies on having the only handles of the files and their locks.
    pub(crate) fn release(&self, latency: &Latency) -> impl FnOnce() + use<> {
        lock(&self.latency).merge(latency);
        let (released, control) = (Arc::clone(&self.released), Arc::clone(&self.control));
        move || {
            released.fetch_add(1, AcqRel);
            control.notify();
        }
    }
}
