//! Finds a copy that an earlier run finished but whose journal it did not put away, because it was killed.
//!
//! A copy counts as finished only if both volumes are those of that copy: a receipt that was kept says nothing about a
//! source of today. Nothing is changed here.

use super::content_check::ContentCheck;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::journal::{JournalReader, JournalState};
use crate::shown::Shown;
use crate::spec::{CheckpointLocation, CopySpec, Direct, PathChoice, ResumePolicy};
use crate::volume::{
    GivenVolumes, IdentityMatch, OpenVolume, ReadOptions, open_verified_end, refuse_other, source_identity,
};
use std::path::Path;

/// A finished copy, both volumes open for reading.
pub(super) struct FinishedCopy<'a> {
    /// The place of its journal.
    pub path: &'a Path,
    pub journal: JournalReader,
    pub source: OpenVolume,
    pub destination: OpenVolume,
}

/// Returns the finished copy that the spec would resume; `None` if there is none.
///
/// # Errors
/// `ECheckpointMismatch` and `ESourceChanged` if the volumes are not those of that copy; those of opening and reading
/// them.
pub(super) fn find<'a>(
    spec: &'a CopySpec,
    given: &GivenVolumes,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<FinishedCopy<'a>>> {
    let (CheckpointLocation::File(path), ResumePolicy::Resume) = (&spec.checkpoint, spec.resume_policy) else {
        return Ok(None);
    };
    let Ok(journal) = JournalReader::open(path) else { return Ok(None) };
    if journal.state() != JournalState::Finished {
        return Ok(None);
    }
    let header = journal.header();
    let direct = if spec.path == PathChoice::Inline { Direct::No } else { spec.direct };
    let reading = ReadOptions { network: spec.network, cancelled, ..ReadOptions::new(direct) };
    let destination = open_verified_end(&spec.destination, Side::Destination, &reading, given)?;
    if let IdentityMatch::Other(how) = header.destination.compare_identity(destination.volume().identity()) {
        let (path, to) = (path.shown(), &header.destination.name);
        let message = format!("{path} is the receipt of a copy to another destination, {to}: {how}");
        return Err(Error::new(Code::CheckpointMismatch, Side::Destination, Operation::Journal, message)
            .advise("name another file with --checkpoint"));
    }
    let source = open_verified_end(&spec.source, Side::Source, &reading, given)?;
    let identity = source_identity(source.volume(), spec.changed_since.as_deref());
    let unproven = refuse_other(header, journal.durable(), &identity, destination.volume().identity())?;
    // What was true when it was finished may not be true any more.
    ContentCheck::of(&journal, cancelled)?.refuse_others(&source, &destination, unproven)?;
    Ok(Some(FinishedCopy { path, journal, source, destination }))
}
