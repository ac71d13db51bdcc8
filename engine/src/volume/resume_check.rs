//! Checks whether the volumes of today are those that a checkpoint is about.
//!
//! A checkpoint says which bytes of one destination are those of one state of one source. It says nothing about any
//! other volume, and resuming from it would silently mix two volumes.

use super::changes_check::is_of_changes;
use super::file::difference;
use super::identity::IdentityMatch;
use super::{Identity, VolumeKind};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::RangeSet;
use crate::journal::Header;
use crate::limits::DIRECT_ALIGN_BYTES;

/// Which volumes may be those of the first start, as far as names, sizes and times go, without that anything proves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnprovenIdentity {
    pub source: bool,
    pub destination: bool,
}

/// Refuses to go on with other volumes than those of the first start, or with a source that changed since. `source` is
/// what [`super::source_identity`] says of it. Tells what is left for their content to prove.
///
/// # Errors
/// `ECheckpointMismatch` for the destination, `ESourceChanged` for the source.
pub(crate) fn refuse_other(
    header: &Header,
    durable: &RangeSet,
    source: &Identity,
    destination: &Identity,
) -> Result<UnprovenIdentity> {
    let destination = refuse_other_destination(header, durable, destination)?;
    let source = refuse_changed_source(&header.source, source)?;
    Ok(UnprovenIdentity { source, destination })
}

/// Returns whether what stays of it proves that the checkpoint is about this destination.
pub(crate) fn is_destination(header: &Header, now: &Identity) -> bool {
    header.destination.compare_identity(now) == IdentityMatch::Same
}

fn refuse_other_destination(header: &Header, durable: &RangeSet, now: &Identity) -> Result<bool> {
    let compare_identity = header.destination.compare_identity(now);
    if let IdentityMatch::Other(how) = compare_identity {
        return Err(mismatch(&format!(
            "the checkpoint is about another destination: {} as it was then, not {} as it is now: {how}",
            header.destination.name, now.name
        )));
    }
    let recorded = durable.iter().last().map_or(0, |run| run.end());
    let size_fits = match now.kind {
        VolumeKind::Device | VolumeKind::Export => now.size_bytes == header.destination.size_bytes,
        VolumeKind::File if is_of_changes(header) => now.size_bytes >= header.destination.size_bytes,
        VolumeKind::File => {
            let longest = header.size_bytes.next_multiple_of(u64::from(DIRECT_ALIGN_BYTES));
            // A power cut before the first flush may bring back the size from before the first start.
            let is_untouched = recorded == 0 && now.size_bytes == header.destination.size_bytes;
            is_untouched || (recorded <= now.size_bytes && now.size_bytes <= longest)
        }
    };
    if size_fits {
        return Ok(compare_identity == IdentityMatch::Unknown);
    }
    Err(mismatch(&format!(
        "the size of {} is {} bytes now, which is not how the copy left it ({recorded} of {} bytes recorded)",
        now.name, now.size_bytes, header.size_bytes
    )))
}

fn mismatch(message: &str) -> Error {
    let error = Error::new(Code::CheckpointMismatch, Side::Destination, Operation::Journal, message);
    error.advise("name the destination of the first start, or start over with --restart")
}

/// Returns whether content has to prove that it is the same source.
pub(crate) fn refuse_changed_source(then: &Identity, now: &Identity) -> Result<bool> {
    let compare_identity = then.compare_identity(now);
    let how = match &compare_identity {
        IdentityMatch::Other(how) => Some(format!("the checkpoint is about {}: {how}", then.name)),
        // The node of a device may be made anew at every boot: its inode says nothing.
        IdentityMatch::Same | IdentityMatch::Unknown if then.kind == VolumeKind::Device => {
            difference(&Identity { inode: now.inode, ..then.clone() }, now)
        }
        IdentityMatch::Same | IdentityMatch::Unknown => difference(then, now),
    };
    let Some(how) = how else { return Ok(compare_identity == IdentityMatch::Unknown) };
    let message = format!("the source {} is not what it was when the copy started: {how}", now.name);
    let error = Error::new(Code::SourceChanged, Side::Source, Operation::Journal, message);
    Err(error.advise("start over with --restart"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ByteRange;
    use crate::spec::DigestKind;
    use crate::volume::VolumeIds;

    fn file(inode: u64, size_bytes: u64) -> Identity {
        let (kind, ids) = (VolumeKind::File, VolumeIds::of([("uuid", "1".to_owned())]));
        let (name, born_ns) = (format!("/f{inode}").into(), Some(5));
        Identity { name, kind, device: 1, inode, born_ns, size_bytes, modified_ns: 7, changed_ns: 7, ids }
    }

    fn header() -> Header {
        let (source, destination) = (file(1, 5000), file(2, 0));
        Header { source, destination, size_bytes: 5000, leaf_bytes: 4096, digest: DigestKind::Xxh3, started_ns: 0 }
    }

    fn destination_code(now: &Identity, durable_end: u64) -> Option<Code> {
        let durable = RangeSet::from_iter([ByteRange::new(0, durable_end)]);
        refuse_other_destination(&header(), &durable, now).err().map(|error| error.code)
    }

    #[test]
    fn a_destination_may_be_as_the_copy_left_it_at_any_moment() {
        for (size, durable) in [(0, 0), (4096, 4096), (5000, 4096), (5000, 5000), (8192, 5000)] {
            assert_eq!(destination_code(&file(2, size), durable), None, "{size} bytes, {durable} durable");
        }
    }

    #[test]
    fn a_destination_may_be_longer_again_if_nothing_was_recorded() {
        let header = Header { destination: file(2, 99_999), ..header() };
        let refused = |durable_end| {
            let durable = RangeSet::from_iter([ByteRange::new(0, durable_end)]);
            refuse_other_destination(&header, &durable, &file(2, 99_999)).is_err()
        };
        assert!(!refused(0) && refused(4096));
    }

    #[test]
    fn another_or_shortened_or_lengthened_destination_is_a_mismatch() {
        let reborn = Identity { born_ns: Some(6), ..file(2, 5000) };
        let elsewhere = Identity { ids: VolumeIds::of([("uuid", "2".to_owned())]), ..file(2, 5000) };
        for now in [file(3, 5000), reborn, elsewhere, file(2, 8193)] {
            assert_eq!(destination_code(&now, 0), Some(Code::CheckpointMismatch), "{now:?}");
        }
        assert_eq!(destination_code(&file(2, 4095), 4096), Some(Code::CheckpointMismatch), "recorded bytes are gone");
    }

    fn export(name: &str, size_bytes: u64) -> Identity {
        let (kind, name, ids) = (VolumeKind::Export, name.into(), VolumeIds::default());
        Identity { name, kind, device: 0, inode: 0, born_ns: None, size_bytes, modified_ns: 0, changed_ns: 0, ids }
    }

    #[test]
    fn an_export_is_known_by_its_name_and_size() {
        let here = || export("nbd://host/a", 5000);
        let header = Header { source: here(), destination: export("nbd://host/b", 6000), ..header() };
        let code = |source: &Identity, destination: &Identity| {
            refuse_other(&header, &RangeSet::new(), source, destination).err().map(|error| error.code)
        };
        assert_eq!(code(&here(), &header.destination), None);
        for other in [export("nbd://host/c", 6000), export("nbd://host/b", 6001), file(2, 6000)] {
            assert_eq!(code(&here(), &other), Some(Code::CheckpointMismatch), "{other:?}");
        }
        let changes = export("nbd://host/a#changed-since=monday", 5000);
        for other in [export("nbd://host/c", 5000), export("nbd://host/a", 5001), changes] {
            assert_eq!(code(&other, &header.destination), Some(Code::SourceChanged), "{other:?}");
        }
    }

    #[test]
    fn an_older_copy_keeps_its_size_whatever_is_recorded() {
        let source = export("nbd://host/a#changed-since=monday", 5000);
        let header = Header { source, destination: file(2, 9000), ..header() };
        let durable = RangeSet::from_iter([ByteRange::new(0, 4096)]);
        for (size, fits) in [(8999, false), (9000, true), (12_288, true)] {
            assert_eq!(refuse_other_destination(&header, &durable, &file(2, size)).is_ok(), fits, "{size} bytes");
        }
    }

    #[test]
    fn any_difference_of_the_source_counts() {
        let now = file(1, 5000);
        assert_eq!(refuse_changed_source(&header().source, &now), Ok(false));
        let renumbered = Identity { device: 2, ..now.clone() };
        assert_eq!(refuse_changed_source(&header().source, &renumbered), Ok(false), "by another number");
        let nameless = Identity { ids: VolumeIds::default(), born_ns: None, ..now.clone() };
        assert_eq!(refuse_changed_source(&nameless, &nameless), Ok(true), "nothing stays of it");
        let later = Identity { modified_ns: 8, ..now.clone() };
        let touched = Identity { changed_ns: 8, ..now.clone() };
        let elsewhere = Identity { ids: VolumeIds::of([("uuid", "2".to_owned())]), ..now };
        for changed in [file(1, 4999), file(9, 5000), later, touched, elsewhere] {
            let error = refuse_changed_source(&header().source, &changed).unwrap_err();
            assert_eq!(error.code, Code::SourceChanged, "{changed:?}");
            assert!(error.message.contains("--restart"), "{error}");
        }
    }
}
