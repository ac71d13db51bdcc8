//! Implements [`Volume`] on a simulated disk.

use super::world::SharedWorld;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent};
use crate::ring::FileId;
use crate::sync::lock;
use crate::volume::{Allocation, Identity, ReadBack, Volume, VolumeIds, VolumeKind};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// An open simulated volume.
pub(crate) struct SimVolume {
    world: SharedWorld,
    file: FileId,
    identity: Identity,
    align: u32,
    size: AtomicU64,
    /// A pending request for block status and its reply.
    asked: Mutex<Option<(ByteRange, Vec<Extent>)>>,
}

impl SimVolume {
    /// Opens volume `file`.
    pub(crate) fn open(world: &SharedWorld, file: i32) -> Arc<dyn Volume> {
        let mut guard = world.lock();
        let disk = guard.disk(FileId(file));
        if let Some(server) = &mut disk.server {
            // A first connection has no writes to lose yet.
            server.answers();
        }
        let identity = Identity {
            name: format!("/simulated/{file}").into(),
            kind: disk.kind,
            device: 1,
            inode: file as u64 + 1,
            born_ns: None,
            size_bytes: disk.size,
            modified_ns: disk.changes,
            changed_ns: disk.changes,
            ids: VolumeIds::of([("serial", file.to_string())]),
        };
        let (align, size) = (disk.abilities.align, AtomicU64::new(disk.size));
        drop(guard);
        Arc::new(Self { world: world.clone(), file: FileId(file), identity, align, size, asked: Mutex::default() })
    }

    /// Draws an ENOSPC of a reservation or resize, with the probability of the volume's writes.
    fn run_out(&self, operation: Operation) -> Result<()> {
        let world = &mut *self.world.lock();
        let site = &mut world.sites[self.file.0 as usize / 2];
        if world.rng.f64() < site.faults.space {
            site.audit.troubles.push("no space");
            return Err(Error::os(Side::Destination, operation, nix::errno::Errno::ENOSPC, self.describe(operation)));
        }
        Ok(())
    }
}

fn first(max: usize, mut runs: Vec<Extent>) -> Vec<Extent> {
    runs.truncate(max);
    runs
}

impl fmt::Debug for SimVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimVolume").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Volume for SimVolume {
    fn kind(&self) -> VolumeKind {
        self.identity.kind
    }

    fn size_bytes(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn file(&self) -> FileId {
        self.file
    }

    fn align_bytes(&self) -> u32 {
        self.align
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn extents(&self, within: ByteRange, max: usize) -> Result<Option<Vec<Extent>>> {
        let mut world = self.world.lock();
        let now = world.now;
        if let Some(server) = world.disk(self.file).server {
            let asked = lock(&self.asked).take().filter(|(range, _)| *range == within);
            let waits = world.rng.bool();
            match asked {
                Some((_, answer)) if !waits => return Ok(Some(answer)),
                None if server.starts(now) > now => return Ok(None),
                None if !waits => world.disk(self.file).server.as_mut().expect("the volume has a server").answers(),
                asked => {
                    // A reply may be as old as its request, which may be from before a loss.
                    let answer = asked.unwrap_or_else(|| (within, first(max, world.disk(self.file).map(within))));
                    *lock(&self.asked) = Some(answer);
                    return Ok(None);
                }
            }
        }
        let mut runs = world.disk(self.file).map(within);
        // A scan may end early, wherever a run ends.
        let max = if world.rng.bool() { max } else { world.rng.usize(1..=max) };
        runs.truncate(max);
        Ok(Some(runs))
    }

    fn generation(&self) -> Option<u64> {
        self.world.lock().disk(self.file).server.map(|server| server.generation())
    }

    fn tells_zeros(&self) -> bool {
        self.world.lock().disk(self.file).server.is_some_and(|server| server.tells)
    }

    fn check_unchanged(&self) -> Result<()> {
        let mut world = self.world.lock();
        if world.disk(self.file).changes == self.identity.changed_ns {
            world.sites[self.file.0 as usize / 2].audit.looked_again = true;
            return Ok(());
        }
        Err(Error::new(Code::SourceChanged, Side::Source, Operation::Stat, "the source changed while it was copied"))
    }

    fn allocate(&self, range: ByteRange) -> Result<Allocation> {
        self.run_out(Operation::Allocate)?;
        let mut world = self.world.lock();
        world.sites[self.file.0 as usize / 2].assert_open("space is reserved");
        let disk = world.disk(self.file);
        if !disk.abilities.allocates {
            return Ok(Allocation::Unsupported);
        }
        disk.allocate(range);
        Ok(Allocation::Reserved)
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        if self.identity.kind == VolumeKind::File {
            self.run_out(Operation::Resize)?;
            self.world.lock().sites[self.file.0 as usize / 2].assert_open("the size is set");
            self.world.lock().disk(self.file).resize(size_bytes);
            self.size.store(size_bytes, Relaxed);
        }
        Ok(())
    }

    fn check_in_place(&self) -> Result<()> {
        Ok(())
    }

    fn sync_parent(&self) -> Result<()> {
        Ok(())
    }

    fn clone_range(&self, source: &dyn Volume, range: ByteRange) -> Result<()> {
        self.run_out(Operation::Clone)?;
        let mut world = self.world.lock();
        world.sites[self.file.0 as usize / 2].assert_open("a range is cloned");
        let bytes = world.disk(source.file()).cached.copy(range.start(), range.end());
        world.disk(self.file).write(range.start(), &bytes);
        Ok(())
    }

    fn evict(&self) -> Result<ReadBack> {
        self.world.lock().disk(self.file).evict();
        Ok(ReadBack::Evicted)
    }
}
