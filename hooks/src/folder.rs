//! Opens the folder of hooks, and hooks in it.
//!
//! The path is walked from `/`, one component at a time, each opened below the one before without following a link.
//! What is judged ([`trust`]) is what was opened, so nothing can be exchanged in between. Links are
//! refused rather than resolved: whoever may replace a link could point it to another safe folder, and in `/usr/bin`
//! every program would be a hook.
//!
//! The folder is held as a descriptor. It is walked to and judged again whenever a hook is opened, as modes change while
//! a daemon runs; if the path leads to another folder then, the hook is refused.

use crate::hook::Hook;
use crate::name::HookName;
use crate::overlap::FileIdentity;
use crate::trust;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Uid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Flags of every folder and file on the way to a hook: to be judged and executed, not to be read.
pub(crate) const TO_BE_JUDGED: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The folder of a node's hooks.
#[derive(Debug)]
pub struct HookFolder {
    path: PathBuf,
    descriptor: OwnedFd,
    identity: FileIdentity,
}

impl HookFolder {
    /// Opens the folder of hooks at `path`. It and all folders above it must belong to root or the effective user, and
    /// must not be writable by their group or others.
    ///
    /// # Errors
    /// `EBadRequest` for a path with `..`; `EPermission` if one of the folders breaks the rules, with the command that
    /// changes it; `ENotFound` and others of the system.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let given = path.as_ref();
        if given.components().any(|component| component == Component::ParentDir) {
            return Err(Error::bad_request(format!("hooks folder {}: give its path without '..'", given.shown())));
        }
        let path = std::path::absolute(given).map_err(|error| {
            Error::io(Side::Engine, Operation::Open, &error, format!("open hooks folder {}", given.shown()))
        })?;
        let (descriptor, identity) = walk(&path)?;
        Ok(Self { path, descriptor, identity })
    }

    /// Returns the folder's absolute path, in which no component is a link.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a hook: a regular, executable file with one link, without setuid and setgid, of which owner and mode obey
    /// the rules of the folder.
    ///
    /// # Errors
    /// `ENotFound` if there is none of this name; `EPermission` if it, or the folder by now, breaks the rules, with the
    /// command that changes it, and others of the system. None is retryable but those of exhausted limits.
    pub fn hook(&self, name: &HookName) -> Result<Hook> {
        let (_, identity) = walk(&self.path)?;
        if identity != self.identity {
            let message = format!("hooks folder {} is another one than at the start", self.path.shown());
            let error = Error::new(Code::Permission, Side::Engine, Operation::Open, message);
            return Err(error.advise("restart this program to use it"));
        }
        Hook::open(self.descriptor.as_fd(), name, self.path.join(name.as_str()))
    }
}

/// Opens the folder at an absolute path, and judges it and all folders above.
fn walk(path: &Path) -> Result<(OwnedFd, FileIdentity)> {
    let user = Uid::effective();
    let mut reached = PathBuf::from("/");
    let failed = |errno, reached: &Path| {
        let what = format!("open hooks folder {}: {}", path.shown(), reached.shown());
        Error::os(Side::Engine, Operation::Open, errno, what)
    };
    let mut folder = open("/", TO_BE_JUDGED, Mode::empty()).map_err(|errno| failed(errno, &reached))?;
    let mut identity = check_folder(&folder, path, &reached, user)?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        reached.push(name);
        folder = openat(&folder, name, TO_BE_JUDGED, Mode::empty()).map_err(|errno| failed(errno, &reached))?;
        identity = check_folder(&folder, path, &reached, user)?;
    }
    Ok((folder, identity))
}

fn check_folder(folder: &OwnedFd, path: &Path, reached: &Path, user: Uid) -> Result<FileIdentity> {
    let what = || format!("hooks folder {}: {}", path.shown(), reached.shown());
    let stat = fstat(folder).map_err(|errno| Error::os(Side::Engine, Operation::Stat, errno, what()))?;
    match trust::folder_fault(&stat, user) {
        None => Ok(FileIdentity(stat.st_dev, stat.st_ino)),
        Some(fault) => {
            let message = format!("{}: {fault}", what());
            Err(Error::new(Code::Permission, Side::Engine, Operation::Open, message))
        }
    }
}
