//! Holds the state of one block in flight, with one pure transition function.
//!
//! ```text
//! copy:   Idle -> Reading(source) -> Examining -> Writing(run 1) -> ... -> Writing(run n) -> Idle, written
//!                                         `-- nothing but zeros ---------------------------> Idle, written
//! zeros:  Idle -> Writing(everything) -> Idle, written
//! check:  Idle -> Reading(reference) -> Examining -> Reading(target) -> Examining -> Idle, compared
//! ```
//! Short transfers stay in their state and ask for the rest. A transfer that makes no progress is a fault, never a
//! success. The worker owns the block beside the slot and carries out the actions.

use super::examine::{BlockSpan, DataMap};
use crate::channel::TransferFault;
use nix::errno::Errno;

/// Tries of one request that the kernel refused with EAGAIN before that counts as an error.
const RETRIES_MAX: u8 = 100;

/// Whose bytes a read fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadRole {
    /// The source of a copy.
    Source,
    /// The reference of a comparison.
    Reference,
    /// The target of a comparison.
    Target,
}

/// A span being transferred, in one or more requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanTransfer {
    need: BlockSpan,
    /// Bytes of `need` that have arrived.
    done: u32,
    /// Requests start and end at multiples of this.
    align: u32,
    retries: u8,
}

impl SpanTransfer {
    fn new(need: BlockSpan, align: u32) -> Self {
        Self { need, done: 0, align, retries: 0 }
    }

    /// Returns the next request: the rest, aligned outwards. The block has room for it, as its length is aligned.
    fn request(self) -> BlockSpan {
        let start = (self.need.start + self.done) / self.align * self.align;
        BlockSpan { start, len: self.need.end().next_multiple_of(self.align) - start }
    }

    /// Counts an answer to [`SpanTransfer::request`]: the next request, `None` when all is there.
    fn arrived(&mut self, bytes: u32) -> Result<Option<BlockSpan>, TransferFault> {
        let reached = (self.request().start + bytes).min(self.need.end());
        let done = reached.saturating_sub(self.need.start);
        if done == self.need.len {
            return Ok(None);
        }
        if done <= self.done {
            return Err(TransferFault::NoProgress);
        }
        self.done = done;
        Ok(Some(self.request()))
    }

    fn answered(&mut self, result: Result<u32, Errno>) -> Result<Option<BlockSpan>, TransferFault> {
        match result {
            Ok(bytes) => self.arrived(bytes),
            Err(Errno::EAGAIN | Errno::EINTR) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                Ok(Some(self.request()))
            }
            Err(errno) => Err(TransferFault::Os(errno)),
        }
    }
}

/// State of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// Free.
    Idle,
    /// A read is in flight.
    Reading { role: ReadRole, transit: SpanTransfer },
    /// The block was read and is being examined.
    Examining { role: ReadRole },
    /// A write of one run of data is in flight.
    Writing { map: DataMap, transit: SpanTransfer },
}

/// Event for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotEvent {
    /// The operation in flight was answered.
    Completed(Result<u32, Errno>),
    /// A source block was examined: this is what must be written, in requests of this alignment.
    Mapped { map: DataMap, align: u32 },
    /// A reference block was examined: read this of the target.
    Expected { need: BlockSpan, align: u32 },
}

/// Action that follows on an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotAction {
    /// Queue a read.
    Read(ReadRole, BlockSpan),
    /// Queue a write.
    Write(BlockSpan),
    /// Examine the block: answer with `Mapped` (source) or `Expected` (reference), or compare it (target).
    Examine(ReadRole),
    /// Done: everything of the block that had to be written is.
    Finish,
    /// Over: a read for this role failed, or without a role a write.
    Fail(Option<ReadRole>, TransferFault),
}

impl SlotState {
    /// Starts reading `need` for a copy or comparison.
    pub(crate) fn read(role: ReadRole, need: BlockSpan, align: u32) -> (Self, SlotAction) {
        let transit = SpanTransfer::new(need, align);
        (Self::Reading { role, transit }, SlotAction::Read(role, transit.request()))
    }

    /// Starts writing what is in the block already.
    pub(crate) fn write(map: DataMap, align: u32) -> (Self, SlotAction) {
        Self::write_from(map, 0, align)
    }

    /// The transition function.
    ///
    /// # Panics
    /// On an event that does not fit the state: a defect of the worker, which alone sends events.
    #[must_use]
    pub(crate) fn on(self, event: SlotEvent) -> (Self, SlotAction) {
        match (self, event) {
            (Self::Reading { role, mut transit }, SlotEvent::Completed(result)) => match transit.answered(result) {
                Ok(Some(rest)) => (Self::Reading { role, transit }, SlotAction::Read(role, rest)),
                Ok(None) => (Self::Examining { role }, SlotAction::Examine(role)),
                Err(fault) => (Self::Idle, SlotAction::Fail(Some(role), fault)),
            },
            (Self::Examining { role: ReadRole::Source }, SlotEvent::Mapped { map, align }) => Self::write(map, align),
            (Self::Examining { role: ReadRole::Reference }, SlotEvent::Expected { need, align }) => {
                Self::read(ReadRole::Target, need, align)
            }
            (Self::Writing { map, mut transit }, SlotEvent::Completed(result)) => match transit.answered(result) {
                Ok(Some(rest)) => (Self::Writing { map, transit }, SlotAction::Write(rest)),
                Ok(None) => Self::write_from(map, transit.need.end(), transit.align),
                Err(fault) => (Self::Idle, SlotAction::Fail(None, fault)),
            },
            (Self::Idle | Self::Examining { .. } | Self::Reading { .. } | Self::Writing { .. }, event) => {
                panic!("a slot that is {self:?} cannot take {event:?}")
            }
        }
    }

    /// Bytes whose transfer is over when `action` follows on this state: a whole span, once its last answer is there.
    pub(crate) fn ended_by(self, action: SlotAction) -> u32 {
        match (self, action) {
            (Self::Reading { transit, .. }, SlotAction::Examine(_))
            | (Self::Writing { transit, .. }, SlotAction::Finish) => transit.need.len,
            (Self::Writing { transit, .. }, SlotAction::Write(next)) if next.start >= transit.need.end() => {
                transit.need.len
            }
            _ => 0,
        }
    }

    fn write_from(map: DataMap, from: u32, align: u32) -> (Self, SlotAction) {
        match map.next_data(from) {
            Some(span) => {
                let transit = SpanTransfer::new(span, align);
                (Self::Writing { map, transit }, SlotAction::Write(transit.request()))
            }
            None => (Self::Idle, SlotAction::Finish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u32 = 1 << 20;
    const K: u32 = 1 << 10;

    fn span(start: u32, len: u32) -> BlockSpan {
        BlockSpan { start, len }
    }

    #[test]
    fn a_whole_block_is_read_examined_and_written() {
        let (slot, action) = SlotState::read(ReadRole::Source, span(0, BLOCK), 4096);
        assert_eq!(action, SlotAction::Read(ReadRole::Source, span(0, BLOCK)));
        let (slot, action) = slot.on(SlotEvent::Completed(Ok(BLOCK)));
        assert_eq!(action, SlotAction::Examine(ReadRole::Source));
        let (slot, action) = slot.on(SlotEvent::Mapped { map: DataMap::all(BLOCK, BLOCK), align: 4096 });
        assert_eq!(action, SlotAction::Write(span(0, BLOCK)));
        assert_eq!(slot.on(SlotEvent::Completed(Ok(BLOCK))), (SlotState::Idle, SlotAction::Finish));
    }

    #[test]
    fn a_direct_tail_is_read_aligned_and_complete_with_its_bytes() {
        let (slot, action) = SlotState::read(ReadRole::Source, span(0, 5000), 4096);
        assert_eq!(action, SlotAction::Read(ReadRole::Source, span(0, 8192)));
        assert_eq!(slot.on(SlotEvent::Completed(Ok(5000))).1, SlotAction::Examine(ReadRole::Source));
    }

    #[test]
    fn a_short_direct_read_goes_on_at_the_last_aligned_byte() {
        let (slot, _) = SlotState::read(ReadRole::Source, span(0, BLOCK), 4096);
        let (slot, action) = slot.on(SlotEvent::Completed(Ok(5000)));
        assert_eq!(action, SlotAction::Read(ReadRole::Source, span(4096, BLOCK - 4096)));
        // The same bytes again and no more: the source ends here now.
        assert_eq!(
            slot.on(SlotEvent::Completed(Ok(904))).1,
            SlotAction::Fail(Some(ReadRole::Source), TransferFault::NoProgress)
        );
    }

    #[test]
    fn a_transfer_of_0_bytes_is_never_a_success() {
        let (slot, _) = SlotState::read(ReadRole::Source, span(0, BLOCK), 1);
        assert_eq!(
            slot.on(SlotEvent::Completed(Ok(0))),
            (SlotState::Idle, SlotAction::Fail(Some(ReadRole::Source), TransferFault::NoProgress))
        );
        let (slot, _) = SlotState::write(DataMap::all(BLOCK, BLOCK), 1);
        assert_eq!(
            slot.on(SlotEvent::Completed(Ok(0))),
            (SlotState::Idle, SlotAction::Fail(None, TransferFault::NoProgress))
        );
    }

    #[test]
    fn every_run_of_data_is_written_and_no_zeros() {
        let mut bytes = vec![0; BLOCK as usize];
        bytes[0] = 1;
        bytes[(512 * K) as usize] = 1;
        let (slot, first) = SlotState::write(DataMap::examine(&bytes, BLOCK), 4096);
        assert_eq!(first, SlotAction::Write(span(0, 16 * K)));
        let (slot, second) = slot.on(SlotEvent::Completed(Ok(16 * K)));
        assert_eq!(second, SlotAction::Write(span(512 * K, 16 * K)));
        assert_eq!(slot.on(SlotEvent::Completed(Ok(16 * K))).1, SlotAction::Finish);
    }

    #[test]
    fn a_busy_kernel_is_retried_but_not_for_ever() {
        let (mut slot, _) = SlotState::write(DataMap::all(4096, BLOCK), 4096);
        for _ in 0..RETRIES_MAX {
            let (next, action) = slot.on(SlotEvent::Completed(Err(Errno::EAGAIN)));
            assert_eq!(action, SlotAction::Write(span(0, 4096)));
            slot = next;
        }
        assert_eq!(
            slot.on(SlotEvent::Completed(Err(Errno::EAGAIN))).1,
            SlotAction::Fail(None, TransferFault::Os(Errno::EAGAIN))
        );
    }

    proptest! {
        /// However answers are cut, a transfer ends with every byte of its span moved, or with a fault.
        #[test]
        fn short_answers_add_up(
            start in 0_u32..10,
            len in 1_u32..60_000,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..100),
            align in prop::sample::select(vec![1_u32, 512, 4096]),
        ) {
            let need = span(start * 4096, len);
            let mut moved = vec![false; 128 << 10];
            let (mut slot, mut action) = SlotState::read(ReadRole::Source, need, align);
            let mut cuts = cuts.into_iter();
            loop {
                match action {
                    SlotAction::Read(_, request) => {
                        prop_assert!(request.start % align == 0 && request.len % align == 0);
                        let bytes = cuts.next().map_or(request.len, |cut| cut.index(request.len as usize + 1) as u32);
                        moved[request.start as usize..(request.start + bytes) as usize].fill(true);
                        (slot, action) = slot.on(SlotEvent::Completed(Ok(bytes)));
                    }
                    SlotAction::Examine(_) => {
                        prop_assert!(moved[need.start as usize..need.end() as usize].iter().all(|&m| m));
                        break;
                    }
                    SlotAction::Fail(_, fault) => {
                        prop_assert_eq!(fault, TransferFault::NoProgress);
                        break;
                    }
                    other => prop_assert!(false, "unexpected {:?}", other),
                }
            }
        }
    }
}
