//! The engine: worker threads that serve every job of the process.

use crate::error::Result;
use crate::job::JobHandle;
use crate::spec::{BlockSize, CopySpec, VerifySpec};

/// Which ring the workers use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Face {
    /// io_uring, or threads where the host denies it.
    #[default]
    Auto,
    /// io_uring, or starting fails with `EUnsupported`.
    Uring,
    /// A small pool of pread/pwrite threads per core.
    Threads,
}

/// How an engine is set up. `None` is chosen for the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineConfig {
    /// Worker threads, 1 to the number of usable CPUs, each pinned to one. Default: all of them.
    pub cores: Option<usize>,
    /// Bytes of a slot: the largest block a job may use. Default 1 MiB.
    pub block_size: Option<BlockSize>,
    /// Slots per core, 1 to 256: the queue depth. Default: 8 MiB worth of blocks, at least 8, at most 64.
    pub depth: Option<usize>,
    /// Upper bound for all buffers together, in bytes: lowers the depth. Default: no bound of its own.
    pub memory_bytes: Option<u64>,
    /// Which ring.
    pub face: Face,
}

/// Running workers. Dropping it stops them after their jobs have ended.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Starts the workers.
    ///
    /// # Errors
    /// `EBadRequest` for a configuration outside its ranges; `EUnsupported` or `EOverloaded` if the host denies rings,
    /// threads or memory, with the remedy.
    pub fn start(_config: EngineConfig) -> Result<Self> {
        unimplemented!()
    }

    /// Starts a copy. Everything that can go wrong with it is in its report.
    #[must_use]
    pub fn submit(&self, _spec: CopySpec) -> JobHandle {
        unimplemented!()
    }

    /// Starts a comparison. Everything that can go wrong with it is in its report.
    #[must_use]
    pub fn verify(&self, _spec: VerifySpec) -> JobHandle {
        unimplemented!()
    }

    /// The number of workers.
    #[must_use]
    pub fn cores(&self) -> usize {
        unimplemented!()
    }
}
