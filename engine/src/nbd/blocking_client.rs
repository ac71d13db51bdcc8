//! Sends one request at a time over a session that no worker uses: what a job asks before and after its blocks move.

use super::Session;
use super::block_status::{StatusDescriptors, merge};
use super::codec::{Command, CommandFlags, REQUEST_BYTES_MAX, RequestHeader};
use super::replies::{ExpectedReply, NextReceive, Replies, ReplyEvent};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent};
use crate::ring::clock;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Longest wait in one call.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes of heads received at a time.
const HEAD_BYTES: usize = 4096;

/// A blocking client over one session.
#[derive(Debug)]
pub(crate) struct BlockingClient<'a> {
    session: &'a Session,
    side: Side,
    name: &'a str,
    /// Longest time of each request.
    limit: Duration,
    replies: Replies,
    sound: bool,
}

impl<'a> BlockingClient<'a> {
    pub(crate) fn new(session: &'a Session, side: Side, name: &'a str, limit: Duration) -> Self {
        Self { session, side, name, limit, replies: Replies::new(session.style, session.contexts, 1), sound: true }
    }

    /// Returns whether nothing is under way on the session, so that it can be used again.
    pub(crate) fn is_reusable(&self) -> bool {
        self.sound
    }

    /// The bytes of a range.
    pub(crate) fn read(&mut self, range: ByteRange) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.len()).expect("short ranges are read like this")];
        let facts = &self.session.facts;
        let most = u64::from(facts.max_payload_bytes / facts.min_block_bytes * facts.min_block_bytes);
        for piece in range.split(most) {
            let at = usize::try_from(piece.start() - range.start()).expect("within the buffer");
            let len = u32::try_from(piece.len()).expect("no more than the payload's maximum");
            let expected = ExpectedReply::Read { offset: piece.start(), len };
            let request = (Command::Read, CommandFlags::NONE, piece);
            self.call(Operation::Read, request, expected, &mut bytes[at..at + len as usize])?;
        }
        Ok(bytes)
    }

    /// Returns the block status of a range, from its start on.
    pub(crate) fn status(&mut self, range: ByteRange) -> Result<Vec<Extent>> {
        let expected = ExpectedReply::Status { offset: range.start(), len: range.len() };
        let request = (Command::BlockStatus, CommandFlags::NONE, range);
        let (allocation, dirty) = self.call(Operation::Map, request, expected, &mut [])?;
        if dirty.is_none() && self.session.contexts.dirty.is_some() {
            let message = format!("{} says nothing of the dirty bitmap at byte {}", self.name, range.start());
            return Err(Error::new(Code::Protocol, self.side, Operation::Map, message));
        }
        Ok(merge(range, allocation, dirty))
    }

    /// Sends one request and receives its whole reply, within the limit.
    fn call(
        &mut self,
        operation: Operation,
        (command, flags, range): (Command, CommandFlags, ByteRange),
        expected: ExpectedReply,
        buffer: &mut [u8],
    ) -> Result<(Option<StatusDescriptors>, Option<StatusDescriptors>)> {
        let until = clock() + self.limit;
        let cookie = self.replies.expect(expected);
        let request = RequestHeader { command, flags, cookie, offset: range.start(), len: range.len() };
        // Until the reply is complete.
        self.sound = false;
        self.send(operation, request, until)?;
        let (mut allocation, mut dirty) = (None, None);
        let mut events = Vec::new();
        loop {
            self.receive(operation, buffer, &mut events, until)?;
            for event in events.drain(..) {
                match event {
                    ReplyEvent::Early { .. } => unreachable!("nothing is received before its request is made"),
                    ReplyEvent::Hole { at, len, .. } => buffer[at as usize..(at + len) as usize].fill(0),
                    ReplyEvent::Status { context, extents, .. } if Some(context) == self.session.contexts.dirty => {
                        dirty = Some(extents);
                    }
                    ReplyEvent::Status { extents, .. } => allocation = Some(extents),
                    ReplyEvent::Done { result, .. } => {
                        self.sound = true;
                        let what = format!("{operation} {}", self.name);
                        result.map_err(|errno| Error::os(self.side, operation, errno, what))?;
                        return Ok((allocation, dirty));
                    }
                }
            }
        }
    }

    fn send(&self, operation: Operation, request: RequestHeader, until: Duration) -> Result<()> {
        let mut head = [0; REQUEST_BYTES_MAX];
        let len = request.encode(self.session.style, &mut head);
        let mut rest = &head[..len];
        while !rest.is_empty() {
            self.wait(operation, PollFlags::POLLOUT, until)?;
            match send(self.session.socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(self.lost(operation, errno.desc())),
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        operation: Operation,
        buffer: &mut [u8],
        events: &mut Vec<ReplyEvent>,
        until: Duration,
    ) -> Result<()> {
        self.wait(operation, PollFlags::POLLIN, until)?;
        let mut head = [0; HEAD_BYTES];
        let wants = self.replies.wants();
        let into = match wants {
            NextReceive::Head { most } => &mut head[..most.min(HEAD_BYTES)],
            NextReceive::Body { at, len, .. } => &mut buffer[at as usize..(at + len) as usize],
        };
        let bytes = match recv(self.session.socket.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(self.lost(operation, "the server closed the connection")),
            Ok(bytes) => bytes,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(self.lost(operation, errno.desc())),
        };
        let parsed = match wants {
            NextReceive::Head { .. } => self.replies.head(&head[..bytes], events),
            NextReceive::Body { .. } => self.replies.body(u32::try_from(bytes).expect("no more than the body"), events),
        };
        parsed.map_err(|violation| {
            let message = format!("{operation} {}: {}", self.name, violation.0);
            Error::new(Code::Protocol, self.side, operation, message)
        })
    }

    fn wait(&self, operation: Operation, flags: PollFlags, until: Duration) -> Result<()> {
        loop {
            let left = until.saturating_sub(clock());
            if left.is_zero() {
                return Err(self.lost(operation, "the server does not answer"));
            }
            if is_ready(self.session, flags, left) {
                return Ok(());
            }
        }
    }

    fn lost(&self, operation: Operation, why: &str) -> Error {
        let message = format!("{operation} {}: {why}", self.name);
        Error::new(Code::Unreachable, self.side, operation, message)
    }
}

fn is_ready(session: &Session, flags: PollFlags, limit: Duration) -> bool {
    let mut fds = [PollFd::new(session.socket.as_fd(), flags)];
    let timeout = PollTimeout::try_from(limit.min(WAIT_MAX).max(Duration::from_millis(1))).unwrap_or(PollTimeout::ZERO);
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Ends idle sessions: sends disconnect requests, then waits until the servers have closed. Returns whether
/// all did in time.
pub(crate) fn disconnect(sessions: Vec<Session>, until: Duration) -> bool {
    for session in &sessions {
        let request =
            RequestHeader { command: Command::Disconnect, flags: CommandFlags::NONE, cookie: 0, offset: 0, len: 0 };
        let mut head = [0; REQUEST_BYTES_MAX];
        let len = request.encode(session.style, &mut head);
        let socket = session.socket.as_raw_fd();
        // A server that has ended has closed the connection already.
        let _ = send(socket, &head[..len], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
        let _ = shutdown(socket, Shutdown::Write);
    }
    // Every one is waited for, whatever became of the others.
    let open = sessions.iter().filter(|session| !has_closed(session, until)).count();
    open == 0
}

/// Waits for the end of what a server sends.
fn has_closed(session: &Session, until: Duration) -> bool {
    let mut rest = [0; HEAD_BYTES];
    loop {
        match recv(session.socket.as_raw_fd(), &mut rest, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = until.saturating_sub(clock());
                if left.is_zero() {
                    return false;
                }
                is_ready(session, PollFlags::POLLIN, left);
            }
            Err(_) => return true,
        }
    }
}
