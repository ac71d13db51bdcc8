//! Bounds a wait by a time and by a cancel.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Longest time between two checks of `cancelled`.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Bounds a wait.
#[derive(Clone, Copy)]
pub(super) struct WaitBound<'a> {
    deadline: Instant,
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> WaitBound<'a> {
    pub(super) fn new(limit: Duration, cancelled: &'a dyn Fn() -> bool) -> Self {
        let now = Instant::now();
        // A limit beyond what the clock can say is none: a year.
        Self { deadline: now.checked_add(limit).unwrap_or(now + Duration::from_secs(365 * 86_400)), cancelled }
    }

    /// With an `n`th of what is left, so that others get their turn.
    pub(super) fn share(self, n: usize) -> Self {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let parts = u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        Self { deadline: Instant::now() + left / parts, ..self }
    }

    /// Returns how long to wait before looking again.
    ///
    /// # Errors
    /// `TimedOut` when nothing is left, or it is cancelled.
    pub(super) fn piece(&self) -> io::Result<Duration> {
        if (self.cancelled)() {
            return Err(io::Error::new(ErrorKind::TimedOut, "cancelled"));
        }
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")),
            left => Ok(left.min(LOOK_EVERY)),
        }
    }

    /// Waits until the descriptor is ready, which includes that it has failed.
    pub(super) fn wait(&self, fd: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
        loop {
            // Rounded up: less than a millisecond must not become a busy loop.
            let millis = self.piece()?.as_millis() as u16 + 1;
            match poll(&mut [PollFd::new(fd, events)], PollTimeout::from(millis)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
