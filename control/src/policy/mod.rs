//! Enforces what a runner may touch: `--allow-path` for local volumes, `--allow-nbd` for servers.
//!
//! Requests come from clients, and what a path leads to can change between a check and its use. So a path is resolved
//! once, to a descriptor. The descriptor's own path, as the kernel reports it, is checked, and the engine gets that
//! descriptor. A file that does not exist is created through the checked descriptor of its folder, never through a
//! link.
//!
//! What always holds: a descriptor from this module is of a regular file or block device, lies in one of the allowed
//! folders or is one of the allowed devices, and was reached without `..` and without a magic link of `/proc`. Its path
//! is not looked up again.

mod claim_names;
mod opened;
mod server;

pub(crate) use claim_names::identities;
pub(crate) use opened::{CreatedFile, OpenedVolume};

use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::volume::refuse_kernel_directory;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use server::AllowedServer;
use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

/// Where the system keeps its devices; links in it are the system's own.
const DEVICES: &str = "/dev";

/// Local paths and servers that a runner may use.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    paths: Vec<PathBuf>,
    servers: Vec<AllowedServer>,
}

/// Target of a path, held open without having been opened for reading or writing.
#[derive(Debug)]
pub(crate) struct Found {
    /// Descriptor, opened with `O_PATH`.
    pub file: File,
    /// Path as the kernel reports it.
    pub real: PathBuf,
    pub stat: Metadata,
}

/// Destination of a copy, before the copy.
#[derive(Debug)]
pub(crate) enum Destination<'a> {
    /// It is there, and open to write.
    Present(File),
    /// It would be created in this folder, under this name.
    Missing { folder: File, name: &'a std::ffi::OsStr },
}

impl Policy {
    /// Creates a policy. `paths`: absolute folders, with all that is in them, and devices. `servers`: `HOST` or
    /// `HOST:PORT`; an empty list allows all.
    ///
    /// # Errors
    /// `EBadRequest` for a relative path and for what is no host.
    pub(crate) fn new(paths: &[PathBuf], servers: &[String]) -> Result<Self> {
        if let Some(path) = paths.iter().find(|path| !path.is_absolute()) {
            let message = format!("--allow-path {}: name an absolute path", path.shown());
            return Err(Error::bad_request(message));
        }
        let servers = servers.iter().map(|text| AllowedServer::parse(text)).collect::<Result<_>>()?;
        Ok(Self { paths: paths.to_vec(), servers })
    }

    /// Opens a local volume or file to read.
    ///
    /// # Errors
    /// `EPermission` outside the policy, `ENotFound`, or another error of the system.
    pub(crate) fn open_to_read(&self, path: &Path, side: Side) -> Result<OwnedFd> {
        let found = self.find(path, side)?.ok_or_else(|| missing(path, side))?;
        let file = opened::reopen(&found, OFlag::O_RDONLY, side)?;
        Ok(file.into())
    }

    /// Opens a local volume to write; a missing file is created with `mode` (permission bits), empty.
    ///
    /// # Errors
    /// `EPermission` outside the policy, or another error of the system.
    pub(crate) fn open_destination(&self, path: &Path, mode: u32) -> Result<OpenedVolume> {
        match self.look_at_destination(path)? {
            Destination::Present(file) => Ok(OpenedVolume { file, created: None }),
            Destination::Missing { folder, name } => CreatedFile::create(folder, name, mode, path),
        }
    }

    /// Opens a local volume to write, or the folder in which it would be created. Changes nothing.
    ///
    /// # Errors
    /// As [`Policy::open_destination`].
    pub(crate) fn look_at_destination<'a>(&self, path: &'a Path) -> Result<Destination<'a>> {
        if let Some(found) = self.find(path, Side::Destination)? {
            return opened::reopen(&found, OFlag::O_RDWR, Side::Destination).map(Destination::Present);
        }
        let (folder, name) = self.find_folder(path, Side::Destination)?;
        refuse_kernel_directory(&opened::by_descriptor(folder.file.as_raw_fd()), path, Side::Destination)?;
        Ok(Destination::Missing { folder: folder.file, name })
    }

    /// Returns the target of an allowed path: a regular file or block device; `None` if it does not exist.
    ///
    /// # Errors
    /// `EPermission` outside the policy, `EBadRequest` and `EUnsupported` for what is no volume.
    pub(crate) fn find(&self, path: &Path, side: Side) -> Result<Option<Found>> {
        check_spelling(path, side)?;
        let Some(found) = look(path, side)? else { return Ok(None) };
        self.judge(path, &found, side)?;
        refuse_kind(path, &found.stat, side)?;
        Ok(Some(found))
    }

    /// Returns the allowed folder of a path that does not exist, and the name in it.
    ///
    /// # Errors
    /// `EPermission` outside the policy, `ENotFound` without a folder, `EBadRequest` for a path without a name.
    pub(crate) fn find_folder<'a>(&self, path: &'a Path, side: Side) -> Result<(Found, &'a std::ffi::OsStr)> {
        check_spelling(path, side)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::bad_request(format!("{} is not a file name", path.shown())));
        };
        let folder = look(parent, side)?.ok_or_else(|| missing(parent, side))?;
        if !folder.stat.is_dir() {
            return Err(Error::os(side, Operation::Open, Errno::ENOTDIR, format!("open {}", parent.shown())));
        }
        self.judge(path, &folder, side)?;
        Ok((folder, name))
    }

    /// Returns a unix socket or folder that a request names besides its volumes.
    ///
    /// # Errors
    /// `EPermission` outside the policy, `ENotFound`.
    pub(crate) fn find_other(&self, path: &Path, side: Side) -> Result<Found> {
        check_spelling(path, side)?;
        let found = look(path, side)?.ok_or_else(|| missing(path, side))?;
        self.judge(path, &found, side)?;
        Ok(found)
    }

    fn judge(&self, asked: &Path, found: &Found, side: Side) -> Result<()> {
        let is_device = found.stat.file_type().is_block_device();
        let is_allowed = self.paths.iter().any(|allowed| {
            let real = std::fs::canonicalize(allowed).unwrap_or_else(|_| allowed.clone());
            // `/dev/mapper/x` is a link to `/dev/dm-0`: allowing the folder means allowing the devices.
            let is_linked = is_device && allowed.starts_with(DEVICES) && asked.starts_with(allowed);
            found.real.starts_with(&real) || is_linked
        });
        if is_allowed {
            return Ok(());
        }
        let what = match asked == found.real {
            true => format!("the {side} {} is not allowed on this node", asked.shown()),
            false => format!(
                "the {side} {} leads to {}, which is not allowed on this node",
                asked.shown(),
                found.real.shown()
            ),
        };
        Err(permission(side, what).advise("allow it with --allow-path of taskd"))
    }
}

/// Returns the target of a path, whatever it is; `None` if it does not exist.
fn look(path: &Path, side: Side) -> Result<Option<Found>> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(AT_FDCWD, path, how) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(Errno::ELOOP) => {
            let what = format!("{} leads through a link of /proc, or in a circle", path.shown());
            return Err(permission(side, what));
        }
        Err(errno) => return Err(Error::os(side, Operation::Open, errno, format!("look up {}", path.shown()))),
    };
    let described = |error| Error::io(side, Operation::Open, &error, format!("look at {}", path.shown()));
    let stat = file.metadata().map_err(described)?;
    if std::os::unix::fs::MetadataExt::nlink(&stat) == 0 {
        return Ok(None);
    }
    let real = std::fs::read_link(opened::by_descriptor(file.as_raw_fd())).map_err(described)?;
    Ok(Some(Found { file, real, stat }))
}

fn check_spelling(path: &Path, side: Side) -> Result<()> {
    if !path.is_absolute() {
        return Err(Error::bad_request(format!("the {side} {} is not an absolute path", path.shown())));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(permission(side, format!("the {side} {} contains '..'", path.shown())));
    }
    Ok(())
}

fn refuse_kind(path: &Path, stat: &Metadata, side: Side) -> Result<()> {
    let kind = stat.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let (code, what) =
        if kind.is_dir() { (Code::BadRequest, "a directory") } else { (Code::Unsupported, "not a volume") };
    let message = format!("the {side} {} is {what}", path.shown());
    Err(Error::new(code, side, Operation::Open, message).advise("name a regular file or a block device"))
}

fn missing(path: &Path, side: Side) -> Error {
    let message = format!("{} does not exist", path.shown());
    Error { errno: Some(Errno::ENOENT as i32), ..Error::new(Code::NotFound, side, Operation::Open, message) }
}

fn permission(side: Side, message: String) -> Error {
    Error::new(Code::Permission, side, Operation::Open, message)
}

#[cfg(test)]
mod tests;
