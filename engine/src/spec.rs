//! Describes what a caller asks for: one copy, or one comparison, in full.
//!
//! A spec is plain data that cannot contradict itself. Whether the host can carry it out is found out at the start of
//! the job. Two-valued choices are enums, so that a call site names what it chose.

pub use crate::network::NetworkTerms;

use crate::error::{Error, Result, named};
use crate::limits::{
    BLOCK_BYTES_DIRECT, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, CHECKPOINT_BYTES, CHECKPOINT_TIME, LOCK_WAIT,
};
use crate::units::check_duration;
use crate::volume::Locator;
use std::path::PathBuf;
use std::time::Duration;

named! {
    /// Whether zeros may become holes, and what they are known by.
    Sparse {
        /// Blocks of zeros are left or made unallocated. What the source's map calls a hole is not read.
        Auto => "auto",
        /// Every byte of the destination is allocated. What the source's map calls a hole is not read.
        Never => "never",
        /// As `auto`, but the map is not trusted: every byte is read, and zeros are what was read as zeros. For file
        /// systems whose maps are wrong; costs the time to read the holes.
        Read => "read",
    }
}

named! {
    /// Whether extents may be shared with the source instead of copied.
    Reflink {
        /// Where the file system can.
        Auto => "auto",
        /// Every byte is copied.
        Never => "never",
        /// Or the job fails with `EUnsupported`.
        Always => "always",
    }
}

named! {
    /// Whether the page cache is bypassed.
    Direct {
        /// Where both volumes can.
        Auto => "auto",
        /// Or the job fails with `EUnsupported`.
        Yes => "yes",
        /// Through the page cache.
        No => "no",
    }
}

named! {
    /// How operations reach the kernel.
    PathChoice {
        /// Chosen by probing the two volumes.
        Auto => "auto",
        /// io_uring, even where the kernel would punt.
        Ring => "ring",
        /// pread and pwrite on the worker itself.
        Inline => "inline",
        /// A small pool of pread/pwrite threads per core, as on hosts without io_uring.
        Threads => "threads",
    }
}

named! {
    /// Whether leaves are digested while they pass.
    DigestKind {
        /// XXH3-128 per leaf, BLAKE3 over the leaves.
        Xxh3 => "xxh3",
        /// No digest.
        None => "none",
    }
}

/// Whether the destination is read back and compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Read back past the cache.
    Yes,
    /// Trust the flush.
    #[default]
    No,
}

/// Whether the end of the job waits for stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Success means durable.
    #[default]
    Required,
    /// The report says durable 0.
    None,
}

/// Treatment of a destination that holds data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Write over it; a regular file is truncated to 0 first.
    Yes,
    /// `EExists`.
    #[default]
    No,
}

/// Treatment of a source device that is mounted read-write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LiveSource {
    /// Copy it; the copy is as consistent as a crash.
    Allow,
    /// `EBusy`.
    #[default]
    Refuse,
}

/// Treatment of an unfinished journal for the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResumePolicy {
    /// `EExists`, naming the journal.
    #[default]
    Refuse,
    /// Go on from it; a fresh start if there is none.
    Resume,
    /// Discard it; a regular destination file is truncated to 0 first, unless only changes are copied.
    Restart,
}

/// Where the journal lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointLocation {
    /// The journal is in this file.
    File(PathBuf),
    /// Nowhere a later run could find: the copy cannot be resumed.
    None,
}

/// Work that may be lost to a crash: whichever bound is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointEvery {
    /// Bytes written since the last record. Default 256 MiB.
    pub bytes: u64,
    /// Time since the last record. Default 1 s.
    pub time: Duration,
}

impl Default for CheckpointEvery {
    fn default() -> Self {
        Self { bytes: CHECKPOINT_BYTES, time: CHECKPOINT_TIME }
    }
}

/// The unit of I/O, cancellation and digest leaves: a power of two from 4 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The engine's own choice: the block of a direct copy.
    pub const DEFAULT: Self = Self(BLOCK_BYTES_DIRECT);

    /// A block size in bytes.
    ///
    /// # Errors
    /// `EBadRequest` unless a power of two from 4 KiB to 64 MiB.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (u64::from(BLOCK_BYTES_MIN)..=u64::from(BLOCK_BYTES_MAX)).contains(&bytes) {
            Ok(Self(u32::try_from(bytes).expect("bounded by BLOCK_BYTES_MAX")))
        } else {
            Err(Error::bad_request(format!("block size {bytes} is not a power of two from 4 KiB to 64 MiB")))
        }
    }

    /// Returns the size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

/// One copy. Start from [`CopySpec::new`] and change the fields that differ from the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySpec {
    /// Volume that is read.
    pub source: Locator,
    /// Volume that is written. A regular file that does not exist is created.
    pub destination: Locator,
    /// `None`: chosen for the path (1 MiB direct, 256 KiB otherwise, under `protect` and with exports, 64 KiB with
    /// `changed_since`). What a server takes at most cuts any wish. Larger blocks cost memory
    /// and latency of a cancel, smaller ones CPU per byte. Not larger than the engine's slots.
    pub block_size: Option<BlockSize>,
    /// Bytes per second over all cores; `None` is unlimited. Can be changed while the job runs.
    pub limit_bytes_per_second: Option<u64>,
    /// Keep the p90 latency of other readers of the same devices under this. Costs throughput on a busy device.
    pub protect: Option<Duration>,
    /// Whether zeros may become holes.
    pub sparse: Sparse,
    /// Whether extents may be shared.
    pub reflink: Reflink,
    /// Whether the page cache is bypassed.
    pub direct: Direct,
    /// How operations reach the kernel.
    pub path: PathChoice,
    /// Where progress is kept for a later run.
    pub checkpoint: CheckpointLocation,
    /// How often.
    pub checkpoint_every: CheckpointEvery,
    /// What to do with an unfinished journal.
    pub resume_policy: ResumePolicy,
    /// Keep the finished journal here; `None` removes it on success. An older receipt is replaced, no other file is.
    pub receipt: Option<PathBuf>,
    /// Read back and compare.
    pub verify: Verify,
    /// Digest while copying.
    pub digest: DigestKind,
    /// Flush before success.
    pub durability: Durability,
    /// Write over data.
    pub overwrite: Overwrite,
    /// How long to wait for another copy's lock on the destination. Default 10 s.
    pub lock_wait: Duration,
    /// Read a device that is mounted read-write.
    pub live_source: LiveSource,
    /// How volumes behind a network are reached.
    pub network: NetworkTerms,
    /// Copy only what the source's dirty bitmap of this name calls changed; the destination holds the rest already,
    /// from a copy of the state in which the bitmap was begun. Only exports have such bitmaps. Leaves in which nothing
    /// has changed are neither read nor examined, so there is no digest.
    pub changed_since: Option<String>,
}

impl CopySpec {
    /// A copy with every default, and no checkpoint: a library does not guess where state may live.
    #[must_use]
    pub fn new(source: Locator, destination: Locator) -> Self {
        Self {
            source,
            destination,
            block_size: None,
            limit_bytes_per_second: None,
            protect: None,
            sparse: Sparse::Auto,
            reflink: Reflink::Auto,
            direct: Direct::Auto,
            path: PathChoice::Auto,
            checkpoint: CheckpointLocation::None,
            checkpoint_every: CheckpointEvery::default(),
            resume_policy: ResumePolicy::default(),
            receipt: None,
            verify: Verify::No,
            digest: DigestKind::Xxh3,
            durability: Durability::Required,
            overwrite: Overwrite::No,
            lock_wait: LOCK_WAIT,
            live_source: LiveSource::Refuse,
            network: NetworkTerms::default(),
            changed_since: None,
        }
    }
}

impl CopySpec {
    /// Finds wishes that contradict each other, whatever the volumes are. Jobs begin with it; callers may ask earlier.
    ///
    /// # Errors
    /// `EBadRequest`, naming what does not go together.
    pub fn check(&self) -> Result<()> {
        if self.durability == Durability::None && (self.resume_policy == ResumePolicy::Resume || self.receipt.is_some())
        {
            let what =
                "a copy that is not flushed can neither be resumed nor leave a receipt: what is recorded is durable";
            return Err(Error::bad_request(what));
        }
        if self.checkpoint_every.bytes == 0 || self.checkpoint_every.time.is_zero() {
            return Err(Error::bad_request(
                "a checkpoint interval of zero would record without end: name one above zero",
            ));
        }
        check_duration("checkpoint_every", self.checkpoint_every.time)?;
        check_duration("lock_wait", self.lock_wait)?;
        self.protect.map_or(Ok(()), |target| check_duration("protect", target))?;
        if let Some(bitmap) = &self.changed_since
            && (bitmap.is_empty() || self.source.path().is_some())
        {
            let source = &self.source;
            return Err(Error::bad_request(format!(
                "the changes since '{bitmap}' cannot be copied from {source}: only NBD exports have dirty bitmaps, by name"
            )));
        }
        self.network.check()
    }
}

/// Reference of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Another volume, read in full.
    Volume(Locator),
    /// The leaf digests of a finished journal.
    Receipt(PathBuf),
}

/// One comparison: reads only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifySpec {
    /// Expected content.
    pub reference: Reference,
    /// Volume that is checked.
    pub volume: Locator,
    /// As in [`CopySpec`]; with a receipt the receipt's own leaf size is used.
    pub block_size: Option<BlockSize>,
    /// As in [`CopySpec`].
    pub limit_bytes_per_second: Option<u64>,
    /// As in [`CopySpec`].
    pub direct: Direct,
    /// What holes are known by, as in [`CopySpec`]: [`Sparse::Auto`] or [`Sparse::Read`].
    pub sparse: Sparse,
    /// As in [`CopySpec`].
    pub network: NetworkTerms,
}

impl VerifySpec {
    /// A comparison with every default.
    #[must_use]
    pub fn new(reference: Reference, volume: Locator) -> Self {
        Self {
            reference,
            volume,
            block_size: None,
            limit_bytes_per_second: None,
            direct: Direct::Auto,
            sparse: Sparse::Auto,
            network: NetworkTerms::default(),
        }
    }

    /// As [`CopySpec::check`].
    ///
    /// # Errors
    /// `EBadRequest`, naming what cannot be.
    pub fn check(&self) -> Result<()> {
        if self.sparse == Sparse::Never {
            let what = "a comparison allocates nothing: --sparse is auto, or read to look at holes, too";
            return Err(Error::bad_request(what));
        }
        self.network.check()
    }
}
