//! Implements the ring where io_uring is denied: a few threads that carry out one operation at a time, and one more for
//! sockets.
//!
//! Its owner and its threads share one queue of operations and one of completions, both made for every slot at the
//! start, so that nothing is allocated per operation. A thread owns the operation that it carries out, block included.
//! So dropping a ring neither waits nor frees the memory of operations in flight: the thread ends, and returns the
//! block, when its system call returns, if ever.
//!
//! Sends and receives may wait for a peer without a bound, so one separate thread polls all sockets ([`Poller`]). It is
//! started with the first of them.
//!
//! Threads start with the owner's CPU affinity: a core's work stays on its core.

mod poller;

use super::{Completion, Instant, Op, Ring, Token, blocking};
use nix::errno::Errno;
use poller::Poller;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of a pool thread: system calls and little else.
const STACK_BYTES: usize = 128 << 10;
/// Longest wait in one call.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Function that carries out an operation.
type Execute = fn(&mut Op) -> Result<u32, Errno>;

/// State that the owner and the threads share.
#[derive(Debug)]
struct SharedQueues {
    state: Mutex<QueueState>,
    /// Signalled when there is an operation to carry out, or when the ring ends.
    work: Condvar,
    /// Signalled when there are as many completions as the owner waits for.
    done: Condvar,
    syscalls: AtomicU64,
}

#[derive(Debug)]
struct QueueState {
    todo: VecDeque<(Token, Op)>,
    done: VecDeque<Completion>,
    /// Number of completions that the owner waits for.
    wanted: usize,
    /// Number of threads, and the intended number.
    threads: usize,
    threads_wanted: usize,
    closed: bool,
}

impl QueueState {
    /// Returns whether a thread has nothing to do and is to stay.
    fn rests(&self) -> bool {
        self.todo.is_empty() && !self.closed && self.threads <= self.threads_wanted
    }
}

impl SharedQueues {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // The queues are consistent between any two statements under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one thread of the pool.
    fn serve(&self, execute: Execute) {
        let mut state = self.lock();
        loop {
            state = self.work.wait_while(state, |state| state.rests()).unwrap_or_else(PoisonError::into_inner);
            let Some((token, mut op)) = state.todo.pop_front() else {
                state.threads -= 1;
                return;
            };
            drop(state);
            self.syscalls.fetch_add(1, Ordering::Relaxed);
            let result = execute(&mut op);
            state = self.complete(Completion::of(token, op, result));
        }
    }

    /// Queues a completion for the owner.
    fn complete(&self, completion: Completion) -> MutexGuard<'_, QueueState> {
        let mut state = self.lock();
        state.done.push_back(completion);
        if state.done.len() >= state.wanted {
            self.done.notify_one();
        }
        state
    }
}

/// A ring of threads.
#[derive(Debug)]
pub(crate) struct ThreadRing {
    shared: Arc<SharedQueues>,
    threads: Vec<JoinHandle<()>>,
    /// Least number of threads.
    threads_min: usize,
    execute: Execute,
    slots: usize,
    /// Operations pushed and not yet submitted to the pool.
    queued: VecDeque<(Token, Op)>,
    /// Operations pushed and not yet submitted to the poller.
    queued_sockets: Vec<(Token, Op)>,
    poller: Option<Poller>,
    /// Completions taken from the threads and not yet reaped.
    ready: VecDeque<Completion>,
    in_flight: usize,
    waits: u64,
}

impl ThreadRing {
    /// Starts `threads` threads (2 to 4 serve a disk well) for `slots` operations in flight at most.
    ///
    /// # Errors
    /// The system has no more threads.
    pub(crate) fn new(threads: usize, slots: usize) -> io::Result<Self> {
        Self::with_execute(threads, slots, blocking::execute)
    }

    fn with_execute(threads: usize, slots: usize, execute: Execute) -> io::Result<Self> {
        let state = QueueState {
            todo: VecDeque::with_capacity(slots),
            done: VecDeque::with_capacity(slots),
            wanted: usize::MAX,
            threads: 0,
            threads_wanted: threads.max(1),
            closed: false,
        };
        let shared = Arc::new(SharedQueues {
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
            syscalls: AtomicU64::new(0),
        });
        let mut ring = Self {
            shared,
            threads: Vec::with_capacity(threads),
            threads_min: threads.max(1),
            execute,
            slots,
            queued: VecDeque::with_capacity(slots),
            queued_sockets: Vec::with_capacity(slots),
            poller: None,
            ready: VecDeque::with_capacity(slots),
            in_flight: 0,
            waits: 0,
        };
        for _ in 0..ring.threads_min {
            ring.add_thread()?;
        }
        Ok(ring)
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let (shared, execute) = (Arc::clone(&self.shared), self.execute);
        let thread = std::thread::Builder::new().name("blockhaul-io".into()).stack_size(STACK_BYTES);
        self.shared.lock().threads += 1;
        let spawned = thread.spawn(move || shared.serve(execute));
        self.threads.push(spawned.inspect_err(|_| self.shared.lock().threads -= 1)?);
        Ok(())
    }

    /// Submits the queued socket operations to the poller.
    fn submit_sockets(&mut self) -> io::Result<()> {
        if self.queued_sockets.is_empty() {
            return Ok(());
        }
        let poller = match self.poller.take() {
            Some(poller) => poller,
            None => Poller::start(self.slots, &self.shared)?,
        };
        self.poller.insert(poller).give(&mut self.queued_sockets);
        Ok(())
    }
}

impl Ring for ThreadRing {
    fn push(&mut self, token: Token, op: Op) {
        assert!(self.in_flight < self.slots, "no more operations in flight than the ring has slots");
        self.in_flight += 1;
        match op {
            Op::Read { .. } | Op::Write { .. } | Op::Zero { .. } | Op::Flush { .. } => {
                self.queued.push_back((token, op));
            }
            Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => self.queued_sockets.push((token, op)),
        }
    }

    fn submit_and_wait(&mut self, want: usize, limit: Duration) -> io::Result<()> {
        self.submit_sockets()?;
        let mut state = self.shared.lock();
        match self.queued.len() {
            0 => {}
            1 => self.shared.work.notify_one(),
            _ => self.shared.work.notify_all(),
        }
        state.todo.extend(self.queued.drain(..));
        let wanted = want.min(self.in_flight).saturating_sub(self.ready.len());
        if state.done.len() < wanted {
            self.waits += 1;
            state.wanted = wanted;
            let limit = limit.min(WAIT_MAX);
            let waited = self.shared.done.wait_timeout_while(state, limit, |s| s.done.len() < wanted);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.wanted = usize::MAX;
        }
        self.ready.extend(state.done.drain(..));
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        if self.ready.is_empty() && self.in_flight > self.queued.len() + self.queued_sockets.len() {
            std::mem::swap(&mut self.ready, &mut self.shared.lock().done);
        }
        let completion = self.ready.pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Additional threads end when they are idle and not needed any more.
    fn tolerate_late(&mut self, unanswered: usize) {
        let wanted = self.threads_min + unanswered;
        let mut state = self.shared.lock();
        let (missing, surplus) = (wanted.saturating_sub(state.threads), wanted < state.threads_wanted);
        state.threads_wanted = wanted;
        drop(state);
        if surplus {
            self.shared.work.notify_all();
        }
        if missing > 0 {
            self.threads.retain(|thread| !thread.is_finished());
        }
        for _ in 0..missing {
            if let Err(error) = self.add_thread() {
                tracing::warn!(%error, "cannot start another I/O thread: a device that does not answer may delay other jobs");
                return;
            }
        }
    }

    fn now(&self) -> Instant {
        super::clock()
    }

    /// Counts operations carried out and waits for them, but not the calls by which threads wake each other.
    fn syscalls(&self) -> u64 {
        self.shared.syscalls.load(Ordering::Relaxed) + self.waits
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        let pending = self.poller.take().map_or(0, Poller::end);
        let mut state = self.shared.lock();
        state.closed = true;
        let never_started = state.todo.len() + self.queued.len() + self.queued_sockets.len() + pending;
        let over = state.done.len() + self.ready.len();
        state.todo.clear();
        drop(state);
        self.shared.work.notify_all();
        let running = self.in_flight - never_started - over;
        if running > 0 {
            tracing::warn!(
                operations = running,
                "ring closed with operations in flight: their threads are left running"
            );
            return;
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it on stderr.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Block;
    use crate::ring::{FileId, Transfer};

    /// Longest wait; far longer than any operation of these tests takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The gate that `blocked` waits for, opened once by the test.
    static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

    /// Blocks until the test opens the gate.
    fn blocked(op: &mut Op) -> Result<u32, Errno> {
        drop(GATE.1.wait_while(GATE.0.lock().unwrap(), |open| !*open).unwrap());
        let Op::Read { into, .. } = op else { return Err(Errno::EINVAL) };
        into.block.fill(0xD1);
        Ok(into.len)
    }

    #[test]
    fn a_ring_dropped_early_does_not_wait_and_frees_no_memory_in_use() {
        let mut blocks = Arc::new(crate::buffer::Arena::new(8192).unwrap()).split(4096, 2);
        let witness = blocks.pop().unwrap();
        let block: Block = blocks.pop().unwrap();
        let users = witness.arena_users();
        let mut ring = ThreadRing::with_execute(1, 2, blocked).unwrap();
        ring.push(Token(1), Op::Read { file: FileId(0), offset: 0, into: Transfer { block, start: 0, len: 4096 } });
        ring.submit_and_wait(0, Duration::ZERO).unwrap();
        while !ring.shared.lock().todo.is_empty() {
            std::thread::yield_now();
        }
        let (shared, thread) = (Arc::clone(&ring.shared), ring.threads.pop().unwrap());
        drop(ring);
        assert_eq!(witness.arena_users(), users, "the thread still owns the block");
        *GATE.0.lock().unwrap() = true;
        GATE.1.notify_all();
        thread.join().unwrap();
        let late = shared.lock().done.pop_front().expect("the late completion");
        assert!(late.block.unwrap().iter().all(|&byte| byte == 0xD1));
        assert_eq!(witness.arena_users(), users - 1, "the block is returned when the system call has returned");
    }

    #[test]
    fn a_dropped_ring_drops_operations_that_were_never_started() {
        let block = Block::alone(4096).unwrap();
        let mut ring = ThreadRing::new(2, 2).unwrap();
        ring.push(Token(1), Op::Read { file: FileId(-1), offset: 0, into: Transfer { block, start: 0, len: 4096 } });
        drop(ring);
    }

    #[test]
    fn a_dropped_ring_frees_the_memory_of_socket_operations() {
        let arena = Arc::new(crate::buffer::Arena::new(4 * 4096).unwrap());
        let mut blocks = arena.split(4096, 4);
        let witness = blocks.pop().unwrap();
        let mut transfer = || Transfer { block: blocks.pop().unwrap(), start: 0, len: 4096 };
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ring = ThreadRing::new(1, 2).unwrap();
        let file = FileId(std::os::fd::AsRawFd::as_raw_fd(&near));
        let (head, body) = (Some(transfer()), Some(transfer()));
        ring.push(Token(1), Op::Receive { file, head, body, all: true });
        ring.submit_and_wait(1, Duration::from_millis(1)).unwrap();
        ring.push(Token(2), Op::Receive { file, head: None, body: Some(transfer()), all: true });
        let shared = Arc::downgrade(&ring.shared);
        drop(ring);
        assert_eq!(witness.arena_users(), 1, "memory of pending and unstarted socket operations is free");
        assert_eq!(shared.strong_count(), 0, "the poller has ended");
    }

    #[test]
    fn a_busy_pool_does_not_delay_sockets() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let [pipe, near, far] = [&reader as &dyn std::os::fd::AsRawFd, &near, &far].map(|end| FileId(end.as_raw_fd()));
        let transfer = || Transfer { block: Block::alone(4096).unwrap(), start: 0, len: 4096 };
        let mut ring = ThreadRing::with_execute(1, 3, |op| match op {
            Op::Read { file, .. } => Ok(nix::unistd::read(file.descriptor()?, &mut [0]).unwrap() as u32),
            _ => Err(Errno::EINVAL),
        })
        .unwrap();
        ring.push(Token(1), Op::Read { file: pipe, offset: 0, into: transfer() });
        ring.push(Token(2), Op::Receive { file: far, head: None, body: Some(transfer()), all: true });
        ring.push(Token(3), Op::Send { file: near, head: transfer(), body: None, zero_copy: false, waits: true });
        ring.submit_and_wait(2, PATIENCE).unwrap();
        let mut tokens = [ring.reap(), ring.reap()].map(|completion| completion.expect("a completion").token.0);
        tokens.sort_unstable();
        assert_eq!(tokens, [2, 3]);
        std::io::Write::write_all(&mut writer, &[1]).unwrap();
        ring.submit_and_wait(1, PATIENCE).unwrap();
        assert_eq!(ring.reap().unwrap().token, Token(1));
    }

    #[test]
    fn threads_end_with_the_ring() {
        let ring = ThreadRing::new(4, 4).unwrap();
        let shared = Arc::downgrade(&ring.shared);
        drop(ring);
        assert_eq!(shared.strong_count(), 0, "every thread has dropped the queues");
    }

    /// However many threads wait for a device that does not answer, the next operation is carried out.
    #[test]
    fn threads_that_block_are_replaced_and_surplus_threads_end() {
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = FileId(std::os::fd::AsRawFd::as_raw_fd(&reader));
        let transfer = || Transfer { block: Block::alone(4096).unwrap(), start: 0, len: 4096 };
        let mut ring = ThreadRing::with_execute(2, 6, |op| match op {
            Op::Read { file, .. } => Ok(nix::unistd::read(file.descriptor()?, &mut [0]).unwrap() as u32),
            _ => Ok(0),
        })
        .unwrap();
        for token in 0..3 {
            ring.push(Token(token), Op::Read { file: pipe, offset: 0, into: transfer() });
        }
        ring.push(Token(7), Op::Flush { file: pipe });
        ring.submit_and_wait(0, Duration::ZERO).unwrap();
        ring.tolerate_late(3);
        ring.submit_and_wait(1, PATIENCE).unwrap();
        assert_eq!(ring.reap().expect("a completion").token, Token(7));
        drop(writer);
        ring.submit_and_wait(3, PATIENCE).unwrap();
        ring.tolerate_late(0);
        let until = std::time::Instant::now() + PATIENCE;
        while ring.shared.lock().threads > 2 {
            assert!(std::time::Instant::now() < until, "surplus threads do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(std::iter::from_fn(|| ring.reap()).count(), 3);
    }

    #[test]
    fn one_wait_serves_many_completions() {
        let mut ring = ThreadRing::new(2, 32).unwrap();
        for token in 0..32 {
            ring.push(Token(token), Op::Flush { file: FileId(-1) });
        }
        ring.submit_and_wait(32, PATIENCE).unwrap();
        assert_eq!(std::iter::from_fn(|| ring.reap()).count(), 32);
        assert!(ring.syscalls() <= 33, "32 operations and at most one wait");
    }
}
