//! Simulates a volume behind a server for tests, and notes what it was asked.

use crate::error::Result;
use crate::extent::{ByteRange, Extent};
use crate::ring::FileId;
use crate::sync::lock;
use crate::volume::{Allocation, Identity, ReadBack, Volume, VolumeKind, VolumeName};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

/// A simulated volume behind a server.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub hangs_up: bool,
    /// Time waited for it at the end.
    pub waited: Mutex<Vec<Duration>>,
    pub generation: AtomicU64,
    /// Replies to successive requests; after the last one the map is unknown.
    pub answers: Mutex<VecDeque<Option<Vec<Extent>>>>,
    pub asked: Mutex<Vec<ByteRange>>,
}

impl Volume for Peer {
    fn name(&self) -> &VolumeName {
        static NAME: LazyLock<VolumeName> = LazyLock::new(|| "nbd://peer/".into());
        &NAME
    }

    fn kind(&self) -> VolumeKind {
        VolumeKind::Device
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn file(&self) -> FileId {
        FileId(-1)
    }

    fn align_bytes(&self) -> u32 {
        1
    }

    fn identity(&self) -> &Identity {
        unreachable!("nobody asks")
    }

    fn extents(&self, within: ByteRange, _max: usize) -> Result<Option<Vec<Extent>>> {
        lock(&self.asked).push(within);
        Ok(lock(&self.answers).pop_front().flatten())
    }

    fn generation(&self) -> Option<u64> {
        Some(self.generation.load(Relaxed))
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, _range: ByteRange) -> Result<Allocation> {
        Ok(Allocation::Unsupported)
    }

    fn resize(&self, _size_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn check_in_place(&self) -> Result<()> {
        Ok(())
    }

    fn sync_parent(&self) -> Result<()> {
        Ok(())
    }

    fn clone_range(&self, _source: &dyn Volume, _range: ByteRange) -> Result<()> {
        Ok(())
    }

    fn evict(&self) -> Result<ReadBack> {
        Ok(ReadBack::Server)
    }

    fn stop(&self, limit: Duration) -> bool {
        lock(&self.waited).push(limit);
        self.hangs_up
    }
}
