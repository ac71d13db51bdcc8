//! Simulates volumes, and checks the order of their writes.
//!
//! A volume is an array of blocks; a block holds a number that tells its source and position. A write is submitted, is
//! in flight for a while, and lands; the process that submitted it may have ended by then. What must hold for every
//! volume:
//!
//! - No write of a grant is submitted after one of a later grant was (the epochs of submitted writes never fall).
//! - When the first write of a grant is submitted, no process waits for a write of an earlier one any more: that
//!   process has ended, was cut off, or is paused.
//! - Once a task has succeeded no write of its grant or an earlier one lands, and the volume holds its source's data
//!   until a later grant writes.
//!
//! A local volume is locked by its writer, and the lock is free only when the last write of a process that has ended
//! has landed. A volume behind a server has no lock; the writes of a cut-off client may land up to [`LATE`] later.

use super::run_result::RunResult;
use crate::model::{DurableMap, Epoch, Holder, Incarnation, TaskId};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::extent::ByteRange;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// Delay with which a write in flight lands after its process has ended or was cut off: below the time after which the
/// task center treats an earlier attempt as drained.
pub(super) const LATE: Duration = Duration::from_secs(25);

/// Time within which a process that was paused detects that its lease has ended.
const DETECT_MAX: Duration = Duration::from_millis(500);

/// Bytes of a block.
pub(super) const BLOCK: u64 = 1 << 20;

/// Writer, and its grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) task: TaskId,
    pub(super) epoch: Epoch,
    /// Number of times that history had gone back when the job began: epochs grow only within one era.
    pub(super) era: u32,
    pub(super) holder: Holder,
    /// Number of the job, which owns the lock.
    pub(super) job: u64,
}

impl Writer {
    /// Returns the rank: later grants are greater.
    fn rank(&self) -> Rank {
        (self.era, self.epoch)
    }
}

/// Orders grants.
type Rank = (u32, Epoch);

/// A volume.
#[derive(Debug)]
struct Volume {
    /// Node of a local volume; `None` behind a server.
    node: Option<String>,
    /// Content of each block, and in `flushed` its durable content.
    blocks: Vec<u64>,
    flushed: Vec<u64>,
    /// Epoch kept beside the content, as an attribute.
    stored_epoch: Option<Epoch>,
    /// Job that has the volume open for writing.
    lock: Option<u64>,
    /// Writer with the latest grant.
    newest: Option<Writer>,
    /// Grant under which it was completed last, and the content then.
    sealed: Option<(Rank, Vec<u64>)>,
}

/// Write in flight.
#[derive(Debug)]
struct InflightWrite {
    volume: String,
    block: usize,
    value: u64,
    by: Writer,
    lands_at: Instant,
    /// Whether its job has ended or was cut off.
    is_orphan: bool,
}

#[derive(Debug, Default)]
struct Inner {
    volumes: BTreeMap<String, Volume>,
    inflight: BTreeMap<u64, InflightWrite>,
    submitted: u64,
    era: u32,
    /// Processes that servers refuse after fencing.
    banned: Vec<Holder>,
    /// Processes that were paused, with the end of the last pause.
    paused: BTreeMap<Incarnation, Option<Instant>>,
}

/// All volumes of a world.
#[derive(Clone, Debug)]
pub(super) struct Disks {
    inner: Arc<Mutex<Inner>>,
    result: RunResult,
    late: Duration,
}

impl Disks {
    /// Creates a world without volumes. Writes of a job that has ended or was cut off land within `late`.
    pub(super) fn new(result: RunResult, late: Duration) -> Self {
        Self { inner: Arc::default(), result, late }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a volume with this content.
    pub(super) fn add(&self, name: &str, node: Option<&str>, blocks: Vec<u64>) {
        let flushed = blocks.clone();
        let node = node.map(str::to_owned);
        let volume = Volume { node, blocks, flushed, stored_epoch: None, lock: None, newest: None, sealed: None };
        self.lock().volumes.insert(name.to_owned(), volume);
    }

    pub(super) fn blocks(&self, name: &str) -> Vec<u64> {
        self.lock().volumes.get(name).map(|volume| volume.blocks.clone()).unwrap_or_default()
    }

    /// Tells whether a copy may overwrite the volume as empty.
    pub(super) fn is_empty(&self, name: &str) -> bool {
        self.lock().volumes.get(name).is_none_or(|volume| volume.blocks[0] == 0)
    }

    /// Tells whether a volume is behind a server.
    pub(super) fn is_remote(&self, name: &str) -> bool {
        self.lock().volumes.get(name).is_some_and(|volume| volume.node.is_none())
    }

    /// Opens a local volume for writing; true if no other job has it open and no write to it is in flight.
    pub(super) fn try_lock(&self, name: &str, job: u64) -> bool {
        let mut inner = self.lock();
        let is_busy = inner.inflight.values().any(|write| write.volume == name && write.by.job != job);
        let Some(volume) = inner.volumes.get_mut(name) else { return false };
        if volume.node.is_none() {
            return true;
        }
        if is_busy || volume.lock.is_some_and(|owner| owner != job) {
            return false;
        }
        volume.lock = Some(job);
        true
    }

    pub(super) fn unlock(&self, name: &str, job: u64) {
        if let Some(volume) = self.lock().volumes.get_mut(name)
            && volume.lock == Some(job)
        {
            volume.lock = None;
        }
    }

    /// Submits a write. The receiver gets a message when the write lands, and an error if its job was cut off.
    pub(super) fn submit(
        &self,
        name: &str,
        block: usize,
        value: u64,
        by: &Writer,
        takes: Duration,
    ) -> oneshot::Receiver<()> {
        let lands_at = Instant::now() + takes;
        let mut inner = self.lock();
        let (landed, receiver) = oneshot::channel();
        if inner.banned.contains(&by.holder) && inner.volumes.get(name).is_some_and(|volume| volume.node.is_none()) {
            return receiver;
        }
        let number = inner.submitted;
        inner.submitted += 1;
        let volume = inner.volumes.get_mut(name).expect("jobs write volumes that exist");
        // After history went back, epochs order the writes of local volumes only, which have a stored epoch.
        if volume.node.is_some() || by.era == 0 {
            self.check_submission(name, volume, by);
            let was_paused = |write: &InflightWrite| match inner.paused.get(&write.by.holder.incarnation) {
                Some(until) => until.is_none_or(|until| until.elapsed() < DETECT_MAX),
                None => false,
            };
            let overlap = inner.inflight.values().find(|write| {
                write.volume == name && write.by.rank() < by.rank() && !write.is_orphan && !was_paused(write)
            });
            self.result.expect(overlap.is_none(), || {
                format!("{name}: {} writes under {} and {overlap:?} is not over", by.holder.node, by.epoch)
            });
        }
        let write = InflightWrite { volume: name.to_owned(), block, value, by: by.clone(), lands_at, is_orphan: false };
        inner.inflight.insert(number, write);
        tokio::spawn(self.clone().complete(number, landed));
        receiver
    }

    fn check_submission(&self, name: &str, volume: &mut Volume, by: &Writer) {
        if let Some(newest) = &volume.newest {
            self.result.expect(by.rank() >= newest.rank(), || {
                format!(
                    "{name}: a write of {} (epoch {}) was submitted after one of {newest:?}",
                    by.holder.node, by.epoch
                )
            });
            self.result.expect(by.rank() > newest.rank() || by.holder == newest.holder, || {
                format!("{name}: two holders wrote under epoch {}: {newest:?} and {by:?}", by.epoch)
            });
        }
        if let Some((sealed, _)) = &volume.sealed {
            self.result.expect(by.rank() > *sealed, || format!("{name}: {by:?} wrote after success under {sealed:?}"));
        }
        if volume.newest.as_ref().is_none_or(|newest| by.rank() > newest.rank()) {
            self.result.note(format_args!(
                "{name}: first write under epoch {} by {} for {}",
                by.epoch, by.holder.node, by.task
            ));
            volume.newest = Some(by.clone());
        }
    }

    async fn complete(self, number: u64, landed: oneshot::Sender<()>) {
        loop {
            let Some(lands_at) = self.lock().inflight.get(&number).map(|write| write.lands_at) else { return };
            if lands_at > Instant::now() {
                sleep_until(lands_at).await;
                continue;
            }
            let mut inner = self.lock();
            let Some(write) = inner.inflight.remove(&number) else { return };
            self.land(&mut inner, &write);
            if !write.is_orphan {
                let _ = landed.send(());
            }
            return;
        }
    }

    fn land(&self, inner: &mut Inner, write: &InflightWrite) {
        let InflightWrite { volume: name, block, value, by, .. } = write;
        let Some(volume) = inner.volumes.get_mut(name) else { return };
        if let Some((sealed, _)) = &volume.sealed {
            self.result.expect(by.rank() > *sealed, || {
                format!("{name}: a write of {by:?} landed after success under {sealed:?}")
            });
        }
        volume.blocks[*block] = *value;
        if volume.newest.as_ref().is_some_and(|newest| by.rank() < newest.rank()) {
            self.result.count("writes that landed after ones of a later grant");
        }
    }

    /// Makes these landed blocks durable.
    pub(super) fn flush(&self, name: &str, blocks: &BTreeSet<usize>) {
        if let Some(volume) = self.lock().volumes.get_mut(name) {
            blocks.iter().for_each(|&block| volume.flushed[block] = volume.blocks[block]);
        }
    }

    /// Tells whether a local volume was opened last under one of these grants. Otherwise their durable map is of
    /// another volume.
    pub(super) fn is_written_by(&self, name: &str, earlier: &[Epoch]) -> bool {
        let inner = self.lock();
        inner
            .volumes
            .get(name)
            .and_then(|volume| volume.stored_epoch)
            .is_some_and(|stored_epoch| earlier.contains(&stored_epoch))
    }

    /// Refuses a grant that is earlier than the last one under which a local volume was opened.
    pub(super) fn check_stored_epoch(&self, name: &str, epoch: Epoch) -> Result<()> {
        let stored_epoch = self.lock().volumes.get(name).and_then(|volume| volume.stored_epoch);
        match stored_epoch {
            Some(stored_epoch) if stored_epoch > epoch => {
                let message = format!("{name} was written under epoch {stored_epoch}, {epoch} is an earlier one");
                Err(Error::new(Code::Fenced, Side::Destination, Operation::Open, message))
            }
            _ => Ok(()),
        }
    }

    /// Stores the grant under which a local volume is opened for writing.
    pub(super) fn raise_stored_epoch(&self, name: &str, epoch: Epoch) {
        if let Some(volume) = self.lock().volumes.get_mut(name).filter(|volume| volume.node.is_some()) {
            volume.stored_epoch = volume.stored_epoch.max(Some(epoch));
        }
    }

    /// Returns the blocks of a durable map that are not durable.
    pub(super) fn not_durable(&self, name: &str, map: &DurableMap, data: &[u64]) -> Vec<usize> {
        let inner = self.lock();
        let Some(volume) = inner.volumes.get(name) else { return Vec::new() };
        let ranges = map.to_ranges();
        let is_claimed = |block: &usize| {
            let start = *block as u64 * BLOCK;
            ranges.contains(ByteRange::new(start, start + BLOCK))
        };
        (0..data.len()).filter(is_claimed).filter(|&block| volume.flushed[block] != data[block]).collect()
    }

    /// Orphans the writes in flight of jobs that have ended or were cut off: each lands as planned, later, or never.
    /// Returns their number.
    pub(super) fn orphan(&self, which: impl Fn(&Writer) -> bool, rng: &mut fastrand::Rng) -> usize {
        let mut inner = self.lock();
        let Inner { volumes, inflight, .. } = &mut *inner;
        let mut lost = Vec::new();
        let mut count = 0;
        for (number, write) in inflight.iter_mut().filter(|(_, write)| which(&write.by) && !write.is_orphan) {
            write.is_orphan = true;
            count += 1;
            let is_remote = volumes[&write.volume].node.is_none();
            let late = if is_remote { self.late } else { Duration::from_secs(3) };
            match rng.u8(..4) {
                0 => lost.push(*number),
                1 => write.lands_at = Instant::now() + late.mul_f64(rng.f64()),
                _ => {}
            }
        }
        lost.iter().for_each(|number| drop(inflight.remove(number)));
        count
    }

    /// Returns the number of writes in flight whose jobs still wait for them.
    pub(super) fn in_flight(&self, which: impl Fn(&Writer) -> bool) -> usize {
        self.lock().inflight.values().filter(|write| which(&write.by) && !write.is_orphan).count()
    }

    /// Frees the locks of jobs that have ended with their process.
    pub(super) fn unlock_all(&self, jobs: &[u64]) {
        for volume in self.lock().volumes.values_mut() {
            volume.lock = volume.lock.filter(|job| !jobs.contains(job));
        }
    }

    /// Makes servers refuse a process, and drop its writes in flight.
    pub(super) fn ban(&self, holder: &Holder) {
        let mut inner = self.lock();
        let Inner { volumes, inflight, banned, .. } = &mut *inner;
        banned.push(holder.clone());
        inflight.retain(|_, write| write.by.holder != *holder || volumes[&write.volume].node.is_some());
    }

    /// Powers a node off, and drops its writes in flight.
    pub(super) fn power_off(&self, node: &str) {
        self.lock().inflight.retain(|_, write| write.by.holder.node.as_str() != node);
    }

    /// Notes that a process is paused: the checks excuse its writes in flight.
    pub(super) fn note_pause(&self, holder: &Holder) {
        self.lock().paused.insert(holder.incarnation.clone(), None);
    }

    /// Notes the end of a process's pause.
    pub(super) fn note_resume(&self, holder: &Holder) {
        if let Some(until) = self.lock().paused.get_mut(&holder.incarnation) {
            until.get_or_insert_with(Instant::now);
        }
    }

    /// Returns how often history has gone back.
    pub(super) fn era(&self) -> u32 {
        self.lock().era
    }

    /// Starts an era after history has gone back: epochs will repeat.
    pub(super) fn next_era(&self) {
        let mut inner = self.lock();
        inner.era += 1;
        inner.volumes.values_mut().filter(|volume| volume.node.is_none()).for_each(|volume| volume.sealed = None);
    }

    /// Cuts a node's power: writes to its volumes that were not flushed may be lost.
    pub(super) fn power_cut(&self, node: &str, rng: &mut fastrand::Rng) {
        let mut inner = self.lock();
        let Inner { volumes, inflight, .. } = &mut *inner;
        inflight.retain(|_, write| volumes[&write.volume].node.as_deref() != Some(node));
        for volume in volumes.values_mut().filter(|volume| volume.node.as_deref() == Some(node)) {
            for (block, flushed) in volume.blocks.iter_mut().zip(&mut volume.flushed) {
                if rng.bool() {
                    *block = *flushed;
                }
                *flushed = *block;
            }
        }
    }

    /// Checks and seals the destination of a task that has succeeded.
    pub(super) fn seal(&self, name: &str, task: &TaskId, epoch: Epoch, expected: &[u64]) {
        let mut inner = self.lock();
        let Inner { volumes, inflight, era, .. } = &mut *inner;
        let rank = (*era, epoch);
        let Some(volume) = volumes.get_mut(name) else { return };
        if volume.node.is_none() && *era > 0 {
            volume.sealed = None;
            return;
        }
        self.result.expect(volume.blocks == expected, || {
            format!("{name}: {task} succeeded, but the destination is {:x?} and not {expected:x?}", volume.blocks)
        });
        self.result.expect(volume.flushed == expected, || format!("{name}: {task} succeeded before all was durable"));
        let late = inflight.values().find(|write| write.volume == name && write.by.rank() <= rank);
        self.result.expect(late.is_none(), || format!("{name}: {task} succeeded while {late:?} was on its way"));
        let newest = volume.newest.as_ref().map(Writer::rank);
        self.result.expect(newest.is_none_or(|newest| newest <= rank), || {
            format!("{name}: {task} succeeded under {epoch}, but {newest:?} has written")
        });
        volume.sealed = Some((rank, expected.to_vec()));
    }

    /// Checks at the end that completed volumes without later writes are unchanged.
    pub(super) fn check_end(&self) {
        for (name, volume) in &self.lock().volumes {
            let Some((rank, expected)) = &volume.sealed else { continue };
            let is_rewritten = volume.newest.as_ref().is_some_and(|newest| newest.rank() > *rank);
            self.result.expect(is_rewritten || volume.blocks == *expected, || {
                format!("{name}: changed after success under {rank:?}: {:x?} and not {expected:x?}", volume.blocks)
            });
        }
    }
}
