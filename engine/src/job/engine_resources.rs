//! Holds what all jobs of an engine use: its workers, its journal thread and the sizes of its buffers.

use super::pass_controller::WorkerInboxes;
use crate::error::{Error, Result};
use crate::journal::JournalService;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Parts of the engine that its jobs use.
#[derive(Debug)]
pub(crate) struct EngineResources {
    pub workers: WorkerInboxes,
    pub journals: JournalService,
    /// Bytes of a slot.
    pub block_bytes: u32,
    /// Bytes of all slots together: the most that can be in flight.
    pub window_bytes: u64,
    /// Whether the ring is the pool of threads.
    pub threads: bool,
    /// System calls of each worker so far.
    pub syscalls: Arc<[AtomicU64]>,
}

impl EngineResources {
    /// Returns the number of system calls of all workers.
    pub(crate) fn syscalls(&self) -> u64 {
        self.syscalls.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Name of the ring in a path.
    pub(crate) fn ring(&self) -> &'static str {
        if self.threads { "threads" } else { "ring" }
    }

    /// Refuses blocks that do not fit a slot.
    pub(crate) fn refuse_block(&self, bytes: u32) -> Result<()> {
        if bytes <= self.block_bytes {
            return Ok(());
        }
        Err(Error::bad_request(format!(
            "blocks of {bytes} bytes are needed, the engine was started for {}: raise --block-size",
            self.block_bytes
        )))
    }
}
