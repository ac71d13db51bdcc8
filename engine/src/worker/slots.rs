//! Holds the free slots of a worker, and the spare ones that replace slots whose device does not answer.
//!
//! Slots below the depth are the usual ones. Those from the depth on are spare and take no memory until they are lent.
//! One is lent for each stalled slot, as long as there are any, so that jobs whose devices answer have as many slots as
//! before. While any slot is stalled no job takes more than half of the others: the next job may be on the same device.

use crate::buffer::Block;

/// A free slot: its number and its block.
type FreeSlot = (usize, Block);

/// Slots of a worker.
#[derive(Debug)]
pub(super) struct SlotPool {
    free: Vec<FreeSlot>,
    spare: Vec<FreeSlot>,
    depth: usize,
    spares: usize,
    /// Slots in use whose operation is late.
    stalled: usize,
}

impl SlotPool {
    /// Creates a usual slot for each of `blocks` and a spare one for each of `spare`.
    pub(super) fn new(blocks: Vec<Block>, spare: Vec<Block>) -> Self {
        let (depth, spares) = (blocks.len(), spare.len());
        let most = depth + spares;
        Self { free: numbered(blocks, 0, most), spare: numbered(spare, depth, most), depth, spares, stalled: 0 }
    }

    /// Returns the bytes of a slot.
    pub(super) fn block_bytes(&self) -> usize {
        self.free.first().map_or(0, |(_, block)| block.len())
    }

    /// Returns the number of slots, numbered from 0.
    pub(super) fn count(&self) -> usize {
        self.depth + self.spares
    }

    /// Returns the number of usual slots, which one job alone may use.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free slot.
    ///
    /// # Panics
    /// If there is none: the caller must check.
    pub(super) fn take(&mut self) -> FreeSlot {
        self.free.pop().expect("checked by the caller")
    }

    /// Returns a slot to the pool.
    pub(super) fn put_back(&mut self, index: usize, block: Block) {
        if index >= self.depth && self.lent() > self.stalled {
            return self.retire_spare((index, block));
        }
        self.free.push((index, block));
    }

    /// Sets the number of stalled slots: lends spare ones for them, or withdraws free ones that are not needed any
    /// more.
    pub(super) fn set_stalled(&mut self, stalled: usize) {
        self.stalled = stalled;
        while self.lent() < stalled
            && let Some(slot) = self.spare.pop()
        {
            self.free.push(slot);
        }
        while self.lent() > stalled
            && let Some(at) = self.free.iter().position(|(index, _)| *index >= self.depth)
        {
            let slot = self.free.swap_remove(at);
            self.retire_spare(slot);
        }
    }

    /// Returns the number of slots that one job may use.
    pub(super) fn slots_per_job_max(&self) -> usize {
        match self.stalled {
            0 => self.depth,
            stalled => (self.depth + self.lent()).saturating_sub(stalled).div_ceil(2).clamp(1, self.depth),
        }
    }

    /// Returns the number of spare slots that are lent.
    fn lent(&self) -> usize {
        self.spares - self.spare.len()
    }

    /// Withdraws a spare slot and releases its memory.
    fn retire_spare(&mut self, (index, mut block): FreeSlot) {
        block.give_back();
        self.spare.push((index, block));
    }
}

/// Slots from the number `first` on, the first one last; with room for `most`.
fn numbered(blocks: Vec<Block>, first: usize, most: usize) -> Vec<FreeSlot> {
    let mut slots = Vec::with_capacity(most);
    slots.extend((first..).zip(blocks));
    slots.reverse();
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Arena;
    use std::sync::Arc;

    fn pool(depth: usize, spares: usize) -> SlotPool {
        let blocks = |count: usize| Arc::new(Arena::of_small_pages(4096 * count.max(1)).unwrap()).split(4096, count);
        SlotPool::new(blocks(depth), blocks(spares))
    }

    /// Dead devices take slots one after the other: each takes half of the remaining slots, and there is always one for
    /// the next job.
    #[test]
    fn every_stalled_job_leaves_half() {
        let mut pool = pool(8, 8);
        let (mut stalled, mut taken) = (Vec::new(), Vec::new());
        while pool.free() > 0 {
            let most = pool.slots_per_job_max().min(pool.free());
            taken.push(most);
            (0..most).for_each(|_| stalled.push(pool.take()));
            pool.set_stalled(stalled.len());
        }
        assert_eq!(taken, [8, 4, 2, 1, 1]);
        for (index, block) in stalled {
            pool.put_back(index, block);
        }
        pool.set_stalled(0);
        assert_eq!((pool.free(), pool.lent(), pool.slots_per_job_max()), (8, 0, 8));
        assert!(pool.free.iter().all(|(index, _)| *index < 8), "the usual ones are back");
    }

    #[test]
    fn spare_slots_are_returned_when_the_answers_arrive() {
        let mut pool = pool(4, 4);
        let stalled: Vec<_> = (0..4).map(|_| pool.take()).collect();
        pool.set_stalled(4);
        assert_eq!((pool.free(), pool.slots_per_job_max()), (4, 2));
        let (spare, mut block) = pool.take();
        block.fill(1);
        pool.set_stalled(0);
        assert_eq!((pool.free(), pool.lent()), (0, 1), "one is still in use");
        pool.put_back(spare, block);
        stalled.into_iter().for_each(|(index, block)| pool.put_back(index, block));
        assert_eq!((pool.free(), pool.lent()), (4, 0));
        assert!(pool.spare.iter().all(|(_, block)| block.iter().all(|&byte| byte == 0)), "without their memory");
    }

    #[test]
    fn without_spare_slots_each_job_keeps_one_slot() {
        let mut pool = pool(1, 0);
        let (index, block) = pool.take();
        pool.set_stalled(1);
        assert_eq!((pool.free(), pool.slots_per_job_max()), (0, 1));
        pool.put_back(index, block);
        assert_eq!(pool.free(), 1);
    }
}
