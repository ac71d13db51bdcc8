//! Defines what a job reports: its progress while it runs, and its report when it has ended.

pub use crate::pass::latency::Latency;
pub use crate::percentiles::{LatencyUs, Percentiles};

use crate::error::{Error, named};
use crate::volume::ReadBack;
use serde::{Serialize, Serializer};

/// Progress of a running job, in bytes. Always `issued >= written >= durable`; none of them ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// The source's size, holes included.
    pub planned: u64,
    /// Handed to the kernel or found not to need it (resumed, zero, cloned).
    pub issued: u64,
    /// Of these, answered without error by the destination.
    pub written: u64,
    /// Of these, flushed and recorded.
    pub durable: u64,
    /// Of these, read back and found right.
    pub verified: u64,
    /// Written over the last second, in bytes per second.
    pub rate_bytes_per_second: u64,
    /// Seconds to go at that rate; `None` while there is no rate.
    pub eta_seconds: Option<f64>,
}

named! {
    /// Outcome of a job.
    Status {
        /// Every planned byte was read, written and flushed.
        Succeeded => "succeeded",
        /// An error ended it.
        Failed => "failed",
        /// The runner gave it back; it can be resumed.
        Interrupted => "interrupted",
        /// The user cancelled it; it can be resumed.
        Cancelled => "cancelled",
        /// A comparison found different bytes.
        Differs => "differs",
    }
}

/// Bytes by what was done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// The source's size, holes included.
    pub planned: u64,
    /// Data read from the source by this run; twice what was copied again, as a server may have lost it.
    pub read: u64,
    /// Data written to the destination by this run; as `read`.
    pub written: u64,
    /// Zeroed by request, without sending data; as `read`.
    pub zeroed: u64,
    /// Needed nothing: zeros where the destination is known to hold zeros, by what this run did to it or by what its
    /// server says, and what is unchanged under `--changed-since`.
    pub skipped: u64,
    /// Shared with the source or copied by the kernel.
    pub cloned: u64,
    /// Durable before this run started.
    pub resumed: u64,
    /// Durable now.
    pub durable: u64,
    /// Read back and found right.
    pub verified: u64,
}

/// A range that differs, found by a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Report of a job that has ended. Serialises as the report of the command line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Outcome of the job.
    pub status: Status,
    /// Whether no operation of the job is in flight any more. `false` only if a device or peer never answered, or a
    /// server did not hang up: also a success may be so.
    pub quiesced: bool,
    /// Error that ended it, unless it succeeded.
    pub error: Option<Error>,
    /// Bytes by what was done with them.
    pub bytes: Bytes,
    /// Wall time of the job.
    pub seconds: f64,
    /// CPU time, user and system, of the whole process while the job ran (kernel workers of its rings included).
    pub cpu_seconds: f64,
    /// Time from the request to stop, or the last block issued, to no operation in flight.
    pub drain_seconds: f64,
    /// Planned bytes less the resumed ones, over the wall time; for a job that did not finish, written bytes.
    pub rate_bytes_per_second: u64,
    /// Path of the bytes, such as `ring-direct`.
    pub path: String,
    /// Cores that served it.
    pub cores: usize,
    /// The block of the job.
    pub block_size_bytes: u32,
    /// Most bytes ever in flight at once.
    pub window_bytes_max: u64,
    /// Latencies.
    pub latency_us: LatencyUs,
    /// The full histograms, for callers that merge them over jobs; not part of the serialised report.
    #[serde(skip)]
    pub latency: Latency,
    /// System calls of the workers while the job ran.
    pub syscalls: u64,
    /// Digest of the whole, as `blake3-xxh3:HEX`; `None` with the reason in `digest_reason`.
    #[serde(serialize_with = "digest_text")]
    pub digest: Option<[u8; 32]>,
    /// Reason why there is no digest.
    pub digest_reason: Option<String>,
    /// Source of the bytes of a verification; `None` without one.
    pub verified_from: Option<ReadBack>,
    /// The first ranges that differ (at most 100), of a comparison.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// The journal that a later run can resume from or that was kept as a receipt.
    pub journal: Option<String>,
}

impl Report {
    /// The report of a job that could not even be started.
    pub(crate) fn not_started(error: Error, cores: usize) -> Self {
        Self {
            status: Status::Failed,
            quiesced: true,
            error: Some(error),
            bytes: Bytes::default(),
            seconds: 0.0,
            cpu_seconds: 0.0,
            drain_seconds: 0.0,
            rate_bytes_per_second: 0,
            path: String::new(),
            cores,
            block_size_bytes: 0,
            window_bytes_max: 0,
            latency_us: LatencyUs::default(),
            latency: Latency::default(),
            syscalls: 0,
            digest: None,
            digest_reason: None,
            verified_from: None,
            differences: Vec::new(),
            journal: None,
        }
    }
}

fn digest_text<S: Serializer>(digest: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    match digest {
        Some(bytes) => serializer.serialize_str(&format_digest(bytes)),
        None => serializer.serialize_none(),
    }
}

/// The text form of a root digest: `blake3-xxh3:` and 64 hexadecimal digits.
#[must_use]
pub fn format_digest(root: &[u8; 32]) -> String {
    use std::fmt::Write;
    root.iter().fold(String::from("blake3-xxh3:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
