//! Finds out where an export that is the destination reads as zeros already, so that zeros of the source need no
//! request there. The server reports that as block status.
//!
//! The server is asked for its extents from the first zeros of the source on, and again where its answer ends. So one
//! request tells of many short runs. Between an answer and its use the copy writes other leaves only: those that hold
//! data in the source. A restart of the server may undo zeros that it has reported. So an answer belongs to the
//! generation of connections in which it was first requested, and is dropped when the generation has grown.

use crate::error::Result;
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::limits::EXTENTS_PER_SCAN;
use crate::pass::state::{LeafContent, WrittenRange};
use crate::plan::{Piece, Planner};
use crate::spec::Sparse;
use crate::volume::Volume;

/// Content of the destination at the next zeros of the source.
#[derive(Debug)]
pub(crate) enum ZeroStatus {
    /// The destination holds the zeros.
    Present(WrittenRange),
    /// The zeros must be requested.
    Missing(ByteRange),
    /// The block status is requested and not known yet.
    Pending,
    /// There are no more zeros in this range.
    End,
}

/// Block status of a destination at the zeros of the source.
#[derive(Debug)]
pub(crate) struct DestinationZeros {
    leaf: u32,
    size: u64,
    /// Whether zeros that are not allocated will do.
    sparse: Sparse,
    /// The current range of zeros.
    range: Option<Planner>,
    /// Generation in which the pending request was first sent.
    asked: Option<u64>,
    /// The last answer, and the generation that it is of.
    known: Vec<Extent>,
    generation: u64,
}

impl DestinationZeros {
    /// Creates the state for a copy of `size` bytes in leaves of `leaf` bytes.
    pub(crate) fn new(leaf: u32, size: u64, sparse: Sparse) -> Self {
        Self { leaf, size, sparse, range: None, asked: None, known: Vec::new(), generation: 0 }
    }

    /// Starts with these zeros of the source, which are on the leaf grid, and drops the earlier ones.
    pub(crate) fn start(&mut self, range: ByteRange) {
        self.range = Some(Planner::over(range, self.leaf));
    }

    /// Returns what is known of the next ones, in order.
    pub(crate) fn next(&mut self, destination: &dyn Volume) -> Result<ZeroStatus> {
        let Some(planner) = &mut self.range else { return Ok(ZeroStatus::End) };
        loop {
            match planner.next() {
                Some(Piece::Zeros { range }) => {
                    let generation = Some(self.generation);
                    return Ok(ZeroStatus::Present(WrittenRange { range, content: LeafContent::Zeros, generation }));
                }
                Some(Piece::Data { range, .. } | Piece::Unchanged { range }) => return Ok(ZeroStatus::Missing(range)),
                None => {}
            }
            let Some(todo) = planner.unscanned() else {
                self.range = None;
                return Ok(ZeroStatus::End);
            };
            let now = destination.generation().unwrap_or(0);
            let mut extents = if self.generation == now { within(&self.known, todo) } else { Vec::new() };
            // Less than a leaf is as good as nothing: the next answer says more.
            if extents.last().is_none_or(|last| last.range.end() < todo.end().min(todo.start() + u64::from(self.leaf)))
            {
                let asked = *self.asked.get_or_insert(now);
                let rest = ByteRange::new(todo.start(), self.size);
                let Some(mut answer) = destination.extents(rest, EXTENTS_PER_SCAN)? else {
                    return Ok(ZeroStatus::Pending);
                };
                if self.sparse == Sparse::Never {
                    let holes = answer.iter_mut().filter(|extent| extent.kind == ExtentKind::Hole);
                    holes.for_each(|extent| extent.kind = ExtentKind::Data);
                }
                (self.known, self.generation, self.asked) = (answer, asked, None);
                extents = within(&self.known, todo);
            }
            planner.add(&extents);
        }
    }
}

/// The parts of extents that lie in a range; nothing if they begin behind its start.
fn within(extents: &[Extent], range: ByteRange) -> Vec<Extent> {
    let first = extents.partition_point(|extent| extent.range.end() <= range.start());
    let parts = extents.get(first..).unwrap_or_default().iter();
    let parts: Vec<_> = parts
        .map_while(|extent| extent.range.intersect(range).map(|part| Extent { range: part, kind: extent.kind }))
        .collect();
    if parts.first().is_some_and(|part| part.range.start() == range.start()) { parts } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::simulated_server::Peer;
    use crate::sync::lock;
    use std::sync::atomic::Ordering::Relaxed;

    const LEAF: u64 = 4096;

    fn leaves(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start * LEAF, end * LEAF)
    }

    fn extent(start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent { range: leaves(start, end), kind }
    }

    fn look(sparse: Sparse) -> DestinationZeros {
        DestinationZeros::new(LEAF as u32, 100 * LEAF, sparse)
    }

    /// Everything that is known of some zeros: what is there, of which generation, and what is missing.
    fn known(look: &mut DestinationZeros, peer: &Peer) -> Vec<(ByteRange, Option<u64>)> {
        let mut all = Vec::new();
        loop {
            match look.next(peer).unwrap() {
                ZeroStatus::Present(WrittenRange { range, generation, .. }) => all.push((range, generation)),
                ZeroStatus::Missing(range) => all.push((range, None)),
                ZeroStatus::Pending | ZeroStatus::End => return all,
            }
        }
    }

    #[test]
    fn one_answer_serves_every_run_that_it_covers() {
        let peer = Peer::default();
        let answer =
            vec![extent(2, 10, ExtentKind::Hole), extent(10, 20, ExtentKind::Data), extent(20, 30, ExtentKind::Zero)];
        *lock(&peer.answers) = [Some(answer), Some(vec![extent(30, 100, ExtentKind::Hole)])].into();
        let mut look = look(Sparse::Auto);
        look.start(leaves(2, 4));
        assert_eq!(known(&mut look, &peer), [(leaves(2, 4), Some(0))]);
        look.start(leaves(6, 12));
        assert_eq!(known(&mut look, &peer), [(leaves(6, 10), Some(0)), (leaves(10, 12), None)]);
        assert_eq!(*lock(&peer.asked), [leaves(2, 100)]);
        look.start(leaves(25, 40));
        assert_eq!(known(&mut look, &peer), [(leaves(25, 30), Some(0)), (leaves(30, 40), Some(0))]);
        assert_eq!(*lock(&peer.asked), [leaves(2, 100), leaves(30, 100)]);
    }

    #[test]
    fn holes_are_not_enough_where_every_byte_must_be_allocated() {
        let peer = Peer::default();
        *lock(&peer.answers) = [Some(vec![extent(0, 5, ExtentKind::Zero), extent(5, 100, ExtentKind::Hole)])].into();
        let mut look = look(Sparse::Never);
        look.start(leaves(0, 10));
        assert_eq!(known(&mut look, &peer), [(leaves(0, 5), Some(0)), (leaves(5, 10), None)]);
    }

    #[test]
    fn a_reply_belongs_to_the_generation_of_its_request_and_is_dropped_with_it() {
        let peer = Peer::default();
        let hole = || Some(vec![extent(0, 100, ExtentKind::Hole)]);
        *lock(&peer.answers) = [None, hole(), hole()].into();
        let mut look = look(Sparse::Auto);
        look.start(leaves(0, 10));
        assert!(known(&mut look, &peer).is_empty(), "asked, and not known yet");
        peer.generation.store(1, Relaxed);
        assert_eq!(known(&mut look, &peer), [(leaves(0, 10), Some(0))]);
        look.start(leaves(0, 10));
        assert_eq!(known(&mut look, &peer), [(leaves(0, 10), Some(1))]);
        assert_eq!(lock(&peer.asked).len(), 3);
    }
}
