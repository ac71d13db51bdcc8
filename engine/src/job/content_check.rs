//! Checks that both volumes still hold what a journal says, by reading a few of its leaves again on both sides.
//!
//! Identities can be equal where the content is not (a file that was overwritten, an export with another file behind
//! it, a disk whose serial is not its own). They can also be unknown. So every copy that resumes reads a few leaves
//! before it changes anything. A difference always ends the copy. Equal leaves prove nothing where only zeros were
//! compared, as most volumes have zeros somewhere.

use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::ByteRange;
use crate::journal::{Content, JournalReader, LeafDigest, Run};
use crate::limits::{SAMPLE_BYTES, SAMPLE_LEAVES_MAX, SAMPLE_LEAVES_MIN, SAMPLE_READ_BYTES};
use crate::pipeline::examine::is_zero;
use crate::volume::{OpenVolume, UnprovenIdentity};
use twox_hash::XxHash3_128;

/// Content that was found equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatchedContent {
    /// Bytes that are not all zero.
    Data,
    /// Nothing, or nothing but zeros.
    ZerosOnly,
}

/// Leaves of a journal that are read again.
pub(crate) struct ContentCheck<'a> {
    leaves: Vec<Run>,
    cancelled: &'a dyn Fn() -> bool,
}

/// Content of a leaf that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundLeaf {
    Zeros,
    Data(LeafDigest),
    /// The volume ends before the leaf does.
    Missing,
}

impl<'a> ContentCheck<'a> {
    /// As many leaves as fit the bound, the most telling ones.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub(crate) fn of(journal: &JournalReader, cancelled: &'a dyn Fn() -> bool) -> Result<Self> {
        let (mut leaves, mut bytes) = (Vec::new(), 0);
        for leaf in journal.telling_leaves().take(SAMPLE_LEAVES_MAX) {
            let leaf = leaf?;
            bytes += leaf.range.len();
            if bytes > SAMPLE_BYTES && leaves.len() >= SAMPLE_LEAVES_MIN {
                break;
            }
            leaves.push(leaf);
        }
        Ok(Self { leaves, cancelled })
    }

    /// Checks leaves that an earlier run has kept. As many as fit the bound are read.
    pub(crate) fn of_leaves(mut leaves: Vec<Run>, cancelled: &'a dyn Fn() -> bool) -> Self {
        leaves.truncate(SAMPLE_LEAVES_MAX);
        while leaves.len() > SAMPLE_LEAVES_MIN
            && leaves.iter().map(|leaf| leaf.range.len()).fold(0, u64::saturating_add) > SAMPLE_BYTES
        {
            leaves.pop();
        }
        Self { leaves, cancelled }
    }

    /// Refuses volumes that differ from the journal, or of which neither identity nor content tells that they are its
    /// own.
    ///
    /// # Errors
    /// `ESourceChanged`, `ECheckpointMismatch`, `ECancelled`, and what the volumes say to being read.
    pub(crate) fn refuse_others(
        &self,
        source: &OpenVolume,
        destination: &OpenVolume,
        unproven: UnprovenIdentity,
    ) -> Result<()> {
        let from = self.check(source, Side::Source)?;
        let to = self.check(destination, Side::Destination)?;
        let both = self.compare(source, destination)?;
        let is_doubtful = |unproven: bool, equal| unproven && equal == MatchedContent::ZerosOnly && both == equal;
        if is_doubtful(unproven.destination, to) {
            return Err(unknown(destination, Side::Destination));
        }
        if is_doubtful(unproven.source, from) {
            return Err(unknown(source, Side::Source));
        }
        Ok(())
    }

    /// Compares one side with the digests.
    ///
    /// # Errors
    /// As [`ContentCheck::refuse_others`].
    pub(crate) fn check(&self, end: &OpenVolume, side: Side) -> Result<MatchedContent> {
        let mut equal = MatchedContent::ZerosOnly;
        for leaf in &self.leaves {
            let expected = match &leaf.content {
                Content::Zeros => FoundLeaf::Zeros,
                Content::Leaves(digests) => FoundLeaf::Data(digests.first().copied().unwrap_or_default()),
                Content::Undigested => continue,
            };
            if self.look(end, leaf.range, side)? != expected {
                return Err(differs(end, side, leaf.range));
            }
            if expected != FoundLeaf::Zeros {
                equal = MatchedContent::Data;
            }
        }
        Ok(equal)
    }

    /// Returns whether `end` still holds some of the data that was copied to it: then it is the destination of this
    /// copy, even if the rest is damaged. Without digests the content proves nothing, and the identity decides.
    pub(crate) fn holds_some(&self, end: &OpenVolume, side: Side) -> bool {
        let digest = |leaf: &Run| match &leaf.content {
            Content::Leaves(digests) => digests.first().map(|&digest| (leaf.range, digest)),
            Content::Zeros | Content::Undigested => None,
        };
        let mut data = self.leaves.iter().filter_map(digest).peekable();
        let is_there =
            |(range, digest)| self.look(end, range, side).is_ok_and(|found| found == FoundLeaf::Data(digest));
        data.peek().is_none() || data.any(is_there)
    }

    /// Compares both sides with each other where there are no digests.
    fn compare(&self, source: &OpenVolume, destination: &OpenVolume) -> Result<MatchedContent> {
        let mut equal = MatchedContent::ZerosOnly;
        for leaf in self.leaves.iter().filter(|leaf| leaf.content == Content::Undigested) {
            let from = self.look(source, leaf.range, Side::Source)?;
            if from != self.look(destination, leaf.range, Side::Destination)? {
                return Err(differ(source, destination, leaf.range));
            }
            if from != FoundLeaf::Zeros {
                equal = MatchedContent::Data;
            }
        }
        Ok(equal)
    }

    /// Reads a leaf in pieces, as one may be larger than all else that a job holds.
    fn look(&self, end: &OpenVolume, leaf: ByteRange, side: Side) -> Result<FoundLeaf> {
        let (mut hasher, mut zeros) = (XxHash3_128::new(), true);
        for piece in leaf.split(SAMPLE_READ_BYTES) {
            if (self.cancelled)() {
                let message = "cancelled before the destination was touched";
                return Err(Error::new(Code::Cancelled, Side::Caller, Operation::Start, message));
            }
            let bytes = read(end, piece, side)?;
            if bytes.len() as u64 != piece.len() {
                return Ok(FoundLeaf::Missing);
            }
            zeros &= is_zero(&bytes);
            hasher.write(&bytes);
        }
        Ok(if zeros { FoundLeaf::Zeros } else { FoundLeaf::Data(hasher.finish_128()) })
    }
}

/// The bytes of `range`, which need not end at a multiple of the alignment.
fn read(end: &OpenVolume, range: ByteRange, side: Side) -> Result<Vec<u8>> {
    let volume = end.volume();
    let aligned = range.end().next_multiple_of(u64::from(volume.align_bytes())).min(volume.size_bytes());
    if aligned < range.end() {
        return Ok(Vec::new());
    }
    let mut bytes = end.read(ByteRange::new(range.start(), aligned), side)?;
    bytes.truncate(usize::try_from(range.len()).expect("a piece is small"));
    Ok(bytes)
}

fn error(side: Side, message: String) -> Error {
    let code = if side == Side::Source { Code::SourceChanged } else { Code::CheckpointMismatch };
    let error = Error::new(code, side, Operation::Verify, message);
    if side == Side::Source {
        error.advise("copy from the volume of the first start, or start over: --restart, or submit the task anew")
    } else {
        error.advise(
            "name the destination of the first start; if this one is to be overwritten, start over with --restart \
             --overwrite, or submit the task anew with --overwrite",
        )
    }
}

fn differs(end: &OpenVolume, side: Side, leaf: ByteRange) -> Error {
    let name = end.volume().name();
    let what = match side {
        Side::Source => "does not hold any more what was copied from it",
        _ => "does not hold what was written to it",
    };
    error(side, format!("the {side} {name} {what}: it was replaced or written to since")).at(leaf.start(), leaf.len())
}

fn differ(source: &OpenVolume, destination: &OpenVolume, leaf: ByteRange) -> Error {
    let (from, to) = (source.volume().name(), destination.volume().name());
    let message = format!("{from} and {to} differ where the one was copied to the other: one of them was written to");
    error(Side::Destination, message).at(leaf.start(), leaf.len())
}

fn unknown(end: &OpenVolume, side: Side) -> Error {
    let name = end.volume().name();
    let message = format!(
        "nothing tells that the {side} {name} is still the volume of the first start: it has neither serial nor UUID, \
         and no data was copied yet by which to know it"
    );
    error(side, message)
}
