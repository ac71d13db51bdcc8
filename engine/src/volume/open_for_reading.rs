//! Opens volumes that are only read: sources, both sides of a comparison, and volumes to inspect.
//!
//! A local volume is looked up first and opened then, as devices may react to being opened. An export is connected to.
//! Nothing is locked here.

use super::export::ExportVolume;
use super::given_volumes::GivenVolumes;
use super::inode::{Inode, InodeKind};
use super::local::LocalVolume;
use super::open_volume::OpenVolume;
use super::overlap::{refuse_same, refuse_source_under};
use super::topology::{claimed_elsewhere, writable_mount_of};
use super::{Locator, NbdUri, Volume};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::nbd::connection_revoker::ConnectionRevoker;
use crate::nbd::export_connections::ExportConnections;
use crate::network::NetworkTerms;
use crate::shown::Shown;
use crate::spec::{Direct, LiveSource};
use nix::libc;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Options for opening a volume that is only read.
#[derive(Clone, Copy)]
pub struct ReadOptions<'a> {
    /// Whether the page cache is bypassed.
    pub direct: Direct,
    /// Policy for a device that is mounted read-write.
    pub live_source: LiveSource,
    /// The dirty bitmap of a source: what it calls clean is an extent of its own kind. Only exports have one.
    pub changed_since: Option<&'a str>,
    /// Network options of an export.
    pub network: NetworkTerms,
    /// Cancellation, checked every 100 ms while a server does not answer.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl ReadOptions<'_> {
    /// As the defaults of [`CopySpec`](crate::spec::CopySpec) but for `direct`; never cancelled.
    #[must_use]
    pub fn new(direct: Direct) -> Self {
        let (live_source, network) = (LiveSource::Refuse, NetworkTerms::default());
        Self { direct, live_source, changed_since: None, network, cancelled: &|| false }
    }
}

impl fmt::Debug for ReadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direct, live_source, changed_since, network, cancelled: _ } = self;
        f.debug_struct("Reading")
            .field("direct", direct)
            .field("live_source", live_source)
            .field("changed_since", changed_since)
            .field("network", network)
            .finish_non_exhaustive()
    }
}

/// Opens what is to be read by a copy or a map. An export is connected to once, without retries.
///
/// # Errors
/// `EBadRequest` and `EUnsupported` for what is neither file nor device, `ENotFound`, `EPermission`, `EBusy` for a
/// device that is mounted read-write (unless allowed), `EUnsupported` if `direct` is demanded and impossible; of an
/// export `EUnreachable` and `EProtocol` besides.
pub fn open_source(locator: &Locator, how: &ReadOptions<'_>) -> Result<Arc<dyn Volume>> {
    open_source_by(locator, how, &GivenVolumes::default())
}

/// As [`open_source`], with what the job is given.
pub(crate) fn open_source_by(
    locator: &Locator,
    how: &ReadOptions<'_>,
    given: &GivenVolumes,
) -> Result<Arc<dyn Volume>> {
    let mut source = OpenSource::open(locator, how, given)?;
    source.refuse_live(how.live_source)?;
    source.end.bypass_cache(how.direct, Side::Source)?;
    Ok(source.end.into_volume())
}

/// Opens a volume that is to be compared, with what the job is given: for reading only, also while it is in use. Takes
/// no lock.
///
/// # Errors
/// As [`open_source`], but never `EBusy`; errors name `side`.
pub(crate) fn open_verified_by(
    locator: &Locator,
    side: Side,
    how: &ReadOptions<'_>,
    given: &GivenVolumes,
) -> Result<Arc<dyn Volume>> {
    open_verified_end(locator, side, how, given).map(OpenVolume::into_volume)
}

/// As [`open_verified_by`], while it may still be asked what it is.
pub(crate) fn open_verified_end(
    locator: &Locator,
    side: Side,
    how: &ReadOptions<'_>,
    given: &GivenVolumes,
) -> Result<OpenVolume> {
    let mut volume = match locator {
        Locator::Path(path) => OpenVolume::Local(open_reading(&existing(path, side, given)?, side)?),
        Locator::Nbd(uri) => open_export(uri, side, &ReadOptions { changed_since: None, ..*how }, &given.revoker)?,
    };
    volume.bypass_cache(how.direct, side)?;
    Ok(volume)
}

/// A volume that is open for reading, and the inode that a local one was found at.
pub(super) struct OpenSource {
    pub end: OpenVolume,
    inode: Option<Inode>,
}

impl OpenSource {
    pub(super) fn open(locator: &Locator, how: &ReadOptions<'_>, given: &GivenVolumes) -> Result<Self> {
        Ok(match locator {
            Locator::Path(path) => {
                let inode = existing(path, Side::Source, given)?;
                Self { end: OpenVolume::Local(open_reading(&inode, Side::Source)?), inode: Some(inode) }
            }
            Locator::Nbd(uri) => {
                let end = open_export(uri, Side::Source, how, &given.revoker)?;
                Self { end, inode: None }
            }
        })
    }

    /// Permission bits of a file; none of what is no file.
    pub(super) fn mode(&self) -> u32 {
        self.inode.as_ref().filter(|inode| inode.kind() == InodeKind::File).map_or(0, Inode::mode)
    }

    pub(super) fn refuse_live(&self, live: LiveSource) -> Result<()> {
        self.inode.as_ref().map_or(Ok(()), |inode| refuse_live(inode, live))
    }

    pub(super) fn refuse_same(&self, destination: &Inode) -> Result<()> {
        self.inode.as_ref().map_or(Ok(()), |inode| refuse_same(inode, destination))
    }

    pub(super) fn refuse_under(&self, destination: &Path, directory: &Path) -> Result<()> {
        self.inode.as_ref().map_or(Ok(()), |inode| refuse_source_under(inode, destination, directory))
    }
}

/// Returns the given descriptor's file, or else the one that the path leads to.
pub(super) fn existing(path: &Path, side: Side, given: &GivenVolumes) -> Result<Inode> {
    match given.of(side) {
        Some(descriptor) => Inode::opened(path, descriptor, side),
        None => Inode::existing(path, side),
    }
}

pub(super) fn open_export(
    uri: &NbdUri,
    side: Side,
    how: &ReadOptions<'_>,
    revoker: &Arc<ConnectionRevoker>,
) -> Result<OpenVolume> {
    let export = ExportConnections::open(uri, side, how.network, how.changed_since, revoker, how.cancelled)?;
    Ok(OpenVolume::Export(ExportVolume::new(export)))
}

pub(super) fn open_reading(inode: &Inode, side: Side) -> Result<LocalVolume> {
    let path = inode.path();
    let failed = |e: &std::io::Error| Error::io(side, Operation::Open, e, format!("open {}", path.shown()));
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(inode.reach()).map_err(|e| {
        let error = failed(&e);
        if error.code == Code::Permission { error.advise("run as a user who may read it") } else { error }
    })?;
    if !inode.is(&file.metadata().map_err(|e| failed(&e))?) {
        let message = format!("{} was replaced while it was being opened", path.shown());
        return Err(Error::new(Code::Busy, side, Operation::Open, message).advise("try again"));
    }
    LocalVolume::new(inode.kind(), file, path.into(), side)
}

fn refuse_live(source: &Inode, live: LiveSource) -> Result<()> {
    if source.kind() == InodeKind::File || live == LiveSource::Allow {
        return Ok(());
    }
    let busy = |how: String, advice: &str| {
        let message = format!("the source {} is {how}", source.path().shown());
        let error = Error::new(Code::Busy, Side::Source, Operation::Open, message);
        Err(error.advise(format_args!("{advice}, or accept a copy as after a crash with --allow-live-source")))
    };
    if let Some(point) = writable_mount_of(source.rdev()) {
        return busy(format!("mounted read-write at {}", point.shown()), "unmount it or mount it read-only");
    }
    match claimed_elsewhere(source.rdev()) {
        None => Ok(()),
        Some(claimed) => busy(
            format!(
                "in use: {} is mounted in another mount namespace (a container, a service), or a program has opened it \
                 for itself alone",
                claimed.shown()
            ),
            "unmount it there, or end that program",
        ),
    }
}
