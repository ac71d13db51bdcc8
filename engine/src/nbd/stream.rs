//! A socket whose every read and write ends in time: when a deadline passes, or soon after somebody cancels.
//!
//! The descriptor itself stays blocking, for whoever takes it over; operations here say that they do not wait, and
//! then wait for readiness in short pieces. `cancelled` is looked at before every operation and at least every
//! [`LOOK_EVERY`] while waiting.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long nobody looks whether it is cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Until when somebody waits.
#[derive(Clone, Copy)]
pub(super) struct Deadline<'a> {
    deadline: Instant,
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Deadline<'a> {
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

    /// How long may be waited without looking again.
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

/// A connected stream socket.
pub(super) struct Stream<'a> {
    socket: OwnedFd,
    deadline: Deadline<'a>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(socket: OwnedFd, deadline: Deadline<'a>) -> Self {
        Self { socket, deadline }
    }

    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Repeats an operation that does not wait until it has something to say.
    fn ready(&self, events: PollFlags, mut operation: impl FnMut(i32) -> nix::Result<usize>) -> io::Result<usize> {
        loop {
            self.deadline.piece()?;
            match operation(self.socket.as_raw_fd()) {
                Err(Errno::EAGAIN) => self.deadline.wait(self.socket.as_fd(), events)?,
                Err(Errno::EINTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.ready(PollFlags::POLLIN, |fd| recv(fd, buffer, MsgFlags::MSG_DONTWAIT))
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.ready(PollFlags::POLLOUT, |fd| send(fd, bytes, flags))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
