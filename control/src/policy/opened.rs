//! Holds the volumes that the policy has opened: descriptors, and the file that was created for one.

use super::{Found, permission};
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::supervision::OpenedDestination;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Destination, open for reading and writing.
#[derive(Debug)]
pub(crate) struct OpenedVolume {
    /// The open file.
    pub file: File,
    /// Set if the file was created here.
    pub created: Option<CreatedFile>,
}

/// File that was created for a copy, and can be removed again if the copy is refused.
#[derive(Debug)]
pub(crate) struct CreatedFile {
    folder: File,
    name: OsString,
    inode: (u64, u64),
}

impl OpenedVolume {
    /// Returns the destination as the engine takes it, and what was created.
    ///
    /// # Errors
    /// What the system says when there are no descriptors left.
    pub(crate) fn split(self) -> Result<(OpenedDestination, Option<CreatedFile>)> {
        let Self { file, created } = self;
        let parent = created.as_ref().map(|created| created.folder.try_clone()).transpose();
        let parent =
            parent.map_err(|error| Error::io(Side::Destination, Operation::Open, &error, "keep the folder open"))?;
        let is_created = created.is_some();
        Ok((OpenedDestination { file: file.into(), created: is_created, parent: parent.map(Into::into) }, created))
    }
}

impl CreatedFile {
    /// Creates a file in a checked folder.
    pub(super) fn create(looked: File, name: &OsStr, mode: u32, path: &Path) -> Result<OpenedVolume> {
        let failed = |errno| Error::os(Side::Destination, Operation::Open, errno, format!("create {}", path.shown()));
        // The folder was found with O_PATH, which cannot be synced.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = File::from(open(&by_descriptor(looked.as_raw_fd()), flags, Mode::empty()).map_err(failed)?);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(&folder, name, flags, Mode::from_bits_truncate(mode | 0o600)) {
            Ok(file) => File::from(file),
            // Nothing was found by that path, and yet there is something: a link to nothing, or one that came just now.
            Err(Errno::EEXIST) => {
                let what = format!("the destination {} is a dangling link", path.shown());
                return Err(permission(Side::Destination, what));
            }
            Err(errno) => return Err(failed(errno)),
        };
        let stat = file.metadata();
        let stat = stat.map_err(|error| {
            Error::io(Side::Destination, Operation::Stat, &error, format!("look at {}", path.shown()))
        })?;
        let created = Self { folder, name: name.to_owned(), inode: (stat.dev(), stat.ino()) };
        Ok(OpenedVolume { file, created: Some(created) })
    }

    /// Removes the file, if it still exists and has not been written. What cannot be removed is logged and stays.
    pub(crate) fn remove(self) {
        let Self { folder, name, inode } = self;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(file) = openat(&folder, &*name, flags, Mode::empty()).map(File::from) else { return };
        let is_ours = file.metadata().is_ok_and(|stat| (stat.dev(), stat.ino()) == inode);
        let is_empty = matches!(file.read_at(&mut [0], 0), Ok(0));
        if !is_ours || !is_empty {
            return;
        }
        if let Err(error) = unlinkat(&folder, &*name, UnlinkatFlags::NoRemoveDir) {
            tracing::warn!(?name, %error, "file created for a refused copy was not removed");
        }
    }
}

/// Reopens a checked descriptor for use: no path is looked up.
pub(super) fn reopen(found: &Found, access: OFlag, side: Side) -> Result<File> {
    let flags = access | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open(&by_descriptor(found.file.as_raw_fd()), flags, Mode::empty());
    let file = file.map_err(|errno| {
        let what = format!("open {}", found.real.shown());
        Error::os(side, Operation::Open, errno, what)
    })?;
    Ok(File::from(file))
}

/// Returns the kernel's path of an open file.
pub(super) fn by_descriptor(fd: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}
