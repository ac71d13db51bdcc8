//! Owns the first process of a hook: waits for its end, and reaps it last of all.
//!
//! The process stays a zombie until the whole tree is gone. Its number names the session and the group of the hook, so
//! it must not be given to another process before.

use crate::outcome::ProcessEnd;
use crate::process::{ProcessKey, ProcessStat, open_process};
use crate::subreaper::Presence;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

/// The first process of a hook.
#[derive(Debug)]
pub(crate) struct FirstProcess {
    key: ProcessKey,
    descriptor: OwnedFd,
    end: Option<ProcessEnd>,
    /// Dropped after the process was reaped.
    _presence: Presence,
}

impl FirstProcess {
    /// Takes the process over. If that fails, the process is killed and reaped.
    ///
    /// # Errors
    /// Those of opening a descriptor of it.
    pub(crate) fn new(mut child: Child, mut presence: Presence) -> io::Result<Self> {
        let pid = child.id().cast_signed();
        presence.set_running(pid);
        let opened = open_process(pid)
            .and_then(|descriptor| Ok((descriptor, ProcessStat::read(pid).ok_or(io::ErrorKind::NotFound)?.key)));
        match opened {
            Ok((descriptor, key)) => Ok(Self { key, descriptor, end: None, _presence: presence }),
            Err(error) => {
                let group = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn key(&self) -> ProcessKey {
        self.key
    }

    /// Returns how the process ended, if it has.
    pub(crate) fn end(&mut self) -> Option<ProcessEnd> {
        if self.end.is_none() {
            self.end = self.wait(WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
        }
        self.end
    }

    /// Tells whether the end of the process has been seen.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Reaps the process, which must have ended.
    pub(crate) fn reap(&mut self) {
        let _ = self.wait(WaitIdOptions::NOHANG);
    }

    fn wait(&self, options: WaitIdOptions) -> Option<ProcessEnd> {
        match waitid(WaitId::PidFd(self.descriptor.as_fd()), WaitIdOptions::EXITED | options) {
            Ok(status) => status.map(|status| match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ProcessEnd::Exited(code),
                (None, Some(signal)) => ProcessEnd::Killed(signal),
                (None, None) => ProcessEnd::Unknown,
            }),
            Err(rustix::io::Errno::INTR) => None,
            // Somebody else has reaped it.
            Err(_) => Some(ProcessEnd::Unknown),
        }
    }
}

impl AsFd for FirstProcess {
    /// The descriptor polls as readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
