//! Copies of changes: only what a dirty bitmap of the source names is copied, over an older copy that holds the rest.
//!
//! Such a copy is right only if the destination is that older copy. Nobody can look at a volume and tell, so the caller
//! is trusted with it, but never where a journal says otherwise: what an unfinished copy of something else has left
//! behind is no older copy of anything. So the journal of a copy of changes names its source together with the bitmap,
//! which makes it another source than the whole export, and than the changes since another bitmap.

use super::{Identity, Volume, VolumeKind};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::journal::Header;
use crate::spec::CopySpec;

/// Between the name of an export and that of the bitmap. A canonical URI has no `#` of its own.
const MARK: &str = "#changed-since=";

/// What a copy reads, as its journal knows it.
pub(crate) fn source_identity(source: &dyn Volume, changed_since: Option<&str>) -> Identity {
    let mut identity = source.identity().clone();
    if let Some(bitmap) = changed_since {
        identity.name.push_str(MARK);
        identity.name.push_str(bitmap);
    }
    identity
}

/// Whether the journal is one of a copy of changes.
pub(super) fn is_increment(header: &Header) -> bool {
    header.source.kind == VolumeKind::Export && header.source.name.contains(MARK)
}

/// Refuses a destination that the journal of an unfinished copy to it shows to be no older copy of the source. The same
/// copy of changes, begun and not finished, leaves one.
///
/// # Errors
/// `ECheckpointMismatch`.
pub(crate) fn refuse_half_copy(spec: &CopySpec, unfinished: &Header, source: &dyn Volume) -> Result<()> {
    let now = source_identity(source, spec.changed_since.as_deref());
    if spec.changed_since.is_none() || unfinished.source.name == now.name {
        return Ok(());
    }
    let (was, to) = (&unfinished.source.name, &unfinished.destination.name);
    let message = format!("{to} holds an unfinished copy of {was}, so it is no older copy of {}", source.name());
    let error = Error::new(Code::CheckpointMismatch, Side::Destination, Operation::Journal, message);
    Err(error.advise("finish that copy first, or copy in full, without --changed-since"))
}
