//! Opens a local destination: looks it up or creates it, checks the rules, locks it, and checks that its path still
//! leads to what was locked.
//!
//! The rules are, in this order: rights, same volume, busy, read-only. If several of them refuse a destination, the
//! first one is reported: a read-only file system must not hide that both volumes are the same. Rights and read-only
//! are one check of the system. So an error of the last rule is kept until the others have passed ([`Writability`]).

use super::inode::{Inode, InodeKind, absolute, errno};
use super::local::LocalVolume;
use super::lock::{LockWait, lock_file, open_device, refuse_claimed};
use super::open_for_reading::OpenSource;
use super::open_mode::OpenMode;
use super::open_volume::OpenVolume;
use super::route::open_unnamed;
use super::topology::kernel_filesystem;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use crate::spec::CopySpec;
use crate::supervision::OpenedDestination;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::unistd::{AccessFlags, faccessat};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most times that a destination may be replaced between being opened and being locked.
const REPLACED_MAX: usize = 16;

/// A file that is removed again unless the copy goes ahead.
#[derive(Debug)]
pub(super) struct CreatedFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    stays: bool,
}

/// Creator of the destination for this run.
#[derive(Debug)]
pub(super) enum CreatedBy {
    /// The file existed.
    None,
    /// The engine created the file, and removes it unless the copy goes ahead.
    Ours(CreatedFile),
    /// The supervisor created the file, and removes it if necessary.
    Theirs,
    /// The file does not exist: an unnamed file takes its place in a dry run.
    Placeholder,
}

impl CreatedFile {
    /// The copy goes ahead.
    pub(super) fn keep(mut self) {
        self.stays = true;
    }
}

impl Drop for CreatedFile {
    fn drop(&mut self) {
        let is_it = |stat: std::fs::Metadata| (stat.dev(), stat.ino()) == (self.device, self.inode);
        if !self.stays
            && std::fs::symlink_metadata(&self.path).is_ok_and(is_it)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.shown(), %error, "file created for a refused copy was not removed");
        }
    }
}

/// Opens and locks a local destination, and returns its creator. A `given` destination is reached by its descriptor.
pub(super) fn open_destination(
    spec: &CopySpec,
    path: &Path,
    given: Option<&OpenedDestination>,
    source: &OpenSource,
    lock_wait: &LockWait<'_>,
    mode: OpenMode,
    missing: &dyn Fn() -> Result<()>,
) -> Result<(OpenVolume, CreatedBy)> {
    if let Some(given) = given {
        return open_given(spec, path, given, source, lock_wait);
    }
    for _ in 0..REPLACED_MAX {
        if let Some((file, kind, creation)) = try_destination(spec, path, source, lock_wait, mode, missing)? {
            let path = absolute(path, Side::Destination)?;
            let mut local = LocalVolume::new(kind, file, path.as_path().into(), Side::Destination)?;
            if let (LocalVolume::File(file), CreatedBy::Placeholder) = (&mut local, &creation) {
                // Its directory cannot be found by a name that it does not have.
                file.was_given(File::open(path.parent().unwrap_or(Path::new("/"))).ok().map(OwnedFd::from));
            }
            return Ok((OpenVolume::Local(local), creation));
        }
    }
    let message = format!("the destination {} keeps being replaced while it is being opened", spec.destination);
    Err(Error::new(Code::Busy, Side::Destination, Operation::Open, message).advise("stop the program that replaces it"))
}

/// Opens and locks the destination; returns it with its kind and its creator, `None` if it was replaced meanwhile.
fn try_destination(
    spec: &CopySpec,
    path: &Path,
    source: &OpenSource,
    lock_wait: &LockWait<'_>,
    mode: OpenMode,
    missing: &dyn Fn() -> Result<()>,
) -> Result<Option<(File, InodeKind, CreatedBy)>> {
    let Some(inode) = Inode::look_up(path, Side::Destination)? else {
        missing()?;
        let created = create_destination(spec, path, source, lock_wait, mode)?;
        return Ok(created.map(|(file, creation)| (file, InodeKind::File, creation)));
    };
    let file = open_locked(spec, &inode, source, lock_wait)?;
    Ok(leads_to(&inode, &file)?.then_some((file, inode.kind(), CreatedBy::None)))
}

/// Opens the destination that a supervisor has opened: the same rules, but its name is not looked up.
fn open_given(
    spec: &CopySpec,
    path: &Path,
    given: &OpenedDestination,
    source: &OpenSource,
    lock_wait: &LockWait<'_>,
) -> Result<(OpenVolume, CreatedBy)> {
    let inode = Inode::opened(path, &given.file, Side::Destination)?;
    let file = open_locked(spec, &inode, source, lock_wait)?;
    let parent = given.parent.as_ref().map(OwnedFd::try_clone).transpose().map_err(|e| {
        let what = format!("keep the directory of {}", path.shown());
        Error::io(Side::Destination, Operation::Open, &e, what)
    })?;
    let mut local = LocalVolume::new(inode.kind(), file, inode.path().into(), Side::Destination)?;
    if let LocalVolume::File(file) = &mut local {
        file.was_given(parent);
    }
    Ok((OpenVolume::Local(local), if given.created { CreatedBy::Theirs } else { CreatedBy::None }))
}

/// Opens and locks an existing destination.
fn open_locked(spec: &CopySpec, inode: &Inode, source: &OpenSource, lock_wait: &LockWait<'_>) -> Result<File> {
    let writable = may_write(inode, AccessFlags::R_OK | AccessFlags::W_OK)?;
    source.refuse_same(inode)?;
    refuse_claimed(inode)?;
    source.refuse_live(spec.live_source)?;
    if let Writability::ReadOnly(error) = writable {
        return Err(error);
    }
    match inode.kind() {
        InodeKind::Device if sysfs_read_only(inode.rdev()) => Err(read_only_device(inode.path())),
        InodeKind::Device => open_device(inode, lock_wait),
        InodeKind::File => {
            let file = open_file(inode)?;
            lock_file(&file, inode.path(), lock_wait)?;
            Ok(file)
        }
    }
}

/// Returns whether path, looked-up inode and descriptor are still one: a file may be replaced between any two of these.
fn leads_to(inode: &Inode, file: &File) -> Result<bool> {
    let failed =
        |e: &std::io::Error| Error::io(Side::Destination, Operation::Stat, e, format!("stat {}", inode.path().shown()));
    if !inode.is(&file.metadata().map_err(|e| failed(&e))?) {
        return Ok(false);
    }
    match std::fs::metadata(inode.path()) {
        Ok(now) => Ok(inode.is(&now)),
        Err(e) if errno(&e) == Errno::ENOENT => Ok(false),
        Err(e) => Err(failed(&e)),
    }
}

fn open_file(inode: &Inode) -> Result<File> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(inode.reach());
    opened.map_err(|e| refused_writing(inode.path(), &e))
}

/// Creates the destination, or its placeholder; `None` if another process just did, or replaced it.
fn create_destination(
    spec: &CopySpec,
    path: &Path,
    source: &OpenSource,
    lock_wait: &LockWait<'_>,
    mode: OpenMode,
) -> Result<Option<(File, CreatedBy)>> {
    let path = absolute(path, Side::Destination)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    refuse_kernel_directory(directory, &path, Side::Destination)?;
    let writable = may_access(directory, directory, AccessFlags::W_OK | AccessFlags::X_OK)?;
    source.refuse_under(&path, directory)?;
    source.refuse_live(spec.live_source)?;
    if let Writability::ReadOnly(error) = writable {
        return Err(error);
    }
    // No more readable than the source: the content is the same.
    let permissions = source.mode() | 0o600;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(permissions).custom_flags(libc::O_CLOEXEC);
    if mode == OpenMode::Check {
        refuse_dangling(&path)?;
        let file = open_placeholder(directory, &path, &options).map_err(|e| refused_writing(&path, &e))?;
        return Ok(Some((file, CreatedBy::Placeholder)));
    }
    let file = match options.open(&path) {
        Ok(file) => file,
        Err(e) if errno(&e) == Errno::EEXIST => return refuse_dangling(&path).map(|()| None),
        Err(e) => return Err(refused_writing(&path, &e)),
    };
    let stat = file.metadata().map_err(|e| refused_writing(&path, &e))?;
    // A process that has locked the new file already uses it: without the lock the engine must not remove it.
    lock_file(&file, &path, lock_wait)?;
    match std::fs::metadata(&path) {
        Ok(now) if (now.dev(), now.ino()) == (stat.dev(), stat.ino()) => {
            let created = CreatedFile { path, device: stat.dev(), inode: stat.ino(), stays: false };
            Ok(Some((file, CreatedBy::Ours(created))))
        }
        Ok(_) | Err(_) => Ok(None),
    }
}

/// A file in the destination's directory of which nothing is left: without a name, or, where the file system has no
/// such files, removed at once.
fn open_placeholder(directory: &Path, path: &Path, options: &OpenOptions) -> std::io::Result<File> {
    match open_unnamed(directory) {
        Err(e) if matches!(errno(&e), Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
            let file = options.open(path)?;
            std::fs::remove_file(path).map(|()| file)
        }
        opened => opened,
    }
}

fn refuse_dangling(path: &Path) -> Result<()> {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|stat| stat.is_symlink());
    if !is_link || std::fs::metadata(path).is_ok() {
        return Ok(());
    }
    let message = format!("the destination {} is a symbolic link to nothing", path.shown());
    let error = Error::new(Code::NotFound, Side::Destination, Operation::Open, message);
    Err(error.advise("name the file itself, or remove the link"))
}

/// Whether a destination is read-only, which is reported only if no other rule refuses first. A missing right is an
/// error at once.
enum Writability {
    /// The destination may be written.
    Writable,
    /// Its file system is read-only, or it is immutable: the error to report.
    ReadOnly(Error),
}

/// Refuses a place for a file of our own that cannot be written. `what` it is for and the `advice` go into the message.
///
/// # Errors
/// `EPermission`.
pub(crate) fn may_keep(path: &Path, what: &str, advice: &str) -> Result<()> {
    let (place, rights) = match path.ancestors().find(|ancestor| ancestor.exists()) {
        Some(existing) if existing == path => (existing, AccessFlags::R_OK | AccessFlags::W_OK),
        Some(directory) => {
            refuse_kernel_directory(directory, path, Side::Engine)?;
            (directory, AccessFlags::W_OK | AccessFlags::X_OK)
        }
        None => (Path::new("."), AccessFlags::W_OK | AccessFlags::X_OK),
    };
    faccessat(AT_FDCWD, place, rights, AtFlags::AT_EACCESS).map_err(|errno| {
        let what = format!("keep {what} at {}", path.shown());
        Error::os(Side::Engine, Operation::Journal, errno, what).with_code(Code::Permission).advise(advice)
    })
}

/// Refuses to create the missing file `path` in a `directory` that the kernel fills: its name is that of a device that
/// is not there, and a file in its place would fill memory.
///
/// # Errors
/// `ENotFound`.
pub fn refuse_kernel_directory(directory: &Path, path: &Path, side: Side) -> Result<()> {
    let Some(kind) = kernel_filesystem(directory) else { return Ok(()) };
    let (path, place) = (path.shown(), path.parent().unwrap_or(directory).shown());
    let message = format!("there is no device {path}, and {place} ({kind}) is the kernel's: no file is created there");
    let error = Error::new(Code::NotFound, side, Operation::Open, message);
    Err(error.advise("name a device that exists (lsblk lists them), or a file somewhere else"))
}

/// Checks the rights to write, and whether the destination is read-only.
///
/// # Errors
/// `EPermission` and others of the system. That it is read-only is a result.
fn may_write(inode: &Inode, rights: AccessFlags) -> Result<Writability> {
    may_access(inode.reach(), inode.path(), rights)
}

/// As above for a name `name` that is found at `path`.
fn may_access(path: &Path, name: &Path, rights: AccessFlags) -> Result<Writability> {
    let Err(errno) = faccessat(AT_FDCWD, path, rights, AtFlags::AT_EACCESS) else { return Ok(Writability::Writable) };
    let error = refused_writing(name, &errno.into());
    if error.code == Code::ReadOnly { Ok(Writability::ReadOnly(error)) } else { Err(error) }
}

fn refused_writing(path: &Path, e: &std::io::Error) -> Error {
    let error = Error::io(Side::Destination, Operation::Open, e, format!("write to {}", path.shown()));
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

pub(super) fn read_only_device(path: &Path) -> Error {
    let message = format!("the destination {} is a read-only device", path.shown());
    let error = Error::new(Code::ReadOnly, Side::Destination, Operation::Open, message);
    error.advise("make it writable (blockdev --setrw) or name another")
}
