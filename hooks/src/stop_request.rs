//! Carries a caller's wish to end a hook to the thread that supervises it.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The wish to end one hook; it can be repeated.
#[derive(Debug)]
pub(crate) struct StopRequest {
    wake: EventFd,
    kill_at: Mutex<Option<Instant>>,
}

impl StopRequest {
    pub(crate) fn new() -> nix::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { wake, kill_at: Mutex::new(None) })
    }

    /// Asks for the end, with SIGKILL at `kill_at`. The earliest time holds.
    pub(crate) fn set(&self, kill_at: Instant) {
        let mut earliest = self.kill_at.lock().unwrap_or_else(PoisonError::into_inner);
        *earliest = Some(earliest.map_or(kill_at, |earlier| earlier.min(kill_at)));
        drop(earliest);
        // It can only fail when the counter is full, and then it wakes the thread as well.
        let _ = self.wake.write(1);
    }

    /// Returns the wish, if it was made since the last call.
    pub(crate) fn take(&self) -> Option<Instant> {
        let _ = nix::unistd::read(&self.wake, &mut [0; 8]);
        self.kill_at.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl AsFd for StopRequest {
    /// The descriptor polls as readable when there is a wish.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
