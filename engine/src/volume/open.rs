//! Opening both ends of a copy, with every refusal that needs no journal, in the order that users are promised.
//!
//! Rights, same volume, busy, read-only, size: an earlier rule wins over a later one, so what a later rule would say
//! is found out but kept back (a read-only file system must not hide that both volumes are the same). Until
//! [`Opened::keep`] the destination holds what it held before, and a file that was created for it disappears again.

use super::local::Local;
use super::lock::{Patience, lock_file, open_device, refuse_claimed};
use super::node::{Node, absolute, errno};
use super::same::{refuse_same, refuse_source_under};
use super::topology::writable_mount_of;
use super::{Locator, Volume, VolumeKind, device};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::spec::{CopySpec, Direct, LiveSource};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::unistd::{AccessFlags, faccessat};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often a destination may be replaced between being opened and being locked.
const REPLACED_MAX: usize = 16;

/// Opens what is to be read by a copy or a map.
///
/// # Errors
/// `EBadRequest` and `EUnsupported` for what is neither file nor device, `ENotFound`, `EPermission`, `EBusy` for a
/// device that is mounted read-write (unless allowed), `EUnsupported` if `direct` is demanded and impossible.
pub fn open_source(locator: &Locator, direct: Direct, live: LiveSource) -> Result<Arc<dyn Volume>> {
    let node = Node::existing(locator, Side::Source)?;
    let mut source = open_reading(&node, Side::Source)?;
    refuse_live(&node, live)?;
    source.bypass_cache(direct, Side::Source)?;
    Ok(source.into_volume())
}

/// Opens what is to be compared: for reading only, whoever uses it. Takes no lock.
///
/// # Errors
/// As [`open_source`], but never `EBusy`; errors name `side`.
pub fn open_verified(locator: &Locator, side: Side, direct: Direct) -> Result<Arc<dyn Volume>> {
    let mut volume = open_reading(&Node::existing(locator, side)?, side)?;
    volume.bypass_cache(direct, side)?;
    Ok(volume.into_volume())
}

fn open_reading(node: &Node, side: Side) -> Result<Local> {
    let path = node.path();
    let failed = |e: &std::io::Error| Error::io(side, Operation::Open, e, format!("open {}", path.display()));
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| {
        let error = failed(&e);
        if error.code == Code::Permission { error.advise("run as a user who may read it") } else { error }
    })?;
    if !node.is(&file.metadata().map_err(|e| failed(&e))?) {
        let message = format!("{} was replaced while it was being opened", path.display());
        return Err(Error::new(Code::Busy, side, Operation::Open, message).advise("try again"));
    }
    Local::new(node.kind(), file, path.display().to_string(), side)
}

fn refuse_live(source: &Node, live: LiveSource) -> Result<()> {
    if source.kind() == VolumeKind::File || live == LiveSource::Allow {
        return Ok(());
    }
    let Some(point) = writable_mount_of(source.rdev()) else { return Ok(()) };
    let message = format!("the source {} is mounted read-write at {}", source.path().display(), point.display());
    let error = Error::new(Code::Busy, Side::Source, Operation::Open, message);
    Err(error.advise("unmount it or mount it read-only, or accept a copy as after a crash with --allow-live-source"))
}

/// What the destination held before the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DestinationContent {
    /// A file that this run created.
    Created,
    /// A file of 0 bytes.
    Empty,
    /// A device whose first MiB is zero.
    Blank,
    /// Anything else.
    Data,
}

/// Both ends of a copy; the destination locked.
#[derive(Debug)]
pub(crate) struct Opened {
    // Dropped first: a refused file is removed while its lock is still held.
    created: Option<CreatedFile>,
    /// Open for reading.
    pub source: Local,
    /// Open for reading and writing, locked, buffered.
    pub destination: Local,
}

/// A file that is removed again unless the copy goes ahead.
#[derive(Debug)]
struct CreatedFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    stays: bool,
}

impl Drop for CreatedFile {
    fn drop(&mut self) {
        let is_it = |stat: std::fs::Metadata| (stat.dev(), stat.ino()) == (self.device, self.inode);
        if !self.stays
            && std::fs::symlink_metadata(&self.path).is_ok_and(is_it)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a file created for a refused copy stays behind");
        }
    }
}

impl Opened {
    /// Opens both, or refuses. Waits for the destination's lock for as long as `patience` lasts. `rights` adds what
    /// the caller needs to be allowed besides, `missing` may refuse that a missing destination is created.
    ///
    /// # Errors
    /// In this order: what is no volume, `ENotFound`, `EPermission`, `ESameVolume`, `EBusy`, `EReadOnly`,
    /// `ESizeMismatch`; `ECancelled` while waiting. Nothing is left changed.
    pub(crate) fn open(
        spec: &CopySpec,
        patience: &Patience<'_>,
        rights: &dyn Fn() -> Result<()>,
        missing: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        // A destination that could never be one comes before a source that is missing: the request is malformed.
        Node::look_up(&spec.destination, Side::Destination)?;
        let node = Node::existing(&spec.source, Side::Source)?;
        let mut source = Some(open_reading(&node, Side::Source)?);
        rights()?;
        for _ in 0..REPLACED_MAX {
            if let Some((file, kind, created)) = open_destination(spec, &node, patience, missing)? {
                let name = absolute(&spec.destination, Side::Destination)?.display().to_string();
                let source = source.take().expect("set above and taken once, as this returns");
                let opened = Self { destination: Local::new(kind, file, name, Side::Destination)?, created, source };
                opened.refuse_read_only()?;
                opened.refuse_small()?;
                return Ok(opened);
            }
        }
        let message = format!("the destination {} keeps being replaced while it is being opened", spec.destination);
        Err(Error::new(Code::Busy, Side::Destination, Operation::Open, message).advise("stop whoever does that"))
    }

    /// Whether this run created the destination.
    pub(crate) fn is_created(&self) -> bool {
        self.created.is_some()
    }

    /// The copy goes ahead: a created file stays.
    pub(crate) fn keep(self) -> (Local, Local) {
        let Self { created, source, destination } = self;
        if let Some(mut created) = created {
            created.stays = true;
        }
        (source, destination)
    }

    /// What the destination holds.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(crate) fn content(&self) -> Result<DestinationContent> {
        if self.is_created() {
            return Ok(DestinationContent::Created);
        }
        let volume = self.destination.volume();
        match volume.kind() {
            VolumeKind::File if volume.size_bytes() == 0 => Ok(DestinationContent::Empty),
            VolumeKind::File => Ok(DestinationContent::Data),
            VolumeKind::Device => {
                let first = self.destination.descriptor().read_range(0, volume.size_bytes().min(1 << 20));
                let first = first.map_err(|errno| {
                    Error::os(Side::Destination, Operation::Read, errno, volume.describe(Operation::Read))
                        .at(0, 1 << 20)
                })?;
                let blank = first.iter().all(|&byte| byte == 0);
                Ok(if blank { DestinationContent::Blank } else { DestinationContent::Data })
            }
        }
    }

    fn refuse_read_only(&self) -> Result<()> {
        match &self.destination {
            Local::Device(volume) if device::is_read_only(volume.descriptor.file()).unwrap_or(false) => {
                Err(read_only_device(Path::new(volume.name())))
            }
            Local::Device(_) | Local::File(_) => Ok(()),
        }
    }

    fn refuse_small(&self) -> Result<()> {
        let (source, destination) = (self.source.volume(), self.destination.volume());
        let (needed, there) = (source.size_bytes(), destination.size_bytes());
        if destination.kind() == VolumeKind::File || there >= needed {
            return Ok(());
        }
        let message = format!(
            "the destination {} has {there} bytes, {} less than the source {} with {needed}",
            destination.name(),
            needed - there,
            source.name()
        );
        let error = Error::new(Code::SizeMismatch, Side::Destination, Operation::Open, message);
        Err(error.advise("name a device that is at least as large"))
    }
}

/// The destination, open and locked, with its kind and whether it was created; `None` if it was replaced meanwhile.
fn open_destination(
    spec: &CopySpec,
    source: &Node,
    patience: &Patience<'_>,
    missing: &dyn Fn() -> Result<()>,
) -> Result<Option<(File, VolumeKind, Option<CreatedFile>)>> {
    let Some(node) = Node::look_up(&spec.destination, Side::Destination)? else {
        missing()?;
        let created = create_destination(spec, source, patience)?;
        return Ok(created.map(|(file, guard)| (file, VolumeKind::File, Some(guard))));
    };
    let writable = may_write(node.path(), AccessFlags::R_OK | AccessFlags::W_OK)?;
    refuse_same(source, &node)?;
    refuse_claimed(&node)?;
    refuse_live(source, spec.live_source)?;
    if let Writable::No(error) = writable {
        return Err(error);
    }
    let file = match node.kind() {
        VolumeKind::Device if sysfs_read_only(node.rdev()) => return Err(read_only_device(node.path())),
        VolumeKind::Device => open_device(&node, patience)?,
        VolumeKind::File => {
            let file = open_file(node.path())?;
            lock_file(&file, node.path(), patience)?;
            file
        }
    };
    Ok(leads_to(&node, &file)?.then_some((file, node.kind(), None)))
}

/// Whether path, looked-up node and descriptor are still one: a file may be replaced between any two of these.
fn leads_to(node: &Node, file: &File) -> Result<bool> {
    let failed = |e: &std::io::Error| {
        Error::io(Side::Destination, Operation::Stat, e, format!("stat {}", node.path().display()))
    };
    if !node.is(&file.metadata().map_err(|e| failed(&e))?) {
        return Ok(false);
    }
    match std::fs::metadata(node.path()) {
        Ok(now) => Ok(node.is(&now)),
        Err(e) if errno(&e) == Errno::ENOENT => Ok(false),
        Err(e) => Err(failed(&e)),
    }
}

fn open_file(path: &Path) -> Result<File> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(|e| refused_writing(path, &e))
}

/// Creates the destination; `None` if somebody else just did, or replaced it.
fn create_destination(spec: &CopySpec, source: &Node, patience: &Patience<'_>) -> Result<Option<(File, CreatedFile)>> {
    let path = absolute(&spec.destination, Side::Destination)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let writable = may_write(directory, AccessFlags::W_OK | AccessFlags::X_OK)?;
    refuse_source_under(source, &path, directory)?;
    refuse_live(source, spec.live_source)?;
    if let Writable::No(error) = writable {
        return Err(error);
    }
    // No more readable than the source: the content is the same.
    let mode = if source.kind() == VolumeKind::File { source.mode() | 0o600 } else { 0o600 };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode).custom_flags(libc::O_CLOEXEC);
    let file = match options.open(&path) {
        Ok(file) => file,
        Err(e) if errno(&e) == Errno::EEXIST => return refuse_dangling(&path).map(|()| None),
        Err(e) => return Err(refused_writing(&path, &e)),
    };
    let stat = file.metadata().map_err(|e| refused_writing(&path, &e))?;
    // Whoever holds the lock of the new file already uses it: without the lock, removing it is not ours to do.
    lock_file(&file, &path, patience)?;
    match std::fs::metadata(&path) {
        Ok(now) if (now.dev(), now.ino()) == (stat.dev(), stat.ino()) => {
            Ok(Some((file, CreatedFile { path, device: stat.dev(), inode: stat.ino(), stays: false })))
        }
        Ok(_) | Err(_) => Ok(None),
    }
}

fn refuse_dangling(path: &Path) -> Result<()> {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|stat| stat.is_symlink());
    if !is_link || std::fs::metadata(path).is_ok() {
        return Ok(());
    }
    let message = format!("the destination {} is a symbolic link to nothing", path.display());
    let error = Error::new(Code::NotFound, Side::Destination, Operation::Open, message);
    Err(error.advise("name the file itself, or remove the link"))
}

/// Whether a later rule will refuse to write.
enum Writable {
    Yes,
    No(Error),
}

/// Refuses a place for a file of our own that cannot be written. `what` it is for and the `advice` go into the message.
///
/// # Errors
/// `EPermission`.
pub(crate) fn may_keep(path: &Path, what: &str, advice: &str) -> Result<()> {
    let (place, rights) = match path.ancestors().find(|ancestor| ancestor.exists()) {
        Some(existing) if existing == path => (existing, AccessFlags::R_OK | AccessFlags::W_OK),
        Some(directory) => (directory, AccessFlags::W_OK | AccessFlags::X_OK),
        None => (Path::new("."), AccessFlags::W_OK | AccessFlags::X_OK),
    };
    faccessat(AT_FDCWD, place, rights, AtFlags::AT_EACCESS).map_err(|errno| {
        let what = format!("keep {what} at {}", path.display());
        Error::os(Side::Engine, Operation::Journal, errno, what).with_code(Code::Permission).advise(advice)
    })
}

/// Missing rights are an error at once, read-only is one for later.
fn may_write(path: &Path, rights: AccessFlags) -> Result<Writable> {
    let Err(errno) = faccessat(AT_FDCWD, path, rights, AtFlags::AT_EACCESS) else { return Ok(Writable::Yes) };
    let error = refused_writing(path, &errno.into());
    if error.code == Code::ReadOnly { Ok(Writable::No(error)) } else { Err(error) }
}

fn refused_writing(path: &Path, e: &std::io::Error) -> Error {
    let error = Error::io(Side::Destination, Operation::Open, e, format!("write to {}", path.display()));
    match errno(e) {
        Errno::EACCES => error.advise("run as a user who may read and write it"),
        Errno::EPERM => error
            .with_code(Code::ReadOnly)
            .advise("it or its directory is immutable or append-only: see lsattr, and chattr -i or -a"),
        Errno::EROFS => error.advise("its file system is read-only: remount it read-write"),
        Errno::ENOENT | Errno::ENOTDIR => error.advise("its directory does not exist: create it first"),
        Errno::ETXTBSY => error.advise("it is a running program or used as swap"),
        _ => error,
    }
}

fn sysfs_read_only(device: u64) -> bool {
    use nix::sys::stat::{major, minor};
    let attribute = format!("/sys/dev/block/{}:{}/ro", major(device), minor(device));
    std::fs::read_to_string(attribute).is_ok_and(|text| text.trim() == "1")
}

fn read_only_device(path: &Path) -> Error {
    let message = format!("the destination {} is a read-only device", path.display());
    let error = Error::new(Code::ReadOnly, Side::Destination, Operation::Open, message);
    error.advise("make it writable (blockdev --setrw) or name another")
}
