//! Indexes a journal: maps bytes to the records that cover them.
//!
//! Only spans are kept, never digests: a span is a stretch of bytes that one record covers without a gap, and the file
//! position of the first run in it. Spans never overlap; a later record replaces earlier spans.
//!
//! Size: 24 bytes per span plus the tree's slack, at most 56 bytes per span. A record of one unbroken stretch is one
//! span however its zeros and data alternate, but every core adds a span to each record: a copy of 8 TiB on 16 cores
//! has some million spans. So an index holds at most [`SPANS_MAX`], 7 MiB: it drops spans at the highest offsets and
//! says up to which offset it is complete. A reader that reaches that offset reads the records again for the next part.

use crate::error::Result;
use crate::extent::ByteRange;
use std::collections::BTreeMap;

/// Most spans that one index holds. More would cost memory; with fewer, long journals are read from their start more
/// often: once for each part that an index of this size reaches over.
pub(crate) const SPANS_MAX: usize = 128 << 10;

/// A stretch of bytes and where its runs lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunSpan {
    /// The bytes that count here.
    pub range: ByteRange,
    /// File position of a run; it and its followers cover `range`. They may start before and end after it.
    pub position: u64,
}

/// Finds where the runs of a part of the copy lie.
pub(super) trait SpanLookup {
    /// The first span in `within`, cut to it; `None` if nothing is recorded there.
    fn first_span(&self, within: ByteRange) -> Result<Option<RunSpan>>;
}

/// Disjoint spans in the order of offsets: all that there are in a part of the copy.
#[derive(Debug)]
pub(crate) struct SpanIndex {
    /// Start to (end, position).
    spans: BTreeMap<u64, (u64, u64)>,
    /// Range in which the index is complete.
    known: ByteRange,
    spans_max: usize,
}

impl SpanIndex {
    /// An empty one that is to know what lies from `start` on.
    pub(crate) fn starting_at(start: u64, spans_max: usize) -> Self {
        assert!(spans_max > 0, "an index that holds nothing gets nowhere");
        Self { spans: BTreeMap::new(), known: ByteRange::new(start, u64::MAX), spans_max }
    }

    /// Range in which the index is complete. Never empty.
    pub(crate) fn known(&self) -> ByteRange {
        self.known
    }

    /// Adds a span, which wins over everything that was there.
    pub(crate) fn overlay(&mut self, span: RunSpan) {
        let Some(range) = span.range.intersect(self.known) else { return };
        let (start, end) = (range.start(), range.end());
        while let Some((&old_start, &(old_end, position))) = self.spans.range(..end).next_back() {
            if old_end <= start {
                break;
            }
            self.spans.remove(&old_start);
            if end < old_end {
                self.spans.insert(end, (old_end, position));
            }
            if old_start < start {
                self.spans.insert(old_start, (start, position));
                break;
            }
        }
        self.spans.insert(start, (end, span.position));
        while self.spans.len() > self.spans_max
            && let Some((forgotten, _)) = self.spans.pop_last()
        {
            self.known = ByteRange::new(self.known.start(), forgotten);
        }
    }

    /// The spans that share bytes with `within`, cut to it, in order.
    pub(crate) fn within(&self, within: ByteRange) -> impl Iterator<Item = RunSpan> {
        let first = self.spans.range(..=within.start()).next_back().map_or(within.start(), |(&start, _)| start);
        self.spans
            .range(first..within.end().max(first))
            .map(move |(&start, &(end, position))| (ByteRange::new(start, end).intersect(within), position))
            .filter_map(|(range, position)| range.map(|range| RunSpan { range, position }))
    }

    /// The first span in `within`, cut to it.
    pub(crate) fn first_in(&self, within: ByteRange) -> Option<RunSpan> {
        self.within(within).next()
    }

    /// Number of spans.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_later_span_wins(
            spans in prop::collection::vec((0_u64..60, 1_u64..30), 0..24),
            from in 0_u64..80,
            len in 0_u64..60,
            most in 1_usize..6,
        ) {
            let mut model = [None; 160];
            let indexed = |start, most| {
                let mut index = SpanIndex::starting_at(start, most);
                for (position, &(start, length)) in spans.iter().enumerate() {
                    index.overlay(RunSpan { range: ByteRange::at(start, length), position: position as u64 });
                }
                index
            };
            for (position, &(start, length)) in spans.iter().enumerate() {
                model[start as usize..(start + length) as usize].fill(Some(position as u64));
            }
            let index = indexed(0, SPANS_MAX);
            let mut seen = [None; 160];
            let within = ByteRange::at(from, len);
            let mut last = 0;
            for span in index.within(within) {
                prop_assert!(span.range.start() >= last && !span.range.is_empty());
                last = span.range.end();
                seen[span.range.start() as usize..last as usize].fill(Some(span.position));
            }
            for byte in 0..160 {
                let is_within = within.start() <= byte && byte < within.end();
                prop_assert_eq!(seen[byte as usize], model[byte as usize].filter(|_| is_within));
            }
            // Part after part, each no larger than its bound.
            let mut seen = [None; 160];
            let mut at = 0;
            while at < 160 {
                let index = indexed(at, most);
                prop_assert!(index.len() <= most && index.known().start() == at && !index.known().is_empty());
                let part = ByteRange::new(at, index.known().end().min(160));
                for span in index.within(part) {
                    seen[span.range.start() as usize..span.range.end() as usize].fill(Some(span.position));
                }
                at = part.end();
            }
            prop_assert_eq!(seen, model);
        }
    }
}
