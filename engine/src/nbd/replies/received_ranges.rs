//! Tracks which bytes of a read have arrived: each of them once, in any order.
//!
//! Sorted, disjoint pieces with gaps between them: `pieces[i].end < pieces[i + 1].start`. Servers that answer in order
//! have one piece at any time; only one that scatters them makes the list grow, and only up to [`PIECES_MAX`].

use super::ProtocolViolation;

/// Pieces with gaps between them in the answer to one read. Every second block of 4 KiB of the longest read (32 MiB)
/// fits; a server that needs more only costs memory.
const PIECES_MAX: usize = 4096;
/// Pieces that there is room for from the start.
const PIECES_USUAL: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReceivedRange {
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub(super) struct ReceivedRanges {
    pieces: Vec<ReceivedRange>,
}

impl ReceivedRanges {
    pub(super) fn new() -> Self {
        Self { pieces: Vec::with_capacity(PIECES_USUAL) }
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }

    /// Returns whether it is every byte from 0 to `len`.
    pub(super) fn is_all(&self, len: u32) -> bool {
        match self.pieces[..] {
            [] => len == 0,
            [piece] => piece == ReceivedRange { start: 0, end: len },
            _ => false,
        }
    }

    /// Adds `start..end`, which is not empty.
    pub(super) fn add(&mut self, start: u32, end: u32) -> Result<(), ProtocolViolation> {
        assert!(start < end, "chunks without bytes are refused before");
        let at = self.pieces.partition_point(|piece| piece.start < start);
        let before = at.checked_sub(1).map(|before| self.pieces[before]);
        let after = self.pieces.get(at).copied();
        if before.is_some_and(|before| before.end > start) || after.is_some_and(|after| after.start < end) {
            return Err(ProtocolViolation("a chunk overlaps with an earlier one"));
        }
        let joins_before = before.is_some_and(|before| before.end == start);
        let joins_after = after.is_some_and(|after| after.start == end);
        match (joins_before, joins_after) {
            (true, true) => self.pieces[at - 1].end = self.pieces.remove(at).end,
            (true, false) => self.pieces[at - 1].end = end,
            (false, true) => self.pieces[at].start = start,
            (false, false) if self.pieces.len() == PIECES_MAX => {
                return Err(ProtocolViolation("a read was answered in too many scattered pieces"));
            }
            (false, false) => self.pieces.insert(at, ReceivedRange { start, end }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a vector of flags: what overlaps is refused and changes nothing, the rest adds up.
        #[test]
        fn pieces_equal_a_model_of_one_flag_per_byte(pieces in proptest::collection::vec((0_u32..40, 1_u32..12), 0..40)) {
            let (mut arrived, mut flags) = (ReceivedRanges::new(), [false; 52]);
            for (start, len) in pieces {
                let range = start as usize..(start + len) as usize;
                let is_new = !flags[range.clone()].contains(&true);
                prop_assert_eq!(arrived.add(start, start + len).is_ok(), is_new);
                if is_new {
                    flags[range].fill(true);
                }
                for len in 0..52_usize {
                    let wanted = flags[..len].iter().all(|&it| it) && !flags[len..].contains(&true);
                    prop_assert_eq!(arrived.is_all(len as u32), wanted);
                }
            }
        }
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut arrived = ReceivedRanges::new();
        let refused = (0..u32::MAX / 2).find(|it| arrived.add(it * 2, it * 2 + 1).is_err());
        assert_eq!(refused, Some(PIECES_MAX as u32));
        assert!(arrived.add(1, 2).is_ok(), "what closes a gap is welcome");
    }
}
