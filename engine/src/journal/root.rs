//! Computes the root digest: one number for what a whole copy holds.
//!
//! BLAKE3 over a canonical sequence of leaves in the order of their offsets. The root does not depend on how the copy
//! was cut into runs, in which order they became durable and how often it was interrupted: two copies with the same
//! bytes, size and leaf size have the same root. `docs/format.md` gives the sequence.

use super::format::Geometry;
use super::{Content, Header, Run};

/// Separates this digest from any other use of BLAKE3, and one version of the sequence from the next.
pub(crate) const ROOT_TAG: [u8; 16] = *b"blockhaul root 1";
/// Opens a run of zero leaves: their number follows.
pub(crate) const ROOT_ZEROS: u8 = 0;
/// Opens one leaf of data: its digest follows.
pub(crate) const ROOT_LEAF: u8 = 1;

/// Computes the root digest from all runs of a copy in the order of offsets, without gaps.
#[derive(Clone, Debug)]
pub struct RootHasher {
    hasher: blake3::Hasher,
    geometry: Geometry,
    /// Offset at which the next run must start.
    next: u64,
    /// Zero leaves not yet hashed: they may go on in the next run.
    zeros: u64,
    is_complete: bool,
}

impl RootHasher {
    /// Creates the computation for the copy of `header`.
    #[must_use]
    pub fn new(header: &Header) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&ROOT_TAG);
        hasher.update(&header.size_bytes.to_le_bytes());
        hasher.update(&header.leaf_bytes.to_le_bytes());
        Self { hasher, geometry: Geometry::of(header), next: 0, zeros: 0, is_complete: true }
    }

    /// Adds the next run. One that leaves a gap, is not made of whole leaves or was not digested makes the root
    /// unknown.
    pub fn push(&mut self, run: &Run) {
        let leaves = self.geometry.admits(run.range).then(|| self.geometry.leaves(run.range));
        match (&run.content, leaves) {
            (Content::Zeros, Some(leaves)) if run.range.start() == self.next => self.zeros += leaves,
            (Content::Leaves(digests), Some(leaves))
                if run.range.start() == self.next && digests.len() as u64 == leaves =>
            {
                self.hash_zeros();
                for digest in digests {
                    self.hasher.update(&[ROOT_LEAF]);
                    self.hasher.update(&digest.to_le_bytes());
                }
            }
            _ => self.is_complete = false,
        }
        self.next = run.range.end();
    }

    fn hash_zeros(&mut self) {
        if self.zeros > 0 {
            self.hasher.update(&[ROOT_ZEROS]);
            self.hasher.update(&self.zeros.to_le_bytes());
            self.zeros = 0;
        }
    }

    /// The root, or `None` if a byte of the copy was missing or not digested.
    #[must_use]
    pub fn finish(mut self) -> Option<[u8; 32]> {
        self.hash_zeros();
        (self.is_complete && self.next == self.geometry.size_bytes).then(|| *self.hasher.finalize().as_bytes())
    }
}
