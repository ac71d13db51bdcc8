//! Copies storage volumes block by block through io_uring: one thread and one ring per core.
//!
//! An [`Engine`](engine::Engine) is started once per process. It takes a [`CopySpec`](spec::CopySpec), gives back a
//! [`JobHandle`](job::JobHandle), and ends every job with a [`Report`](progress::Report): success means that every
//! planned byte was read, written and flushed; anything else names a code, a side, an operation and a range.
//!
//! ```
//! use blockhaul_engine::engine::{Engine, EngineConfig};
//! use blockhaul_engine::job::StopReason;
//! use blockhaul_engine::progress::Status;
//! use blockhaul_engine::spec::CopySpec;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let path = |name: &str| folder.path().join(name);
//! std::fs::write(path("golden"), vec![7; 8 << 20])?;
//!
//! let engine = Engine::start(EngineConfig::default())?;
//! let kept = engine.submit(CopySpec::new(path("golden").into(), path("kept").into()));
//!
//! // At 1 MiB a second the second copy cannot be done before it is cancelled.
//! let slow = CopySpec { limit_bytes_per_second: Some(1 << 20), ..CopySpec::new(path("golden").into(), path("dropped").into()) };
//! let dropped = engine.submit(slow);
//! dropped.cancel(StopReason::UserCancel);
//!
//! let report = kept.wait();
//! assert_eq!(report.status, Status::Succeeded);
//! assert_eq!(report.bytes.durable, report.bytes.planned);
//!
//! let report = dropped.wait();
//! assert_eq!(report.status, Status::Cancelled);
//! assert!(report.quiesced && report.bytes.durable < 8 << 20);
//! # Ok(())
//! # }
//! ```
//!
//! # Data flow
//! ```text
//! CopySpec -> Volume(source) -> ExtentMap (scanned in windows, ahead of the copy)
//!                    Checkpoint (earlier run) --+--> Plan -> Segment ...
//!             .------------------ one per core, no locks ------------------.
//!  Segment -> | Worker -> Pipeline -> Slot(state) <-> Ring <-> kernel        | -> Channel(destination)
//!             '----- written ranges ---------------------------------------'
//!  Job <- written ranges -> flush destination -> Journal (checkpoint, receipt) -> Progress / Report
//! ```
//! The modules below are in the order in which data passes through them. The seam to the kernel is the ring: it owns a
//! buffer for as long as the kernel may touch it.

pub mod units;
pub mod shown;
mod limits;
pub mod error;
mod exhausted;
pub mod resource_check;
mod sync;
mod seeded_numbers;
pub mod backoff;
pub mod network;
pub mod spec;
pub mod volume;
pub mod extent;
pub mod write_gate;
pub mod supervision;
mod plan;
mod buffer;
mod ring;
pub mod nbd;
mod channel;
mod percentiles;
mod pass;
mod pipeline;
mod worker;
pub mod journal;
pub mod progress;
pub mod job;
pub mod engine;
pub mod flow;
pub mod host;
#[cfg(test)]
mod sim;
