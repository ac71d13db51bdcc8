//! Lets a supervisor bound a job: until when it writes, whether it may start, and by which descriptors it opens
//! volumes.
//!
//! A [`CopySpec`](crate::spec::CopySpec) is plain data and says _what_ is copied. A supervision is alive while the job
//! runs. Its parts are a gate, an admission, ranges that earlier runs made durable, and open descriptors. The engine
//! does not know their reasons. Without a supervision ([`Supervision::default`]) a job pays nothing for them.
//!
//! Two things always hold. Nothing that changes the destination is submitted while the gate is closed, or before the
//! admission was granted. No path is looked up of a volume that was given as a descriptor.

use crate::error::Result;
use crate::extent::{ByteRange, RangeSet};
use crate::volume::VolumeKind;
use crate::write_gate::WriteGate;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Conditions of a supervisor for a job. The default has none.
#[derive(Default)]
pub struct Supervision {
    /// Gate of changes to the destination: writes, zeros, clones, flushes, its size. `None`: always open. While it is
    /// closed the job waits with what it has read, and goes on when it opens; cancelled while it is closed, the job
    /// gives up what it had not submitted. Connections that are lost are made anew only while it is open.
    pub gate: Option<Arc<WriteGate>>,
    /// Admission, requested once, after all checks and before the first change to the destination.
    pub admission: Option<Arc<dyn Admission>>,
    /// Bytes of the destination that an earlier run has made durable whose journal is not at hand: they are counted as
    /// resumed and not copied again. Trimmed inwards to whole leaves. Only with `ResumePolicy::Resume` and
    /// `Overwrite::Yes`, else `EBadRequest`, and of no destination that is missing, created or too short
    /// (`ECheckpointMismatch`). A journal that exists has to match as always; what it says is added. The digest is null
    /// then, as not all data passed through this engine, and verifying compares with the source.
    pub durable: Option<RangeSet>,
    /// Identifies the volumes of that earlier run. Everything in it has to hold (`ESourceChanged`,
    /// `ECheckpointMismatch`). Without leaves, both volumes are compared with each other at some of the durable ranges.
    pub evidence: VolumeEvidence,
    /// The source, open for reading; the spec's path is only its name. `EBadRequest` if the spec names an export.
    pub source: Option<OwnedFd>,
    /// The destination, open for reading and writing; the spec's path is only its name. `EBadRequest` if the spec names
    /// an export.
    pub destination: Option<OpenedDestination>,
}

impl fmt::Debug for Supervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gate, admission, durable, evidence, source, destination } = self;
        f.debug_struct("Supervision")
            .field("gate", gate)
            .field("admission", &admission.as_ref().map(|_| "asked"))
            .field("durable", durable)
            .field("evidence", evidence)
            .field("source", source)
            .field("destination", destination)
            .finish()
    }
}

/// Evidence that identifies the volumes of a run to later runs. The default is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeEvidence {
    /// The source as that run found it, as text that only this crate reads.
    pub source: Option<String>,
    /// Leaves that are durable.
    pub leaves: Vec<DurableLeaf>,
}

/// A durable leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableLeaf {
    /// Where.
    pub range: ByteRange,
    /// XXH3-128 of its bytes; `None`: they are zeros.
    pub digest: Option<u128>,
}

/// A local destination that a supervisor has opened. The engine opens the same inode anew, through `/proc/self/fd`,
/// and locks it there: it shares neither flags nor lock with other holders of this descriptor.
#[derive(Debug)]
pub struct OpenedDestination {
    /// A regular file or block device. Its holder must not have its lock (`flock`), nor have opened a device with
    /// `O_EXCL`: the engine takes both for itself.
    pub file: OwnedFd,
    /// Whether the file was created for this job: then it counts as empty, and `parent` is synced. If the job is
    /// refused, the caller removes the file; the engine never does.
    pub created: bool,
    /// Directory of the file. Without it the engine does not sync the directory of a created file, which is then up to
    /// the caller.
    pub parent: Option<OwnedFd>,
}

/// Both sides of a comparison, open for reading; the spec's paths are only their names. `None`: by name.
#[derive(Debug, Default)]
pub struct OpenedVolumes {
    /// The reference, if it is a volume of this host.
    pub reference: Option<OwnedFd>,
    /// The target.
    pub volume: Option<OwnedFd>,
    /// The receipt that it is compared with.
    pub receipt: Option<OwnedFd>,
}

/// Decides whether a job may change its destination.
pub trait Admission: Send + Sync {
    /// Called once, on the job's thread, with the destination open and locked (an export cannot be) and every rule of
    /// a copy passed. May block for long; a cancel is looked at when it returns. Not called for a copy of which nothing
    /// is left to do but putting its journal away.
    ///
    /// # Errors
    /// The error that the job then ends with. The destination is as it was, and a file that the engine created is gone.
    fn admit(&self, destination: &AdmissionRequest<'_>) -> Result<()>;
}

/// A destination before the first change to it.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionRequest<'a> {
    /// The file or device, for reading and writing what lies beside its content (attributes); `None` for an export.
    pub file: Option<BorrowedFd<'a>>,
    /// Kind of the destination.
    pub kind: VolumeKind,
    /// Whether the rules call it empty: a file that was created or has 0 bytes, a device or export on which no data was
    /// found.
    pub is_empty: bool,
    /// Whether the job goes on from a journal of its own.
    pub has_journal: bool,
    /// Current size of the destination in bytes.
    pub size_bytes: u64,
}
