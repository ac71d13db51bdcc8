//! Implements the ring with io_uring: the data path.
//!
//! # Ownership
//! The table of operations in flight owns the blocks of every operation from `push` until its last completion queue
//! entry is read: a send without a copy has two, the second when the network has released the memory. An operation of
//! two parts is described to the kernel by a message ([`Messages`]), which belongs to the operation as long as its slot
//! in the table does. A ring that is dropped with operations in flight leaks their blocks and all messages, as closing
//! a ring does not wait: the kernel continues to read and write them. Only the thread that made the ring owns and uses
//! it: the ring is not `Send`, and the kernel refuses other threads (`EEXIST`).
//!
//! # Why the `unsafe` here is sound
//! * Addresses reach the kernel only in `push`, out of a block's slice (so they lie within it), together with ownership
//!   of the block; those of messages lie in a table that is freed only with no operation in flight.
//! * The registered range is used only for blocks of the very arena that was registered, which is compared by identity,
//!   not by address: another arena that is mapped at the same place later is not mistaken for it.
//! * Nothing but the table names operations to the kernel, and an unknown name stops the process.
//!
//! The result of a submission or a wait is not relied on: after an interrupted, timed-out or partial call both queues
//! are read again.

use super::inflight::{InFlight, InFlightOperation};
use super::setup::{self, Queues, SetupError};
use super::{Completion, FileId, Instant, Op, Ring, Token, Transfer};
use crate::buffer::Arena;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use messages::Messages;
use nix::errno::Errno;
use nix::libc::{MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, POLLOUT, RWF_DONTCACHE, iovec, msghdr};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Most kernel threads for operations that would block at submission, so that a file system that always blocks does not
/// cause many threads. Threads that wait for a device that does not answer are not counted.
const KERNEL_WORKERS_MAX: u32 = 4;
/// The name of an operation that does nothing, on a thread of the kernel. No slot of the table has it.
const NUDGE: u64 = u64::MAX;
/// Pause when the kernel is out of memory for requests and nothing has completed.
const NAP: Duration = Duration::from_millis(1);
/// Longest wait in one call.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Largest offset passed to the kernel: the next one is -1, the file's own position. Both are invalid for the caller.
const OFFSET_MAX: u64 = u64::MAX - 1;
/// Index of the arena in the table of registered buffers.
const ARENA_INDEX: u16 = 0;

/// A send neither stops at a part of the bytes nor kills the process when the peer is gone.
const SEND_FLAGS: i32 = MSG_NOSIGNAL | MSG_WAITALL;
/// `IORING_SEND_ZC_REPORT_USAGE`: the kernel reports whether it has made a copy.
const REPORT_USAGE: u16 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`: it has made one.
const COPIED: u32 = 1 << 31;

/// Mode of a send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SendMode {
    Whole,
    WithoutCopy,
    /// The kernel neither waits nor tries again.
    AtOnce,
}

/// Settings of a ring.
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
struct RegisteredArena {
    /// Identifies the arena without keeping it alive.
    arena: Weak<Arena>,
    /// Bytes from its start.
    len: usize,
}

/// A ring of io_uring.
#[derive(Debug)]
pub(crate) struct UringRing {
    ring: Uring,
    in_flight: InFlight,
    /// One for each slot of `in_flight`.
    messages: Messages,
    /// Operations pushed and not yet in the submission queue.
    queued: VecDeque<Entry>,
    registered: Option<RegisteredArena>,
    syscalls: u64,
    /// Last argument of [`Ring::tolerate_late`].
    tolerated_late: usize,
    /// Whether a no-op must make the kernel check whether it needs more threads.
    nudges: bool,
    /// Not `Send`: the kernel knows the ring's thread.
    of_one_thread: PhantomData<*const ()>,
}

/// The crate's ring, with a `Debug` implementation.
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
            tracing::debug!(%error, "cannot bound the number of io_uring kernel workers");
        }
        let registered = config.arena.and_then(|arena| register(&ring, arena));
        Ok(Self {
            ring: Uring(ring),
            in_flight: InFlight::new(config.slots),
            messages: Messages::new(config.slots, blank()),
            queued: VecDeque::with_capacity(config.slots),
            registered,
            syscalls: 0,
            tolerated_late: 0,
            nudges: false,
            of_one_thread: PhantomData,
        })
    }

    /// Bytes of the arena that are registered, 0 if none.
    #[cfg(test)]
    pub(crate) fn registered_bytes(&self) -> usize {
        self.registered.as_ref().map_or(0, |registered| registered.len)
    }

    /// Returns whether the kernel has pinned the memory of a transfer.
    fn is_registered(&self, transfer: &Transfer) -> bool {
        self.registered.as_ref().is_some_and(|registered| {
            transfer.block.belongs_to(&registered.arena)
                && transfer.block.offset_in_arena() + transfer.range().end <= registered.len
        })
    }

    fn read(&self, file: FileId, offset: u64, into: &mut Transfer) -> Entry {
        let fixed = self.is_registered(into);
        let (range, offset) = (into.range(), offset.min(OFFSET_MAX));
        let (file, start, len) = (Fd(file.0), into.block[range].as_mut_ptr(), into.len);
        match fixed {
            true => opcode::ReadFixed::new(file, start, len, ARENA_INDEX).offset(offset).build(),
            false => opcode::Read::new(file, start, len).offset(offset).build(),
        }
    }

    fn write(&self, file: FileId, offset: u64, from: &Transfer, dont_cache: bool) -> Entry {
        let (offset, flags) = (offset.min(OFFSET_MAX), if dont_cache { RWF_DONTCACHE } else { 0 });
        let (file, start, len) = (Fd(file.0), from.block[from.range()].as_ptr(), from.len);
        match self.is_registered(from) {
            true => opcode::WriteFixed::new(file, start, len, ARENA_INDEX).offset(offset).rw_flags(flags).build(),
            false => opcode::Write::new(file, start, len).offset(offset).rw_flags(flags).build(),
        }
    }

    fn send(&self, index: usize, file: FileId, parts: (&mut Transfer, Option<&mut Transfer>), how: SendMode) -> Entry {
        let ((head, body), free) = (parts, how == SendMode::WithoutCopy);
        let flags = if how == SendMode::AtOnce { MSG_NOSIGNAL | MSG_DONTWAIT } else { SEND_FLAGS };
        let (file, len, head) = (Fd(file.0), head.len, part(head));
        let Some(body) = body else {
            let start = head.iov_base.cast_const().cast();
            return match free {
                true => opcode::SendZc::new(file, start, len).flags(flags).zc_flags(REPORT_USAGE).build(),
                false => opcode::Send::new(file, start, len).flags(flags).build(),
            };
        };
        let message = self.messages.write(index, [head, part(body)]);
        match free {
            true => opcode::SendMsgZc::new(file, message).flags(flags as u32).ioprio(REPORT_USAGE).build(),
            false => opcode::SendMsg::new(file, message).flags(flags as u32).build(),
        }
    }

    fn receive(&self, index: usize, file: FileId, parts: [Option<&mut Transfer>; 2], all: bool) -> Entry {
        let (file, flags) = (Fd(file.0), if all { MSG_WAITALL } else { 0 });
        match parts {
            [Some(head), Some(body)] => {
                let message = self.messages.write(index, [part(head), part(body)]);
                opcode::RecvMsg::new(file, message).flags(flags as u32).build()
            }
            [one, other] => {
                let into = one.or(other).expect("a receive has memory");
                opcode::Recv::new(file, part(into).iov_base.cast(), into.len).flags(flags).build()
            }
        }
    }

    /// Returns the entry of the kernel for an operation in the slot `index`.
    fn entry(&self, index: usize, op: &mut Op) -> Entry {
        match op {
            Op::Read { file, offset, into } => self.read(*file, *offset, into),
            Op::Write { file, offset, from, dont_cache } => self.write(*file, *offset, from, *dont_cache),
            Op::Zero { file, offset, len, mode } => {
                opcode::Fallocate::new(Fd(file.0), *len).offset(*offset).mode(mode.flags().bits()).build()
            }
            Op::Flush { file } => opcode::Fsync::new(Fd(file.0)).flags(FsyncFlags::DATASYNC).build(),
            Op::Send { file, head, body, zero_copy, waits } => {
                let how = match (*zero_copy, *waits) {
                    (true, _) => SendMode::WithoutCopy,
                    (false, true) => SendMode::Whole,
                    (false, false) => SendMode::AtOnce,
                };
                self.send(index, *file, (head, body.as_mut()), how)
            }
            Op::Writable { file } => opcode::PollAdd::new(Fd(file.0), POLLOUT as u32).build(),
            Op::Receive { file, head, body, all } => self.receive(index, *file, [head.as_mut(), body.as_mut()], *all),
        }
    }

    /// Queues an operation.
    fn queue(&mut self, mut owned: InFlightOperation) {
        let entry = self.entry(self.in_flight.next(), &mut owned.op);
        let name = self.in_flight.insert(owned);
        self.queued.push_back(entry.user_data(name));
    }

    /// Returns the completion for a completion queue entry, if it has one.
    fn answer(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let name = entry.user_data();
        if name == NUDGE {
            return None;
        }
        if cqueue::notif(entry.flags()) {
            let sent = self.in_flight.get_mut(name).sent.take().expect("a send is answered before its memory is free");
            return self.finish(name, sent, entry.result() as u32 & COPIED != 0);
        }
        let result = u32::try_from(entry.result()).map_err(|_| Errno::from_raw(-entry.result()));
        if cqueue::more(entry.flags()) {
            let owned = self.in_flight.get_mut(name);
            owned.sent = Some(result);
            let sent = Completion { token: owned.token, result, block: None, head: None, copied: false, more: true };
            return result.is_ok().then_some(sent);
        }
        self.finish(name, result, false)
    }

    /// Completes an operation whose memory the kernel has released.
    fn finish(&mut self, name: u64, result: Result<u32, Errno>, copied: bool) -> Option<Completion> {
        let mut owned = self.in_flight.remove(name);
        if let (Op::Send { zero_copy, .. }, Err(errno)) = (&mut owned.op, result)
            && *zero_copy
            && is_refusal(errno)
        {
            *zero_copy = false;
            owned.copied = true;
            self.queue(owned);
            return None;
        }
        let copied = copied || owned.copied;
        Some(Completion { copied, ..Completion::of(owned.token, owned.op, result) })
    }

    /// Moves queued operations into the submission queue, as many as fit.
    fn fill(&mut self) {
        let mut submission = self.ring.0.submission();
        if self.nudges && !submission.is_full() {
            let nudge = opcode::Nop::new().build().flags(Flags::ASYNC).user_data(NUDGE);
            // SAFETY: it names no memory.
            unsafe { submission.push(&nudge) }.expect("the queue is not full");
            self.nudges = false;
        }
        while !submission.is_full() {
            let Some(entry) = self.queued.pop_front() else { return };
            // SAFETY: the entry's memory belongs to blocks that `in_flight` owns until the entry's completion is read
            // (of a send without a copy: the notification that follows it), and to the message of its slot there,
            // which no other operation gets before that. Both are leaked if the ring goes away before. It would break
            // if `queue` let go of a block, if a message moved, or if a slot was given up at the first of two answers.
            unsafe { submission.push(&entry) }.expect("the queue is not full");
        }
    }

    /// Returns the number of operations that the kernel has not consumed yet.
    fn unsubmitted(&mut self) -> usize {
        self.queued.len() + self.ring.0.submission().len()
    }

    /// Returns whether the request needs a system call.
    fn must_enter(&mut self, want: usize) -> bool {
        let ready = self.ring.0.completion().len();
        let submission = self.ring.0.submission();
        let hidden = submission.cq_overflow() || submission.taskrun();
        !submission.is_empty() || ready < want || (ready == 0 && hidden)
    }

    /// Makes one system call: submits the submission queue and waits.
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
        self.queue(InFlightOperation::new(token, op));
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
        loop {
            let entry = self.ring.0.completion().next()?;
            if let Some(completion) = self.answer(&entry) {
                return Some(completion);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The kernel starts a thread when work arrives and no thread is free, not when the limit is raised: so a raise is
    /// followed by a no-op.
    fn tolerate_late(&mut self, unanswered: usize) {
        if unanswered == self.tolerated_late {
            return;
        }
        self.syscalls += 1;
        let workers = KERNEL_WORKERS_MAX.saturating_add(u32::try_from(unanswered).unwrap_or(u32::MAX));
        if let Err(error) = self.ring.0.submitter().register_iowq_max_workers(&mut [workers, 0]) {
            tracing::debug!(%error, workers, "cannot change the number of io_uring kernel workers");
        }
        self.nudges |= unanswered > self.tolerated_late;
        self.tolerated_late = unanswered;
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
        while self.reap().is_some() {}
        while let Some(never_started) = self.queued.pop_front() {
            drop(self.in_flight.remove(never_started.get_user_data()));
        }
        let leaked = self.in_flight.leak();
        if leaked > 0 {
            self.messages.leak();
            tracing::warn!(operations = leaked, "ring closed with operations in flight: their memory is leaked");
        } else if self.registered.is_some() {
            // Releases the locked memory at once instead of some time after the close.
            let _ = self.ring.0.submitter().unregister_buffers();
        }
    }
}

/// Returns the bytes of a transfer as a part of a message.
fn part(transfer: &mut Transfer) -> iovec {
    let range = transfer.range();
    let bytes = &mut transfer.block[range];
    iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// A message without name, parts and control data.
fn blank() -> msghdr {
    // SAFETY: it is made of integers and pointers, for which zeros are valid: no bytes, nowhere.
    unsafe { std::mem::zeroed() }
}

/// Returns whether a zero-copy send was refused and may succeed with a copy: the socket or the kernel does not support
/// zero copy, or may not lock enough memory. No byte was sent.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOMEM | Errno::ENOBUFS)
}

/// Registers as much of the arena as the limit on locked memory allows. The ring works without.
fn register(ring: &IoUring, arena: &Arc<Arena>) -> Option<RegisteredArena> {
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
        Ok(()) => Some(RegisteredArena { arena: Arc::downgrade(arena), len }),
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
        // SAFETY: the code that pushed the operation keeps the volume open until its completion, and the borrow ends
        // before that; a number that is not open is answered with EBADF by the kernel.
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
mod hazard_tests;
mod messages;
