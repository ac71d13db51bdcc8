//! Opens one hook and judges the file that was opened.
//!
//! The hook is held as a descriptor, and that descriptor is executed: what is judged is what runs, whatever happens to
//! its name meanwhile.

use crate::folder::TO_BE_JUDGED;
use crate::limits::INTERPRETER_LINE_BYTES;
use crate::name::HookName;
use crate::trust;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::{Escaped, Shown};
use nix::errno::Errno;
use nix::fcntl::{OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Uid;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A hook that was opened and judged.
#[derive(Clone, Debug)]
pub struct Hook {
    name: HookName,
    path: PathBuf,
    descriptor: Arc<OwnedFd>,
}

impl Hook {
    /// Opens the hook `name` in `folder`; `path` is for messages.
    pub(crate) fn open(folder: BorrowedFd<'_>, name: &HookName, path: PathBuf) -> Result<Self> {
        let descriptor = open_beneath(folder, name).map_err(|errno| {
            let error = Error::os(Side::Engine, Operation::Open, errno, format!("open hook {}", path.shown()));
            match errno {
                Errno::ENOENT => error.advise("put an executable file of this name there"),
                Errno::ELOOP => error.with_code(Code::Permission).advise("put the program itself there, not a link"),
                _ => error,
            }
        })?;
        let stat = fstat(&descriptor)
            .map_err(|errno| Error::os(Side::Engine, Operation::Stat, errno, format!("judge hook {}", path.shown())))?;
        if let Some(fault) = trust::hook_fault(&stat, Uid::effective()) {
            let message = format!("hook {}: {fault}", path.shown());
            return Err(Error::new(Code::Permission, Side::Engine, Operation::Open, message));
        }
        Ok(Self { name: name.clone(), path, descriptor: Arc::new(descriptor) })
    }

    /// Returns the name of the hook.
    #[must_use]
    pub fn name(&self) -> &HookName {
        &self.name
    }

    /// Returns the path at which the hook was found, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Returns the interpreter that the hook's first line names, escaped; `None` if there is none or it cannot be read.
    pub(crate) fn interpreter(&self) -> Option<String> {
        let mut line = Vec::new();
        let file = File::open(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd())).ok()?;
        file.take(INTERPRETER_LINE_BYTES as u64).read_to_end(&mut line).ok()?;
        let line = line.split(|byte| *byte == b'\n').next()?.strip_prefix(b"#!")?.trim_ascii();
        let program = line.split(|byte| byte.is_ascii_whitespace()).next()?;
        (!program.is_empty()).then(|| Escaped::from(program).to_string())
    }
}

/// Opens `name` in `folder`, without following a link: of a link, the link itself is opened or `ELOOP` returned.
fn open_beneath(folder: BorrowedFd<'_>, name: &HookName) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(folder, name.as_str(), OpenHow::new().flags(TO_BE_JUDGED).resolve(resolve)) {
        // The call is unknown to older kernels, and to filters that refuse what they do not know. A name is one
        // component, so there is nothing on the way that could be a link.
        Err(Errno::ENOSYS | Errno::EPERM) => openat(folder, name.as_str(), TO_BE_JUDGED, Mode::empty()),
        opened => opened,
    }
}
