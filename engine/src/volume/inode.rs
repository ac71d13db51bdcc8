//! Looks up what a path or a descriptor leads to, without opening it: devices may react to being opened, fifos may
//! block.

use super::given_volumes::path_of;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use nix::errno::Errno;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Kind of file that a path may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InodeKind {
    File,
    Device,
}

/// A regular file or block device that exists.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    /// Its name.
    path: PathBuf,
    /// Path that is opened to reach it: the name, or a descriptor of this process.
    reach: PathBuf,
    kind: InodeKind,
    stat: Metadata,
}

impl Inode {
    /// Follows links to what `name` leads to; `None` if there is nothing.
    ///
    /// # Errors
    /// `EBadRequest` for a directory, `EUnsupported` for anything else that has no addressable bytes, `EPermission`
    /// if a directory on the way cannot be searched.
    pub(super) fn look_up(name: &Path, side: Side) -> Result<Option<Self>> {
        let path = absolute(name, side)?;
        match std::fs::metadata(&path) {
            Ok(stat) => Self::new(path.clone(), path, stat, side).map(Some),
            Err(e) if matches!(errno(&e), Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(Error::io(side, Operation::Open, &e, format!("look up {}", path.shown()))),
        }
    }

    /// Returns what `descriptor` leads to. `name` is only what it is called.
    ///
    /// # Errors
    /// As [`Inode::look_up`].
    pub(super) fn opened(name: &Path, descriptor: &OwnedFd, side: Side) -> Result<Self> {
        Self::reached(name, path_of(descriptor), side)
    }

    /// Returns what `reach` leads to, which is called `name`.
    ///
    /// # Errors
    /// As [`Inode::look_up`].
    pub(super) fn reached(name: &Path, reach: PathBuf, side: Side) -> Result<Self> {
        let path = absolute(name, side)?;
        let stat = std::fs::metadata(&reach).map_err(|e| {
            let what = format!("look at the descriptor given for {}, through {}", path.shown(), reach.shown());
            Error::io(side, Operation::Stat, &e, what)
        })?;
        Self::new(path, reach, stat, side)
    }

    fn new(path: PathBuf, reach: PathBuf, stat: Metadata, side: Side) -> Result<Self> {
        let kind = stat.file_type();
        let refused = |code, what: &str| {
            let message = format!("the {side} {} is {what}", path.shown());
            Err(Error::new(code, side, Operation::Open, message).advise("name a regular file or a block device"))
        };
        match () {
            () if kind.is_file() => Ok(Self { path, reach, kind: InodeKind::File, stat }),
            () if kind.is_block_device() => Ok(Self { path, reach, kind: InodeKind::Device, stat }),
            () if kind.is_dir() => refused(Code::BadRequest, "a directory"),
            () if kind.is_fifo() => refused(Code::Unsupported, "a fifo"),
            () if kind.is_char_device() => refused(Code::Unsupported, "a character device"),
            () if kind.is_socket() => refused(Code::Unsupported, "a socket"),
            () => refused(Code::Unsupported, "of a kind that has no addressable bytes"),
        }
    }

    /// As [`Inode::look_up`], for what must exist.
    ///
    /// # Errors
    /// `ENotFound` if there is nothing.
    pub(super) fn existing(name: &Path, side: Side) -> Result<Self> {
        Self::look_up(name, side)?.ok_or_else(|| {
            let message = format!("the {side} {} does not exist", name.shown());
            Error { errno: Some(Errno::ENOENT as i32), ..Error::new(Code::NotFound, side, Operation::Open, message) }
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what to open.
    pub(super) fn reach(&self) -> &Path {
        &self.reach
    }

    pub(super) fn kind(&self) -> InodeKind {
        self.kind
    }

    /// Number of the file system that it is in.
    pub(super) fn device(&self) -> u64 {
        self.stat.dev()
    }

    pub(super) fn number(&self) -> u64 {
        self.stat.ino()
    }

    /// A device's own number.
    pub(super) fn rdev(&self) -> u64 {
        self.stat.rdev()
    }

    /// Permission bits for a file that takes over its content.
    pub(super) fn mode(&self) -> u32 {
        self.stat.mode() & 0o777
    }

    /// Returns whether `stat` is of the same file or device.
    pub(super) fn is(&self, stat: &Metadata) -> bool {
        let same_inode = (self.stat.dev(), self.stat.ino()) == (stat.dev(), stat.ino());
        same_inode && self.stat.rdev() == stat.rdev() && self.stat.file_type() == stat.file_type()
    }
}

/// The path with the working directory in front, links kept: how messages and journals name it.
pub(super) fn absolute(name: &Path, side: Side) -> Result<PathBuf> {
    std::path::absolute(name)
        .map_err(|e| Error::io(side, Operation::Open, &e, format!("find the working directory for {}", name.shown())))
}

/// The number of an error of the standard library.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
