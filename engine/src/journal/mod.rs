//! Keeps the journal of a job: one file that says which ranges are durable, and what they hold.
//!
//! An unfinished journal is a checkpoint; a finished one is a receipt. `docs/format.md` owns the bytes. Memory holds
//! one interval, never the whole list: runs are appended as they become durable and read back as a stream.

pub(crate) mod append;
#[cfg(test)]
mod crash_tests;
mod disk;
#[cfg(test)]
mod format_doc_tests;
mod format;
mod existing_file;
#[doc(hidden)]
pub mod fuzz;
mod sampled_leaves;
mod location;
mod path;
mod bytes;
mod read;
mod record;
mod root;
mod runs;
pub(crate) mod samples;
mod service;
#[cfg(test)]
mod service_tests;
mod run_span;
mod writer;

pub use existing_file::refuse_receipt;
pub(crate) use location::JournalLocation;
pub(crate) use path::check_place;
pub use path::default_checkpoint_path;
pub use read::JournalReader;
pub use root::RootHasher;

pub(crate) use service::{JournalDisposition, JournalFile, JournalService};

use crate::error::named;
use crate::extent::ByteRange;
use crate::spec::DigestKind;
use crate::volume::Identity;

/// The digest of one leaf: XXH3-128 over its bytes.
pub type LeafDigest = u128;

/// Facts about the job, fixed when the journal is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume that is read, as it was at the first start.
    pub source: Identity,
    /// The volume that is written. Its size and times are those at the first start.
    pub destination: Identity,
    /// Bytes of the copy: the source's size.
    pub size_bytes: u64,
    /// Bytes of a leaf, which is the block of the copy. The last leaf may be shorter.
    pub leaf_bytes: u32,
    /// Whether runs of data carry leaf digests.
    pub digest: DigestKind,
    /// Time at which the job first started, in ns since the epoch.
    pub started_ns: i64,
}

/// Content of a durable range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros only. Costs the same for a hole of any length.
    Zeros,
    /// Data, with the digest of each leaf in order.
    Leaves(Vec<LeafDigest>),
    /// Data that did not pass through the engine, or was not digested.
    Undigested,
}

/// A durable range: starts at a multiple of the leaf size and ends at one or at the end of the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub content: Content,
}

named! {
    /// State of a journal.
    JournalState {
        /// A checkpoint.
        Unfinished => "unfinished",
        /// A receipt.
        Finished => "finished",
    }
}

/// The last record of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishRecord {
    /// BLAKE3 over the canonical sequence of leaves; `None` where some were not digested.
    pub root: Option<[u8; 32]>,
    /// Time at which the job ended, in ns since the epoch.
    pub finished_ns: i64,
}

impl Run {
    /// The part of the run in `piece`, which lies inside of it and is made of whole leaves.
    pub(crate) fn cut(&self, piece: ByteRange, leaf_bytes: u64) -> Self {
        let content = match &self.content {
            Content::Leaves(leaves) => {
                let first = ((piece.start() - self.range.start()) / leaf_bytes) as usize;
                let count = piece.len().div_ceil(leaf_bytes) as usize;
                Content::Leaves(leaves[first..first + count].to_vec())
            }
            other => other.clone(),
        };
        Self { range: piece, content }
    }
}
