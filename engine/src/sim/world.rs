//! Holds the world of a simulated engine: one clock, one source of random numbers, volumes, and operations in flight.
//!
//! Operations take effect at the moment they are answered. The machine advances the clock; nothing else does.

use super::disk::{Disk, Snapshot};
use super::faults::Faults;
use super::image::Image;
use super::journal::SimJournalFile;
use super::operation_audit::OperationAudit;
use super::sim_gate::SimGate;
use crate::extent::ExtentKind;
use crate::limits::SEGMENT_BYTES_MAX;
use crate::ring::{Completion, FileId, Instant, Op, Token, Transfer, ZeroMode};
use crate::sync::lock;
use crate::volume::VolumeKind;
use fastrand::Rng;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Panic message for a socket operation.
pub(super) const NO_SOCKETS: &str = "simulated volumes are local: nothing is sent or received";

/// Shared handle of the world. Only one thread uses it.
#[derive(Clone, Debug)]
pub(crate) struct SharedWorld(Arc<Mutex<World>>);

impl SharedWorld {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.0)
    }
}

/// An operation in flight.
#[derive(Debug)]
pub(super) struct SimOperation {
    ring: usize,
    token: Token,
    pub op: Op,
    snapshot: Option<Snapshot>,
    /// `None`: not submitted.
    due: Option<Instant>,
}

impl SimOperation {
    pub(super) fn is_on(&self, file: FileId) -> bool {
        file_of(&self.op) == file
    }

    /// Sends the operation again to a restarted server, which answers at `due`.
    pub(super) fn send_again(&mut self, disk: &Disk, due: Instant) {
        self.snapshot = self.snapshot.take().map(|_| disk.snapshot());
        self.due = self.due.map(|_| due);
    }
}

/// The part of the world that belongs to one job. Its source is volume `2 * job`, its destination the next one.
#[derive(Debug)]
pub(crate) struct TaskWorld {
    pub disks: [Disk; 2],
    pub faults: Faults,
    pub audit: OperationAudit,
    pub journal: SimJournalFile,
    /// Content of the source in the model.
    pub expected: Image,
    /// [`Disk::changes`] of the source at that time.
    pub expected_changes: i64,
    /// Content of the destination behind the end of the copy.
    pub beyond: Image,
    /// Whether a success has to be on stable storage.
    pub flushes: bool,
    /// Whether each record must be on stable storage, as a later run may resume from it.
    pub checkpoints: bool,
    /// Gate of the destination, if there is one.
    pub sim_gate: Option<SimGate>,
    /// Whether a part was resumed from claimed ranges.
    pub has_claims: bool,
}

impl TaskWorld {
    /// Asserts that the gate of the destination is open.
    pub(crate) fn assert_open(&self, what: &str) {
        let is_open = self.sim_gate.as_ref().is_none_or(|sim_gate| sim_gate.gate.is_open());
        assert!(is_open, "{what} while the gate is closed");
    }

    /// Returns whether the model has the current content of the source.
    pub(crate) fn is_source_unchanged(&self) -> bool {
        self.disks[0].changes == self.expected_changes
    }
}

/// The simulated world.
#[derive(Debug)]
pub(crate) struct World {
    pub rng: Rng,
    pub now: Instant,
    pub sites: Vec<TaskWorld>,
    pub trace: bool,
    pub(super) in_flight: Vec<SimOperation>,
    arrived: Vec<VecDeque<(usize, Completion)>>,
}

impl World {
    pub(crate) fn new(rng: Rng, sites: Vec<TaskWorld>, trace: bool) -> Self {
        Self { rng, now: Duration::from_secs(1), sites, trace, in_flight: Vec::new(), arrived: Vec::new() }
    }

    /// Prints an event, when a single seed is replayed.
    pub(crate) fn note(&self, what: impl Display) {
        if self.trace {
            println!("{:>12} us  {what}", self.now.as_micros());
        }
    }

    /// Adds a ring and returns its number.
    pub(crate) fn add_ring(&mut self) -> usize {
        self.arrived.push(VecDeque::new());
        self.arrived.len() - 1
    }

    pub(crate) fn disk(&mut self, file: FileId) -> &mut Disk {
        &mut self.sites[file.0 as usize / 2].disks[file.0 as usize % 2]
    }

    /// Takes an operation that a worker pushed.
    pub(crate) fn push(&mut self, ring: usize, token: Token, op: Op) {
        let file = file_of(&op);
        let audit = &mut self.sites[file.0 as usize / 2].audit;
        audit.pushed(block_bytes(&op));
        if let Op::Read { offset, .. } = op
            && file.0 % 2 == 0
        {
            audit.reads(offset);
            self.pass_by(file);
        }
        let snapshot = matches!(op, Op::Flush { .. }).then(|| self.disk(file).snapshot());
        self.note(format_args!("ring {ring} takes {}", OperationSummary(&op)));
        self.in_flight.push(SimOperation { ring, token, op, snapshot, due: None });
    }

    /// Starts what a ring has pushed.
    pub(crate) fn submit(&mut self, ring: usize) {
        for in_flight in self.in_flight.iter_mut().filter(|in_flight| in_flight.ring == ring && in_flight.due.is_none())
        {
            let site = &mut self.sites[file_of(&in_flight.op).0 as usize / 2];
            if !matches!(in_flight.op, Op::Read { .. }) {
                site.assert_open(&format!("{} is submitted", OperationSummary(&in_flight.op)));
            }
            let latency = site.faults.latency(&in_flight.op, &mut self.rng);
            site.audit.hung |= latency.is_none_or(|latency| latency > Duration::from_secs(8));
            let server = site.disks[file_of(&in_flight.op).0 as usize % 2].server;
            let start = server.map_or(self.now, |server| server.starts(self.now));
            in_flight.due = Some(start + latency.unwrap_or(Duration::MAX / 4));
        }
    }

    /// Notes that a worker uses a volume of that job in the middle of a turn.
    fn pass_by(&mut self, file: FileId) {
        let now = self.now;
        let sim_gate = &mut self.sites[file.0 as usize / 2].sim_gate;
        sim_gate.iter_mut().for_each(|sim_gate| sim_gate.pass_by(now));
    }

    pub(crate) fn arrived(&self, ring: usize) -> usize {
        self.arrived[ring].len()
    }

    pub(crate) fn reap(&mut self, ring: usize) -> Option<Completion> {
        let (site, completion) = self.arrived[ring].pop_front()?;
        self.pass_by(FileId(site as i32 * 2));
        self.sites[site].audit.reaped(&completion);
        Some(completion)
    }

    /// Returns when the next operation is answered.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.in_flight.iter().filter_map(|in_flight| in_flight.due).min()
    }

    /// Advances the clock, and answers the operations that are due by then.
    pub(crate) fn advance(&mut self, to: Instant) {
        self.now = self.now.max(to);
        while let Some(index) = self.first_due() {
            let in_flight = self.in_flight.swap_remove(index);
            self.answer(in_flight);
        }
    }

    fn first_due(&self) -> Option<usize> {
        let due = self.in_flight.iter().enumerate().filter_map(|(index, in_flight)| Some((in_flight.due?, index)));
        due.filter(|&(due, _)| due <= self.now).min().map(|(_, index)| index)
    }

    fn answer(&mut self, SimOperation { ring, token, mut op, snapshot, .. }: SimOperation) {
        let site = file_of(&op).0 as usize / 2;
        if let Some(server) = &mut self.disk(file_of(&op)).server {
            server.answers();
        }
        let result = self.carry_out(&mut op, snapshot);
        self.note(format_args!("ring {ring} answers {} with {result:?}", OperationSummary(&op)));
        self.sites[site].audit.answered(block_bytes(&op));
        self.arrived[ring].push_back((site, Completion::of(token, op, result)));
    }

    /// Ends all operations without completions: each takes effect, takes effect in part, or does not. All rings are
    /// gone.
    pub(crate) fn abandon(&mut self) {
        for SimOperation { mut op, snapshot, due, .. } in std::mem::take(&mut self.in_flight) {
            let site = file_of(&op).0 as usize / 2;
            let bytes = block_bytes(&op);
            if due.is_some() && self.rng.bool() {
                let _ = self.carry_out(&mut op, snapshot);
            }
            self.sites[site].audit.answered(bytes);
        }
        self.arrived.clear();
    }

    fn carry_out(&mut self, op: &mut Op, snapshot: Option<Snapshot>) -> Result<u32, Errno> {
        let file = file_of(op);
        let TaskWorld { disks, faults, audit, .. } = &mut self.sites[file.0 as usize / 2];
        let disk = &mut disks[file.0 as usize % 2];
        let rng = &mut self.rng;
        check(disk, op)?;
        if let Some(errno) = faults.strike(op, rng) {
            if !matches!(errno, Errno::EAGAIN | Errno::EINTR) {
                audit.troubles.push(name_of(op));
                fail(disk, op, snapshot, rng);
            }
            return Err(errno);
        }
        let align = disk.abilities.align as usize;
        match op {
            Op::Read { offset, into: Transfer { block, start, len }, .. } => {
                let there = disk.size.saturating_sub(*offset).min(u64::from(*len)) as usize;
                let moved = if there == 0 { 0 } else { faults.portion(there, align, rng) };
                disk.cached.read(*offset, &mut block[*start as usize..*start as usize + moved]);
                audit.troubles.extend((moved == 0).then_some("a read moved nothing"));
                Ok(moved as u32)
            }
            Op::Write { offset, from: Transfer { block, start, len }, .. } => {
                let moved = faults.portion(*len as usize, align, rng);
                disk.write(*offset, &block[*start as usize..*start as usize + moved]);
                audit.wrote(*offset, moved as u64);
                audit.troubles.extend((moved == 0).then_some("a write moved nothing"));
                Ok(moved as u32)
            }
            Op::Zero { offset, len, mode, .. } => {
                assert!(*len <= SEGMENT_BYTES_MAX, "a request for {len} zeros");
                assert!(audit.copying, "a comparison writes zeros");
                let kind = if *mode == ZeroMode::Hole { ExtentKind::Hole } else { ExtentKind::Zero };
                disk.zero(*offset, *offset + *len, kind);
                Ok(0)
            }
            Op::Flush { .. } => {
                disk.flushed(snapshot.expect("taken when it was pushed"));
                Ok(0)
            }
            Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
        }
    }
}

/// Returns the error of an operation that the kernel would refuse. Such an error is a defect of the engine and no
/// excuse for a failed attempt.
fn check(disk: &Disk, op: &Op) -> Result<(), Errno> {
    let align = u64::from(disk.abilities.align);
    let aligned = |offset: u64, len: u64, start: u64, align: u64| (offset | len | start).is_multiple_of(align);
    match op {
        Op::Read { offset, into: Transfer { start, len, .. }, .. } => {
            aligned(*offset, u64::from(*len), u64::from(*start), align).then_some(()).ok_or(Errno::EINVAL)
        }
        Op::Write { offset, from: Transfer { start, len, .. }, .. } => {
            let fits = disk.kind == VolumeKind::File || offset + u64::from(*len) <= disk.size;
            let aligned = aligned(*offset, u64::from(*len), u64::from(*start), align);
            aligned.then_some(()).ok_or(Errno::EINVAL)?;
            fits.then_some(()).ok_or(Errno::ENOSPC)
        }
        Op::Zero { offset, len, mode, .. } => {
            let sector = if disk.kind == VolumeKind::Device { align.max(512) } else { 1 };
            let able = if *mode == ZeroMode::Hole { disk.abilities.zero_hole } else { disk.abilities.zero_allocated };
            able.then_some(()).ok_or(Errno::EOPNOTSUPP)?;
            aligned(*offset, *len, 0, sector).then_some(()).ok_or(Errno::EINVAL)
        }
        Op::Flush { .. } => Ok(()),
        Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
    }
}

/// Applies a random part of an operation that fails.
fn fail(disk: &mut Disk, op: &Op, snapshot: Option<Snapshot>, rng: &mut Rng) {
    match op {
        Op::Write { offset, from: Transfer { block, start, len }, .. } => {
            let moved = rng.usize(0..=*len as usize);
            disk.write(*offset, &block[*start as usize..*start as usize + moved]);
        }
        Op::Flush { .. } => disk.flush_failed(snapshot.expect("taken when it was pushed"), rng),
        Op::Read { .. } | Op::Zero { .. } => {}
        Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
    }
}

fn file_of(op: &Op) -> FileId {
    match *op {
        Op::Read { file, .. } | Op::Write { file, .. } | Op::Zero { file, .. } | Op::Flush { file } => file,
        Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
    }
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Read { .. } => "a read failed",
        Op::Write { .. } => "a write failed",
        Op::Zero { .. } => "a request for zeros failed",
        Op::Flush { .. } => "a flush failed",
        Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
    }
}

fn block_bytes(op: &Op) -> u64 {
    match op {
        Op::Read { into: transfer, .. } | Op::Write { from: transfer, .. } => transfer.len.into(),
        Op::Zero { .. } | Op::Flush { .. } => 0,
        Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
    }
}

/// An operation in one line.
struct OperationSummary<'a>(&'a Op);

impl Display for OperationSummary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Op::Read { file, offset, into } => write!(f, "read of volume {}: {} at {offset}", file.0, into.len),
            Op::Write { file, offset, from, .. } => write!(f, "write to volume {}: {} at {offset}", file.0, from.len),
            Op::Zero { file, offset, len, mode } => write!(f, "zero of volume {}: {len} at {offset} {mode:?}", file.0),
            Op::Flush { file } => write!(f, "flush of volume {}", file.0),
            Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
        }
    }
}
