//! Defines byte ranges and what a volume holds in them.
//!
//! An _extent_ is a maximal run of one kind. Sources report them in windows, ahead of the copy, so that no list of all
//! extents is ever held: memory stays the same for a file with two extents and for one with two million.

mod set;

pub use set::RangeSet;

use serde::Serialize;
use std::fmt;

/// Bytes `start..end` of a volume. Never reversed; may be empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `start..end`.
    ///
    /// # Panics
    /// If `end < start`: a defect of the caller.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "a byte range never runs backwards");
        Self { start, end }
    }

    /// `offset..offset + length`.
    ///
    /// # Panics
    /// If the end does not fit 64 bits: offsets from outside are checked where they are decoded.
    #[must_use]
    pub const fn at(offset: u64, length: u64) -> Self {
        Self::new(offset, offset.checked_add(length).expect("ranges are validated where they enter"))
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Returns the offset after the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Returns whether it holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes in both; `None` if there are none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    /// Returns the smallest range that contains both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Returns whether every byte of `other` is in `self`.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Grown at both ends to multiples of `align`, but not past `limit`.
    #[must_use]
    pub fn align_out(self, align: u64, limit: u64) -> Self {
        let end = self.end.div_ceil(align).saturating_mul(align);
        Self::new(self.start / align * align, end.min(limit).max(self.end))
    }

    /// Cut at multiples of `step` (absolute, not from the start of the range).
    pub fn split(self, step: u64) -> impl Iterator<Item = Self> {
        let mut at = self.start;
        std::iter::from_fn(move || {
            (at < self.end).then(|| {
                let end = (at / step + 1).saturating_mul(step).min(self.end);
                let piece = Self::new(at, end);
                at = end;
                piece
            })
        })
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Content of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtentKind {
    /// Bytes that must be read.
    Data,
    /// Allocated, but known to read as zeros.
    Zero,
    /// Not allocated; reads as zeros.
    Hole,
    /// Unchanged since the dirty bitmap of `--changed-since` was begun. Reported only to a copy with that flag.
    Unchanged,
}

/// A run of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub kind: ExtentKind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_covers_the_range_once_at_absolute_multiples() {
        let pieces: Vec<_> = ByteRange::new(3, 21).split(8).collect();
        assert_eq!(pieces, [ByteRange::new(3, 8), ByteRange::new(8, 16), ByteRange::new(16, 21)]);
        assert_eq!(ByteRange::new(5, 5).split(8).count(), 0);
    }

    #[test]
    fn aligning_out_stops_at_the_limit() {
        assert_eq!(ByteRange::new(5, 13).align_out(8, 100), ByteRange::new(0, 16));
        assert_eq!(ByteRange::new(5, 13).align_out(8, 13), ByteRange::new(0, 13));
    }
}
