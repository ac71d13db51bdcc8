//! Keeps a set of byte ranges: which bytes are durable, which are still to do.
//!
//! Ranges in the set never touch or overlap: adjacent ones are merged, so the size of the set is the number of
//! separate runs, not the number of insertions.

use super::ByteRange;
use std::collections::BTreeMap;

/// Disjoint, non-adjacent byte ranges in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start of a run to its end.
    runs: BTreeMap<u64, u64>,
    bytes: u64,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every byte of `range`; bytes already in the set stay in it.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start(), range.end());
        // Every run that touches the new one starts at or before its end; walk them from the right.
        while let Some((&run_start, &run_end)) = self.runs.range(..=end).next_back() {
            if run_end < start {
                break;
            }
            self.runs.remove(&run_start);
            self.bytes -= run_end - run_start;
            (start, end) = (start.min(run_start), end.max(run_end));
        }
        self.runs.insert(start, end);
        self.bytes += end - start;
    }

    /// Removes every byte of `range`.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&run_start, &run_end)) = self.runs.range(..range.end()).next_back() {
            if run_end <= range.start() {
                break;
            }
            self.runs.remove(&run_start);
            self.bytes -= run_end - run_start;
            for (start, end) in [(run_start, range.start()), (range.end(), run_end)] {
                if start < end {
                    self.runs.insert(start, end);
                    self.bytes += end - start;
                }
            }
            if run_start <= range.start() {
                break;
            }
        }
    }

    /// Removes and returns the first run.
    pub fn take_first(&mut self) -> Option<ByteRange> {
        let (start, end) = self.runs.pop_first()?;
        self.bytes -= end - start;
        Some(ByteRange::new(start, end))
    }

    /// Number of bytes in the set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns whether every byte of `range` is in the set.
    #[must_use]
    pub fn contains(&self, range: ByteRange) -> bool {
        range.is_empty() || self.runs.range(..=range.start()).next_back().is_some_and(|(_, &end)| range.end() <= end)
    }

    /// The runs, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> {
        self.runs.iter().map(|(&start, &end)| ByteRange::new(start, end))
    }

    /// Returns the `count` longest runs.
    #[must_use]
    pub fn longest(&self, count: usize) -> Self {
        let mut runs: Vec<ByteRange> = self.iter().collect();
        if runs.len() > count {
            runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.len()));
            runs.truncate(count);
        }
        runs.into_iter().collect()
    }

    /// The parts of `within` that are not in the set, in ascending order.
    pub fn gaps(&self, within: ByteRange) -> impl Iterator<Item = ByteRange> {
        let mut at = within.start();
        std::iter::from_fn(move || {
            // Step over the run that covers `at`, if any, then stop at the next run.
            if let Some((_, &end)) = self.runs.range(..=at).next_back() {
                at = at.max(end);
            }
            if at >= within.end() {
                return None;
            }
            let end = self.runs.range(at..).next().map_or(within.end(), |(&start, _)| start.min(within.end()));
            let gap = ByteRange::new(at, end);
            at = end;
            Some(gap)
        })
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_set_equals_a_set_of_bytes(
            ranges in prop::collection::vec((0_u64..60, 0_u64..20, prop::bool::weighted(0.7)), 0..20),
            from in 0_u64..80,
            len in 0_u64..40,
        ) {
            let mut model = [false; 128];
            let mut set = RangeSet::new();
            for (start, length, insert) in ranges {
                let range = ByteRange::at(start, length);
                if insert { set.insert(range) } else { set.remove(range) }
                model[start as usize..(start + length) as usize].fill(insert);
            }
            let within = ByteRange::at(from, len);
            let missing: Vec<u64> = (within.start()..within.end()).filter(|&byte| !model[byte as usize]).collect();
            let gaps: Vec<u64> = set.gaps(within).flat_map(|gap| gap.start()..gap.end()).collect();
            prop_assert_eq!(&gaps, &missing);
            prop_assert_eq!(set.contains(within), missing.is_empty());
            prop_assert_eq!(set.bytes(), model.iter().filter(|&&byte| byte).count() as u64);
            let runs: Vec<_> = set.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            prop_assert_eq!(set.take_first(), runs.first().copied());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), runs.get(1..).unwrap_or_default());
            prop_assert_eq!(set.bytes(), runs.iter().skip(1).map(|run| run.len()).sum::<u64>());
        }
    }
}
