//! Says why a hook could not be started, and what to do about it.

use crate::hook::Hook;
use crate::subreaper::KERNEL;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use blockhaul_engine::shown::Shown;
use nix::errno::Errno;
use std::io;

/// How far the start of a hook got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartStage {
    /// There may have been no process, or it was not ready.
    Preparing,
    /// The process was ready, and could not execute the hook.
    Executing,
}

/// Returns the error of a start that failed.
pub(crate) fn start_failure(hook: &Hook, stage: StartStage, error: &io::Error) -> Error {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let failed =
        |what: &str| Error::io(Side::Engine, Operation::Start, error, format!("{what} {}", hook.path().shown()));
    match stage {
        StartStage::Preparing => {
            let error = failed("prepare a process for hook");
            match errno {
                Some(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => error.with_code(Code::Unsupported).advise(KERNEL),
                _ => error,
            }
        }
        StartStage::Executing => {
            let error = failed("execute hook");
            let interpreter = || hook.interpreter().unwrap_or_else(|| String::from("its interpreter or loader"));
            match errno {
                Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => error
                    .advise(format!("{} is not there: install it, or correct the hook's first line", interpreter())),
                Some(Errno::EACCES | Errno::EPERM) => error.advise(format!(
                    "its file system must not be mounted noexec, and {} must be an executable file",
                    interpreter()
                )),
                Some(Errno::ENOEXEC | Errno::ELIBBAD) => error
                    .with_code(Code::Unsupported)
                    .advise("it is no program for this machine: a script needs a first line such as #!/bin/sh"),
                Some(Errno::ETXTBSY) => error.advise(
                    "it is being written: try again when that is done, and replace hooks by renaming a finished file",
                ),
                _ => error,
            }
        }
    }
}
