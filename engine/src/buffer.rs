//! Owns the memory that I/O goes through: one arena per core, cut into blocks.
//!
//! An [`Arena`] is one anonymous mapping: of huge pages for blocks that data goes through, of small ones for headers
//! and other buffers that would each take a huge page. [`Arena::split`] cuts it into [`Block`]s, once. A block is the
//! only way to its bytes: it is moved into an operation and comes back with the completion, so the borrow checker
//! ensures that no code touches memory the kernel may still write. The mapping goes away with the last block; a block
//! that is never returned (a device that never answers) keeps it alive for ever, as it must.
//!
//! # Why the `unsafe` here is sound
//! * The mapping is private, anonymous, readable and writable, and is unmapped only by `Arena::drop`, which runs when
//!   no block is left, as each holds an `Arc` of it.
//! * Blocks of one arena never overlap (`split` consumes the arena's only handle), so `&mut` to two blocks never alias.
//! * The kernel is given addresses only through rings, which own the block meanwhile.

use crate::error::{Code, Error, Operation, Result, Side};
use crate::limits::{HUGE_PAGE_BYTES, SMALL_PAGE_BYTES};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// One mapping, not yet cut.
#[derive(Debug)]
pub(crate) struct Arena {
    start: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: an arena is an address range that nothing else refers to; it has no thread affinity.
unsafe impl Send for Arena {}
// SAFETY: a shared arena gives no access to its bytes; only the disjoint blocks do, each to its one owner.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `len` bytes (at least 1, rounded up to 2 MiB), aligned to huge pages, not yet backed by memory.
    ///
    /// # Errors
    /// `EOverloaded` if the address space or memory limit is used up.
    pub(crate) fn new(len: usize) -> Result<Self> {
        Self::map(len, HUGE_PAGE_BYTES, MmapAdvise::MADV_HUGEPAGE)
    }

    /// The same on small pages (rounded up to 4 KiB), of which only those take memory that are touched.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub(crate) fn of_small_pages(len: usize) -> Result<Self> {
        Self::map(len, SMALL_PAGE_BYTES, MmapAdvise::MADV_NOHUGEPAGE)
    }

    fn map(len: usize, page: usize, pages: MmapAdvise) -> Result<Self> {
        let no_memory = |errno| {
            Error::os(Side::Engine, Operation::Start, errno, format!("map {len} bytes of buffers"))
                .with_code(Code::Overloaded)
                .advise("lower --memory, --depth or --block-size")
        };
        let len = len.max(1).checked_next_multiple_of(page).ok_or_else(|| no_memory(nix::errno::Errno::ENOMEM))?;
        let len = NonZeroUsize::new(len).expect("at least one page");
        let slack = NonZeroUsize::new(len.get() + page).expect("larger than len");
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory in use.
        let raw = unsafe {
            mmap_anonymous(
                None,
                slack,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }
        .map_err(no_memory)?
        .cast::<u8>();
        let head = raw.as_ptr().align_offset(page);
        let tail = page - head;
        // SAFETY: `head` is less than the page of slack, so the aligned start lies within the mapping.
        let start = unsafe { raw.add(head) };
        // SAFETY: both ends lie in the mapping made above, outside of `start..start + len`, and nothing points there.
        // Failing would only waste address space.
        unsafe {
            if head > 0 {
                let _ = munmap(raw.cast(), head);
            }
            if tail > 0 {
                let _ = munmap(start.add(len.get()).cast(), tail);
            }
        }
        let arena = Self { start, len };
        for advice in [pages, MmapAdvise::MADV_DONTFORK] {
            // SAFETY: the range is exactly the mapping; both advices keep its content. Kernels without them say so,
            // and the copy is then merely slower.
            let _ = unsafe { madvise(arena.start.cast(), arena.len.get(), advice) };
        }
        Ok(arena)
    }

    /// The whole range, for registering it with a ring.
    pub(crate) fn range(&self) -> (*mut u8, usize) {
        (self.start.as_ptr(), self.len.get())
    }

    /// Cuts the arena into as many blocks of `block_bytes` as fit, at most `count`.
    ///
    /// # Panics
    /// If `block_bytes` is 0.
    pub(crate) fn split(self: Arc<Self>, block_bytes: usize, count: usize) -> Vec<Block> {
        assert!(block_bytes > 0, "a block holds bytes");
        assert_eq!(Arc::strong_count(&self), 1, "an arena is cut once, by its only owner");
        (0..count.min(self.len.get() / block_bytes))
            .map(|index| Block {
                // SAFETY: `index * block_bytes + block_bytes <= len`, so the start lies in the mapping.
                start: unsafe { self.start.add(index * block_bytes) },
                len: block_bytes,
                arena: Arc::clone(&self),
            })
            .collect()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the last block is gone, and with it the last pointer into the mapping; no operation can be in flight
        // on it, as an operation owns a block. Failing would leak, which is safe.
        let _ = unsafe { munmap(self.start.cast(), self.len.get()) };
    }
}

/// The one owner of a part of an arena. Reads and writes like a slice.
pub(crate) struct Block {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the mapping alive.
    arena: Arc<Arena>,
}

// SAFETY: a block is the only access to its bytes, so moving it moves that right whole.
unsafe impl Send for Block {}

impl Block {
    /// A block of its own on small pages, outside of any core's arena: for tests and one-off reads.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub(crate) fn alone(len: usize) -> Result<Self> {
        Ok(Arc::new(Arena::of_small_pages(len)?).split(len, 1).pop().expect("the arena holds at least one block"))
    }

    /// Gives the block's memory back to the system until it is used again; then it reads as zeros, or as it was where
    /// the system would not have it.
    pub(crate) fn give_back(&mut self) {
        // SAFETY: the range is this block's own part of a mapping of anonymous memory, and `&mut self` says that no
        // code reads it meanwhile. The kernel replaces dropped pages by zeros.
        let _ = unsafe { madvise(self.start.cast(), self.len, MmapAdvise::MADV_DONTNEED) };
    }

    /// Offset of the block in its arena, in bytes.
    pub(crate) fn offset_in_arena(&self) -> usize {
        self.start.as_ptr() as usize - self.arena.start.as_ptr() as usize
    }

    /// Returns whether the block was cut from that very arena, not from another one at the same address.
    pub(crate) fn belongs_to(&self, arena: &Weak<Arena>) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.arena), arena.as_ptr())
    }

    /// Returns how many blocks of its arena exist, this one included.
    #[cfg(test)]
    pub(crate) fn arena_users(&self) -> usize {
        Arc::strong_count(&self.arena)
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped while `arena` lives, initialised (anonymous memory reads as zeros), and only
        // this block refers to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` is the exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_disjoint_and_outlive_the_arena_handle() {
        let mut blocks = Arc::new(Arena::new(5 << 20).unwrap()).split(1 << 20, 5);
        assert_eq!(blocks.len(), 5);
        for (index, block) in blocks.iter_mut().enumerate() {
            assert_eq!(block.as_ptr() as usize % (1 << 20), 0);
            assert_eq!(block.offset_in_arena(), index << 20);
            block.fill(index as u8 + 1);
        }
        let last = blocks.pop().unwrap();
        drop(blocks);
        assert!(last.iter().all(|&byte| byte == 5));
    }

    #[test]
    fn an_arena_starts_as_zeros_on_a_huge_page() {
        let block = Arc::new(Arena::new(4096).unwrap()).split(4096, 1).pop().unwrap();
        assert_eq!(block.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        assert!(block.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_small_block_is_a_page_long_and_as_aligned() {
        let mut block = Block::alone(100).unwrap();
        assert_eq!((block.len(), block.arena.len.get()), (100, SMALL_PAGE_BYTES));
        assert_eq!(block.as_ptr() as usize % SMALL_PAGE_BYTES, 0);
        block.fill(1);
    }

    #[test]
    fn memory_that_was_released_reads_as_zeros() {
        let mut blocks = Arc::new(Arena::of_small_pages(2 * SMALL_PAGE_BYTES).unwrap()).split(SMALL_PAGE_BYTES, 2);
        blocks.iter_mut().for_each(|block| block.fill(1));
        blocks[0].give_back();
        assert!(blocks[0].iter().all(|&byte| byte == 0) && blocks[1].iter().all(|&byte| byte == 1));
    }
}
