//! Where the segments of a round come from.
//!
//! A supply runs on the job's thread, ahead of the workers: it scans extents, reserves space and turns what needs no
//! worker (holes on a destination that is known to be zero, clones) into leaves that have landed.

use super::round::{FoundZeros, Landed, LeafContent, Segment, Work};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent, ExtentKind, RangeSet};
use crate::journal::{Content, JournalReader, Run};
use crate::limits::{CLONE_BYTES_MAX, EXTENTS_PER_SCAN, RESERVE_BYTES_MAX, SEGMENT_BYTES_MAX};
use crate::plan::{Piece, Planner};
use crate::volume::{Allocation, Volume};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// What a supply has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// For the workers.
    pub segments: Vec<Segment>,
    /// Settled without them.
    pub landed: Vec<Landed>,
}

/// See the module's head.
pub(crate) trait Supply: fmt::Debug {
    /// Adds up to `room` segments, or a few leaves that landed; nothing once the volume is covered. Bounded in time, so
    /// that the job's thread keeps looking at cancels.
    fn refill(&mut self, room: usize, found: &mut Found) -> Result<()>;

    /// Called once, when everything has landed and before the last flush.
    fn seal(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What is done with zeros of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroPlan {
    /// The destination is known to hold them already.
    Skip,
    /// It must be told.
    Request,
}

/// Whether space for data is reserved before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// Not at all.
    Nothing,
    /// For data; zeros found inside are given back.
    Data,
    /// For every byte, and kept.
    Everything,
}

/// Segments of a copy.
#[derive(Debug)]
pub(crate) struct CopySupply {
    source: Arc<dyn Volume>,
    planner: Planner,
    zeros: ZeroPlan,
    reservation: Reservation,
    /// Zeros that still have to be cut into requests.
    requests: Option<ByteRange>,
}

impl CopySupply {
    pub(crate) fn new(
        source: Arc<dyn Volume>,
        destination: Arc<dyn Volume>,
        planner: Planner,
        zeros: ZeroPlan,
        reserve: Reserve,
    ) -> Self {
        let reservation = Reservation::new(destination, source.size_bytes(), reserve);
        Self { source, planner, zeros, reservation, requests: None }
    }

    fn take(&mut self, piece: Piece, found: &mut Found) -> Result<()> {
        match piece {
            Piece::Data { range, read } => {
                let found_zeros = self.reservation.reach(read.end())?;
                found.segments.push(Segment { range, work: Work::Copy { read, found: found_zeros } });
            }
            Piece::Zeros { range } => {
                self.reservation.reach(range.end())?;
                // Reserving everything may have turned out impossible: then zeros are written.
                match self.zeros {
                    ZeroPlan::Skip if self.reservation.holds() => {
                        found.landed.push(Landed { range, content: LeafContent::Zeros })
                    }
                    ZeroPlan::Skip | ZeroPlan::Request => self.requests = Some(range),
                }
            }
        }
        Ok(())
    }

    fn next_request(&mut self) -> Option<Segment> {
        let all = self.requests?;
        let range = all.split(SEGMENT_BYTES_MAX).next()?;
        self.requests = (range.end() < all.end()).then(|| ByteRange::new(range.end(), all.end()));
        Some(Segment { range, work: Work::Zero })
    }
}

/// After the last read and before the last flush of a copy: the source is what it was, and the destination loses what
/// its last aligned write put behind the end.
fn seal_copy(source: &dyn Volume, destination: &dyn Volume) -> Result<()> {
    source.check_unchanged()?;
    destination.resize(source.size_bytes())
}

impl Supply for CopySupply {
    fn seal(&mut self) -> Result<()> {
        seal_copy(&*self.source, &*self.reservation.destination)
    }

    fn refill(&mut self, room: usize, found: &mut Found) -> Result<()> {
        while found.segments.len() < room {
            if let Some(segment) = self.next_request() {
                found.segments.push(segment);
            } else if let Some(piece) = self.planner.next() {
                self.take(piece, found)?;
            } else if let Some(todo) = self.planner.unscanned() {
                let extents = self.source.extents(todo, EXTENTS_PER_SCAN)?;
                self.reservation.note(&extents);
                self.planner.add(&extents);
            } else {
                break;
            }
        }
        Ok(())
    }
}

/// Space reserved ahead of the data, in large pieces.
#[derive(Debug)]
struct Reservation {
    destination: Arc<dyn Volume>,
    reserve: Reserve,
    todo: VecDeque<ByteRange>,
    supported: bool,
}

impl Reservation {
    fn new(destination: Arc<dyn Volume>, size: u64, reserve: Reserve) -> Self {
        let todo = if reserve == Reserve::Everything && size > 0 {
            VecDeque::from([ByteRange::new(0, size)])
        } else {
            VecDeque::new()
        };
        Self { destination, reserve, todo, supported: true }
    }

    /// Takes note of data that will be wanted.
    fn note(&mut self, extents: &[Extent]) {
        if self.reserve == Reserve::Data && self.supported {
            self.todo
                .extend(extents.iter().filter(|extent| extent.kind == ExtentKind::Data).map(|extent| extent.range));
        }
    }

    /// Reserves what was noted up to `end`. Says what becomes of zeros in it.
    fn reach(&mut self, end: u64) -> Result<FoundZeros> {
        while self.supported
            && let Some(range) = self.todo.front().copied().filter(|range| range.start() < end)
        {
            let piece = range.split(RESERVE_BYTES_MAX).next().expect("ranges in the list are not empty");
            self.supported = self.destination.allocate(piece)? == Allocation::Reserved;
            self.todo.pop_front();
            if piece.end() < range.end() {
                self.todo.push_front(ByteRange::new(piece.end(), range.end()));
            }
        }
        Ok(match (self.reserve, self.supported) {
            (Reserve::Data, true) => FoundZeros::GiveBack,
            (Reserve::Everything, false) => FoundZeros::Write,
            (Reserve::Nothing | Reserve::Data | Reserve::Everything, _) => FoundZeros::Skip,
        })
    }

    /// Whether what was promised about allocation holds without writing zeros.
    fn holds(&self) -> bool {
        self.reserve != Reserve::Everything || self.supported
    }
}

/// Clones, which need no worker.
#[derive(Debug)]
pub(crate) struct CloneSupply {
    source: Arc<dyn Volume>,
    destination: Arc<dyn Volume>,
    todo: VecDeque<ByteRange>,
}

impl CloneSupply {
    pub(crate) fn new(source: Arc<dyn Volume>, destination: Arc<dyn Volume>, done: &RangeSet) -> Self {
        let todo = done.gaps(ByteRange::new(0, source.size_bytes())).collect();
        Self { source, destination, todo }
    }
}

impl Supply for CloneSupply {
    fn seal(&mut self) -> Result<()> {
        seal_copy(&*self.source, &*self.destination)
    }

    fn refill(&mut self, _room: usize, found: &mut Found) -> Result<()> {
        let Some(gap) = self.todo.pop_front() else { return Ok(()) };
        let range = gap.split(CLONE_BYTES_MAX).next().expect("gaps are not empty");
        if range.end() < gap.end() {
            self.todo.push_front(ByteRange::new(range.end(), gap.end()));
        }
        self.destination.clone_range(&*self.source, range)?;
        found.landed.push(Landed { range, content: LeafContent::Undigested });
        Ok(())
    }
}

/// What a comparison expects.
#[derive(Debug)]
pub(crate) enum Expectation {
    /// The bytes of this volume.
    Volume(Arc<dyn Volume>),
    /// What this journal recorded; where it has no digest, the bytes of the volume, if there is one.
    Journal(Box<JournalReader>, Option<Arc<dyn Volume>>),
}

/// Segments of a comparison.
#[derive(Debug)]
pub(crate) struct CompareSupply {
    expectation: Expectation,
    target: Arc<dyn Volume>,
    size: u64,
    leaf: u32,
    /// What the journal was asked up to.
    cursor: u64,
    /// The part being looked at: extents of the reference.
    reference: Option<Planner>,
    /// Zeros are expected here: extents of the target.
    zeros: Option<Planner>,
}

impl CompareSupply {
    /// Compares the first `size` bytes of `target`, in leaves of `leaf` bytes.
    pub(crate) fn new(expectation: Expectation, target: Arc<dyn Volume>, size: u64, leaf: u32) -> Self {
        let reference =
            matches!(expectation, Expectation::Volume(_)).then(|| Planner::over(ByteRange::new(0, size), leaf));
        let cursor = if reference.is_some() { size } else { 0 };
        Self { expectation, target, size, leaf, cursor, reference, zeros: None }
    }

    fn reference_volume(&self) -> Result<&Arc<dyn Volume>> {
        match &self.expectation {
            Expectation::Volume(volume) | Expectation::Journal(_, Some(volume)) => Ok(volume),
            Expectation::Journal(..) => Err(Error::new(
                Code::Unsupported,
                Side::Caller,
                Operation::Verify,
                "the receipt holds no digests for some of the data (it was cloned, or copied with --digest none); \
                 compare with the source instead",
            )),
        }
    }

    /// Takes the next run of the journal. Says whether there was one.
    fn next_run(&mut self, found: &mut Found) -> Result<bool> {
        let Expectation::Journal(journal, _) = &self.expectation else { return Ok(false) };
        if self.cursor >= self.size {
            return Ok(false);
        }
        let whole = ByteRange::new(self.cursor, self.size);
        let Some(run) = journal.runs(whole).next().transpose()? else { return Err(self.unrecorded()) };
        if run.range.start() != self.cursor {
            return Err(self.unrecorded());
        }
        let run = match &run.content {
            // Only as many digests at a time as a segment has leaves.
            Content::Leaves(_) if run.range.len() > SEGMENT_BYTES_MAX => {
                let piece = whole.split(SEGMENT_BYTES_MAX).next().expect("not empty");
                journal.runs(piece).next().transpose()?.ok_or_else(|| self.unrecorded())?
            }
            _ => run,
        };
        self.cursor = run.range.end();
        let Run { range, content } = run;
        match content {
            Content::Zeros => self.zeros = Some(Planner::over(range, self.leaf)),
            Content::Leaves(leaves) => found.segments.push(Segment { range, work: Work::CompareDigests(leaves) }),
            Content::Undigested => self.reference = Some(Planner::over(range, self.leaf)),
        }
        Ok(true)
    }

    fn unrecorded(&self) -> Error {
        Error::internal(
            Operation::Verify,
            format!("the journal says nothing about byte {} of a finished copy", self.cursor),
        )
        .with_code(Code::CheckpointCorrupt)
    }
}

/// The next piece of a planner over a volume's extents.
fn next_piece(planner: &mut Planner, volume: &dyn Volume) -> Result<Option<Piece>> {
    loop {
        if let Some(piece) = planner.next() {
            return Ok(Some(piece));
        }
        let Some(todo) = planner.unscanned() else { return Ok(None) };
        planner.add(&volume.extents(todo, EXTENTS_PER_SCAN)?);
    }
}

impl Supply for CompareSupply {
    fn refill(&mut self, room: usize, found: &mut Found) -> Result<()> {
        while found.segments.len() < room {
            if let Some(planner) = &mut self.zeros {
                match next_piece(planner, &*self.target)? {
                    Some(Piece::Data { range, .. }) => found.segments.push(Segment { range, work: Work::CompareZeros }),
                    Some(Piece::Zeros { range }) => found.landed.push(Landed { range, content: LeafContent::Zeros }),
                    None => self.zeros = None,
                }
                continue;
            }
            if let Some(mut planner) = self.reference.take() {
                let piece = next_piece(&mut planner, &**self.reference_volume()?)?;
                match piece {
                    Some(Piece::Data { range, read }) => {
                        found.segments.push(Segment { range, work: Work::CompareSource { read } })
                    }
                    Some(Piece::Zeros { range }) => self.zeros = Some(Planner::over(range, self.leaf)),
                    None => continue,
                }
                self.reference = Some(planner);
                continue;
            }
            if !self.next_run(found)? {
                break;
            }
        }
        Ok(())
    }
}
