//! Owns the operations that the kernel has not answered yet, and with them their memory.
//!
//! The table is made once with a slot for every operation; nothing is allocated afterwards. An operation is named to
//! the kernel by its index (low half) and the generation of its slot (high half), which changes with every use. A
//! second answer, or an answer to an operation that has completed, is a defect and stops the process before a block
//! gets two owners.

use super::{Op, Token};
use nix::errno::Errno;

/// Panic message for one operation too many.
const FULL: &str = "no more operations in flight than the ring has slots";
/// Panic message for an answer without an operation.
const OVER: &str = "an answer to an operation that is over";

/// An operation that is not answered yet.
#[derive(Debug)]
pub(super) struct InFlightOperation {
    /// As pushed.
    pub(super) token: Token,
    /// The operation, with the memory that the kernel may touch meanwhile.
    pub(super) op: Op,
    /// Result of a send without a copy, until the kernel releases the memory as well.
    pub(super) sent: Option<Result<u32, Errno>>,
    /// Whether a zero-copy send was refused, and is sent again with a copy.
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
    /// Creates a table for `slots` operations.
    pub(super) fn new(slots: usize) -> Self {
        let count = u32::try_from(slots).expect("fewer slots than 2^32");
        Self {
            slots: (0..slots).map(|_| InFlightSlot { generation: 0, owned: None }).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Returns the slot that the next operation takes: an index below the number of slots, its own until it is removed.
    ///
    /// # Panics
    /// If every slot is taken: the ring's owner counts its slots.
    pub(super) fn next(&self) -> usize {
        *self.free.last().expect(FULL) as usize
    }

    /// Inserts an operation and returns its name.
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

    /// Returns the operation of that name.
    ///
    /// # Panics
    /// If there is none, as [`InFlight::remove`].
    pub(super) fn get_mut(&mut self, name: u64) -> &mut InFlightOperation {
        let slot = &mut self.slots[name as u32 as usize];
        assert_eq!(slot.generation, (name >> 32) as u32, "{OVER}");
        slot.owned.as_mut().expect("an answer to an operation that is in flight")
    }

    /// Removes the operation of that name.
    ///
    /// # Panics
    /// If there is none: it was answered twice, or never pushed.
    pub(super) fn remove(&mut self, name: u64) -> InFlightOperation {
        let index = name as u32;
        let slot = &mut self.slots[index as usize];
        assert_eq!(slot.generation, (name >> 32) as u32, "{OVER}");
        let owned = slot.owned.take().expect("an answer to an operation that is in flight");
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        owned
    }

    /// Returns the number of operations in the table.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Leaks all operations and their memory, as the kernel may still touch it. Returns their number.
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
    fn every_operation_is_removed_by_its_own_name() {
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
    fn a_full_table_refuses_an_operation() {
        let mut table = InFlight::new(1);
        table.insert(operation(1));
        table.insert(operation(2));
    }
}
