//! The index of a journal: which record tells about which bytes.
//!
//! Only spans are kept, never digests: a span is a stretch of bytes that one record covers without a gap, and the file
//! position of the first run in it. Spans never overlap; what is recorded later replaces what was there.
//!
//! Size: 24 bytes per span plus the tree's slack, at most 56 bytes per span. A record of one unbroken stretch is one
//! span however its zeros and data alternate; 8 TiB recorded in stretches of 64 MiB take 131,072 spans, 7 MiB at most.

use crate::extent::ByteRange;
use std::collections::BTreeMap;

/// A stretch of bytes and where its runs lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The bytes that count here.
    pub range: ByteRange,
    /// File position of a run; it and its followers cover `range`. They may start before and end after it.
    pub position: u64,
}

/// Disjoint spans in the order of offsets.
#[derive(Debug, Default)]
pub(crate) struct SpanIndex {
    /// Start to (end, position).
    spans: BTreeMap<u64, (u64, u64)>,
}

impl SpanIndex {
    /// Adds a span, which wins over everything that was there.
    pub(crate) fn overlay(&mut self, span: Span) {
        let (start, end) = (span.range.start(), span.range.end());
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
    }

    /// The spans that share bytes with `within`, cut to it, in order.
    pub(crate) fn within(&self, within: ByteRange) -> impl Iterator<Item = Span> {
        let first = self.spans.range(..=within.start()).next_back().map_or(within.start(), |(&start, _)| start);
        self.spans
            .range(first..within.end().max(first))
            .map(move |(&start, &(end, position))| (ByteRange::new(start, end).intersect(within), position))
            .filter_map(|(range, position)| range.map(|range| Span { range, position }))
    }

    /// Number of spans.
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
        fn the_later_span_wins(spans in prop::collection::vec((0_u64..60, 1_u64..30), 0..24), from in 0_u64..80, len in 0_u64..60) {
            let mut model = [None; 160];
            let mut index = SpanIndex::default();
            for (position, &(start, length)) in spans.iter().enumerate() {
                index.overlay(Span { range: ByteRange::at(start, length), position: position as u64 });
                model[start as usize..(start + length) as usize].fill(Some(position as u64));
            }
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
        }
    }
}
