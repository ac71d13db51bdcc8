//! Supplies the segments of a pass.
//!
//! A segment source runs on the job's thread, ahead of the workers. It scans extents and reserves space. What needs no
//! worker (holes on a destination that is known to be zero, clones) it settles itself and reports as written ranges.

mod clone;
mod compare;
mod copy;
mod reservation;
mod destination_zeros;

pub(crate) use clone::CloneSegments;
pub(crate) use compare::{CompareSegments, Expectation};
pub(crate) use copy::{CopySegments, ZeroPlan};
pub(crate) use reservation::Reserve;

use crate::error::Result;
use crate::extent::{Extent, ExtentKind, RangeSet};
use crate::pass::state::{Segment, WrittenRange};
use crate::spec::Sparse;
use crate::volume::Volume;
use std::fmt;

/// Leaves are settled without workers in portions of about so many runs: in between the pass controller looks up.
const SKIPPED_PER_REFILL: usize = 256;
/// Scans in one call. Each is a few hundred system calls, which may be slow: a cancel is checked in
/// between.
const SCANS_PER_REFILL: usize = 8;

/// Work that one refill has found.
#[derive(Debug, Default)]
pub(crate) struct Refill {
    /// Segments for the workers.
    pub segments: Vec<Segment>,
    /// Settled without them, as the destination holds it already.
    pub skipped: Vec<WrittenRange>,
    /// Settled without them, by cloning.
    pub cloned: Vec<WrittenRange>,
    /// A volume was asked for extents that it does not know yet: workers have to be awake to carry the question.
    pub waits: bool,
    /// Number of scans for extents.
    pub scans: usize,
}

impl Refill {
    /// Returns whether so much was scanned that the pass controller should look up before more is: there is more to do
    /// at once.
    pub(crate) fn has_scanned(&self) -> bool {
        self.scans >= SCANS_PER_REFILL
    }
}

/// A source of segments for a pass.
pub(crate) trait SegmentSource: fmt::Debug {
    /// Adds up to `room` segments, or a few leaves that were written; nothing once the volume is covered, or while it
    /// waits for extents. Bounded in time, so that the job's thread keeps looking at cancels.
    fn refill(&mut self, room: usize, found: &mut Refill) -> Result<()>;

    /// Plans these ranges once more, as what was written there is lost.
    fn redo(&mut self, ranges: RangeSet);

    /// Called once, when everything was written and before the last flush.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// After the last read and before the last flush of a copy: the source is what it was, and the destination loses what
/// its last aligned write put behind the end.
fn finish_copy(source: &dyn Volume, destination: &dyn Volume) -> Result<()> {
    source.check_unchanged()?;
    destination.resize(source.size_bytes())
}

/// Turns extents of that kind into data, which is read.
fn treat_as_data(kind: ExtentKind, extents: &mut [Extent]) {
    extents.iter_mut().filter(|extent| extent.kind == kind).for_each(|extent| extent.kind = ExtentKind::Data);
}

/// Without trust in maps, ranges that they report as zeros must be read.
fn read_zeros_too(sparse: Sparse, extents: &mut [Extent]) {
    if sparse == Sparse::Read {
        treat_as_data(ExtentKind::Hole, extents);
        treat_as_data(ExtentKind::Zero, extents);
    }
}
