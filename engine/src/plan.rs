//! Cuts extents into pieces of work: ranges to read, ranges of zeros, and ranges that need nothing.
//!
//! The planner is pure. It is fed extents in order, in windows, and cuts them on the _leaf grid_: multiples of the
//! block size, on which digests and checkpoints are kept. A leaf that holds any data becomes data as a whole. Only the
//! _hull_ of its data is read, as the margins are zeros by the source's own map. An extent that is reported as
//! unchanged says nothing about its bytes, so a leaf that is unchanged in part is read as a whole. Every piece starts
//! on the grid and ends there or at the end of the volume, and no two pieces share a leaf.

use crate::extent::{ByteRange, Extent, ExtentKind, RangeSet};
use crate::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use std::collections::VecDeque;

/// A run of leaves of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Holds data; only `read` has to be read, the rest of `range` is zeros.
    Data { range: ByteRange, read: ByteRange },
    /// Holds zeros only.
    Zeros { range: ByteRange },
    /// Holds what the destination of an earlier copy holds.
    Unchanged { range: ByteRange },
}

impl Piece {
    /// The leaves it covers.
    pub(crate) fn range(self) -> ByteRange {
        match self {
            Self::Data { range, .. } | Self::Zeros { range } | Self::Unchanged { range } => range,
        }
    }

    /// Cut down to `range`, which lies on the grid and within the piece.
    fn within(self, range: ByteRange) -> Self {
        match self {
            Self::Data { read, .. } => match read.intersect(range) {
                Some(read) => Self::Data { range, read },
                None => Self::Zeros { range },
            },
            Self::Zeros { .. } => Self::Zeros { range },
            Self::Unchanged { .. } => Self::Unchanged { range },
        }
    }
}

/// Turns extents into pieces no longer than a segment, leaving out what is already durable.
#[derive(Debug)]
pub(crate) struct Planner {
    size: u64,
    leaf: u64,
    segment: u64,
    /// Extents are wanted from here on. On the grid, or the end.
    cursor: u64,
    /// Ranges that are not planned again.
    done: RangeSet,
    /// Found, not yet taken.
    found: VecDeque<Piece>,
}

impl Planner {
    /// Plans `size` bytes in leaves of `leaf` bytes for `cores` workers, without the leaves in `done`.
    pub(crate) fn new(size: u64, leaf: u32, cores: usize, done: RangeSet) -> Self {
        Self {
            size,
            leaf: u64::from(leaf),
            segment: segment_bytes(size, leaf, cores),
            cursor: 0,
            done,
            found: VecDeque::new(),
        }
    }

    /// Plans a part of a volume that starts and ends on the grid (or at the volume's end), for one reader.
    pub(crate) fn over(range: ByteRange, leaf: u32) -> Self {
        let segment = SEGMENT_BYTES_MIN.max(u64::from(leaf));
        Self {
            size: range.end(),
            leaf: u64::from(leaf),
            segment,
            cursor: range.start(),
            done: RangeSet::new(),
            found: VecDeque::new(),
        }
    }

    /// Returns the range that the next scan should cover; `None` once the source was scanned to its end.
    pub(crate) fn unscanned(&self) -> Option<ByteRange> {
        (self.cursor < self.size).then(|| ByteRange::new(self.cursor, self.size))
    }

    /// Takes the next extents, which start at [`Planner::unscanned`] and have no gaps. A leaf that they cover only in
    /// part is left for the next scan.
    ///
    /// # Panics
    /// If the extents do not start where they were asked for, or are empty: volumes promise both.
    pub(crate) fn add(&mut self, extents: &[Extent]) {
        let first = extents.first().expect("a scan of a non-empty range yields an extent");
        assert_eq!(first.range.start(), self.cursor, "extents start where the last scan ended");
        let seen = extents.last().map_or(self.cursor, |extent| extent.range.end());
        let mut end = if seen >= self.size { self.size } else { seen / self.leaf * self.leaf };
        if end <= self.cursor {
            // More extents in one leaf than fit a scan: read the leaf as a whole.
            end = (self.cursor + self.leaf).min(self.size);
            let range = ByteRange::new(self.cursor, end);
            self.push(Piece::Data { range, read: range });
        } else {
            self.cut(extents, ByteRange::new(self.cursor, end));
        }
        self.cursor = end;
    }

    /// The next piece, at most a segment long; `None` if more extents are needed or everything was planned.
    pub(crate) fn next(&mut self) -> Option<Piece> {
        let piece = self.found.pop_front()?;
        let range = piece.range();
        let head = ByteRange::new(
            range.start(),
            (range.start() / self.segment + 1).saturating_mul(self.segment).min(range.end()),
        );
        // Other pieces need no transfer or one request each: they stay whole until the caller bounds the length of a
        // request.
        if !matches!(piece, Piece::Data { .. }) || head == range {
            return Some(piece);
        }
        self.found.push_front(piece.within(ByteRange::new(head.end(), range.end())));
        Some(piece.within(head))
    }

    /// Lays the grid over the extents within `window`. What they leave free is zeros.
    fn cut(&mut self, extents: &[Extent], window: ByteRange) {
        let mut at = window.start();
        let mut last: Option<Piece> = None;
        let leaf = self.leaf;
        for piece in joined(extents).flat_map(|extent| leaves_of(extent, leaf, window)).flatten() {
            last = match (last, piece) {
                // Sharing a leaf, or one run of data reported in two: one piece.
                (Some(Piece::Data { range: before, read: hull }), Piece::Data { range, read })
                    if range.start() < before.end() || read.start() == hull.end() =>
                {
                    Some(Piece::Data { range: before.hull(range), read: hull.hull(read) })
                }
                (before, piece) => {
                    at = self.close(before, at);
                    Some(piece)
                }
            };
        }
        at = self.close(last, at);
        if at < window.end() {
            self.push(Piece::Zeros { range: ByteRange::new(at, window.end()) });
        }
    }

    /// Emits the zeros before a piece, and the piece; returns where it ends.
    fn close(&mut self, piece: Option<Piece>, at: u64) -> u64 {
        let Some(piece) = piece else { return at };
        if at < piece.range().start() {
            self.push(Piece::Zeros { range: ByteRange::new(at, piece.range().start()) });
        }
        self.push(piece);
        piece.range().end()
    }

    fn push(&mut self, piece: Piece) {
        let todo = self.done.gaps(piece.range()).map(|gap| piece.within(gap));
        match (self.found.back_mut(), piece) {
            (Some(Piece::Zeros { range: before }), Piece::Zeros { range })
            | (Some(Piece::Unchanged { range: before }), Piece::Unchanged { range })
                if before.end() == range.start() && self.done.is_empty() =>
            {
                *before = before.hull(range);
            }
            _ => self.found.extend(todo),
        }
    }
}

/// Extents, with unchanged neighbours as one: each of them may end within a leaf.
fn joined(extents: &[Extent]) -> impl Iterator<Item = Extent> {
    let same = |one: &Extent, two: &Extent| one.kind == ExtentKind::Unchanged && one.kind == two.kind;
    extents.chunk_by(same).filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some(Extent { range: first.range.hull(last.range), kind: first.kind })
    })
}

/// Cuts an extent into pieces of the leaves that it touches within `window`: up to three, in order. The ends of what
/// is unchanged share their leaves with something else, and are read with it.
fn leaves_of(Extent { range, kind }: Extent, leaf: u64, window: ByteRange) -> [Option<Piece>; 3] {
    let Some(range) = range.intersect(window) else { return [None; 3] };
    let all = range.align_out(leaf, window.end());
    match kind {
        ExtentKind::Zero | ExtentKind::Hole => [None; 3],
        ExtentKind::Data => [Some(Piece::Data { range: all, read: range }), None, None],
        ExtentKind::Unchanged => {
            let start = range.start().next_multiple_of(leaf).min(all.end());
            let end = if range.end() == window.end() { range.end() } else { range.end() / leaf * leaf };
            let whole = |start: u64, end: u64| {
                let range = ByteRange::new(start, end);
                (start < end).then_some(Piece::Data { range, read: range })
            };
            if end < start {
                return [whole(all.start(), all.end()), None, None];
            }
            let within = (start < end).then(|| Piece::Unchanged { range: ByteRange::new(start, end) });
            [whole(all.start(), start), within, whole(end, all.end())]
        }
    }
}

/// Long enough to stream, short enough that every core gets several.
fn segment_bytes(size: u64, leaf: u32, cores: usize) -> u64 {
    let share = size / (cores as u64 * 8).max(1);
    let leaf = u64::from(leaf);
    (share / leaf * leaf).clamp(SEGMENT_BYTES_MIN.max(leaf), SEGMENT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;
    use proptest::prelude::*;

    const LEAF: u32 = 1 << 20;

    fn extent(start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent { range: ByteRange::new(start, end), kind }
    }

    fn plan(size: u64, done: RangeSet, extents: &[Extent]) -> Vec<Piece> {
        let mut planner = Planner::new(size, LEAF, 2, done);
        planner.add(extents);
        assert_eq!(planner.unscanned(), None);
        std::iter::from_fn(|| planner.next()).collect()
    }

    fn data(start: u64, end: u64, read_start: u64, read_end: u64) -> Piece {
        Piece::Data { range: ByteRange::new(start, end), read: ByteRange::new(read_start, read_end) }
    }

    fn zeros(start: u64, end: u64) -> Piece {
        Piece::Zeros { range: ByteRange::new(start, end) }
    }

    #[test]
    fn dense_data_is_cut_into_segments() {
        let size = 20 * MIB + 5;
        let pieces = plan(size, RangeSet::new(), &[extent(0, size, ExtentKind::Data)]);
        assert_eq!(
            pieces,
            [
                data(0, 8 * MIB, 0, 8 * MIB),
                data(8 * MIB, 16 * MIB, 8 * MIB, 16 * MIB),
                data(16 * MIB, size, 16 * MIB, size)
            ]
        );
    }

    #[test]
    fn only_the_hull_of_a_leaf_is_read_and_leaves_are_never_shared() {
        let extents = [
            extent(0, MIB / 2, ExtentKind::Hole),
            extent(MIB / 2, MIB + 4096, ExtentKind::Data),
            extent(MIB + 4096, 2 * MIB - 4096, ExtentKind::Zero),
            extent(2 * MIB - 4096, 3 * MIB, ExtentKind::Data),
            extent(3 * MIB, 9 * MIB, ExtentKind::Hole),
            extent(9 * MIB, 9 * MIB + 1, ExtentKind::Data),
        ];
        assert_eq!(
            plan(9 * MIB + 1, RangeSet::new(), &extents),
            [
                data(0, 3 * MIB, MIB / 2, 3 * MIB),
                zeros(3 * MIB, 9 * MIB),
                data(9 * MIB, 9 * MIB + 1, 9 * MIB, 9 * MIB + 1)
            ]
        );
    }

    #[test]
    fn an_empty_volume_of_any_size_is_one_piece() {
        let size = 8 << 40;
        assert_eq!(plan(size, RangeSet::new(), &[extent(0, size, ExtentKind::Hole)]), [zeros(0, size)]);
    }

    #[test]
    fn durable_ranges_are_left_out() {
        let done: RangeSet = [ByteRange::new(MIB, 3 * MIB), ByteRange::new(5 * MIB, 6 * MIB)].into_iter().collect();
        let extents = [extent(0, 4 * MIB, ExtentKind::Data), extent(4 * MIB, 7 * MIB, ExtentKind::Hole)];
        assert_eq!(
            plan(7 * MIB, done, &extents),
            [
                data(0, MIB, 0, MIB),
                data(3 * MIB, 4 * MIB, 3 * MIB, 4 * MIB),
                zeros(4 * MIB, 5 * MIB),
                zeros(6 * MIB, 7 * MIB)
            ]
        );
    }

    #[test]
    fn a_leaf_with_more_extents_than_a_scan_is_read_whole() {
        let mut planner = Planner::new(2 * MIB, LEAF, 2, RangeSet::new());
        planner.add(&[extent(0, 4096, ExtentKind::Data), extent(4096, 8192, ExtentKind::Hole)]);
        assert_eq!(planner.next(), Some(data(0, MIB, 0, MIB)));
        assert_eq!(planner.unscanned(), Some(ByteRange::new(MIB, 2 * MIB)));
    }

    fn unchanged(start: u64, end: u64) -> Piece {
        Piece::Unchanged { range: ByteRange::new(start, end) }
    }

    #[test]
    fn only_leaves_that_are_unchanged_as_a_whole_are_left_alone() {
        use ExtentKind::{Data, Hole, Unchanged};
        let extents = [
            extent(0, 2 * MIB, Unchanged),
            extent(2 * MIB, 2 * MIB + 4096, Data),
            // Margins of leaves, which are not zeros.
            extent(2 * MIB + 4096, 5 * MIB - 4096, Unchanged),
            extent(5 * MIB - 4096, 6 * MIB, Hole),
            extent(6 * MIB, 6 * MIB + 4096, Unchanged),
            extent(6 * MIB + 4096, 8 * MIB, Hole),
            extent(8 * MIB, 8 * MIB + MIB / 2, Unchanged),
            extent(8 * MIB + MIB / 2, 9 * MIB + 1, Unchanged),
        ];
        assert_eq!(
            plan(9 * MIB + 1, RangeSet::new(), &extents),
            [
                unchanged(0, 2 * MIB),
                data(2 * MIB, 3 * MIB, 2 * MIB, 3 * MIB),
                unchanged(3 * MIB, 4 * MIB),
                data(4 * MIB, 5 * MIB, 4 * MIB, 5 * MIB),
                zeros(5 * MIB, 6 * MIB),
                data(6 * MIB, 7 * MIB, 6 * MIB, 7 * MIB),
                zeros(7 * MIB, 8 * MIB),
                unchanged(8 * MIB, 9 * MIB + 1),
            ]
        );
    }

    #[test]
    fn changes_within_one_leaf_are_read_with_all_that_surrounds_them() {
        use ExtentKind::{Data, Unchanged, Zero};
        let extents = [
            extent(0, 4096, Zero),
            extent(4096, 8192, Unchanged),
            extent(8192, 12_288, Data),
            extent(12_288, MIB + 4096, Unchanged),
            extent(MIB + 4096, 2 * MIB, Data),
        ];
        assert_eq!(plan(2 * MIB, RangeSet::new(), &extents), [data(0, 2 * MIB, 0, 2 * MIB)]);
    }

    proptest! {
        /// Whatever the extents and the scan windows: every leaf is planned once, and no data is left unread.
        #[test]
        fn pieces_cover_everything_once(
            lengths in prop::collection::vec((1_u64..200, 0_usize..3), 1..60),
            scan in 1_usize..10,
            durable in prop::collection::vec(0_u64..64, 0..10),
        ) {
            let unit = 64 << 10;
            let mut extents = Vec::new();
            let mut at = 0;
            for (length, kind) in lengths {
                let kind = [ExtentKind::Data, ExtentKind::Hole, ExtentKind::Unchanged][kind];
                extents.push(extent(at, at + length * unit, kind));
                at += length * unit;
            }
            let size = at;
            let leaf = u64::from(LEAF);
            let of_leaf = |index: u64| ByteRange::new(index * leaf, ((index + 1) * leaf).min(size));
            let done: RangeSet = durable.into_iter().filter(|index| index * leaf < size).map(of_leaf).collect();
            let mut planner = Planner::new(size, LEAF, 2, done.clone());
            let mut covered = done.clone();
            let mut read = RangeSet::new();
            let mut left = RangeSet::new();
            loop {
                while let Some(piece) = planner.next() {
                    let range = piece.range();
                    prop_assert!(range.start() % leaf == 0 && (range.end() % leaf == 0 || range.end() == size));
                    prop_assert_eq!(covered.gaps(range).collect::<Vec<_>>(), vec![range]);
                    covered.insert(range);
                    if let Piece::Data { read: hull, .. } = piece {
                        prop_assert!(range.contains(hull) && range.len() <= SEGMENT_BYTES_MAX);
                        read.insert(hull);
                    }
                    if matches!(piece, Piece::Unchanged { .. }) {
                        left.insert(range);
                    }
                }
                let Some(todo) = planner.unscanned() else { break };
                let unseen = |e: &Extent| Some(Extent { range: e.range.intersect(todo)?, kind: e.kind });
                let window: Vec<_> = extents.iter().filter_map(unseen).take(scan).collect();
                planner.add(&window);
            }
            prop_assert!(covered.contains(ByteRange::new(0, size)));
            for extent in &extents {
                for todo in done.gaps(extent.range) {
                    match extent.kind {
                        ExtentKind::Data => prop_assert!(read.contains(todo)),
                        ExtentKind::Unchanged => {
                            prop_assert!(left.gaps(todo).all(|part| read.contains(part)), "neither left nor read");
                        }
                        ExtentKind::Zero | ExtentKind::Hole => {
                            prop_assert_eq!(left.gaps(todo).collect::<Vec<_>>(), vec![todo]);
                        }
                    }
                }
            }
        }
    }
}
