//! Keeps a few durable leaves of a running job, with what they hold: first, last, newest, and some at random.
//!
//! A run elsewhere that resumes without the job's journal recognises the volumes by these leaves. The sample is bounded
//! whatever the size of the copy. It never holds anything that is not durable: the pass controller adds its staged
//! leaves once they are.

use crate::extent::ByteRange;
use crate::journal::{Content, LeafDigest, Run};
use crate::seeded_numbers::SeededNumbers;
use crate::supervision::DurableLeaf;

/// Number of random leaves, besides the first, the last and the newest.
const RANDOM_MAX: usize = 5;

/// A bounded sample of durable leaves.
#[derive(Debug)]
pub(crate) struct DurableSample {
    first: Option<DurableLeaf>,
    last: Option<DurableLeaf>,
    newest: Option<DurableLeaf>,
    zeros: Option<DurableLeaf>,
    some: Vec<DurableLeaf>,
    seen: u64,
    random: SeededNumbers,
}

impl Default for DurableSample {
    fn default() -> Self {
        let (some, random) = (Vec::new(), SeededNumbers(0));
        Self { first: None, last: None, newest: None, zeros: None, some, seen: 0, random }
    }
}

impl DurableSample {
    /// Adds a recorded run of leaves of `leaf_bytes`.
    pub(crate) fn add_run(&mut self, run: &Run, leaf_bytes: u64) {
        let range = |index: u64| {
            let start = run.range.start() + index * leaf_bytes;
            ByteRange::new(start, (start + leaf_bytes).min(run.range.end()))
        };
        match &run.content {
            Content::Zeros => self.zeros = Some(DurableLeaf { range: range(0), digest: None }),
            Content::Leaves(digests) => {
                let leaf = |index: u64, digest: LeafDigest| DurableLeaf { range: range(index), digest: Some(digest) };
                let count = digests.len() as u64;
                let one = self.random.below(count);
                for index in [0, one, count.saturating_sub(1)] {
                    if let Some(&digest) = digests.get(index as usize) {
                        self.add(leaf(index, digest));
                    }
                }
            }
            Content::Undigested => {}
        }
    }

    fn add(&mut self, leaf: DurableLeaf) {
        if self.first.is_none_or(|first| leaf.range.start() <= first.range.start()) {
            self.first = Some(leaf);
        }
        if self.last.is_none_or(|last| leaf.range.start() >= last.range.start()) {
            self.last = Some(leaf);
        }
        self.newest = Some(leaf);
        self.seen += 1;
        if self.some.len() < RANDOM_MAX {
            self.some.push(leaf);
        } else {
            let at = self.random.below(self.seen) as usize;
            if let Some(place) = self.some.get_mut(at) {
                *place = leaf;
            }
        }
    }

    /// Adds the leaves of `other`, which must be durable as well.
    pub(crate) fn absorb(&mut self, other: &Self) {
        self.zeros = other.zeros.or(self.zeros);
        let placed = [other.first, other.last].into_iter().flatten();
        other.some.iter().copied().chain(placed).chain(other.newest).for_each(|leaf| self.add(leaf));
    }

    /// Returns the leaves without duplicates, the most significant first.
    pub(crate) fn leaves(&self) -> Vec<DurableLeaf> {
        let placed = [self.newest, self.first, self.last].into_iter().flatten();
        let mut leaves: Vec<DurableLeaf> = Vec::new();
        for leaf in placed.chain(self.some.iter().copied()).chain(self.zeros) {
            if leaves.iter().all(|known| known.range.intersect(leaf.range).is_none()) {
                leaves.push(leaf);
            }
        }
        leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_the_newest_and_few_others_are_kept() {
        let mut all = DurableSample::default();
        for start in (0..1000).rev() {
            let mut staged = DurableSample::default();
            let content = Content::Leaves(vec![7, start.into()]);
            staged.add_run(&Run { range: ByteRange::at(start * 20, 20), content }, 10);
            all.absorb(&staged);
        }
        let leaves = all.leaves();
        assert!((3..=3 + RANDOM_MAX).contains(&leaves.len()), "{leaves:?}");
        let has = |start| leaves.iter().any(|leaf| leaf.range == ByteRange::at(start, 10));
        assert!(has(0) && has(19_990) && has(10), "first, last and newest: {leaves:?}");
        all.add_run(&Run { range: ByteRange::new(50_000, 50_025), content: Content::Zeros }, 10);
        let zeros = DurableLeaf { range: ByteRange::new(50_000, 50_010), digest: None };
        assert_eq!(all.leaves().last(), Some(&zeros));
    }
}
