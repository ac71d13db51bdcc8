//! Checks copies of changes, which copy only what a dirty bitmap of the source names, over an older copy.
//!
//! Such a copy is right only if the destination is that older copy. No volume shows that, so the caller is trusted, but
//! never against a journal: what an unfinished copy of something else has left behind is no older copy. The journal of
//! a copy of changes names its source together with the bitmap. So it never matches a copy of the whole export, or of
//! the changes since another bitmap.

use super::{Identity, Volume, VolumeKind};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::journal::Header;
use crate::spec::CopySpec;

/// Between the name of an export and that of the bitmap. A canonical URI has no `#` of its own.
const MARK: &str = "#changed-since=";

/// Returns the identity of the source, as the journal of a copy records it.
pub(crate) fn source_identity(source: &dyn Volume, changed_since: Option<&str>) -> Identity {
    let mut identity = source.identity().clone();
    if let Some(bitmap) = changed_since {
        identity.name.push_str(MARK);
        identity.name.push_str(bitmap);
    }
    identity
}

/// Returns whether the journal is one of a copy of changes.
pub(super) fn is_of_changes(header: &Header) -> bool {
    header.source.kind == VolumeKind::Export && header.source.name.contains(MARK)
}

/// Refuses a destination that the journal of an unfinished copy to it shows to be no older copy of the source. The same
/// copy of changes, begun and not finished, leaves one.
///
/// # Errors
/// `ECheckpointMismatch`.
pub(crate) fn refuse_unfinished_copy(spec: &CopySpec, unfinished: &Header, source: &dyn Volume) -> Result<()> {
    let now = source_identity(source, spec.changed_since.as_deref());
    if spec.changed_since.is_none() || unfinished.source.name == now.name {
        return Ok(());
    }
    let (was, to) = (&unfinished.source.name, &unfinished.destination.name);
    let message = format!("{to} holds an unfinished copy of {was}, so it is no older copy of {}", source.name());
    let error = Error::new(Code::CheckpointMismatch, Side::Destination, Operation::Journal, message);
    Err(error.advise("finish that copy first, or copy in full, without --changed-since"))
}
