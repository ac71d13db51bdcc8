//! Writes the journal file for its thread: through a small ring, or by plain calls where io_uring is denied.
//!
//! The ring belongs to `tokio-uring` and is never the data path's. It is made without `DEFER_TASKRUN`, with which this
//! runtime waits forever for operations that the kernel finishes on another thread.

use crate::resource_check::{RUNTIME_DESCRIPTORS, require_descriptors};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;

/// Entries of the ring: at most one write or sync per job is in flight.
const RING_ENTRIES: u32 = 32;

/// I/O of the journal thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// io_uring: the syncs of several jobs run side by side.
    Ring,
    /// pwrite and fdatasync, one after the other.
    Plain,
}

impl Backend {
    /// The ring if this host gives one that can write, sync and close.
    pub(super) fn probe() -> Self {
        match probe_ring() {
            Ok(true) => Self::Ring,
            Ok(false) => {
                tracing::info!("journals use plain I/O: the kernel's io_uring lacks an operation");
                Self::Plain
            }
            Err(error) => {
                tracing::info!(%error, "journals use plain I/O: io_uring is not available");
                Self::Plain
            }
        }
    }
}

fn probe_ring() -> io::Result<bool> {
    use io_uring::{IoUring, Probe, opcode};
    let ring = IoUring::new(RING_ENTRIES)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Write::CODE, opcode::Fsync::CODE, opcode::Close::CODE, opcode::AsyncCancel::CODE];
    Ok(needed.iter().all(|&operation| probe.is_supported(operation)))
}

/// Runs the thread's futures.
pub(super) enum Runtime {
    /// On `tokio-uring`.
    Ring(tokio_uring::Runtime),
    /// On plain tokio.
    Plain(tokio::runtime::Runtime),
}

impl Runtime {
    /// # Errors
    /// As the system says: no ring, no descriptors.
    pub(super) fn new(backend: Backend) -> io::Result<Self> {
        match backend {
            // It panics where it has no descriptors for what it starts, signals included.
            Backend::Ring => require_descriptors(RUNTIME_DESCRIPTORS, "start the journal's ring")
                .map_err(io::Error::other)
                .and_then(|()| tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES)))
                .map(Self::Ring),
            Backend::Plain => tokio::runtime::Builder::new_current_thread().build().map(Self::Plain),
        }
    }

    /// Runs `future`, which may spawn local tasks, to its end.
    pub(super) fn block_on(&self, future: impl Future<Output = ()>) {
        match self {
            Self::Ring(runtime) => runtime.block_on(future),
            Self::Plain(runtime) => tokio::task::LocalSet::new().block_on(runtime, future),
        }
    }
}

/// An open journal file.
pub(super) enum JournalDisk {
    /// A file whose operations go through the thread's ring.
    Ring(tokio_uring::fs::File),
    /// A file whose operations block the thread.
    Plain(File),
    /// A file whose operations are only recorded.
    #[cfg(test)]
    Scripted(std::rc::Rc<Script>),
}

impl JournalDisk {
    pub(super) fn new(file: File, backend: Backend) -> Self {
        match backend {
            Backend::Ring => Self::Ring(tokio_uring::fs::File::from_std(file)),
            Backend::Plain => Self::Plain(file),
        }
    }

    /// Writes all of `bytes`.
    pub(super) async fn write(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.write_all_at(bytes, offset).await.0,
            Self::Plain(file) => file.write_all_at(&bytes, offset),
            #[cfg(test)]
            Self::Scripted(script) => {
                let is_record = offset >= super::format::HEADER_OFFSET;
                script.note(if is_record { Step::Record } else { Step::Slot })
            }
        }
    }

    /// Makes every finished write durable.
    pub(super) async fn sync(&self) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.sync_data().await,
            Self::Plain(file) => file.sync_data(),
            #[cfg(test)]
            Self::Scripted(script) => script.note(Step::Sync),
        }
    }

    /// Closes the descriptor before it returns.
    pub(super) async fn close(self) {
        match self {
            // Everything that matters was synced: what closing says cannot undo it.
            Self::Ring(file) => _ = file.close().await,
            Self::Plain(file) => drop(file),
            #[cfg(test)]
            Self::Scripted(_) => {}
        }
    }
}

/// A call to a scripted disk.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Record,
    Slot,
    Sync,
}

/// Notes every step, and fails one of them.
#[cfg(test)]
pub(super) struct Script {
    steps: std::cell::RefCell<Vec<Step>>,
    failing: Option<usize>,
}

#[cfg(test)]
impl Script {
    pub(super) fn new(failing: Option<usize>) -> Self {
        Self { steps: std::cell::RefCell::default(), failing }
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        self.steps.borrow().clone()
    }

    fn note(&self, step: Step) -> io::Result<()> {
        let mut steps = self.steps.borrow_mut();
        steps.push(step);
        if self.failing == Some(steps.len() - 1) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}
