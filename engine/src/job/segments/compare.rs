//! Plans the segments of a comparison: every byte is read that one of the sides does not know to be zero.
//!
//! Where the map of either volume reports data, both sides are read. So a wrong map is found out, whichever volume is
//! named first. What a journal recorded as zeros needs no second volume.

use super::{Refill, SKIPPED_PER_REFILL, SegmentSource, read_zeros_too, treat_as_data};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, ExtentKind, RangeSet};
use crate::journal::{Content, JournalReader, Run};
use crate::limits::{EXTENTS_PER_SCAN, SEGMENT_BYTES_MAX};
use crate::pass::state::{LeafContent, Segment, SegmentWork, WrittenRange};
use crate::plan::{Piece, Planner};
use crate::spec::Sparse;
use crate::volume::Volume;
use std::sync::Arc;

/// Expected content of a comparison.
#[derive(Debug)]
pub(crate) enum Expectation {
    /// The bytes of this volume.
    Volume(Arc<dyn Volume>),
    /// The record of this journal; where it has no digest, the bytes of the volume, if there is one.
    Journal(Box<JournalReader>, Option<Arc<dyn Volume>>),
}

/// Source of the fact that a range holds zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZerosBy {
    /// The reference's map, which may be wrong.
    Map,
    /// A journal.
    Record,
}

/// Segments of a comparison.
#[derive(Debug)]
pub(crate) struct CompareSegments {
    expectation: Expectation,
    target: Arc<dyn Volume>,
    size: u64,
    leaf: u32,
    /// End of the range that was taken from the journal.
    cursor: u64,
    /// Extents of the reference in the current part.
    reference: Option<Planner>,
    /// Zeros are expected here: extents of the target.
    zeros: Option<(Planner, ZerosBy)>,
    /// Whether maps are trusted.
    sparse: Sparse,
}

impl CompareSegments {
    /// Compares the first `size` bytes of `target`, in leaves of `leaf` bytes.
    pub(crate) fn new(expectation: Expectation, target: Arc<dyn Volume>, size: u64, leaf: u32, sparse: Sparse) -> Self {
        let reference =
            matches!(expectation, Expectation::Volume(_)).then(|| Planner::over(ByteRange::new(0, size), leaf));
        let cursor = if reference.is_some() { size } else { 0 };
        Self { expectation, target, size, leaf, cursor, reference, zeros: None, sparse }
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

    /// Reads the next run of the journal. Returns whether there was one.
    fn next_run(&mut self, found: &mut Refill) -> Result<bool> {
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
            Content::Zeros => self.zeros = Some((Planner::over(range, self.leaf), ZerosBy::Record)),
            Content::Leaves(leaves) => {
                found.segments.push(Segment { range, work: SegmentWork::CompareDigests(leaves) })
            }
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

/// Next piece of a volume, by its extents.
#[derive(Debug)]
enum NextPiece {
    Data {
        range: ByteRange,
    },
    Zeros {
        range: ByteRange,
    },
    /// The block status is requested and not known yet.
    Pending,
    /// There are no further extents.
    End,
}

fn next_piece(planner: &mut Planner, volume: &dyn Volume, sparse: Sparse, found: &mut Refill) -> Result<NextPiece> {
    loop {
        if let Some(piece) = planner.next() {
            return Ok(match piece {
                Piece::Data { range, .. } | Piece::Unchanged { range } => NextPiece::Data { range },
                Piece::Zeros { range } => NextPiece::Zeros { range },
            });
        }
        let Some(todo) = planner.unscanned() else { return Ok(NextPiece::End) };
        found.scans += 1;
        let Some(mut extents) = volume.extents(todo, EXTENTS_PER_SCAN)? else { return Ok(NextPiece::Pending) };
        // What a copy leaves alone is compared all the same.
        treat_as_data(ExtentKind::Unchanged, &mut extents);
        read_zeros_too(sparse, &mut extents);
        planner.add(&extents);
    }
}

impl SegmentSource for CompareSegments {
    fn redo(&mut self, _ranges: RangeSet) {
        unreachable!("a comparison has nothing to lose");
    }

    fn refill(&mut self, room: usize, found: &mut Refill) -> Result<()> {
        while found.segments.len() < room && found.skipped.len() < SKIPPED_PER_REFILL && !found.has_scanned() {
            if let Some((planner, by)) = &mut self.zeros {
                match next_piece(planner, &*self.target, self.sparse, found)? {
                    NextPiece::Data { range } => {
                        let work =
                            if *by == ZerosBy::Map { SegmentWork::CompareSource } else { SegmentWork::CompareZeros };
                        found.segments.push(Segment { range, work });
                    }
                    NextPiece::Zeros { range } => {
                        found.skipped.push(WrittenRange { range, content: LeafContent::Zeros, generation: None })
                    }
                    NextPiece::Pending => {
                        found.waits = true;
                        break;
                    }
                    NextPiece::End => self.zeros = None,
                }
                continue;
            }
            if let Some(mut planner) = self.reference.take() {
                let sought = next_piece(&mut planner, &**self.reference_volume()?, self.sparse, found)?;
                match sought {
                    NextPiece::Data { range } => {
                        found.segments.push(Segment { range, work: SegmentWork::CompareSource })
                    }
                    NextPiece::Zeros { range } => self.zeros = Some((Planner::over(range, self.leaf), ZerosBy::Map)),
                    NextPiece::Pending => found.waits = true,
                    NextPiece::End => continue,
                }
                self.reference = Some(planner);
                if found.waits {
                    break;
                }
                continue;
            }
            if !self.next_run(found)? {
                break;
            }
        }
        Ok(())
    }
}
