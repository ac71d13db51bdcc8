//! Relays bytes between TLS and a plain socket, so that the connections need not know of TLS.
//!
//! ```text
//!           plain end      inner end                         outer socket
//! session  <========== pair ==========>  relay (one thread)  <============  server
//!            bytes                        TLS in, TLS out      records
//! ```
//! - At most one buffer's worth of each direction is held; a side that does not take its bytes stops only what flows
//!   towards it. Whatever the two sides do, the thread sleeps in `poll` until one of them can go on.
//! - The server closes, or TLS fails: what had arrived whole is passed on, then the plain end reads its end of file,
//!   and sending there fails.
//! - The plain end is shut down for writing: everything accepted is sent, `close_notify` and the end of the stream
//!   after it; what the server still says is passed on.
//! - The plain end is closed, or shut down in both directions: the connection is abandoned. The outer socket is reset,
//!   unsent bytes are dropped, and bytes in a queue of the kernel take no effect later.
//!
//! In each case the thread ends and closes both sockets.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, sendmsg, setsockopt, shutdown, sockopt};
use rustls::ClientConnection;
use std::io::{self, BufRead, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

/// Bytes of one direction in hand: enough that calls and wake-ups do not count beside the encryption.
const BUFFER_BYTES: usize = 128 << 10;

/// The name of the threads, of at most 15 bytes.
pub(super) const THREAD: &str = "nbd-tls";

/// Starts a thread that owns the connection, whose handshake is done, and its socket. Returns the plain end.
pub(super) fn start(connection: ClientConnection, outer: OwnedFd) -> io::Result<OwnedFd> {
    let (plain, inner) = UnixStream::pair()?;
    let relay = TlsRelay::new(connection, outer, inner.into());
    thread::Builder::new().name(THREAD.to_owned()).spawn(move || relay.run())?;
    Ok(plain.into())
}

struct TlsRelay {
    tls: ClientConnection,
    outer: OwnedFd,
    inner: OwnedFd,
    /// Buffer for the bytes just received from either side, used within one step.
    scratch: Box<[u8]>,
    /// Bytes that the server has sent and the plain end has not taken yet, from `taken` on.
    arrived: Vec<u8>,
    taken: usize,
    /// The server, or TLS, has ended: nothing more arrives.
    peer_is_done: bool,
    /// The server takes nothing more; the end of what it says must follow.
    peer_is_deaf: bool,
    /// The plain end sends no more, and `close_notify` is queued or sent.
    plain_is_done: bool,
    /// All of that has been sent, and the end of the stream after it.
    has_shut_down: bool,
}

/// Cause of the end.
enum RelayEnd {
    /// The server has ended the stream, and all of its bytes were forwarded.
    PeerDone,
    /// The plain end is closed.
    Abandoned,
}

/// Directions that can proceed.
struct ReadyEnds {
    abandoned: bool,
    inner_in: bool,
    outer_in: bool,
}

impl TlsRelay {
    fn new(mut tls: ClientConnection, outer: OwnedFd, inner: OwnedFd) -> Self {
        // What it holds is bounded here: more is accepted only after everything was sent.
        tls.set_buffer_limit(None);
        Self {
            tls,
            outer,
            inner,
            scratch: vec![0; BUFFER_BYTES].into(),
            arrived: Vec::with_capacity(BUFFER_BYTES),
            taken: 0,
            peer_is_done: false,
            peer_is_deaf: false,
            plain_is_done: false,
            has_shut_down: false,
        }
    }

    fn run(mut self) {
        // The handshake may have read on.
        self.decrypt(0);
        let ending = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(ending)) => break ending,
                Err(error) => {
                    tracing::warn!(%error, "TLS relay failed");
                    break RelayEnd::Abandoned;
                }
            }
        };
        match ending {
            RelayEnd::PeerDone => self.end_plainly(),
            RelayEnd::Abandoned => self.reset(),
        }
    }

    /// Waits until something can be done, and does it.
    fn turn(&mut self) -> io::Result<Option<RelayEnd>> {
        if self.peer_is_done && self.arrived.is_empty() {
            return Ok(Some(RelayEnd::PeerDone));
        }
        let ready = self.wait()?;
        if ready.abandoned {
            return Ok(Some(RelayEnd::Abandoned));
        }
        if ready.inner_in {
            self.accept()?;
        }
        if self.has_to_send() {
            self.send();
        }
        self.shut_down_when_all_is_sent();
        if ready.outer_in {
            self.receive();
        }
        Ok((!self.pass_on()).then_some(RelayEnd::Abandoned))
    }

    /// A peer that has gone is reported by `poll` whether asked for or not, over and over: the server is looked at
    /// only while something is wanted of it. The plain end always is, to see that it is abandoned.
    fn wait(&self) -> io::Result<ReadyEnds> {
        let when = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let receives = self.arrived.is_empty() && !self.peer_is_done;
        let accepts = !self.plain_is_done && !self.tls.wants_write() && !self.peer_is_done && !self.peer_is_deaf;
        let inner = when(accepts, PollFlags::POLLIN) | when(!self.arrived.is_empty(), PollFlags::POLLOUT);
        let outer = when(receives, PollFlags::POLLIN) | when(self.has_to_send(), PollFlags::POLLOUT);
        let mut both = [PollFd::new(self.inner.as_fd(), inner), PollFd::new(self.outer.as_fd(), outer)];
        let looked_at = if outer.is_empty() { 1 } else { 2 };
        while let Err(errno) = poll(&mut both[..looked_at], PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let [inner, outer] = both.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        Ok(ReadyEnds {
            abandoned: inner.intersects(gone),
            inner_in: accepts && inner.contains(PollFlags::POLLIN),
            outer_in: receives && outer.intersects(gone | PollFlags::POLLIN),
        })
    }

    fn has_to_send(&self) -> bool {
        self.tls.wants_write() && !self.peer_is_done && !self.peer_is_deaf
    }

    /// Reads bytes of the plain end and encrypts them.
    fn accept(&mut self) -> io::Result<()> {
        match without_waiting(|| recv(self.inner.as_raw_fd(), &mut self.scratch, MsgFlags::MSG_DONTWAIT))? {
            None => {}
            Some(0) => {
                self.plain_is_done = true;
                self.tls.send_close_notify();
            }
            Some(count) => self.tls.writer().write_all(&self.scratch[..count])?,
        }
        Ok(())
    }

    /// Sends what is encrypted, as far as the outer socket takes it.
    fn send(&mut self) {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut OuterSocket(&self.outer)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "TLS peer accepts no more data");
                    self.peer_is_deaf = true;
                    return;
                }
            }
        }
    }

    fn shut_down_when_all_is_sent(&mut self) {
        if self.plain_is_done && !self.has_shut_down && !self.tls.wants_write() {
            self.has_shut_down = true;
            // Fails if the server has gone, which reading tells as well.
            let _ = shutdown(self.outer.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Reads records of the server.
    fn receive(&mut self) {
        match without_waiting(|| recv(self.outer.as_raw_fd(), &mut self.scratch, MsgFlags::MSG_DONTWAIT)) {
            Ok(None) => {}
            Ok(Some(0)) => self.peer_is_done = true,
            Ok(Some(count)) => self.decrypt(count),
            Err(error) => {
                tracing::debug!(%error, "TLS connection lost");
                self.peer_is_done = true;
            }
        }
    }

    /// Decrypts what was received and what the handshake left over.
    fn decrypt(&mut self, count: usize) {
        match decrypt(&mut self.tls, &self.scratch[..count], &mut self.arrived) {
            Ok(has_closed) => self.peer_is_done = has_closed,
            Err(error) => {
                tracing::warn!(%error, "TLS failed");
                self.peer_is_done = true;
                // The alert of the error, if it can be sent at once.
                let _ = self.tls.write_tls(&mut OuterSocket(&self.outer));
            }
        }
    }

    /// Writes to the plain end as much as fits; `false` if it is closed.
    fn pass_on(&mut self) -> bool {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while self.taken < self.arrived.len() {
            match without_waiting(|| send(self.inner.as_raw_fd(), &self.arrived[self.taken..], flags)) {
                Ok(Some(count)) => self.taken += count,
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        self.arrived.clear();
        self.taken = 0;
        true
    }

    /// Ends the plain side with an end of file, not a reset, although it may have sent bytes that are not forwarded.
    fn end_plainly(mut self) {
        self.tls.send_close_notify();
        let _ = self.tls.write_tls(&mut OuterSocket(&self.outer));
        let _ = shutdown(self.inner.as_raw_fd(), Shutdown::Both);
        let mut take = || recv(self.inner.as_raw_fd(), &mut self.scratch, MsgFlags::MSG_DONTWAIT);
        while let Ok(Some(1..)) = without_waiting(&mut take) {}
    }

    /// Closes without sending what is queued. Of unix sockets nothing is queued on this side.
    fn reset(self) {
        let _ = setsockopt(&self.outer, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 });
    }
}

/// Decrypts `records` into `arrived`, up to invalid bytes. Returns whether the server has sent `close_notify`.
fn decrypt(tls: &mut ClientConnection, mut records: &[u8], arrived: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let outcome = tls.process_new_packets().map(|state| state.peer_has_closed());
        take_plaintext(tls, arrived);
        let has_closed = outcome.map_err(io::Error::other)?;
        if records.is_empty() || has_closed {
            return Ok(has_closed);
        }
        tls.read_tls(&mut records)?;
    }
}

/// Decrypted bytes, including those before an error.
fn take_plaintext(tls: &mut ClientConnection, arrived: &mut Vec<u8>) {
    let mut reader = tls.reader();
    while let Ok(bytes @ [_, ..]) = reader.fill_buf() {
        arrived.extend_from_slice(bytes);
        let count = bytes.len();
        reader.consume(count);
    }
}

/// `None` where it would have had to wait.
fn without_waiting(mut operation: impl FnMut() -> nix::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match operation() {
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            outcome => return Ok(Some(outcome?)),
        }
    }
}

/// Writes many records in one call, without waiting and without a signal.
struct OuterSocket<'a>(&'a OwnedFd);

impl Write for OuterSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = without_waiting(|| sendmsg::<()>(self.0.as_raw_fd(), pieces, &[], flags, None))?;
        sent.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
