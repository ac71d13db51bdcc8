//! Serves the sockets of a ring of threads: one thread carries out all sends and receives.
//!
//! A peer may take any time, so a thread of the pool must not wait for one. The poller waits for all sockets in one
//! `poll(2)`, together with an event by which the owner signals new operations or the end. None of its other calls
//! blocks. The poller owns the pending operations: a ring that ends wakes the poller and waits for its end, after which
//! no thread touches their memory.
//!
//! Nothing is allocated per operation: every list has room for all slots from the start.

use super::super::blocking::{bytes, uninterrupted};
use super::{STACK_BYTES, SharedQueues};
use crate::ring::{Completion, Op, Token, Transfer};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recvmsg, sendmsg};
use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Pause before another poll when the kernel has no memory for it.
const NAP: Duration = Duration::from_millis(1);

/// Operations that the owner has submitted.
#[derive(Debug)]
struct PollerQueue {
    arrivals: Mutex<NewOperations>,
    /// Event that signals a change.
    event: EventFd,
}

#[derive(Debug)]
struct NewOperations {
    operations: Vec<(Token, Op)>,
    closed: bool,
}

impl PollerQueue {
    fn lock(&self) -> MutexGuard<'_, NewOperations> {
        // Consistent between any two statements under the lock.
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Fails only if the counter is full: then the event is signalled already.
        let _ = uninterrupted(|| self.event.write(1));
    }
}

/// Handle of the poller's thread.
#[derive(Debug)]
pub(super) struct Poller {
    inbox: Arc<PollerQueue>,
    thread: JoinHandle<usize>,
}

impl Poller {
    /// Starts the thread, for at most `slots` operations at a time. Completions go to `shared`.
    ///
    /// # Errors
    /// The system has no more threads or descriptors.
    pub(super) fn start(slots: usize, shared: &Arc<SharedQueues>) -> io::Result<Self> {
        let arrivals = NewOperations { operations: Vec::with_capacity(slots), closed: false };
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let inbox = Arc::new(PollerQueue { arrivals: Mutex::new(arrivals), event });
        let (of_thread, shared) = (Arc::clone(&inbox), Arc::clone(shared));
        let thread = std::thread::Builder::new().name("blockhaul-net".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || serve(&of_thread, &shared, slots))?;
        Ok(Self { inbox, thread })
    }

    /// Submits operations.
    pub(super) fn give(&self, operations: &mut Vec<(Token, Op)>) {
        self.inbox.lock().operations.append(operations);
        self.inbox.ring();
    }

    /// Ends the thread without waiting for peers. Returns how many operations end without a completion; their memory is
    /// free, as they are not carried out any more.
    pub(super) fn end(self) -> usize {
        self.inbox.lock().closed = true;
        self.inbox.ring();
        // A thread that panicked has reported it on stderr and has dropped its operations.
        self.thread.join().unwrap_or(0)
    }
}

/// Runs the thread. Returns how many operations have not completed.
fn serve(inbox: &PollerQueue, shared: &SharedQueues, slots: usize) -> usize {
    let mut arrived = Vec::with_capacity(slots);
    let mut pending: Vec<PendingOperation> = Vec::with_capacity(slots);
    let mut memory = Vec::with_capacity(slots + 1);
    loop {
        let mut arrivals = inbox.lock();
        if arrivals.closed {
            return pending.len() + arrivals.operations.len();
        }
        std::mem::swap(&mut arrivals.operations, &mut arrived);
        drop(arrivals);
        pending.extend(arrived.drain(..).map(|(token, op)| PendingOperation {
            token,
            op,
            moved: 0,
            ready: Cell::new(true),
        }));
        advance(&mut pending, shared);
        memory = wait(inbox, &pending, memory, shared);
    }
}

/// Moves bytes that can be moved without waiting, and completes operations that are done.
fn advance(pending: &mut Vec<PendingOperation>, shared: &SharedQueues) {
    let mut index = 0;
    while let Some(operation) = pending.get_mut(index) {
        let result = if operation.ready.get() { operation.advance(shared) } else { None };
        let Some(result) = result else {
            index += 1;
            continue;
        };
        let PendingOperation { token, op, .. } = pending.swap_remove(index);
        let copied = matches!(op, Op::Send { zero_copy: true, .. });
        drop(shared.complete(Completion { copied, ..Completion::of(token, op, result) }));
    }
}

/// Waits until a socket is ready or the owner signals. `memory` is reused for the list of descriptors and returned.
fn wait<'m>(
    inbox: &PollerQueue,
    pending: &[PendingOperation],
    memory: Vec<PollFd<'_>>,
    shared: &SharedQueues,
) -> Vec<PollFd<'m>> {
    let mut sockets = emptied(memory);
    sockets.push(PollFd::new(inbox.event.as_fd(), PollFlags::POLLIN));
    sockets.extend(pending.iter().map(PendingOperation::socket));
    shared.syscalls.fetch_add(1, Ordering::Relaxed);
    let waited = poll(&mut sockets, PollTimeout::NONE);
    for (operation, socket) in pending.iter().zip(&sockets[1..]) {
        operation.ready.set(waited.is_err() || socket.any() != Some(false));
    }
    match waited {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(_) => std::thread::sleep(NAP),
    }
    // Empty if the owner has not signalled.
    let _ = inbox.event.read();
    emptied(sockets)
}

/// Reuses the memory of a list for descriptors with another lifetime: the standard library collects in place.
fn emptied<'to>(mut list: Vec<PollFd<'_>>) -> Vec<PollFd<'to>> {
    list.clear();
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

/// An operation that has not completed.
#[derive(Debug)]
struct PendingOperation {
    token: Token,
    op: Op,
    /// Bytes moved so far.
    moved: usize,
    /// Whether another attempt may move bytes.
    ready: Cell<bool>,
}

impl PendingOperation {
    /// Returns the events to wait for.
    fn socket(&self) -> PollFd<'_> {
        let (file, events) = match &self.op {
            Op::Send { file, .. } | Op::Writable { file } => (file, PollFlags::POLLOUT),
            Op::Receive { file, .. } => (file, PollFlags::POLLIN),
            Op::Read { .. } | Op::Write { .. } | Op::Zero { .. } | Op::Flush { .. } => unreachable!("{ONLY_SOCKETS}"),
        };
        let file = file.descriptor().expect("an operation that waits has been attempted on a descriptor");
        PollFd::new(file, events)
    }

    /// Continues the operation until it completes, with its result, or would have to wait. If bytes were moved before
    /// an error, they are the result; the error repeats later.
    fn advance(&mut self, shared: &SharedQueues) -> Option<Result<u32, Errno>> {
        loop {
            shared.syscalls.fetch_add(1, Ordering::Relaxed);
            match uninterrupted(|| self.attempt()) {
                Err(Errno::EAGAIN) if !self.waits() && self.moved == 0 => return Some(Err(Errno::EAGAIN)),
                Err(Errno::EAGAIN) if !self.waits() => return Some(Ok(bytes(self.moved))),
                Err(Errno::EAGAIN) => return None,
                Err(errno) if self.moved == 0 => return Some(Err(errno)),
                Err(_) | Ok(0) => return Some(Ok(bytes(self.moved))),
                Ok(moved) => self.moved += moved,
            }
            if self.moved >= self.wanted() {
                return Some(Ok(bytes(self.moved)));
            }
        }
    }

    /// Returns whether the operation waits for its socket.
    fn waits(&self) -> bool {
        !matches!(self.op, Op::Send { waits: false, .. })
    }

    /// Makes one call that does not wait.
    fn attempt(&mut self) -> Result<usize, Errno> {
        match &mut self.op {
            Op::Send { file, head, body, .. } => {
                let mut parts = [Some(head), body.as_mut()].map(|part| IoSlice::new(slice(part)));
                let mut parts = &mut parts[..];
                IoSlice::advance_slices(&mut parts, self.moved);
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                sendmsg::<()>(file.descriptor()?.as_raw_fd(), parts, &[], flags, None)
            }
            Op::Writable { file } => {
                let mut socket = [PollFd::new(file.descriptor()?, PollFlags::POLLOUT)];
                if poll(&mut socket, PollTimeout::ZERO)? == 0 { Err(Errno::EAGAIN) } else { Ok(0) }
            }
            Op::Receive { file, head, body, .. } => {
                let mut parts = [head.as_mut(), body.as_mut()].map(|part| IoSliceMut::new(slice(part)));
                let mut parts = &mut parts[..];
                IoSliceMut::advance_slices(&mut parts, self.moved);
                let message = recvmsg::<()>(file.descriptor()?.as_raw_fd(), parts, None, MsgFlags::MSG_DONTWAIT);
                message.map(|message| message.bytes)
            }
            Op::Read { .. } | Op::Write { .. } | Op::Zero { .. } | Op::Flush { .. } => unreachable!("{ONLY_SOCKETS}"),
        }
    }

    /// Returns the number of bytes at which the operation completes.
    fn wanted(&self) -> usize {
        let len = |part: Option<&Transfer>| part.map_or(0, |part| part.len as usize);
        match &self.op {
            Op::Send { head, body, .. } => len(Some(head)) + len(body.as_ref()),
            Op::Receive { head, body, all: true, .. } => len(head.as_ref()) + len(body.as_ref()),
            Op::Receive { all: false, .. } | Op::Writable { .. } => 1,
            Op::Read { .. } | Op::Write { .. } | Op::Zero { .. } | Op::Flush { .. } => unreachable!("{ONLY_SOCKETS}"),
        }
    }
}

/// Returns the bytes of a part; empty without one.
fn slice(part: Option<&mut Transfer>) -> &mut [u8] {
    part.map_or(&mut [], |part| {
        let range = part.range();
        &mut part.block[range]
    })
}

/// Panic message for a file operation.
const ONLY_SOCKETS: &str = "the ring gives files to its pool";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_descriptors_keeps_its_memory() {
        let list: Vec<PollFd<'_>> = Vec::with_capacity(100);
        let place = list.as_ptr() as usize;
        let list = emptied(list);
        assert_eq!((list.as_ptr() as usize, list.capacity()), (place, 100));
    }
}
