//! Clones ranges by the kernel, on the thread of the job: no worker is needed.

use super::{Refill, SegmentSource, finish_copy};
use crate::error::Result;
use crate::extent::{ByteRange, RangeSet};
use crate::limits::CLONE_BYTES_MAX;
use crate::pass::state::{LeafContent, WrittenRange};
use crate::volume::Volume;
use std::collections::VecDeque;
use std::sync::Arc;

/// Clones ranges in pieces, as a segment source.
#[derive(Debug)]
pub(crate) struct CloneSegments {
    source: Arc<dyn Volume>,
    destination: Arc<dyn Volume>,
    todo: VecDeque<ByteRange>,
}

impl CloneSegments {
    pub(crate) fn new(source: Arc<dyn Volume>, destination: Arc<dyn Volume>, done: &RangeSet) -> Self {
        let todo = done.gaps(ByteRange::new(0, source.size_bytes())).collect();
        Self { source, destination, todo }
    }
}

impl SegmentSource for CloneSegments {
    fn redo(&mut self, ranges: RangeSet) {
        // Clones cannot be lost; if they were, they could be made again.
        self.todo.extend(ranges.iter());
    }

    fn finish(&mut self) -> Result<()> {
        finish_copy(&*self.source, &*self.destination)
    }

    fn refill(&mut self, _room: usize, found: &mut Refill) -> Result<()> {
        let Some(gap) = self.todo.pop_front() else { return Ok(()) };
        let range = gap.split(CLONE_BYTES_MAX).next().expect("gaps are not empty");
        if range.end() < gap.end() {
            self.todo.push_front(ByteRange::new(range.end(), gap.end()));
        }
        self.destination.clone_range(&*self.source, range)?;
        found.cloned.push(WrittenRange { range, content: LeafContent::Undigested, generation: None });
        Ok(())
    }
}
