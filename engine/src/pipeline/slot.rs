//! One block in flight: a state and one pure transition function.
//!
//! ```text
//! copy:   Idle -> Reading(source) -> Looking -> Writing(run 1) -> ... -> Writing(run n) -> Idle, written
//!                                       `-- nothing but zeros ---------------------------> Idle, written
//! zeros:  Idle -> Writing(everything) -> Idle, written
//! check:  Idle -> Reading(reference) -> Looking -> Reading(target) -> Looking -> Idle, compared
//! ```
//! Short transfers stay in their state and ask for the rest; a transfer that makes no progress is a fault, never a
//! success. The worker owns the block beside the slot and carries out the actions.

use super::examine::{DataMap, Span};
use nix::errno::Errno;

/// Tries of one request that the kernel refused with EAGAIN before that counts as an error.
const RETRIES_MAX: u8 = 100;

/// Whose bytes a read fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Of a copy.
    Source,
    /// Of a comparison: what should be there.
    Reference,
    /// Of a comparison: what is there.
    Target,
}

/// One span on its way, however many requests it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transit {
    need: Span,
    /// Bytes of `need` that have arrived.
    done: u32,
    /// Requests start and end at multiples of this.
    align: u32,
    retries: u8,
}

impl Transit {
    fn new(need: Span, align: u32) -> Self {
        Self { need, done: 0, align, retries: 0 }
    }

    /// What to ask for next: the rest, aligned outwards. The block has room for it, as its length is aligned.
    fn request(self) -> Span {
        let start = (self.need.start + self.done) / self.align * self.align;
        Span { start, len: self.need.end().next_multiple_of(self.align) - start }
    }

    /// Counts an answer to [`Transit::request`]: the next request, `None` when all is there.
    fn arrived(&mut self, bytes: u32) -> Result<Option<Span>, Fault> {
        let reached = (self.request().start + bytes).min(self.need.end());
        let done = reached.saturating_sub(self.need.start);
        if done == self.need.len {
            return Ok(None);
        }
        if done <= self.done {
            return Err(Fault::NoProgress);
        }
        self.done = done;
        Ok(Some(self.request()))
    }

    fn answered(&mut self, result: Result<u32, Errno>) -> Result<Option<Span>, Fault> {
        match result {
            Ok(bytes) => self.arrived(bytes),
            Err(Errno::EAGAIN | Errno::EINTR) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                Ok(Some(self.request()))
            }
            Err(errno) => Err(Fault::Os(errno)),
        }
    }
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Free.
    Idle,
    /// A read is in flight.
    Reading { role: Role, transit: Transit },
    /// The block was read and is being looked at.
    Looking { role: Role },
    /// A write of one run of data is in flight.
    Writing { map: DataMap, transit: Transit },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The operation in flight was answered.
    Completed(Result<u32, Errno>),
    /// The look at a source block is over: this is what must be written, in requests of this alignment.
    Mapped { map: DataMap, align: u32 },
    /// The look at a reference block is over: read this of the target.
    Expected { need: Span, align: u32 },
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Queue a read.
    Read(Role, Span),
    /// Queue a write.
    Write(Span),
    /// Look at the block: answer with `Mapped` (source) or `Expected` (reference), or compare it (target).
    Look(Role),
    /// Done: everything of the block that had to be written is.
    Land,
    /// Over: a read for this role failed, or without a role a write.
    Fail(Option<Role>, Fault),
}

/// Why a block failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The kernel said so.
    Os(Errno),
    /// It moved no byte and gave no reason: the end of a volume that was longer before, or a full one.
    NoProgress,
}

impl Slot {
    /// Starts reading `need` for a copy or comparison.
    pub(crate) fn read(role: Role, need: Span, align: u32) -> (Self, Action) {
        let transit = Transit::new(need, align);
        (Self::Reading { role, transit }, Action::Read(role, transit.request()))
    }

    /// Starts writing what is in the block already.
    pub(crate) fn write(map: DataMap, align: u32) -> (Self, Action) {
        Self::write_from(map, 0, align)
    }

    /// The transition function.
    ///
    /// # Panics
    /// On an event that does not fit the state: a defect of the worker, as nobody else sends events.
    #[must_use]
    pub(crate) fn on(self, event: Event) -> (Self, Action) {
        match (self, event) {
            (Self::Reading { role, mut transit }, Event::Completed(result)) => match transit.answered(result) {
                Ok(Some(rest)) => (Self::Reading { role, transit }, Action::Read(role, rest)),
                Ok(None) => (Self::Looking { role }, Action::Look(role)),
                Err(fault) => (Self::Idle, Action::Fail(Some(role), fault)),
            },
            (Self::Looking { role: Role::Source }, Event::Mapped { map, align }) => Self::write(map, align),
            (Self::Looking { role: Role::Reference }, Event::Expected { need, align }) => {
                Self::read(Role::Target, need, align)
            }
            (Self::Writing { map, mut transit }, Event::Completed(result)) => match transit.answered(result) {
                Ok(Some(rest)) => (Self::Writing { map, transit }, Action::Write(rest)),
                Ok(None) => Self::write_from(map, transit.need.end(), transit.align),
                Err(fault) => (Self::Idle, Action::Fail(None, fault)),
            },
            (Self::Idle | Self::Looking { .. } | Self::Reading { .. } | Self::Writing { .. }, event) => {
                panic!("a slot that is {self:?} cannot take {event:?}")
            }
        }
    }

    /// Bytes whose transfer is over when `action` follows on this state: a whole span, once its last answer is there.
    pub(crate) fn ended_by(self, action: Action) -> u32 {
        match (self, action) {
            (Self::Reading { transit, .. }, Action::Look(_)) | (Self::Writing { transit, .. }, Action::Land) => {
                transit.need.len
            }
            (Self::Writing { transit, .. }, Action::Write(next)) if next.start >= transit.need.end() => {
                transit.need.len
            }
            _ => 0,
        }
    }

    fn write_from(map: DataMap, from: u32, align: u32) -> (Self, Action) {
        match map.next_data(from) {
            Some(span) => {
                let transit = Transit::new(span, align);
                (Self::Writing { map, transit }, Action::Write(transit.request()))
            }
            None => (Self::Idle, Action::Land),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u32 = 1 << 20;
    const K: u32 = 1 << 10;

    fn span(start: u32, len: u32) -> Span {
        Span { start, len }
    }

    #[test]
    fn a_whole_block_is_read_looked_at_and_written() {
        let (slot, action) = Slot::read(Role::Source, span(0, BLOCK), 4096);
        assert_eq!(action, Action::Read(Role::Source, span(0, BLOCK)));
        let (slot, action) = slot.on(Event::Completed(Ok(BLOCK)));
        assert_eq!(action, Action::Look(Role::Source));
        let (slot, action) = slot.on(Event::Mapped { map: DataMap::all(BLOCK, BLOCK), align: 4096 });
        assert_eq!(action, Action::Write(span(0, BLOCK)));
        assert_eq!(slot.on(Event::Completed(Ok(BLOCK))), (Slot::Idle, Action::Land));
    }

    #[test]
    fn a_direct_tail_is_asked_for_aligned_and_counts_when_its_bytes_are_there() {
        let (slot, action) = Slot::read(Role::Source, span(0, 5000), 4096);
        assert_eq!(action, Action::Read(Role::Source, span(0, 8192)));
        assert_eq!(slot.on(Event::Completed(Ok(5000))).1, Action::Look(Role::Source));
    }

    #[test]
    fn a_short_direct_read_goes_on_at_the_last_aligned_byte() {
        let (slot, _) = Slot::read(Role::Source, span(0, BLOCK), 4096);
        let (slot, action) = slot.on(Event::Completed(Ok(5000)));
        assert_eq!(action, Action::Read(Role::Source, span(4096, BLOCK - 4096)));
        // The same bytes again and no more: the source ends here now.
        assert_eq!(slot.on(Event::Completed(Ok(904))).1, Action::Fail(Some(Role::Source), Fault::NoProgress));
    }

    #[test]
    fn nothing_read_or_written_is_never_a_success() {
        let (slot, _) = Slot::read(Role::Source, span(0, BLOCK), 1);
        assert_eq!(slot.on(Event::Completed(Ok(0))), (Slot::Idle, Action::Fail(Some(Role::Source), Fault::NoProgress)));
        let (slot, _) = Slot::write(DataMap::all(BLOCK, BLOCK), 1);
        assert_eq!(slot.on(Event::Completed(Ok(0))), (Slot::Idle, Action::Fail(None, Fault::NoProgress)));
    }

    #[test]
    fn every_run_of_data_is_written_and_no_zeros() {
        let mut bytes = vec![0; BLOCK as usize];
        bytes[0] = 1;
        bytes[(512 * K) as usize] = 1;
        let (slot, first) = Slot::write(DataMap::examine(&bytes, BLOCK), 4096);
        assert_eq!(first, Action::Write(span(0, 16 * K)));
        let (slot, second) = slot.on(Event::Completed(Ok(16 * K)));
        assert_eq!(second, Action::Write(span(512 * K, 16 * K)));
        assert_eq!(slot.on(Event::Completed(Ok(16 * K))).1, Action::Land);
    }

    #[test]
    fn a_busy_kernel_is_asked_again_but_not_for_ever() {
        let (mut slot, _) = Slot::write(DataMap::all(4096, BLOCK), 4096);
        for _ in 0..RETRIES_MAX {
            let (next, action) = slot.on(Event::Completed(Err(Errno::EAGAIN)));
            assert_eq!(action, Action::Write(span(0, 4096)));
            slot = next;
        }
        assert_eq!(slot.on(Event::Completed(Err(Errno::EAGAIN))).1, Action::Fail(None, Fault::Os(Errno::EAGAIN)));
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
            let (mut slot, mut action) = Slot::read(Role::Source, need, align);
            let mut cuts = cuts.into_iter();
            loop {
                match action {
                    Action::Read(_, request) => {
                        prop_assert!(request.start % align == 0 && request.len % align == 0);
                        let bytes = cuts.next().map_or(request.len, |cut| cut.index(request.len as usize + 1) as u32);
                        moved[request.start as usize..(request.start + bytes) as usize].fill(true);
                        (slot, action) = slot.on(Event::Completed(Ok(bytes)));
                    }
                    Action::Look(_) => {
                        prop_assert!(moved[need.start as usize..need.end() as usize].iter().all(|&m| m));
                        break;
                    }
                    Action::Fail(_, fault) => {
                        prop_assert_eq!(fault, Fault::NoProgress);
                        break;
                    }
                    other => prop_assert!(false, "unexpected {:?}", other),
                }
            }
        }
    }
}
