//! Opens both volumes of a copy, with every refusal that needs no journal.
//!
//! The order of the refusals is documented: rights, same volume, busy, read-only, size. Until [`OpenedCopy::keep`] the
//! destination holds what it held before, and a file that was created for it disappears again.

use super::destination::{CreatedBy, open_destination, read_only_device};
use super::export::read_only_export;
use super::given_volumes::GivenVolumes;
use super::inode::Inode;
use super::local::LocalVolume;
use super::lock::LockWait;
use super::occupancy::Occupied;
use super::open_for_reading::{OpenSource, ReadOptions, open_export};
use super::open_mode::OpenMode;
use super::open_volume::OpenVolume;
use super::{Locator, NbdUri, Volume, VolumeKind, kernel_calls};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::spec::CopySpec;
use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;

/// Content of the destination before the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DestinationContent {
    /// A file that this run created.
    Created,
    /// A file of 0 bytes.
    Empty,
    /// A device or export on which nothing was found.
    Blank,
    /// A file of so many bytes.
    Bytes(u64),
    /// A device or export on which this was found.
    Occupied(Occupied),
}

impl DestinationContent {
    /// Returns whether a copy may go ahead without consent.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Created | Self::Empty | Self::Blank => true,
            Self::Bytes(_) | Self::Occupied(_) => false,
        }
    }
}

impl fmt::Display for DestinationContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created | Self::Empty | Self::Blank => f.write_str("nothing"),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::Occupied(found) => found.fmt(f),
        }
    }
}

/// Both ends of a copy; the destination locked.
#[derive(Debug)]
pub(crate) struct OpenedCopy {
    // Dropped first: a refused file is removed while its lock is still held.
    creation: CreatedBy,
    /// Open for reading.
    pub source: OpenVolume,
    /// Open for reading and writing; locked and buffered, unless it is an export.
    pub destination: OpenVolume,
    /// Content of the destination before the copy, once it was examined.
    content: OnceCell<DestinationContent>,
}

impl OpenedCopy {
    /// Opens both, or refuses. Waits for the destination's lock for as long as `lock_wait` lasts. `rights` adds what
    /// the caller needs to be allowed besides, `missing` may refuse that a missing destination is created.
    ///
    /// # Errors
    /// In this order: what is no volume, `ENotFound`, `EPermission`, `ESameVolume`, `EBusy`, `EReadOnly`,
    /// `ESizeMismatch`; `ECancelled` while waiting. Nothing is left changed.
    pub(crate) fn open(
        spec: &CopySpec,
        given: &GivenVolumes,
        lock_wait: &LockWait<'_>,
        mode: OpenMode,
        rights: &dyn Fn() -> Result<()>,
        missing: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        given.refuse_misplaced(&spec.source, &spec.destination)?;
        // A destination that could never be one comes before a source that is missing: the request is malformed.
        match (&spec.destination, &given.destination) {
            (Locator::Path(path), Some(given)) => _ = Inode::opened(path, &given.file, Side::Destination)?,
            (Locator::Path(path), None) => _ = Inode::look_up(path, Side::Destination)?,
            (Locator::Nbd(_), _) => {}
        }
        let plain =
            ReadOptions { network: spec.network, cancelled: lock_wait.cancelled(), ..ReadOptions::new(spec.direct) };
        let mut source = OpenSource::open(
            &spec.source,
            &ReadOptions { changed_since: spec.changed_since.as_deref(), ..plain },
            given,
        )?;
        rights()?;
        source.end.watch()?;
        let (destination, creation) = match &spec.destination {
            Locator::Path(path) => {
                open_destination(spec, path, given.destination.as_ref(), &source, lock_wait, mode, missing)?
            }
            Locator::Nbd(uri) => {
                refuse_same_export(spec)?;
                let end = open_export(uri, Side::Destination, &plain, &given.revoker)?;
                source.refuse_live(spec.live_source)?;
                (end, CreatedBy::None)
            }
        };
        let opened = Self { creation, source: source.end, destination, content: OnceCell::new() };
        opened.refuse_read_only()?;
        opened.refuse_small(spec)?;
        Ok(opened)
    }

    /// Source and destination.
    pub(crate) fn volumes(&self) -> [&dyn Volume; 2] {
        [self.source.volume(), self.destination.volume()]
    }

    /// Returns whether the destination was created for this run.
    pub(crate) fn is_created(&self) -> bool {
        !matches!(self.creation, CreatedBy::None)
    }

    /// The copy goes ahead: a created file stays.
    pub(crate) fn keep(self) -> (OpenVolume, OpenVolume) {
        let Self { creation, source, destination, content: _ } = self;
        if let CreatedBy::Ours(created) = creation {
            created.keep();
        }
        (source, destination)
    }

    /// Returns what the destination holds. Looked at once.
    ///
    /// # Errors
    /// The device or export cannot be read.
    pub(crate) fn content(&self) -> Result<&DestinationContent> {
        if self.content.get().is_none() {
            let found = self.look()?;
            return Ok(self.content.get_or_init(|| found));
        }
        Ok(self.content.get().expect("it was just looked at"))
    }

    fn look(&self) -> Result<DestinationContent> {
        if self.is_created() {
            return Ok(DestinationContent::Created);
        }
        let volume = self.destination.volume();
        Ok(match (volume.kind(), volume.size_bytes()) {
            (VolumeKind::File, 0) => DestinationContent::Empty,
            (VolumeKind::File, bytes) => DestinationContent::Bytes(bytes),
            (VolumeKind::Device | VolumeKind::Export, _) => {
                self.destination.occupied()?.map_or(DestinationContent::Blank, DestinationContent::Occupied)
            }
        })
    }

    fn refuse_read_only(&self) -> Result<()> {
        match &self.destination {
            OpenVolume::Local(LocalVolume::Device(volume))
                if kernel_calls::is_read_only(volume.descriptor.file()).unwrap_or(false) =>
            {
                Err(read_only_device(volume.name().as_path()))
            }
            OpenVolume::Export(export) if export.is_read_only() => Err(read_only_export(export.name())),
            OpenVolume::Local(_) | OpenVolume::Export(_) => Ok(()),
        }
    }

    fn refuse_small(&self, spec: &CopySpec) -> Result<()> {
        let (source, destination) = (self.source.volume(), self.destination.volume());
        let (needed, there) = (source.size_bytes(), destination.size_bytes());
        let grows = destination.kind() == VolumeKind::File && spec.changed_since.is_none();
        if grows || there >= needed {
            return Ok(());
        }
        let message = format!(
            "the destination {} has {there} bytes, {} less than the source {} with {needed}",
            destination.name(),
            needed - there,
            source.name()
        );
        let error = Error::new(Code::SizeMismatch, Side::Destination, Operation::Open, message);
        Err(match spec.changed_since {
            None => error.advise("name one that is at least as large"),
            Some(_) => error.advise("it is no older copy of it: copy in full, without --changed-since"),
        })
    }
}

/// Refuses an export as the destination of itself, whatever it is reached by: TLS or not is no other volume.
fn refuse_same_export(spec: &CopySpec) -> Result<()> {
    let (Locator::Nbd(source), Locator::Nbd(destination)) = (&spec.source, &spec.destination) else { return Ok(()) };
    if (&source.address, &source.export) != (&destination.address, &destination.export) {
        return Ok(());
    }
    let message = format!("{source} and {destination} are the same volume: copying would destroy the source");
    Err(Error::new(Code::SameVolume, Side::Caller, Operation::Open, message).advise("name another destination"))
}

/// Facts about an export as a destination.
#[derive(Debug)]
pub struct ExportFound {
    /// Open for reading only.
    pub volume: Arc<dyn Volume>,
    /// Whether its server takes no writes.
    pub is_read_only: bool,
    /// Data that was found on it; `None`: it counts as empty.
    pub occupied: Option<Occupied>,
}

/// Examines an export that may become a destination, and changes nothing.
///
/// # Errors
/// As [`open_source`](super::open_source), on the side of the destination.
pub fn look_at_export(uri: &NbdUri, how: &ReadOptions<'_>) -> Result<ExportFound> {
    let end = open_export(uri, Side::Destination, &ReadOptions { changed_since: None, ..*how }, &Arc::default())?;
    let is_read_only = matches!(&end, OpenVolume::Export(export) if export.is_read_only());
    let occupied = end.occupied()?;
    Ok(ExportFound { volume: end.into_volume(), is_read_only, occupied })
}
