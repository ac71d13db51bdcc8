//! Applies a supervision to the start of a copy: asks for admission, checks the claimed ranges, and waits for the gate.

use super::content_check::ContentCheck;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, RangeSet};
use crate::journal::{Content, JournalFile, Run};
use crate::limits::{DIRECT_ALIGN_BYTES, SAMPLE_READ_BYTES, TICK};
use crate::nbd::connection_revoker::ConnectionRevoker;
use crate::pass::durable_sample::DurableSample;
use crate::spec::{CopySpec, Overwrite, ResumePolicy};
use crate::supervision::{Admission, AdmissionRequest, DurableLeaf, Supervision, VolumeEvidence};
use crate::volume::{GivenVolumes, Identity, OpenedCopy, UnprovenIdentity, VolumeKind, refuse_changed_source};
use std::fmt::{self, Display};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};

/// Supervision of a copy, resolved. By default without admission and claimed ranges.
#[derive(Default)]
pub(crate) struct ResolvedSupervision {
    pub given: GivenVolumes,
    admission: Option<Arc<dyn Admission>>,
    durable: RangeSet,
    evidence: VolumeEvidence,
}

impl fmt::Debug for ResolvedSupervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { given, admission, durable, evidence: _ } = self;
        let is_asked = admission.is_some();
        f.debug_struct("ResolvedSupervision")
            .field("given", given)
            .field("asks", &is_asked)
            .field("durable", durable)
            .finish()
    }
}

impl ResolvedSupervision {
    /// Creates the supervision of a job whose connections `revoker` can reset; the revoker holds the gate.
    pub(crate) fn new(supervision: Supervision, revoker: &Arc<ConnectionRevoker>) -> Self {
        let Supervision { gate: _, admission, durable, evidence, source, destination } = supervision;
        let given = GivenVolumes { revoker: Arc::clone(revoker), source, destination };
        Self { given, admission, durable: durable.unwrap_or_default(), evidence }
    }

    /// Returns whether ranges are claimed.
    pub(crate) fn has_claims(&self) -> bool {
        !self.durable.is_empty()
    }

    /// Refuses durable ranges for a copy that would not go on from them.
    ///
    /// # Errors
    /// `EBadRequest`.
    pub(crate) fn refuse_unwanted(&self, spec: &CopySpec) -> Result<()> {
        let goes_on = spec.resume_policy == ResumePolicy::Resume && spec.overwrite == Overwrite::Yes;
        if goes_on || !self.has_claims() {
            return Ok(());
        }
        let message = "durable ranges are given for a copy that does not go on from them";
        Err(Error::bad_request(message).advise("give them together with resuming and overwriting, or not at all"))
    }

    /// Refuses a destination that cannot hold the claimed ranges.
    ///
    /// # Errors
    /// `ECheckpointMismatch`.
    pub(crate) fn refuse_lost(&self, opened: &OpenedCopy) -> Result<()> {
        let [source, destination] = opened.volumes();
        let claimed = self.durable.iter().last().map_or(0, |run| run.end()).min(source.size_bytes());
        let is_short = destination.kind() == VolumeKind::File && destination.size_bytes() < claimed;
        if claimed == 0 || !(opened.is_created() || is_short) {
            return Ok(());
        }
        let how = if opened.is_created() {
            "was not there".to_owned()
        } else {
            destination.size_bytes().to_string() + " bytes long"
        };
        Err(lost(destination.name(), &how))
    }

    /// Refuses volumes that are not those of the run that made it durable, by what that run has left of them.
    ///
    /// # Errors
    /// `ESourceChanged`, `ECheckpointMismatch`, `ECancelled`, and what the volumes say to being read.
    pub(crate) fn refuse_others(&self, opened: &OpenedCopy, cancelled: &dyn Fn() -> bool) -> Result<()> {
        if !self.has_claims() {
            return Ok(());
        }
        let now = opened.source.volume().identity();
        let then = self.evidence.source.as_deref().and_then(|text| Identity::from_text(text, now.name.clone()));
        let source = then.map_or(Ok(false), |then| refuse_changed_source(&then, now))?;
        let leaves = match &self.evidence.leaves[..] {
            [] => compared(&self.durable, now.size_bytes),
            leaves => leaves.iter().map(of_leaf).collect(),
        };
        // The supervisor knows the destination by other means; its content is checked all the same.
        ContentCheck::of_leaves(leaves, cancelled).refuse_others(
            &opened.source,
            &opened.destination,
            UnprovenIdentity { source, destination: false },
        )
    }

    /// Requests the admission for a destination that is missing.
    ///
    /// # Errors
    /// `ECheckpointMismatch`.
    pub(crate) fn refuse_missing(&self, spec: &CopySpec) -> Result<()> {
        if self.has_claims() { Err(lost(&spec.destination, "missing")) } else { Ok(()) }
    }

    /// Asks whether the destination may be changed. Blocks for as long as the answer takes.
    ///
    /// # Errors
    /// The answer, or the destination cannot be read.
    pub(crate) fn ask_admission(&self, opened: &OpenedCopy, has_journal: bool) -> Result<()> {
        let Some(admission) = &self.admission else { return Ok(()) };
        let destination = opened.destination.volume();
        admission.admit(&AdmissionRequest {
            file: opened.destination.file().map(AsFd::as_fd),
            kind: destination.kind(),
            is_empty: opened.content()?.is_empty(),
            has_journal,
            size_bytes: destination.size_bytes(),
        })
    }

    /// Returns the leaves of the evidence as durable ones; empty without claims.
    pub(crate) fn known(&self) -> DurableSample {
        let mut known = DurableSample::default();
        if self.has_claims() {
            self.evidence.leaves.iter().for_each(|leaf| known.add_run(&of_leaf(leaf), leaf.range.len()));
        }
        known
    }

    /// Waits until the destination may be changed. To be called immediately before it is.
    ///
    /// # Errors
    /// `ECancelled`.
    pub(crate) fn wait_for_gate(&self, cancelled: &dyn Fn() -> bool) -> Result<()> {
        while !self.given.revoker.is_open() {
            if cancelled() {
                let message = "cancelled while the right to write was not held";
                return Err(Error::new(Code::Cancelled, Side::Caller, Operation::Start, message));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Returns the claimed ranges of a copy of `size` bytes that are not in `journal`: whole leaves, which are
    /// recorded there, as data of unknown digest.
    ///
    /// # Errors
    /// The error of the journal.
    pub(crate) fn record(&self, journal: &mut JournalFile, known: &RangeSet, size: u64, leaf: u32) -> Result<RangeSet> {
        let claimed = whole_leaves(&self.durable, size, leaf.into());
        let news: RangeSet = claimed.iter().flat_map(|run| known.gaps(run)).collect();
        if !news.is_empty() {
            record_undigested(journal, &news)?;
        }
        Ok(news)
    }
}

fn lost(name: &impl Display, how: &str) -> Error {
    let message = format!("the destination {name} is not what an earlier run has written to: it is {how}");
    let error = Error::new(Code::CheckpointMismatch, Side::Destination, Operation::Open, message);
    error.advise("name the destination of the earlier run, or copy in full")
}

fn of_leaf(leaf: &DurableLeaf) -> Run {
    let content = leaf.digest.map_or(Content::Zeros, |digest| Content::Leaves(vec![digest]));
    Run { range: leaf.range, content }
}

/// Ranges to compare where no digest was kept: the ends of the first, the last and the longest range.
fn compared(durable: &RangeSet, size: u64) -> Vec<Run> {
    let align = DIRECT_ALIGN_BYTES.into();
    let durable = whole_leaves(durable, size, align);
    let (first, last) = (durable.iter().next(), durable.iter().last());
    let longest = durable.iter().max_by_key(|run| run.len());
    let piece = |start: u64, end: u64| ByteRange::new(start, end.min(start + SAMPLE_READ_BYTES));
    let ends = |run: ByteRange| {
        let last = run.end().saturating_sub(SAMPLE_READ_BYTES).next_multiple_of(align).max(run.start());
        [piece(run.start(), run.end()), piece(last, run.end())]
    };
    let mut pieces: Vec<ByteRange> = [first, last, longest].into_iter().flatten().flat_map(ends).collect();
    pieces.sort_unstable_by_key(|piece| piece.start());
    pieces.dedup();
    pieces.into_iter().map(|range| Run { range, content: Content::Undigested }).collect()
}

/// Trimmed inwards; the last leaf may be shorter.
fn whole_leaves(ranges: &RangeSet, size: u64, leaf: u64) -> RangeSet {
    let whole = |run: ByteRange| {
        let start = run.start().next_multiple_of(leaf);
        let end = if run.end() >= size { size } else { run.end() / leaf * leaf };
        (start < end).then(|| ByteRange::new(start, end))
    };
    ranges.iter().filter_map(whole).collect()
}

/// Records ranges as durable, without digests; waits until that is synced.
///
/// # Errors
/// The error of the journal.
pub(crate) fn record_undigested(journal: &mut JournalFile, ranges: &RangeSet) -> Result<()> {
    let runs = ranges.iter().map(|range| Run { range, content: Content::Undigested }).collect();
    let (tell, answer) = mpsc::channel();
    // Sending fails only if this thread is gone.
    journal.append(runs, move |result| _ = tell.send(result));
    answer.recv().unwrap_or_else(|_| Err(Error::internal(Operation::Journal, "the journal does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range of a small block is all that a copy may have made durable.
    #[test]
    fn the_ends_of_what_has_no_digests_are_compared_however_short_it_is() {
        const MIB: u64 = 1 << 20;
        let pieces = |ranges: &[(u64, u64)], size| {
            let ranges = ranges.iter().map(|&(start, end)| ByteRange::new(start, end)).collect();
            let pieces = compared(&ranges, size).into_iter().map(|run| (run.range.start(), run.range.end()));
            pieces.collect::<Vec<_>>()
        };
        assert_eq!(pieces(&[(0, MIB / 4)], 4 * MIB), [(0, MIB / 4)]);
        assert_eq!(pieces(&[(MIB / 4, 3 * MIB)], 4 * MIB), [(MIB / 4, MIB / 4 + MIB), (2 * MIB, 3 * MIB)]);
        assert_eq!(pieces(&[(0, 2 * MIB + 5)], 2 * MIB + 5), [(0, MIB), (MIB + 4096, 2 * MIB + 5)]);
        assert_eq!(pieces(&[(1, 4095)], 4 * MIB), []);
    }

    #[test]
    fn claims_are_trimmed_inwards_to_whole_leaves() {
        let trimmed = |ranges: &[(u64, u64)], size| {
            let ranges = ranges.iter().map(|&(start, end)| ByteRange::new(start, end)).collect();
            whole_leaves(&ranges, size, 10).iter().map(|run| (run.start(), run.end())).collect::<Vec<_>>()
        };
        assert_eq!(trimmed(&[(0, 9), (11, 29), (30, 45)], 100), [(30, 40)]);
        assert_eq!(trimmed(&[(1, 20), (41, 99)], 95), [(10, 20), (50, 95)], "the last leaf is short");
        assert_eq!(trimmed(&[(90, 94), (96, 200)], 95), [], "not all of the last leaf");
        assert_eq!(trimmed(&[(0, u64::MAX)], 95), [(0, 95)]);
        assert_eq!(trimmed(&[(0, u64::MAX)], 0), []);
        assert_eq!(trimmed(&[(u64::MAX - 5, u64::MAX)], 95), []);
    }
}
