//! Plans the segments of a copy: reads what holds data, and requests zeros unless the destination holds them already.

use super::destination_zeros::{DestinationZeros, ZeroStatus};
use super::reservation::{Reservation, Reserve};
use super::{Refill, SKIPPED_PER_REFILL, SegmentSource, finish_copy, read_zeros_too, treat_as_data};
use crate::error::Result;
use crate::extent::{ByteRange, ExtentKind, RangeSet};
use crate::limits::{EXTENTS_PER_SCAN, SEGMENT_BYTES_MAX};
use crate::pass::state::{LeafContent, Segment, SegmentWork, WrittenRange};
use crate::plan::{Piece, Planner};
use crate::spec::Sparse;
use crate::volume::Volume;
use std::sync::Arc;

/// Treatment of zeros of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroPlan {
    /// The destination is known to hold them already.
    Skip,
    /// The zeros must be requested.
    Request,
    /// The zeros must be requested where block status does not report them: as allocated zeros, unless holes are
    /// permitted.
    Ask,
}

/// Segments of a copy.
#[derive(Debug)]
pub(crate) struct CopySegments {
    source: Arc<dyn Volume>,
    planner: Planner,
    leaf: u32,
    /// Ranges that were lost, and have to be planned again.
    lost: RangeSet,
    /// Planner of one of the lost ranges, which is planned first.
    again: Option<Planner>,
    zeros: ZeroPlan,
    /// Whether the source's map is trusted.
    sparse: Sparse,
    /// Zeros that the destination may hold.
    destination_zeros: DestinationZeros,
    reservation: Reservation,
    /// Zeros that still have to be cut into requests.
    requests: Option<ByteRange>,
}

impl CopySegments {
    pub(crate) fn new(
        source: Arc<dyn Volume>,
        destination: Arc<dyn Volume>,
        planner: Planner,
        leaf: u32,
        zeros: ZeroPlan,
        sparse: Sparse,
        reserve: Reserve,
    ) -> Self {
        let size = source.size_bytes();
        Self {
            source,
            planner,
            leaf,
            lost: RangeSet::new(),
            again: None,
            zeros,
            sparse,
            destination_zeros: DestinationZeros::new(leaf, size, sparse),
            reservation: Reservation::new(destination, size, reserve),
            requests: None,
        }
    }

    /// The next piece, of what was lost or of the volume; `None` at its end, while extents are waited for, or when
    /// enough was scanned for once.
    fn next_piece(&mut self, found: &mut Refill) -> Result<Option<Piece>> {
        loop {
            if self.again.is_none() {
                self.again = self.lost.take_first().map(|range| Planner::over(range, self.leaf));
            }
            let planner = self.again.as_mut().unwrap_or(&mut self.planner);
            if let Some(piece) = planner.next() {
                return Ok(Some(piece));
            }
            let Some(todo) = planner.unscanned() else {
                match self.again.take() {
                    Some(_) => continue,
                    None => return Ok(None),
                }
            };
            if found.has_scanned() {
                return Ok(None);
            }
            found.scans += 1;
            let Some(mut extents) = self.source.extents(todo, EXTENTS_PER_SCAN)? else {
                found.waits = true;
                return Ok(None);
            };
            if self.zeros == ZeroPlan::Skip {
                // The destination is new: it does not hold what has not changed.
                treat_as_data(ExtentKind::Unchanged, &mut extents);
            }
            read_zeros_too(self.sparse, &mut extents);
            self.reservation.note(&extents);
            planner.add(&extents);
        }
    }

    fn take(&mut self, piece: Piece, found: &mut Refill) -> Result<()> {
        match piece {
            Piece::Data { range, read } => {
                let found_zeros = self.reservation.reach(read.end())?;
                found.segments.push(Segment { range, work: SegmentWork::Copy { read, found: found_zeros } });
            }
            Piece::Zeros { range } => {
                self.reservation.reach(range.end())?;
                // Reserving everything may have turned out impossible: then zeros are written.
                match self.zeros {
                    ZeroPlan::Skip if self.reservation.holds() => {
                        found.skipped.push(WrittenRange { range, content: LeafContent::Zeros, generation: None })
                    }
                    ZeroPlan::Skip | ZeroPlan::Request => self.requests = Some(range),
                    ZeroPlan::Ask => self.destination_zeros.start(range),
                }
            }
            Piece::Unchanged { range } => {
                found.skipped.push(WrittenRange { range, content: LeafContent::Undigested, generation: None })
            }
        }
        Ok(())
    }

    fn next_request(&mut self) -> Option<Segment> {
        let all = self.requests?;
        let range = all.split(SEGMENT_BYTES_MAX).next()?;
        self.requests = (range.end() < all.end()).then(|| ByteRange::new(range.end(), all.end()));
        Some(Segment { range, work: SegmentWork::Zero })
    }
}

impl SegmentSource for CopySegments {
    fn redo(&mut self, ranges: RangeSet) {
        ranges.iter().for_each(|range| self.lost.insert(range));
    }

    fn finish(&mut self) -> Result<()> {
        finish_copy(&*self.source, &*self.reservation.destination)
    }

    fn refill(&mut self, room: usize, found: &mut Refill) -> Result<()> {
        while found.segments.len() < room && found.skipped.len() < SKIPPED_PER_REFILL {
            if let Some(segment) = self.next_request() {
                found.segments.push(segment);
                continue;
            }
            match self.destination_zeros.next(&*self.reservation.destination)? {
                ZeroStatus::Present(written) => found.skipped.push(written),
                ZeroStatus::Missing(range) => self.requests = Some(range),
                ZeroStatus::Pending => {
                    found.waits = true;
                    break;
                }
                ZeroStatus::End => {
                    let Some(piece) = self.next_piece(found)? else { break };
                    self.take(piece, found)?;
                }
            }
        }
        Ok(())
    }
}
