//! Bounds every read and write of a socket: each ends when a deadline passes, or soon after a cancel.
//!
//! The descriptor itself stays blocking, for its later owner; operations here say that they do not wait, and then wait
//! for readiness in short pieces. `cancelled` is checked before every operation and at least every
//! [`LOOK_EVERY`](super::wait_bound::LOOK_EVERY) while waiting.

use super::wait_bound::WaitBound;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A connected stream socket.
pub(super) struct BoundedStream<'a> {
    socket: OwnedFd,
    deadline: WaitBound<'a>,
}

impl<'a> BoundedStream<'a> {
    pub(super) fn new(socket: OwnedFd, deadline: WaitBound<'a>) -> Self {
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

impl Read for BoundedStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.ready(PollFlags::POLLIN, |fd| recv(fd, buffer, MsgFlags::MSG_DONTWAIT))
    }
}

impl Write for BoundedStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.ready(PollFlags::POLLOUT, |fd| send(fd, bytes, flags))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
