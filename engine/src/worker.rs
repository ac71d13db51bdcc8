//! Runs the loop of one core: owns a ring, an arena and its slots, and serves every pass of the process, fairly by
//! bytes.
//!
//! A turn is: reap, act on what was reaped (which queues writes), start new blocks (which queues reads), report. Then
//! the ring submits everything with one system call and waits. Nothing in a turn blocks, allocates per block or takes a
//! lock for longer than a queue operation. An operation ends with its completion and in no other way.
//!
//! **A device that does not answer costs its own job only.** A job alone may have every slot. When there are others,
//! slots whose operations are late are replaced by spare ones, and their job gets no more until they are answered. Of
//! the slots that are left no job takes more than half: the next one may be on the same device. The worker does not
//! wait for late operations, and the ring starts threads in place of those that carry them out.

mod inbox;
mod examine;
mod slots;

pub(crate) use inbox::WorkerInbox;

use crate::buffer::Block;
use crate::channel::TransferFault;
use crate::channel::{Channel, ChannelKind, ConnectionOp};
use crate::error::{Error, Operation, Side};
use crate::extent::ByteRange;
use crate::limits::{STALLED_AFTER, TICK};
use crate::pass::latency::TimedOperation;
use crate::pass::state::{LeafContent, PassState};
use crate::pipeline::examine::{BlockSpan, DataMap};
use crate::pipeline::slot_state::{ReadRole, SlotAction, SlotEvent, SlotState};
use crate::pipeline::worker_pass::{BlockKind, BlockTask, NextStep, WorkerPass, ZeroTask};
use crate::ring::{Completion, Instant, Op, Ring, Token, Transfer, blocking};
use crate::sync::lock;
use examine::{examine, fill_tail, is_as_expected};
use nix::errno::Errno;
use slots::SlotPool;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

/// Operations in flight besides those of slots: requests for zeros and flushes.
pub(crate) const EXTRA_OPERATIONS: usize = 32;

/// Operations in flight for connections to servers. One takes two, and more while the network reads what was sent.
pub(crate) const CONNECTION_OPERATIONS: usize = 256;
/// Operations for connections that are reserved for each job.
const CONNECTION_OPERATIONS_MIN: usize = 4;

/// Wait of a worker between two turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitMode {
    /// Submit, and wait for `want` completions for at most `limit`.
    Ring { want: usize, limit: Duration },
    /// No operation is in flight: sleep until woken, for at most this time.
    Park(Duration),
    /// End: a stop was requested, and no work is left.
    End,
}

/// A slot's current block.
#[derive(Debug)]
struct OccupiedSlot {
    pass: u32,
    task: BlockTask,
    slot: SlotState,
    /// Content found in the block, or expected.
    content: LeafContent,
    started: Instant,
    /// Time at which the operation in flight was pushed.
    since: Instant,
}

/// An operation that changes the destination of a gated pass, until it is submitted.
#[derive(Debug)]
struct HeldOperation {
    pass: u32,
    kind: ChannelKind,
    token: Token,
    op: Op,
}

/// A request for zeros in flight.
#[derive(Clone, Copy, Debug)]
struct ZeroInFlight {
    pass: u32,
    task: ZeroTask,
    since: Instant,
}

/// A flush in flight.
#[derive(Clone, Copy, Debug)]
struct FlushInFlight {
    pass: u32,
    since: Instant,
}

/// The loop of one core.
#[derive(Debug)]
pub(crate) struct Worker<R> {
    ring: R,
    inbox: Arc<WorkerInbox>,
    passes: Vec<WorkerPass>,
    next_pass: u32,
    slots: Vec<Option<OccupiedSlot>>,
    pool: SlotPool,
    /// Time of the next check for late operations.
    next_look: Instant,
    block_bytes: usize,
    zeros: [Option<ZeroInFlight>; EXTRA_OPERATIONS],
    flushes: [Option<FlushInFlight>; EXTRA_OPERATIONS],
    /// Number of ring operations for connections.
    connection_operations: usize,
    /// Operations that wait for the end of the turn, or for a gate.
    held: VecDeque<HeldOperation>,
    /// Completions of operations that ran at submit.
    inline: VecDeque<Completion>,
    inline_calls: u64,
    reaped: Vec<Completion>,
    now: Instant,
}

/// Table that a token's index refers to.
const SLOT: u64 = 0;
const ZERO: u64 = 1;
pub(crate) const FLUSH: u64 = 2;
/// First table of operations for connections, plus the number of the connection's operation; the index is that of the
/// pass.
const CONNECTION: u64 = 3;

fn token(table: u64, index: usize) -> Token {
    Token(table << 32 | index as u64)
}

impl<R: Ring> Worker<R> {
    /// Creates a worker over `ring` with one slot for each of `blocks` and `spare`, which have the same size.
    pub(crate) fn new(ring: R, blocks: Vec<Block>, spare: Vec<Block>, inbox: Arc<WorkerInbox>) -> Self {
        let (pool, now) = (SlotPool::new(blocks, spare), ring.now());
        let (count, block_bytes) = (pool.count(), pool.block_bytes());
        Self {
            ring,
            inbox,
            passes: Vec::new(),
            next_pass: 0,
            slots: std::iter::repeat_with(|| None).take(count).collect(),
            pool,
            next_look: now,
            block_bytes,
            zeros: [None; EXTRA_OPERATIONS],
            flushes: [None; EXTRA_OPERATIONS],
            connection_operations: 0,
            held: VecDeque::with_capacity(count + 2 * EXTRA_OPERATIONS),
            inline: VecDeque::with_capacity(count),
            inline_calls: 0,
            reaped: Vec::with_capacity(count + EXTRA_OPERATIONS),
            now,
        }
    }

    /// Serves passes until a stop is requested, and returns whether all operations were answered. Updates `syscalls`
    /// for reports.
    pub(crate) fn run(mut self, syscalls: &std::sync::atomic::AtomicU64) -> bool {
        let _ = self.inbox.thread.set(std::thread::current());
        loop {
            let rest = self.turn();
            syscalls.store(self.ring.syscalls() + self.inline_calls, Relaxed);
            match rest {
                WaitMode::Ring { want, limit } => self.wait(want, limit),
                WaitMode::Park(limit) => std::thread::park_timeout(limit),
                WaitMode::End => return self.leave(),
            }
        }
    }

    /// Leaks the passes with operations in flight, so that their descriptors and locks are kept for the life of the
    /// process.
    fn leave(self) -> bool {
        let mut is_quiet = true;
        for pass in self.passes.iter().filter(|pass| pass.in_flight > 0) {
            is_quiet = false;
            std::mem::forget(Arc::clone(&pass.state));
        }
        is_quiet
    }

    /// Submits what is queued and waits. A ring that is broken fails every pass; its operations stay in flight.
    pub(crate) fn wait(&mut self, want: usize, limit: Duration) {
        if let Err(error) = self.ring.submit_and_wait(want, limit) {
            let what = "submit to the ring (its operations cannot be waited for any more)";
            self.passes
                .iter()
                .for_each(|pass| pass.state.fail(Error::io(Side::Engine, Operation::Start, &error, what)));
            std::thread::sleep(TICK.min(limit));
        }
    }

    /// Runs one turn of the loop.
    pub(crate) fn turn(&mut self) -> WaitMode {
        self.now = self.ring.now();
        self.take_passes();
        self.reap();
        self.look_for_stalls();
        let wait = self.start_blocks();
        self.start_flushes();
        self.poll_connections();
        self.report();
        self.submit_through_gates();
        self.push_connection_operations();
        self.wait_mode(wait)
    }

    fn take_passes(&mut self) {
        if !self.inbox.pending.swap(false, Acquire) {
            return;
        }
        for state in lock(&self.inbox.passes).drain(..) {
            assert!(
                state.params.block_bytes as usize <= self.block_bytes,
                "the engine refuses blocks larger than its slots"
            );
            let served = self.passes.iter().map(|pass| pass.served_bytes).min().unwrap_or(0);
            let slots = self.pool.depth() + 2 * EXTRA_OPERATIONS;
            self.next_look = self.now;
            self.passes.push(WorkerPass::new(self.next_pass, state, served, slots));
            self.next_pass += 1;
        }
    }

    fn reap(&mut self) {
        while let Some(completion) = self.ring.reap() {
            self.reaped.push(completion);
        }
        let mut reaped = std::mem::take(&mut self.reaped);
        for completion in reaped.drain(..) {
            self.complete(completion);
        }
        self.reaped = reaped;
        self.run_inline();
    }

    /// Answers operations that ran at submit, and those that follow from them, before anything new is started: the
    /// block is still in the cache.
    fn run_inline(&mut self) {
        while let Some(completion) = self.inline.pop_front() {
            self.now = self.ring.now();
            self.complete(completion);
        }
    }

    /// Starts blocks until slots, windows or segments run out; returns when a rate limit admits the next one.
    fn start_blocks(&mut self) -> Option<Duration> {
        let mut wait: Option<Duration> = None;
        // Inline blocks free their slot at once: bounded, so that a turn ends and reports.
        let mut budget = self.slots.len().max(1);
        let mut idle = 0;
        while budget > 0 && self.pool.free() > 0 && idle < self.passes.len() {
            // The least served pass first; idle passes follow.
            let Some(index) = self.least_served(idle) else { break };
            if !self.leaves_slots(index) {
                self.passes.swap(index, idle);
                idle += 1;
                continue;
            }
            match self.passes[index].next(self.now) {
                NextStep::Block(task) => {
                    budget -= 1;
                    self.start(index, task);
                    self.run_inline();
                    continue;
                }
                NextStep::Zero(task) if self.start_zero(index, task) => {
                    self.run_inline();
                    continue;
                }
                NextStep::Wait(limit) => wait = Some(wait.map_or(limit, |wait| wait.min(limit))),
                NextStep::Zero(_) | NextStep::Nothing => {}
            }
            self.passes.swap(index, idle);
            idle += 1;
        }
        wait
    }

    /// Finds late operations, once a tick, and replaces the slots and threads that wait for them. Does nothing for a
    /// single job, which delays no other.
    fn look_for_stalls(&mut self) {
        if self.now < self.next_look {
            return;
        }
        self.next_look = self.now + TICK;
        self.passes.iter_mut().for_each(|pass| (pass.late, pass.is_stalled) = (0, false));
        let stalled = if self.passes.len() > 1 { self.count_late() } else { 0 };
        self.ring.tolerate_late(self.passes.iter().map(|pass| pass.late).sum());
        self.pool.set_stalled(stalled);
    }

    /// Counts late operations by pass; returns the number of their slots.
    fn count_late(&mut self) -> usize {
        let Self { passes, slots, zeros, flushes, now, .. } = self;
        let mut stalled = 0;
        let is_late = |since: Instant| now.saturating_sub(since) > STALLED_AFTER;
        let of_slots = slots.iter().flatten().filter(|in_slot| is_late(in_slot.since)).map(|it| (it.pass, true));
        let of_zeros = zeros.iter().flatten().filter(|zero| is_late(zero.since)).map(|it| (it.pass, false));
        let of_flushes = flushes.iter().flatten().filter(|flush| is_late(flush.since)).map(|it| (it.pass, false));
        for (id, has_slot) in of_slots.chain(of_zeros).chain(of_flushes) {
            let pass = pass_of(passes, id);
            pass.late += 1;
            // Zeros and flushes may take their time: they hold no slot.
            pass.is_stalled |= has_slot;
            stalled += usize::from(has_slot);
        }
        stalled
    }

    /// Returns whether a pass may take one more slot. One slot is kept for each pass that has none: a slot whose server
    /// does not answer is held until its job stops, and the least served pass would take all slots.
    fn leaves_slots(&self, index: usize) -> bool {
        let pass = &self.passes[index];
        if pass.is_stalled || pass.slots >= self.pool.slots_per_job_max() {
            return false;
        }
        let waiting = self.passes.iter().filter(|pass| pass.in_flight == 0 && pass.may_start()).count();
        pass.in_flight == 0 || self.pool.free() > waiting
    }

    fn least_served(&self, from: usize) -> Option<usize> {
        (from..self.passes.len()).min_by_key(|&index| self.passes[index].served_bytes)
    }

    fn start(&mut self, pass: usize, task: BlockTask) {
        let (index, mut block) = self.pool.take();
        self.passes[pass].slots += 1;
        let state = &self.passes[pass].state;
        let start = task.range.start();
        let read = || BlockSpan { start: part(task.read.start() - start), len: part(task.read.len()) };
        let whole = BlockSpan { start: 0, len: part(task.range.len()) };
        let mut content = LeafContent::Zeros;
        let (slot, action) = match task.kind {
            BlockKind::Copy(_) => SlotState::read(ReadRole::Source, read(), state.source.align),
            BlockKind::CompareSource => SlotState::read(ReadRole::Reference, read(), state.source.align),
            BlockKind::Compare(expected) => {
                content = expected;
                SlotState::read(ReadRole::Target, whole, state.destination.align)
            }
            BlockKind::WriteZeros => {
                block[..whole.len as usize].fill(0);
                fill_tail(&mut block, &task, state);
                SlotState::write(DataMap::all(whole.len, state.params.block_bytes), state.destination.align)
            }
        };
        self.slots[index] =
            Some(OccupiedSlot { pass: self.passes[pass].id, task, slot, content, started: self.now, since: self.now });
        self.act(index, block, action);
    }

    /// Carries out the actions of a slot's transitions, up to the next operation or the end of the block.
    fn act(&mut self, index: usize, mut block: Block, mut action: SlotAction) {
        let in_slot = self.slots[index].as_mut().expect("a slot that acts is in use");
        let pass = pass_of(&mut self.passes, in_slot.pass);
        while let SlotAction::Examine(role @ (ReadRole::Source | ReadRole::Reference)) = action {
            let event;
            (event, in_slot.content) = examine(role, &in_slot.task, pass, &mut block);
            (in_slot.slot, action) = in_slot.slot.on(event);
        }
        if pass.is_abandoned() && matches!(action, SlotAction::Read(..) | SlotAction::Write(_)) {
            // The pass is over: its report does not change any more.
            let (id, task) = (in_slot.pass, in_slot.task);
            pass.drop_block(&task);
            return self.release(index, id, block);
        }
        let at = |span: BlockSpan| in_slot.task.range.start() + u64::from(span.start);
        let (op, side) = match action {
            SlotAction::Read(role, span) => {
                let channel = channel_of(&pass.state, role);
                (channel.read(at(span), transfer(block, span)), channel.side())
            }
            SlotAction::Write(span) => {
                let channel = &pass.state.destination;
                (channel.write(at(span), transfer(block, span)), channel.side())
            }
            SlotAction::Examine(_) => {
                let same = is_as_expected(in_slot.content, &block[..part(in_slot.task.range.len()) as usize]);
                let took = self.now.saturating_sub(in_slot.started);
                pass.state.control.note_block(in_slot.task.range.len(), took);
                pass.compared(&in_slot.task, in_slot.content, same);
                let id = in_slot.pass;
                return self.release(index, id, block);
            }
            SlotAction::Finish => {
                let took = self.now.saturating_sub(in_slot.started);
                pass.state.control.note_block(in_slot.task.range.len(), took);
                pass.block_written(&in_slot.task, in_slot.content);
                let id = in_slot.pass;
                return self.release(index, id, block);
            }
            SlotAction::Fail(role, fault) => {
                let (channel, operation) = role.map_or((&pass.state.destination, Operation::Write), |role| {
                    (channel_of(&pass.state, role), Operation::Read)
                });
                pass.state.fail(channel.fault(operation, in_slot.task.range, fault));
                pass.drop_block(&in_slot.task);
                let id = in_slot.pass;
                return self.release(index, id, block);
            }
        };
        in_slot.since = self.now;
        let id = in_slot.pass;
        self.push(id, side, token(SLOT, index), op);
    }

    /// Starts an operation of a pass on its source or destination.
    fn push(&mut self, pass: u32, side: Side, token: Token, mut op: Op) {
        let pass = pass_of(&mut self.passes, pass);
        pass.in_flight += 1;
        if let Some(gate) = &pass.state.gate
            && side == Side::Destination
            && pass.state.destination.is_held(gate)
        {
            return self.held.push_back(HeldOperation { pass: pass.id, kind: pass.state.destination.kind, token, op });
        }
        let channel = if side == Side::Source { &pass.state.source } else { &pass.state.destination };
        match channel.kind {
            ChannelKind::Ring => return self.ring.push(token, op),
            ChannelKind::Nbd => return pass.connections.accept(side, token, op),
            ChannelKind::Inline => {}
        }
        self.inline_calls += 1;
        let result = blocking::execute(&mut op);
        self.inline.push_back(Completion::of(token, op, result));
    }

    fn release(&mut self, index: usize, pass: u32, block: Block) {
        self.slots[index] = None;
        let pass = pass_of(&mut self.passes, pass);
        pass.slots -= 1;
        self.pool.put_back(index, block);
    }

    fn complete(&mut self, completion: Completion) {
        let Token(token) = completion.token;
        if let Some(op) = (token >> 32).checked_sub(CONNECTION).and_then(ConnectionOp::of) {
            return self.complete_connection(token as u32, op, completion);
        }
        let Completion { result, block, .. } = completion;
        let index = usize::try_from(token & u64::from(u32::MAX)).expect("32 bits");
        match (token >> 32, block) {
            (SLOT, Some(block)) => self.complete_block(index, result, block),
            (ZERO, None) => self.complete_zero(index, result),
            (FLUSH, None) => self.complete_flush(index, result),
            (table, _) => {
                panic!("a completion of table {table} came back with or without a block, unlike its operation")
            }
        }
    }

    fn complete_block(&mut self, index: usize, result: Result<u32, Errno>, block: Block) {
        let in_slot = self.slots[index].as_mut().expect("an operation completes once, and its slot waits for it");
        let pass = pass_of(&mut self.passes, in_slot.pass);
        pass.in_flight -= 1;
        let timed = if matches!(in_slot.slot, SlotState::Writing { .. }) {
            TimedOperation::Write
        } else {
            TimedOperation::Read
        };
        let took = self.now.saturating_sub(in_slot.since);
        pass.latency.record(timed, took);
        let channel = match in_slot.slot {
            SlotState::Writing { .. } | SlotState::Reading { role: ReadRole::Target, .. } => &pass.state.destination,
            SlotState::Reading { .. } | SlotState::Examining { .. } | SlotState::Idle => &pass.state.source,
        };
        if channel.kind == ChannelKind::Nbd {
            pass.state.control.note_request(took);
        }
        let (slot, action) = in_slot.slot.on(SlotEvent::Completed(result));
        let moved = u64::from(in_slot.slot.ended_by(action));
        match in_slot.slot {
            SlotState::Writing { .. } => pass.state.control.counters.written.fetch_add(moved, Relaxed),
            SlotState::Reading { role: ReadRole::Source, .. } => {
                pass.state.control.counters.read.fetch_add(moved, Relaxed)
            }
            _ => 0,
        };
        in_slot.slot = slot;
        self.act(index, block, action);
    }

    /// Queues a request for zeros; `false` if too many are in flight.
    fn start_zero(&mut self, pass: usize, task: ZeroTask) -> bool {
        let pass = &mut self.passes[pass];
        let Some(index) = self.zeros.iter().position(Option::is_none) else {
            pass.postpone_zero(task);
            return false;
        };
        pass.zeros += 1;
        self.zeros[index] = Some(ZeroInFlight { pass: pass.id, task, since: self.now });
        let (id, op) = (pass.id, pass.state.destination.zero(task.range, task.mode));
        self.push(id, Side::Destination, token(ZERO, index), op);
        true
    }

    fn complete_zero(&mut self, index: usize, result: Result<u32, Errno>) {
        let ZeroInFlight { pass, task, .. } = self.zeros[index].take().expect("a request completes once");
        let pass = pass_of(&mut self.passes, pass);
        pass.in_flight -= 1;
        pass.zeros -= 1;
        match result {
            Ok(_) => pass.zeroed(task),
            Err(Errno::EOPNOTSUPP) => pass.not_zeroed(task),
            Err(Errno::EINTR | Errno::EAGAIN) => pass.postpone_zero(task),
            Err(errno) => {
                let error = pass.state.destination.fault(Operation::Zero, task.range, TransferFault::Os(errno));
                pass.state.fail(error);
            }
        }
    }

    fn start_flushes(&mut self) {
        for pass in &mut self.passes {
            let Some(index) = self.flushes.iter().position(Option::is_none) else { return };
            if pass.take_flush() {
                self.flushes[index] = Some(FlushInFlight { pass: pass.id, since: self.now });
                pass.in_flight += 1;
                let (token, channel) = (token(FLUSH, index), &pass.state.destination);
                match channel.kind {
                    ChannelKind::Nbd => pass.connections.accept(Side::Destination, token, channel.flush()),
                    _ if pass.state.gate.is_some() => {
                        let (pass, op) = (pass.id, channel.flush());
                        self.held.push_back(HeldOperation { pass, kind: ChannelKind::Ring, token, op });
                    }
                    // Never inline: a flush takes long, and the worker has other passes to serve.
                    ChannelKind::Ring | ChannelKind::Inline => self.ring.push(token, channel.flush()),
                }
            }
        }
    }

    /// Advances the connections to servers, and handles their answers.
    fn poll_connections(&mut self) {
        for index in 0..self.passes.len() {
            self.passes[index].poll_connections(self.now);
            self.take_answers(index);
        }
    }

    /// Submits operations that were held back for gates, immediately before the ring submits: an open gate may close
    /// later. Operations behind a closed gate stay, unless their job stops.
    fn submit_through_gates(&mut self) {
        if !self.held.is_empty() {
            // Inline operations take time, so they run before the others are checked.
            self.submit_held(ChannelKind::Inline);
            self.submit_held(ChannelKind::Ring);
        }
    }

    fn submit_held(&mut self, kind: ChannelKind) {
        for _ in 0..self.held.len() {
            let Some(mut held) = self.held.pop_front() else { return };
            let pass = self.passes.iter().find(|each| each.id == held.pass).expect("a pass stays while it waits");
            let is_shut = pass.state.is_gate_closed();
            if held.kind != kind || (is_shut && !pass.state.is_given_up()) {
                self.held.push_back(held);
                continue;
            }
            let result = match (is_shut, kind) {
                (true, _) => Err(Errno::ECANCELED),
                (false, ChannelKind::Inline) => {
                    self.inline_calls += 1;
                    blocking::execute(&mut held.op)
                }
                (false, ChannelKind::Ring | ChannelKind::Nbd) => {
                    self.count_from_now(held.token);
                    self.ring.push(held.token, held.op);
                    continue;
                }
            };
            self.inline.push_back(Completion::of(held.token, held.op, result));
        }
    }

    /// Starts the clock of an operation now: its latency does not include the wait for the gate.
    fn count_from_now(&mut self, Token(token): Token) {
        let index = usize::try_from(token & u64::from(u32::MAX)).expect("32 bits");
        match token >> 32 {
            SLOT => self.slots[index].iter_mut().for_each(|in_slot| in_slot.since = self.now),
            FLUSH => self.flushes[index].iter_mut().for_each(|flush| flush.since = self.now),
            _ => {}
        }
    }

    /// Pushes the operations of connections to the ring.
    fn push_connection_operations(&mut self) {
        for pass in &mut self.passes {
            let give_up = pass.state.is_given_up();
            // At most as many as are left for other passes: a server that does not receive holds its operations.
            while self.connection_operations < CONNECTION_OPERATIONS
                && pass.connection_operations
                    < (CONNECTION_OPERATIONS - self.connection_operations).max(CONNECTION_OPERATIONS_MIN)
                && let Some((connection, op)) = pass.connections.next_op(self.now, give_up)
            {
                self.connection_operations += 1;
                pass.connection_operations += 1;
                self.ring.push(Token((CONNECTION + connection.number()) << 32 | u64::from(pass.id)), op);
            }
        }
    }

    /// Handles the answers of a pass's servers, and the operations that complete at once.
    fn take_answers(&mut self, pass: usize) {
        while let Some(completion) = self.passes[pass].connections.answer() {
            self.complete(completion);
        }
    }

    fn complete_connection(&mut self, pass: u32, op: ConnectionOp, completion: Completion) {
        let index =
            self.passes.iter().position(|each| each.id == pass).expect("a pass stays while its connections work");
        self.connection_operations -= usize::from(!completion.more);
        self.passes[index].connection_operations -= usize::from(!completion.more);
        self.passes[index].connections.completed(op, completion);
        self.take_answers(index);
    }

    fn complete_flush(&mut self, index: usize, result: Result<u32, Errno>) {
        let FlushInFlight { pass, since } = self.flushes[index].take().expect("a flush completes once");
        let pass = pass_of(&mut self.passes, pass);
        pass.in_flight -= 1;
        pass.latency.record(TimedOperation::Flush, self.now.saturating_sub(since));
        let whole = ByteRange::new(0, pass.state.params.size);
        pass.state.set_flushed(
            result
                .map(drop)
                .map_err(|errno| pass.state.destination.fault(Operation::Flush, whole, TransferFault::Os(errno))),
        );
    }

    /// Reports results, acknowledges halts and drops released passes.
    fn report(&mut self) {
        for pass in &mut self.passes {
            pass.publish();
            pass.halt_if_asked();
        }
        self.passes.extract_if(.., |pass| pass.may_release()).for_each(WorkerPass::release);
    }

    fn wait_mode(&self, wait: Option<Duration>) -> WaitMode {
        let limit = wait.map_or(TICK, |wait| wait.min(TICK));
        match self.ring.in_flight() {
            _ if self.inbox.stop.load(Acquire) && self.passes.iter().all(WorkerPass::is_abandoned) => WaitMode::End,
            0 if self.passes.is_empty() => WaitMode::Park(Duration::MAX),
            // Handled in the next turn.
            _ if !self.inline.is_empty() => WaitMode::Ring { want: 0, limit: Duration::ZERO },
            // Slots are free and segments may be left: inline operations have completed already.
            _ if self.pool.free() > 0 && self.may_go_on() => WaitMode::Ring { want: 0, limit: Duration::ZERO },
            0 => WaitMode::Park(limit),
            // Peers reply at any time: a reply must not wait for the replies of other peers.
            _ if self.connection_operations > 0 => WaitMode::Ring { want: 1, limit },
            in_flight => WaitMode::Ring { want: (self.least_in_flight().min(in_flight) / 4).clamp(1, 8), limit },
        }
    }

    fn may_go_on(&self) -> bool {
        (0..self.passes.len()).any(|index| self.passes[index].may_go_on() && self.leaves_slots(index))
    }

    /// Returns the least number of operations in flight of any pass: no pass must wait for answers of another pass's
    /// device.
    fn least_in_flight(&self) -> usize {
        let counts = self.passes.iter().map(|pass| pass.in_flight - pass.late.min(pass.in_flight));
        counts.filter(|&count| count > 0).min().unwrap_or(1)
    }
}

/// A worker pass and its operations; kept while an operation of it is in flight.
fn pass_of(passes: &mut [WorkerPass], id: u32) -> &mut WorkerPass {
    passes.iter_mut().find(|pass| pass.id == id).expect("a pass stays while an operation of it is in flight")
}

fn channel_of(state: &PassState, role: ReadRole) -> &Channel {
    match role {
        ReadRole::Source | ReadRole::Reference => &state.source,
        ReadRole::Target => &state.destination,
    }
}

fn transfer(block: Block, span: BlockSpan) -> Transfer {
    Transfer { block, start: span.start, len: span.len }
}

/// Offsets within a block, which is at most 64 MiB.
fn part(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("within a block")
}
