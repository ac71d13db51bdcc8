//! The ring of io_uring: the data path.
//!
//! # Who owns what
//! The table of operations in flight owns the block of every operation from `push` until its completion queue entry is
//! read. A ring that is dropped before that leaks those blocks, as closing a ring waits for nothing: the kernel goes on
//! reading and writing them. The ring itself is owned, and used, by the one thread that made it: it is not `Send`, and
//! the kernel refuses everybody else (`EEXIST`).
//!
//! # Why the `unsafe` here is sound
//! * Addresses reach the kernel only in `push`, out of a block's slice (so they lie within it), together with ownership
//!   of the block.
//! * The registered range is used only for blocks of the very arena that was registered, which is compared by identity,
//!   not by address: another arena that is mapped at the same place later is not mistaken for it.
//! * Nothing but the table names operations to the kernel, and an unknown name stops the process.
//!
//! What the kernel says about a submission or a wait is never believed further than the queues show: an interrupted,
//! timed-out or partial call is followed by another look at both queues.

use super::inflight::{InFlight, Owned};
use super::setup::{self, Queues, SetupError};
use super::{Completion, FileId, Instant, Op, Ring, Token, Transfer};
use crate::buffer::Arena;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::libc::iovec;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Kernel threads at most for operations that would block at submission, so that a file system that always does
/// cannot call up a crowd.
const KERNEL_WORKERS_MAX: u32 = 4;
/// Pause when the kernel is out of memory for requests and nothing has completed.
const NAP: Duration = Duration::from_millis(1);
/// Longest wait in one call.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Offsets past this one are -1 to the kernel: the file's own position, which must never be meant. It is as invalid.
const OFFSET_MAX: u64 = u64::MAX - 1;
/// The arena's place in the table of registered buffers.
const ARENA_INDEX: u16 = 0;

/// How a ring is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UringConfig<'a> {
    /// Operations in flight at most, at least 1.
    pub(crate) slots: usize,
    /// The arena that the operations' blocks come from, to be registered with the kernel as far as the limit on locked
    /// memory allows. Blocks of other arenas may be used all the same.
    pub(crate) arena: Option<&'a Arc<Arena>>,
}

/// The part of an arena that the kernel has pinned for this ring.
#[derive(Debug)]
struct Registered {
    /// Says which arena without keeping it.
    arena: Weak<Arena>,
    /// Bytes from its start.
    len: usize,
}

/// A ring of io_uring. See the module's head.
#[derive(Debug)]
pub(crate) struct UringRing {
    ring: Uring,
    in_flight: InFlight,
    /// Pushed, and not yet in the submission queue.
    queued: VecDeque<squeue::Entry>,
    registered: Option<Registered>,
    syscalls: u64,
    /// Not `Send`: the kernel knows the ring's thread.
    of_one_thread: PhantomData<*const ()>,
}

/// The crate's ring, with a name for people.
struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoUring")
    }
}

impl UringRing {
    /// Makes a ring for the calling thread.
    ///
    /// # Errors
    /// [`SetupError`]: denied, too old a kernel, out of resources.
    pub(crate) fn new(config: UringConfig<'_>) -> Result<Self, SetupError> {
        Self::with_queues(config, Queues::for_slots(config.slots))
    }

    /// As [`UringRing::new`], with queues of any length.
    pub(super) fn with_queues(config: UringConfig<'_>, queues: Queues) -> Result<Self, SetupError> {
        let ring = setup::build(queues)?;
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut [KERNEL_WORKERS_MAX, 0]) {
            tracing::debug!(%error, "the kernel's workers are not bounded");
        }
        let registered = config.arena.and_then(|arena| register(&ring, arena));
        Ok(Self {
            ring: Uring(ring),
            in_flight: InFlight::new(config.slots),
            queued: VecDeque::with_capacity(config.slots),
            registered,
            syscalls: 0,
            of_one_thread: PhantomData,
        })
    }

    /// Bytes of the arena that are registered, 0 if none.
    #[cfg(test)]
    pub(crate) fn registered_bytes(&self) -> usize {
        self.registered.as_ref().map_or(0, |registered| registered.len)
    }

    /// Whether the kernel has pinned the memory of a transfer.
    fn is_registered(&self, transfer: &Transfer) -> bool {
        self.registered.as_ref().is_some_and(|registered| {
            transfer.block.belongs_to(&registered.arena)
                && transfer.block.offset_in_arena() + transfer.range().end <= registered.len
        })
    }

    fn read(&self, file: FileId, offset: u64, into: &mut Transfer) -> squeue::Entry {
        let fixed = self.is_registered(into);
        let (range, offset) = (into.range(), offset.min(OFFSET_MAX));
        let (file, start, len) = (Fd(file.0), into.block[range].as_mut_ptr(), into.len);
        match fixed {
            true => opcode::ReadFixed::new(file, start, len, ARENA_INDEX).offset(offset).build(),
            false => opcode::Read::new(file, start, len).offset(offset).build(),
        }
    }

    fn write(&self, file: FileId, offset: u64, from: &Transfer) -> squeue::Entry {
        let offset = offset.min(OFFSET_MAX);
        let (file, start, len) = (Fd(file.0), from.block[from.range()].as_ptr(), from.len);
        match self.is_registered(from) {
            true => opcode::WriteFixed::new(file, start, len, ARENA_INDEX).offset(offset).build(),
            false => opcode::Write::new(file, start, len).offset(offset).build(),
        }
    }

    /// Moves what is queued into the submission queue, as far as it goes.
    fn fill(&mut self) {
        let mut submission = self.ring.0.submission();
        while !submission.is_full() {
            let Some(entry) = self.queued.pop_front() else { return };
            // SAFETY: the entry's memory belongs to a block that `in_flight` owns until the entry's completion is
            // read, and that is leaked if the ring goes away before; it would break if `push` let go of the block.
            unsafe { submission.push(&entry) }.expect("the queue is not full");
        }
    }

    /// Operations pushed that the kernel has not taken over.
    fn unsubmitted(&mut self) -> usize {
        self.queued.len() + self.ring.0.submission().len()
    }

    /// Whether only a system call can bring about what is asked for.
    fn must_enter(&mut self, want: usize) -> bool {
        let ready = self.ring.0.completion().len();
        let submission = self.ring.0.submission();
        let hidden = submission.cq_overflow() || submission.taskrun();
        !submission.is_empty() || ready < want || (ready == 0 && hidden)
    }

    /// One system call: submits the submission queue and waits.
    fn enter(&mut self, want: usize, limit: Duration) -> io::Result<()> {
        self.syscalls += 1;
        let limit = Timespec::from(limit.min(WAIT_MAX));
        let result = self.ring.0.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&limit));
        let Err(error) = result else { return Ok(()) };
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EINTR | Errno::ETIME => Ok(()),
            Errno::EAGAIN | Errno::EBUSY => {
                if want > 0 && self.ring.0.completion().is_empty() {
                    std::thread::sleep(NAP);
                }
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl Ring for UringRing {
    fn push(&mut self, token: Token, op: Op) {
        let (entry, block) = match op {
            Op::Read { file, offset, mut into } => (self.read(file, offset, &mut into), Some(into.block)),
            Op::Write { file, offset, from } => (self.write(file, offset, &from), Some(from.block)),
            Op::Zero { file, offset, len, mode } => {
                (opcode::Fallocate::new(Fd(file.0), len).offset(offset).mode(mode.flags().bits()).build(), None)
            }
            Op::Flush { file } => (opcode::Fsync::new(Fd(file.0)).flags(FsyncFlags::DATASYNC).build(), None),
        };
        let name = self.in_flight.insert(Owned { token, block });
        self.queued.push_back(entry.user_data(name));
    }

    fn submit_and_wait(&mut self, want: usize, limit: Duration) -> io::Result<()> {
        let want = want.min(self.in_flight.len()).min(self.ring.0.completion().capacity());
        loop {
            self.fill();
            if !self.must_enter(want) {
                return Ok(());
            }
            let is_last = self.queued.is_empty();
            let before = self.unsubmitted();
            self.enter(if is_last { want } else { 0 }, limit)?;
            if is_last || self.unsubmitted() == before {
                return Ok(());
            }
        }
    }

    fn reap(&mut self) -> Option<Completion> {
        let entry = self.ring.0.completion().next()?;
        let Owned { token, block } = self.in_flight.remove(entry.user_data());
        let result = u32::try_from(entry.result()).map_err(|_| Errno::from_raw(-entry.result()));
        Some(Completion { token, result, block })
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn now(&self) -> Instant {
        super::clock()
    }

    fn syscalls(&self) -> u64 {
        self.syscalls
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        while let Some(never_started) = self.queued.pop_front() {
            drop(self.in_flight.remove(never_started.get_user_data()));
        }
        while self.reap().is_some() {}
        let leaked = self.in_flight.leak();
        if leaked > 0 {
            tracing::warn!(operations = leaked, "a ring ends before its operations: their memory is never used again");
        } else if self.registered.is_some() {
            // Gives the locked memory back at once instead of some time after the close.
            let _ = self.ring.0.submitter().unregister_buffers();
        }
    }
}

/// Has the kernel pin as much of the arena as the limit on locked memory allows. The ring works without.
fn register(ring: &IoUring, arena: &Arc<Arena>) -> Option<Registered> {
    let (start, arena_len) = arena.range();
    let len = setup::registrable_bytes(arena_len);
    if len == 0 {
        tracing::debug!(arena_len, "buffers are not registered: the limit on locked memory (ulimit -l) is too low");
        return None;
    }
    let range = iovec { iov_base: start.cast(), iov_len: len };
    // SAFETY: the range is mapped now, which is all that pinning needs. The pages stay pinned after the arena is gone;
    // they are then never named again, as `is_registered` asks for a block of this very arena.
    match unsafe { ring.submitter().register_buffers(&[range]) } {
        Ok(()) => Some(Registered { arena: Arc::downgrade(arena), len }),
        Err(error) => {
            tracing::debug!(len, %error, "buffers are not registered");
            None
        }
    }
}

impl FileId {
    /// The descriptor, for calls outside of a ring.
    ///
    /// # Errors
    /// `EBADF` if the number cannot be one.
    pub(super) fn descriptor(&self) -> Result<BorrowedFd<'_>, Errno> {
        if self.0 < 0 {
            return Err(Errno::EBADF);
        }
        // SAFETY: whoever pushed the operation keeps the volume open until its completion, and the borrow ends before
        // that; a number that is not open is answered with EBADF by the kernel.
        Ok(unsafe { BorrowedFd::borrow_raw(self.0) })
    }
}

/// Makes io_uring fail with EPERM for the calling thread, as container runtimes do.
#[cfg(test)]
fn deny_io_uring() {
    use nix::libc;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let filter = [
        step((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        step((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, libc::SYS_io_uring_setup as u32, 0, 1),
        step((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        step((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    nix::sys::prctl::set_no_new_privs().unwrap();
    // SAFETY: the kernel copies the program, which outlives the call; it concerns this thread only.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[cfg(test)]
mod hazards;
