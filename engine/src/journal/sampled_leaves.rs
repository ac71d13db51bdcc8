//! Chooses the leaves of a journal by which its volumes can be recognised: first, last, newest, and some at random.
//!
//! It is fed with every run while the journal is read, as going back for them would mean to read the journal twice.
//! Only offsets are chosen. What counts there is looked up afterwards, since a later record may have replaced it.
//! Leaves that hold data come before zeros, which many volumes have in common.

use crate::extent::ByteRange;
use crate::seeded_numbers::SeededNumbers;

/// Leaves of one kind that are chosen at random.
const RANDOM_MAX: usize = 8;

/// Chosen leaves, by where they start.
#[derive(Debug)]
pub(super) struct SampledLeaves {
    leaf_bytes: u64,
    random: SeededNumbers,
    data: LeavesOfKind,
    zeros: LeavesOfKind,
}

#[derive(Debug, Default)]
struct LeavesOfKind {
    first: Option<u64>,
    last: Option<u64>,
    newest: Option<u64>,
    some: Vec<u64>,
    leaves: u64,
}

impl SampledLeaves {
    /// The same journal gives the same picks.
    pub(super) fn new(leaf_bytes: u64, seed: u64) -> Self {
        Self { leaf_bytes, random: SeededNumbers(seed), data: LeavesOfKind::default(), zeros: LeavesOfKind::default() }
    }

    /// Adds a run that was recorded after all runs added so far.
    pub(super) fn add(&mut self, range: ByteRange, is_zeros: bool) {
        let leaves = range.len().div_ceil(self.leaf_bytes);
        let leaf = |index: u64| range.start() + index * self.leaf_bytes;
        let kind = if is_zeros { &mut self.zeros } else { &mut self.data };
        let last = leaf(leaves - 1);
        kind.first = Some(kind.first.map_or(leaf(0), |first| first.min(leaf(0))));
        kind.last = Some(kind.last.map_or(last, |before| before.max(last)));
        kind.newest = Some(last);
        kind.leaves += leaves;
        let one = leaf(self.random.below(leaves));
        if kind.some.len() < RANDOM_MAX {
            kind.some.push(one);
        } else if self.random.below(kind.leaves) < leaves.saturating_mul(RANDOM_MAX as u64) {
            let at = self.random.below(RANDOM_MAX as u64) as usize;
            kind.some[at] = one;
        }
    }

    /// The offsets, the most telling first.
    pub(super) fn offsets(&self) -> Vec<u64> {
        let ends = |kind: &LeavesOfKind| [kind.newest, kind.first, kind.last].into_iter().flatten().collect::<Vec<_>>();
        let (data, zeros) = (&self.data, &self.zeros);
        let (few, more) = data.some.split_at(data.some.len().min(2));
        let zero_ends = ends(zeros);
        let (newest_zeros, other_zeros) = zero_ends.split_at(zero_ends.len().min(1));
        let parts = [&ends(data)[..], few, newest_zeros, more, other_zeros, &zeros.some];
        let mut offsets: Vec<u64> = Vec::new();
        for &offset in parts.into_iter().flatten() {
            if !offsets.contains(&offset) {
                offsets.push(offset);
            }
        }
        offsets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_the_newest_and_some_others_are_chosen() {
        let mut picks = SampledLeaves::new(10, 1);
        for (start, end) in [(100, 200), (500, 1000), (300, 305)] {
            picks.add(ByteRange::new(start, end), false);
        }
        picks.add(ByteRange::new(0, 100), true);
        let offsets = picks.offsets();
        assert_eq!(offsets[..3], [300, 100, 990], "newest, first, last");
        assert!(offsets.contains(&90) && offsets.contains(&0), "zeros are sampled as well: {offsets:?}");
        assert!(offsets.iter().all(|offset| offset % 10 == 0));
    }

    #[test]
    fn long_runs_are_chosen_from_more_often_and_the_number_is_bounded() {
        let mut picks = SampledLeaves::new(1, 7);
        for index in 0..1000 {
            picks.add(ByteRange::at(index, 1), false);
        }
        picks.add(ByteRange::new(1_000_000, 9_000_000), false);
        let offsets = picks.offsets();
        assert!(offsets.len() <= 3 + RANDOM_MAX, "{offsets:?}");
        assert!(offsets.iter().any(|&offset| (1_000_000..8_999_999).contains(&offset)), "{offsets:?}");
    }
}
