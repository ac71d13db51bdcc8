//! Builds a pass over two volumes, without touching either.
//!
//! The job's thread and the simulation build their passes here, so that the simulated code is the code that runs.

use super::pass_controller::{PassController, RecordingPolicy, WorkerInboxes};
use super::recorder::Recorder;
use super::segments::{CloneSegments, CompareSegments, CopySegments, Expectation, Reserve, SegmentSource, ZeroPlan};
use crate::channel::{Channel, ChannelKind};
use crate::error::Side;
use crate::extent::RangeSet;
use crate::limits::SEGMENTS_AHEAD_PER_CORE;
use crate::pass::control::JobControl;
use crate::pass::state::{PassParams, PassState};
use crate::plan::Planner;
use crate::ring::{Instant, ZeroMode};
use crate::spec::{CheckpointEvery, CheckpointLocation, CopySpec, DigestKind, Durability, Sparse};
use crate::volume::route::{Cache, IoMode, Offload, Route, SubmitMode};
use crate::volume::{KnownZero, Volume, VolumeKind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A pass that has no controller yet.
#[derive(Debug)]
pub(crate) struct PreparedPass {
    pub pass: Arc<PassState>,
    segment_source: Box<dyn SegmentSource>,
    recording: RecordingPolicy,
    done: u64,
}

/// Inputs of a copy.
#[derive(Debug)]
pub(crate) struct CopyInputs {
    pub source: Arc<dyn Volume>,
    pub destination: Arc<dyn Volume>,
    pub route: Route,
    pub leaf_bytes: u32,
    /// Digest of the journal, which is that of its start: leaves with and without digests do not mix.
    pub digest: DigestKind,
    /// Never touched again.
    pub durable: RangeSet,
    pub known_zero: KnownZero,
    /// See [`PassParams::tail`].
    pub tail: Vec<u8>,
}

/// Two volumes to compare.
#[derive(Debug)]
pub(crate) struct ComparedVolumes<'a> {
    pub reference: &'a Arc<dyn Volume>,
    pub target: &'a Arc<dyn Volume>,
    pub size: u64,
    pub leaf: u32,
    /// Whether maps are trusted.
    pub sparse: Sparse,
}

impl PreparedPass {
    /// The pass that copies, by `cores` workers whose slots hold `window_bytes`. Counts what was resumed.
    pub(crate) fn copy(
        spec: &CopySpec,
        start: CopyInputs,
        cores: usize,
        window_bytes: u64,
        control: &Arc<JobControl>,
    ) -> Self {
        let CopyInputs { source, destination, route, leaf_bytes, digest, durable, known_zero, tail } = start;
        let (size, done) = (source.size_bytes(), durable.bytes());
        count_resumed(control, size, &durable, spec.durability);
        let recording = recording(spec, destination.generation().is_some());
        let known_zero = known_zero == KnownZero::Everything;
        let params = PassParams {
            size,
            block_bytes: leaf_bytes,
            digest: digest == DigestKind::Xxh3,
            known_zero,
            zero_mode: if spec.sparse == Sparse::Never { ZeroMode::Allocated } else { ZeroMode::Hole },
            tail,
            unrecorded_max: recording.every.bytes.saturating_add(window_bytes),
            copies: true,
            workers: joining_workers([&source, &destination], cores),
            low_water: low_water(cores),
        };
        let (from, to) =
            (channel(Side::Source, &source, route.source), channel(Side::Destination, &destination, route.destination));
        let segment_source: Box<dyn SegmentSource> = if route.offload == Some(Offload::Reflink) {
            Box::new(CloneSegments::new(source, destination, &durable))
        } else {
            let planner = Planner::new(size, leaf_bytes, cores, durable);
            let zeros = match known_zero {
                true => ZeroPlan::Skip,
                false if destination.tells_zeros() => ZeroPlan::Ask,
                false => ZeroPlan::Request,
            };
            let reserve = reserve(spec.sparse, &*destination, route.destination);
            Box::new(CopySegments::new(source, destination, planner, leaf_bytes, zeros, spec.sparse, reserve))
        };
        Self { pass: Arc::new(PassState::new(Arc::clone(control), from, to, params)), segment_source, recording, done }
    }

    /// The pass that compares, by `cores` workers.
    pub(crate) fn compare(
        pair: &ComparedVolumes<'_>,
        expectation: Expectation,
        cores: usize,
        control: &Arc<JobControl>,
    ) -> Self {
        let params = PassParams {
            size: pair.size,
            block_bytes: pair.leaf,
            digest: true,
            known_zero: false,
            zero_mode: ZeroMode::Hole,
            tail: Vec::new(),
            unrecorded_max: u64::MAX,
            copies: false,
            workers: joining_workers([pair.reference, pair.target], cores),
            low_water: low_water(cores),
        };
        let channel = |side, volume: &Arc<dyn Volume>| Channel::new(side, volume, ChannelKind::Ring);
        let (from, to) = (channel(Side::Source, pair.reference), channel(Side::Destination, pair.target));
        let target = Arc::clone(pair.target);
        let segment_source = Box::new(CompareSegments::new(expectation, target, pair.size, pair.leaf, pair.sparse));
        let recording = RecordingPolicy {
            every: CheckpointEvery::default(),
            flush_each: false,
            flush_last: false,
            may_lose: false,
        };
        Self {
            pass: Arc::new(PassState::new(Arc::clone(control), from, to, params)),
            segment_source,
            recording,
            done: 0,
        }
    }

    /// Hands the pass to the workers and returns its controller.
    pub(crate) fn into_controller<L: Recorder>(
        self,
        workers: &WorkerInboxes,
        recorder: L,
        now: Instant,
    ) -> PassController<L> {
        PassController::new(
            self.pass,
            Arc::clone(workers),
            self.segment_source,
            recorder,
            self.recording,
            self.done,
            now,
        )
    }
}

fn count_resumed(control: &JobControl, size: u64, durable: &RangeSet, durability: Durability) {
    let (counters, done) = (&control.counters, durable.bytes());
    counters.planned.store(size, Relaxed);
    counters.resumed.store(done, Relaxed);
    control.count_without_io(done);
    if durability == Durability::Required {
        counters.durable.store(done, Relaxed);
        control.make_durable(durable.iter());
    }
}

fn recording(spec: &CopySpec, may_lose: bool) -> RecordingPolicy {
    let sync = spec.durability == Durability::Required;
    let is_checkpoint = sync && spec.checkpoint != CheckpointLocation::None;
    let every = if is_checkpoint { spec.checkpoint_every } else { CheckpointEvery::default() };
    // Recorded ranges are never copied again. So they must be stable, even without a checkpoint or a sync.
    RecordingPolicy { every, flush_each: is_checkpoint || may_lose, flush_last: sync, may_lose }
}

/// Returns the number of workers that take part: as many as get a connection to the servers of both sides. Connects
/// them.
fn joining_workers(volumes: [&Arc<dyn Volume>; 2], cores: usize) -> usize {
    let exports = || volumes.iter().filter_map(|volume| volume.export());
    let allowed = exports().map(|export| export.workers_allowed(cores)).min().unwrap_or(cores);
    exports().fold(allowed, |workers, export| workers.min(export.connect(workers)))
}

fn low_water(cores: usize) -> usize {
    SEGMENTS_AHEAD_PER_CORE * cores / 2
}

fn channel(side: Side, volume: &Arc<dyn Volume>, io_mode: IoMode) -> Channel {
    let kind = match io_mode.submit {
        SubmitMode::Ring => ChannelKind::Ring,
        SubmitMode::Inline => ChannelKind::Inline,
    };
    Channel::new(side, volume, kind)
}

/// Direct writes want their space laid out beforehand; the page cache does that by itself.
fn reserve(sparse: Sparse, destination: &dyn Volume, io_mode: IoMode) -> Reserve {
    match (destination.kind(), sparse) {
        (VolumeKind::File, Sparse::Never) => Reserve::Everything,
        (VolumeKind::File, Sparse::Auto | Sparse::Read) if io_mode.cache == Cache::Direct => Reserve::Data,
        _ => Reserve::Nothing,
    }
}
