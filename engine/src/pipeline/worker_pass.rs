//! Tracks one worker's part in one pass: the segments it has claimed, and the written ranges it has to report.
//!
//! A worker pass decides which block comes next and tracks its open segments. The worker owns slots, blocks and the
//! ring, and carries the decision out. A segment is open from its claim until the last of its leaves is written. Leaves
//! whose zeros must be requested from the destination are merged within a segment, so that neighbours become one
//! request.

use super::examine::{BlockSpan, DataMap};
use crate::channel::NbdConnections;
use crate::extent::{ByteRange, RangeSet};
use crate::limits::ZEROS_PER_JOB;
use crate::pass::latency::Latency;
use crate::pass::state::{DetectedZeros, LeafContent, PassState, Segment, SegmentWork, WrittenRange, ZeroMethod};
use crate::ring::{Instant, ZeroMode};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

/// Next step of a worker for a pass.
#[derive(Debug)]
pub(crate) enum NextStep {
    /// Start this block.
    Block(BlockTask),
    /// Request these zeros.
    Zero(ZeroTask),
    /// Ask again then.
    Wait(Duration),
    /// No block can start before another event.
    Nothing,
}

/// One leaf to copy or compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockTask {
    pub segment: u64,
    /// The leaf.
    pub range: ByteRange,
    /// Part of the leaf that must be read; empty for leaves that are only written.
    pub read: ByteRange,
    pub kind: BlockKind,
    /// See [`WrittenRange`].
    pub generation: Option<u64>,
}

/// A range to zero by request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZeroTask {
    pub segment: u64,
    pub range: ByteRange,
    pub mode: ZeroMode,
    /// See [`WrittenRange`].
    pub generation: Option<u64>,
}

/// Kind of work on a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Copy(DetectedZeros),
    WriteZeros,
    CompareSource,
    /// With a digest that is known, or with zeros.
    Compare(LeafContent),
}

#[derive(Debug)]
struct OpenSegment {
    id: u64,
    range: ByteRange,
    work: SegmentWork,
    /// Whether its bytes were counted as issued before: zeros that could not be requested.
    admitted: bool,
    /// The next leaf starts here.
    cursor: u64,
    /// Blocks and requests in flight.
    outstanding: u32,
    /// Ranges to be zeroed by request after all blocks were examined.
    zeros: RangeSet,
    /// Leaves that land with those requests.
    zero_leaves: RangeSet,
}

/// One worker's part in one pass.
#[derive(Debug)]
pub(crate) struct WorkerPass {
    pub id: u32,
    pub state: Arc<PassState>,
    /// Bytes served so far: the worker serves the pass that has had least.
    pub served_bytes: u64,
    /// Operations in flight, of any kind.
    pub in_flight: usize,
    /// Number of these operations that are late.
    pub late: usize,
    /// Slots that it has, and whether the operation of one is late.
    pub slots: usize,
    pub is_stalled: bool,
    /// Requests for zeros in flight.
    pub zeros: usize,
    /// Operations in the ring for its connections.
    pub connection_operations: usize,
    pub latency: Latency,
    /// Connections to the servers of the pass's volumes.
    pub connections: NbdConnections,
    /// Bytes of blocks in flight.
    bytes_in_flight: u64,
    /// Whether this worker takes part; it acknowledges in any case.
    takes_part: bool,
    /// Number of flushes of the pass that were handled.
    flushes_seen: u64,
    open: Vec<OpenSegment>,
    next_segment: u64,
    written_ranges: Vec<WrittenRange>,
    halted: bool,
    busy: bool,
}

impl WorkerPass {
    /// `served_bytes` is where the least served pass of the worker stands: a new job does not starve the old ones.
    /// The connections take `slots` operations at a time.
    pub(crate) fn new(id: u32, state: Arc<PassState>, served_bytes: u64, slots: usize) -> Self {
        let takes_part = state.join();
        let connections = if takes_part {
            NbdConnections::new(&state.source, &state.destination, slots, state.params.workers)
        } else {
            Ok(NbdConnections::default())
        };
        let (connections, takes_part) = match connections {
            Ok(connections) => (connections, takes_part),
            Err(error) => {
                state.fail(error);
                (NbdConnections::default(), false)
            }
        };
        Self {
            id,
            state,
            served_bytes,
            in_flight: 0,
            late: 0,
            slots: 0,
            is_stalled: false,
            zeros: 0,
            connection_operations: 0,
            latency: Latency::new(),
            connections,
            bytes_in_flight: 0,
            takes_part,
            flushes_seen: 0,
            open: Vec::new(),
            next_segment: 0,
            written_ranges: Vec::new(),
            halted: false,
            busy: false,
        }
    }

    /// Returns the next step. Room in the windows is taken for a block that is returned.
    pub(crate) fn next(&mut self, now: Instant) -> NextStep {
        let next = self.decide(now);
        self.busy = matches!(next, NextStep::Block(_) | NextStep::Zero(_));
        next
    }

    /// Returns whether it may have something to do.
    pub(crate) fn may_start(&self) -> bool {
        self.takes_part && !self.state.is_halting() && !self.state.control.is_paused() && !self.state.is_gate_closed()
    }

    fn decide(&mut self, now: Instant) -> NextStep {
        if !self.may_start() {
            return NextStep::Nothing;
        }
        let may_zero = self.zeros < ZEROS_PER_JOB;
        if may_zero && let Some(zero) = self.next_zero(|open| open.cursor == open.range.end()) {
            return zero;
        }
        let Some(index) = self.segment_with_blocks() else { return NextStep::Nothing };
        let leaf = self.leaf_at(index);
        match self.admit(leaf, self.open[index].admitted, now) {
            BlockAdmission::Granted => {
                self.served_bytes += leaf.len();
                self.bytes_in_flight += leaf.len();
                NextStep::Block(self.open[index].take_block(leaf, &self.state))
            }
            BlockAdmission::Later(wait) => NextStep::Wait(wait),
            BlockAdmission::Full => NextStep::Nothing,
            // What waits for zeros takes room until it lands: asked for now, or the segment would never end.
            BlockAdmission::Unrecorded if may_zero => self.next_zero(|_| true).unwrap_or(NextStep::Nothing),
            BlockAdmission::Unrecorded => NextStep::Nothing,
        }
    }

    /// A source block was read and is not all zeros, or may not be treated so: which of it to write.
    pub(crate) fn writable(&mut self, task: &BlockTask, map: DataMap, block_bytes: u32) -> DataMap {
        let params = &self.state.params;
        let len = u32::try_from(task.range.len()).expect("a leaf is at most a block");
        let everything = DataMap::all(len, block_bytes);
        if !params.known_zero {
            // Zeros in between are written too; a leaf of nothing but zeros is requested, unless its end is unaligned.
            let aligned = task.range.end().is_multiple_of(self.state.destination.zero_align);
            let by_request = map.is_zero() && aligned && self.state.zero_method() != ZeroMethod::Data;
            if by_request {
                self.segment(task.segment).zeros.insert(task.range);
            }
            return if by_request { map } else { everything };
        }
        match task.kind {
            BlockKind::Copy(DetectedZeros::Write) => return everything,
            BlockKind::Copy(DetectedZeros::Punch) => self.punch_zeros(task, map),
            BlockKind::Copy(DetectedZeros::Skip)
            | BlockKind::WriteZeros
            | BlockKind::CompareSource
            | BlockKind::Compare(_) => {}
        }
        map
    }

    /// Everything of a block that had to be written is; a leaf of zeros lands with the request for them, if there is
    /// to be one.
    pub(crate) fn block_written(&mut self, task: &BlockTask, content: LeafContent) {
        // Zeros that were not known to be there, or are to be allocated, were written.
        let is_left = self.state.params.known_zero
            && matches!(task.kind, BlockKind::Copy(DetectedZeros::Skip | DetectedZeros::Punch));
        let open = self.finish_block(task);
        if open.zeros.contains(task.range) {
            open.zero_leaves.insert(task.range);
            return;
        }
        if content == LeafContent::Zeros && is_left {
            self.state.control.counters.skipped.fetch_add(task.range.len(), Relaxed);
        }
        if content != LeafContent::Zeros {
            self.state.control.note_data(task.read.start());
        }
        self.written_ranges.push(WrittenRange { range: task.range, content, generation: task.generation });
        self.retire();
    }

    /// A comparison of a block is over.
    pub(crate) fn compared(&mut self, task: &BlockTask, expected: LeafContent, same: bool) {
        self.finish_block(task);
        if same {
            self.state.control.counters.verified.fetch_add(task.range.len(), Release);
        } else {
            self.state.add_difference(task.range);
        }
        self.written_ranges.push(WrittenRange { range: task.range, content: expected, generation: None });
        self.retire();
    }

    /// A block failed or was abandoned.
    pub(crate) fn drop_block(&mut self, task: &BlockTask) {
        self.finish_block(task);
    }

    /// A range was zeroed: the leaves that waited for it land.
    pub(crate) fn zeroed(&mut self, ZeroTask { segment, range, generation, .. }: ZeroTask) {
        let known_zero = self.state.params.known_zero;
        let counters = &self.state.control.counters;
        let counter = if known_zero { &counters.skipped } else { &counters.zeroed };
        let open =
            self.open.iter_mut().find(|open| open.id == segment).expect("a segment stays open while requests are out");
        open.outstanding -= 1;
        // A leaf is part of one request; its neighbours may have been found later, and wait for the next one.
        let leaves: Vec<_> = open.zero_leaves.iter().filter_map(|leaves| leaves.intersect(range)).collect();
        for leaves in leaves {
            open.zero_leaves.remove(leaves);
            counter.fetch_add(leaves.len(), Relaxed);
            self.written_ranges.push(WrittenRange { range: leaves, content: LeafContent::Zeros, generation });
        }
        self.retire();
    }

    /// The destination cannot be zeroed by request in this way: it is done in the next way, or was not needed.
    pub(crate) fn not_zeroed(&mut self, task: ZeroTask) {
        // Zeros that are there already, and need not be allocated.
        if self.state.params.known_zero && task.mode == ZeroMode::Hole {
            return self.zeroed(task);
        }
        self.state.zero_method_unsupported(task.mode);
        self.postpone_zero(task);
    }

    /// A request for zeros could not be made now, or has to be made again.
    pub(crate) fn postpone_zero(&mut self, task: ZeroTask) {
        // Asked again in the next turn, and not at once: room comes with an answer.
        self.busy = false;
        let open = self.segment(task.segment);
        open.outstanding -= 1;
        open.zeros.insert(task.range);
    }

    /// Returns whether this worker is to flush the destination.
    pub(crate) fn take_flush(&mut self) -> bool {
        self.takes_part && self.state.take_flush(&mut self.flushes_seen)
    }

    /// Advances the connections. Abandons operations in flight when the job has ended without them.
    pub(crate) fn poll_connections(&mut self, now: Instant) {
        if self.is_abandoned() && self.in_flight > 0 {
            self.connections.abandon();
        }
        self.connections.turn(now, self.state.is_given_up(), self.state.control.is_long_path());
    }

    /// Reports what was written to the state of the pass.
    pub(crate) fn publish(&mut self) {
        self.state.report_written(&mut self.written_ranges);
    }

    /// Acknowledges a halt once nothing is in flight.
    pub(crate) fn halt_if_asked(&mut self) {
        if !self.halted && self.in_flight == 0 && self.state.is_halt_asked() {
            self.publish();
            self.open.clear();
            self.halted = true;
            self.state.acknowledge_halt();
        }
    }

    /// Returns whether the pass is to be released, and can be.
    pub(crate) fn may_release(&self) -> bool {
        self.halted && self.in_flight == 0 && self.state.is_release_asked() && self.connections.are_idle()
    }

    /// Drops the pass, and so its files, and then acknowledges it.
    pub(crate) fn release(mut self) {
        self.connections.close();
        let acknowledge = self.state.release(&self.latency);
        drop(self);
        acknowledge();
    }

    /// Returns whether the job has ended without waiting for what is in flight here. To be asked after releases were
    /// looked at.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state.is_release_asked()
    }

    /// Returns whether it had something to do when it was last asked, and so may have more.
    pub(crate) fn may_go_on(&self) -> bool {
        self.busy && self.may_start()
    }

    fn segment(&mut self, id: u64) -> &mut OpenSegment {
        self.open.iter_mut().find(|open| open.id == id).expect("a segment stays open while blocks are out")
    }

    /// Counts a block of an open segment as answered and gives its room back.
    fn finish_block(&mut self, task: &BlockTask) -> &mut OpenSegment {
        self.state.control.leave_window(task.range.len());
        self.bytes_in_flight -= task.range.len();
        let open = self.segment(task.segment);
        open.outstanding -= 1;
        open
    }

    /// A request for zeros that is due: of a segment that has no block in flight and is `ripe`. The longer it waits,
    /// the more neighbours become one request.
    fn next_zero(&mut self, ripe: impl Fn(&OpenSegment) -> bool) -> Option<NextStep> {
        let open = self.open.iter_mut().find(|open| open.outstanding == 0 && !open.zeros.is_empty() && ripe(open))?;
        let range = open.zeros.iter().next().expect("not empty");
        open.zeros.remove(range);
        match self.state.zero_method() {
            ZeroMethod::Request(mode) => {
                open.outstanding += 1;
                Some(NextStep::Zero(ZeroTask { segment: open.id, range, mode, generation: self.state.generation() }))
            }
            ZeroMethod::Data => {
                // Start over with what waits for zeros, this time writing them.
                open.zero_leaves.remove(range);
                let id = self.next_segment;
                self.next_segment += 1;
                self.open.push(OpenSegment {
                    admitted: true,
                    ..OpenSegment::new(id, Segment { range, work: SegmentWork::WriteZeros }, &self.state)
                });
                self.retire();
                None
            }
        }
    }

    /// The segment to take a block from: one that is open, else a new one. First those that need no more room.
    fn segment_with_blocks(&mut self) -> Option<usize> {
        let has_blocks = |open: &OpenSegment| open.cursor < open.range.end();
        let admitted = self.open.iter().position(|open| open.admitted && has_blocks(open));
        if let Some(index) = admitted.or_else(|| self.open.iter().position(has_blocks)) {
            return Some(index);
        }
        // What waits for its zeros is not piled up: others may have room for it.
        let waiting = self.open.iter().filter(|open| open.outstanding == 0 && !open.zeros.is_empty()).count();
        if waiting >= ZEROS_PER_JOB {
            return None;
        }
        let segment = self.state.claim()?;
        let id = self.next_segment;
        self.next_segment += 1;
        let open = OpenSegment::new(id, segment, &self.state);
        // A request of its own takes no part in the windows, but is issued and will have to be recorded.
        let requested = open.zeros.bytes();
        self.state.force_unrecorded(requested);
        self.state.control.counters.issued.fetch_add(requested, Release);
        self.open.push(open);
        self.open.iter().position(|open| open.cursor < open.range.end())
    }

    fn leaf_at(&self, index: usize) -> ByteRange {
        let open = &self.open[index];
        let leaf = u64::from(self.state.params.block_bytes);
        ByteRange::new(open.cursor, (open.cursor / leaf + 1).saturating_mul(leaf).min(open.range.end()))
    }

    /// Reserves room for a leaf in the window, then in the unrecorded bytes, then in the rate limit.
    fn admit(&self, leaf: ByteRange, admitted: bool, now: Instant) -> BlockAdmission {
        let (control, bytes) = (&self.state.control, leaf.len());
        let part = control.server_window() / self.state.params.workers.max(1) as u64;
        let is_full = self.bytes_in_flight > 0 && self.bytes_in_flight + bytes > part;
        if is_full || !control.enter_window(bytes) {
            return BlockAdmission::Full;
        }
        if !admitted && !self.state.enter_unrecorded(bytes) {
            control.leave_window(bytes);
            return BlockAdmission::Unrecorded;
        }
        if let Err(wait) = control.take_rate(bytes, now) {
            control.leave_window(bytes);
            if !admitted {
                self.state.recorded(bytes);
            }
            return BlockAdmission::Later(wait);
        }
        if !admitted && self.state.params.copies {
            control.counters.issued.fetch_add(bytes, Release);
        }
        BlockAdmission::Granted
    }

    /// Zeros inside space that was reserved for data: gathered, to be punched.
    fn punch_zeros(&mut self, task: &BlockTask, map: DataMap) {
        let start = task.range.start();
        let segment = self.segment(task.segment);
        for BlockSpan { start: at, len } in map.zero_runs() {
            segment.zeros.insert(ByteRange::at(start + u64::from(at), u64::from(len)));
        }
    }

    /// Closes segments that are done.
    fn retire(&mut self) {
        self.open.retain(|open| open.outstanding > 0 || open.cursor < open.range.end() || !open.zeros.is_empty());
    }
}

enum BlockAdmission {
    Granted,
    Later(Duration),
    /// The window of bytes in flight is full.
    Full,
    /// The bound of unrecorded bytes is reached.
    Unrecorded,
}

impl OpenSegment {
    fn new(id: u64, Segment { range, work }: Segment, state: &PassState) -> Self {
        let mut open = Self {
            id,
            range,
            work,
            admitted: false,
            cursor: range.start(),
            outstanding: 0,
            zeros: RangeSet::new(),
            zero_leaves: RangeSet::new(),
        };
        if matches!(open.work, SegmentWork::Zero) {
            let request = zero_request(range, state);
            open.cursor = request.end();
            open.zeros.insert(request);
            open.zero_leaves.insert(request);
        }
        open
    }

    fn take_block(&mut self, leaf: ByteRange, state: &PassState) -> BlockTask {
        let within = |read: ByteRange| read.intersect(leaf).unwrap_or(ByteRange::new(leaf.start(), leaf.start()));
        let index = usize::try_from((leaf.start() - self.range.start()) / u64::from(state.params.block_bytes))
            .expect("a segment has few leaves");
        let (read, kind) = match &self.work {
            SegmentWork::Copy { read, found } => (within(*read), BlockKind::Copy(*found)),
            SegmentWork::Zero | SegmentWork::WriteZeros => (within(ByteRange::new(0, 0)), BlockKind::WriteZeros),
            SegmentWork::CompareSource => (leaf, BlockKind::CompareSource),
            SegmentWork::CompareDigests(leaves) => (leaf, BlockKind::Compare(LeafContent::Digest(leaves[index]))),
            SegmentWork::CompareZeros => (leaf, BlockKind::Compare(LeafContent::Zeros)),
        };
        self.cursor = leaf.end();
        self.outstanding += 1;
        BlockTask { segment: self.id, range: leaf, read, kind, generation: state.generation() }
    }
}

/// The part of a segment of zeros that can be requested: without the last leaf of the copy if its end is unaligned,
/// which is written then, together with what lies behind it.
fn zero_request(range: ByteRange, state: &PassState) -> ByteRange {
    if range.end().is_multiple_of(state.destination.zero_align) {
        return range;
    }
    let leaf = u64::from(state.params.block_bytes);
    ByteRange::new(range.start(), (range.end() / leaf * leaf).max(range.start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Channel, ChannelKind};
    use crate::error::Side;
    use crate::job::simulated_server::Peer;
    use crate::pass::control::JobControl;
    use crate::pass::state::PassParams;
    use crate::volume::Volume;

    const LEAF: u64 = 4096;

    /// A worker pass of a copy of two leaves to `peer`, of which the first holds data and the second zeros.
    fn pass(peer: &Arc<Peer>) -> WorkerPass {
        let volume: Arc<dyn Volume> = Arc::<Peer>::clone(peer);
        let params = PassParams {
            size: 2 * LEAF,
            block_bytes: LEAF as u32,
            digest: false,
            known_zero: false,
            zero_mode: ZeroMode::Hole,
            tail: Vec::new(),
            unrecorded_max: u64::MAX,
            workers: 1,
            copies: true,
            low_water: 0,
        };
        let channel = |side| Channel::new(side, &volume, ChannelKind::Ring);
        let control = Arc::new(JobControl::new(None));
        let state = PassState::new(control, channel(Side::Source), channel(Side::Destination), params);
        let data = ByteRange::new(0, LEAF);
        let copy = Segment { range: data, work: SegmentWork::Copy { read: data, found: DetectedZeros::Skip } };
        state.offer([copy, Segment { range: ByteRange::new(LEAF, 2 * LEAF), work: SegmentWork::Zero }]);
        WorkerPass::new(0, Arc::new(state), 0, 1)
    }

    /// An acknowledgement from before a server's restart may be read after it.
    #[test]
    fn leaves_are_written_under_the_generation_in_which_they_were_started() {
        let peer = Arc::new(Peer::default());
        let mut pass = pass(&peer);
        let NextStep::Block(block) = pass.next(Duration::ZERO) else { panic!("the first segment holds a block") };
        assert!(matches!(pass.next(Duration::ZERO), NextStep::Nothing), "the second one is claimed");
        let NextStep::Zero(zero) = pass.next(Duration::ZERO) else { panic!("and requested") };
        peer.generation.store(1, Relaxed);
        pass.block_written(&block, LeafContent::Undigested);
        pass.zeroed(zero);
        pass.publish();
        let mut written = Vec::new();
        pass.state.collect(&mut written);
        assert_eq!(written.iter().map(|written| written.generation).collect::<Vec<_>>(), [Some(0), Some(0)]);
        assert_eq!(pass.state.generation(), Some(1));
    }

    /// A thread that waits for releases may close the files, or take their lock, at once.
    #[test]
    fn a_release_is_acknowledged_when_the_files_are_held_no_more() {
        let mut pass = pass(&Arc::new(Peer::default()));
        let state = Arc::clone(&pass.state);
        assert!(!pass.may_release());
        pass.halted = true;
        state.ask_release();
        assert!(pass.may_release());
        let acknowledge = state.release(&pass.latency);
        assert_eq!(state.released_workers(), 0);
        acknowledge();
        pass.release();
        assert_eq!((state.released_workers(), Arc::strong_count(&state)), (2, 1));
    }
}
