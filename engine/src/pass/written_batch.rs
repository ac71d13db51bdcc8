//! Gathers written ranges until they are recorded.

use super::state::{LeafContent, WrittenRange};
use crate::extent::ByteRange;
use crate::journal::{Content, Run};

/// Written ranges that are not recorded yet.
#[derive(Debug, Default)]
pub(crate) struct WrittenBatch {
    /// Ranges written by workers.
    pub moved: Vec<WrittenRange>,
    pub moved_bytes: u64,
    /// Ranges settled without workers.
    pub settled: Vec<WrittenRange>,
    /// Whether the destination is flushed before it is recorded.
    pub flushed: bool,
}

impl WrittenBatch {
    pub(crate) fn len(&self) -> usize {
        self.moved.len() + self.settled.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits off the ranges that were started before this generation.
    pub(crate) fn split_lost(&mut self, generation: Option<u64>) -> Self {
        let is_lost = |written: &mut WrittenRange| written.generation < generation && written.generation.is_some();
        let moved: Vec<_> = self.moved.extract_if(.., is_lost).collect();
        let settled: Vec<_> = self.settled.extract_if(.., is_lost).collect();
        let moved_bytes = bytes_of(&moved);
        self.moved_bytes -= moved_bytes;
        Self { moved, moved_bytes, settled, flushed: false }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.moved_bytes + bytes_of(&self.settled)
    }

    pub(crate) fn leaves(&self) -> impl Iterator<Item = &WrittenRange> {
        self.moved.iter().chain(&self.settled)
    }

    /// As the fewest runs.
    pub(crate) fn runs(&self) -> Vec<Run> {
        runs_of(self.leaves().copied().collect())
    }
}

pub(crate) fn bytes_of(written: &[WrittenRange]) -> u64 {
    written.iter().map(|written| written.range.len()).sum()
}

/// Merges written leaves, in any order, into the fewest runs.
fn runs_of(mut written: Vec<WrittenRange>) -> Vec<Run> {
    written.sort_unstable_by_key(|written| written.range.start());
    let mut runs: Vec<Run> = Vec::new();
    for WrittenRange { range, content, .. } in &written {
        let last = runs.last_mut().filter(|last| last.range.end() == range.start());
        match (last, content) {
            (Some(Run { range: run, content: Content::Zeros }), LeafContent::Zeros)
            | (Some(Run { range: run, content: Content::Undigested }), LeafContent::Undigested) => {
                *run = ByteRange::new(run.start(), range.end());
            }
            (Some(Run { range: run, content: Content::Leaves(leaves) }), LeafContent::Digest(digest)) => {
                *run = ByteRange::new(run.start(), range.end());
                leaves.push(*digest);
            }
            (_, content) => runs.push(Run {
                range: *range,
                content: match content {
                    LeafContent::Zeros => Content::Zeros,
                    LeafContent::Digest(digest) => Content::Leaves(vec![*digest]),
                    LeafContent::Undigested => Content::Undigested,
                },
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(start: u64, end: u64, generation: Option<u64>) -> WrittenRange {
        WrittenRange { range: ByteRange::new(start, end), content: LeafContent::Zeros, generation }
    }

    #[test]
    fn ranges_started_before_a_loss_are_split_off() {
        let mut batch = WrittenBatch {
            moved: vec![written(0, 10, Some(1)), written(10, 20, Some(2)), written(20, 30, None)],
            moved_bytes: 30,
            settled: vec![written(30, 45, Some(0)), written(45, 50, Some(2))],
            flushed: true,
        };
        assert!(batch.split_lost(Some(0)).is_empty() && batch.split_lost(None).is_empty());
        let lost = batch.split_lost(Some(2));
        assert_eq!((lost.moved_bytes, lost.bytes()), (10, 25));
        assert_eq!(lost.leaves().map(|written| written.range.start()).collect::<Vec<_>>(), [0, 30]);
        assert_eq!((batch.moved_bytes, batch.bytes(), batch.flushed), (20, 25, true));
        let runs = batch.runs().into_iter().map(|run| run.range).collect::<Vec<_>>();
        assert_eq!(runs, [ByteRange::new(10, 30), ByteRange::new(45, 50)]);
    }
}
