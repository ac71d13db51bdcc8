//! Owns the operations that the kernel has not answered yet, and with them their memory.
//!
//! The table is made once with a slot for every operation; nothing is allocated afterwards. An operation is named to
//! the kernel by its index (low half) and the generation of its slot (high half), which changes with every use. An
//! answer that comes twice, or for an operation that is already over, is a defect and stops the process before it hands
//! out a block that somebody else owns.

use super::{Op, Token};
use nix::errno::Errno;

/// Message for one operation too many.
const FULL: &str = "no more operations in flight than the ring has slots";
/// Message for an answer to no operation.
const OVER: &str = "an answer to an operation that is over";

/// An operation until it is answered.
#[derive(Debug)]
pub(super) struct InFlightOperation {
    /// As pushed.
    pub(super) token: Token,
    /// With the memory that the kernel may touch meanwhile.
    pub(super) op: Op,
    /// Result of a send without a copy, until the kernel releases the memory as well.
    pub(super) sent: Option<Result<u32, Errno>>,
    /// A send without a copy was refused, and is made again with one.
    pub(super) copied: bool,
}

impl InFlightOperation {
    pub(super) fn new(token: Token, op: Op) -> Self {
        Self { token, op, sent: None, copied: false }
    }
}

/// One slot of the table.
#[derive(Debug)]
struct InFlightSlot {
    generation: u32,
    owned: Option<InFlightOperation>,
}

/// A table of operations in flight, of fixed size.
#[derive(Debug)]
pub(super) struct InFlight {
    slots: Box<[InFlightSlot]>,
    free: Vec<u32>,
}

impl InFlight {
    /// Room for `slots` operations at a time.
    pub(super) fn new(slots: usize) -> Self {
        let count = u32::try_from(slots).expect("fewer slots than 2^32");
        Self {
            slots: (0..slots).map(|_| InFlightSlot { generation: 0, owned: None }).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// The slot that the next operation takes: less than the slots, and its own until it is given up.
    ///
    /// # Panics
    /// If every slot is taken: the ring's owner counts its slots.
    pub(super) fn next(&self) -> usize {
        *self.free.last().expect(FULL) as usize
    }

    /// Takes an operation in and returns its name.
    ///
    /// # Panics
    /// As [`InFlight::next`].
    pub(super) fn insert(&mut self, owned: InFlightOperation) -> u64 {
        let index = self.free.pop().expect(FULL);
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.owned.is_none(), "a free slot is empty");
        slot.owned = Some(owned);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The operation of that name.
    ///
    /// # Panics
    /// If there is none, as [`InFlight::remove`].
    pub(super) fn get_mut(&mut self, name: u64) -> &mut InFlightOperation {
        let slot = &mut self.slots[name as u32 as usize];
        assert_eq!(slot.generation, (name >> 32) as u32, "{OVER}");
        slot.owned.as_mut().expect("an answer to an operation that is in flight")
    }

    /// Gives up the operation of that name.
    ///
    /// # Panics
    /// If there is none: it was answered twice, or never asked.
    pub(super) fn remove(&mut self, name: u64) -> InFlightOperation {
        let index = name as u32;
        let slot = &mut self.slots[index as usize];
        assert_eq!(slot.generation, (name >> 32) as u32, "{OVER}");
        let owned = slot.owned.take().expect("an answer to an operation that is in flight");
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        owned
    }

    /// Operations in the table.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Gives up all operations without giving back their memory, for ever: the kernel may still touch it. Returns how
    /// many there were.
    pub(super) fn leak(&mut self) -> usize {
        let taken = self.slots.iter_mut().filter_map(|slot| slot.owned.take());
        taken.map(std::mem::forget).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::FileId;

    fn operation(number: u64) -> InFlightOperation {
        InFlightOperation::new(Token(number), Op::Flush { file: FileId(0) })
    }

    #[test]
    fn every_operation_comes_back_under_its_own_name() {
        let mut table = InFlight::new(3);
        let names: Vec<_> = (0..3).map(|number| table.insert(operation(number))).collect();
        assert_eq!(table.len(), 3);
        assert_eq!(table.remove(names[1]).token, Token(1));
        let again = table.insert(operation(7));
        assert_ne!(again, names[1], "a slot that is used again has another name");
        assert_eq!(table.remove(again).token, Token(7));
        assert_eq!(table.len(), 2);
    }

    #[test]
    #[should_panic(expected = "an answer to an operation that is over")]
    fn a_second_answer_is_a_defect() {
        let mut table = InFlight::new(1);
        let name = table.insert(operation(1));
        table.remove(name);
        table.insert(operation(2));
        table.remove(name);
    }

    #[test]
    #[should_panic(expected = "no more operations in flight")]
    fn a_full_table_takes_nothing() {
        let mut table = InFlight::new(1);
        table.insert(operation(1));
        table.insert(operation(2));
    }
}
