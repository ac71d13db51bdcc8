//! Revokes the connections of a job to its servers, and holds the gate that new ones wait for.
//!
//! All exports of a job share one revoker. Every session is registered with it for as long as its socket is open. A
//! revocation is final: it resets all sockets, including those in use, and no new one is made afterwards.

use crate::error::{Code, Error, Operation, Side};
use crate::limits::GATED_USER_TIMEOUT;
use crate::sync::lock;
use crate::write_gate::WriteGate;
use nix::libc::linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Revokes all connections of a job.
#[derive(Debug, Default)]
pub(crate) struct ConnectionRevoker {
    gate: Option<Arc<WriteGate>>,
    is_revoked: AtomicBool,
    sockets: Mutex<Vec<Weak<OwnedFd>>>,
}

impl ConnectionRevoker {
    pub(crate) fn new(gate: Option<Arc<WriteGate>>) -> Self {
        Self { gate, ..Self::default() }
    }

    /// The gate, of a job that has one.
    pub(crate) fn gate(&self) -> Option<&Arc<WriteGate>> {
        self.gate.as_ref()
    }

    /// Returns whether what changes a destination may be submitted.
    pub(crate) fn is_open(&self) -> bool {
        self.gate.as_ref().is_none_or(|gate| gate.is_open())
    }

    /// Returns how long the peer's kernel may leave bytes of a gated job unacknowledged, before the connection ends.
    pub(crate) fn user_timeout(&self) -> Option<Duration> {
        self.gate.as_ref().map(|_| GATED_USER_TIMEOUT)
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.is_revoked.load(Acquire)
    }

    /// Registers the socket of a new session.
    pub(crate) fn register(&self, socket: &Arc<OwnedFd>) {
        let mut sockets = lock(&self.sockets);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
        if self.is_revoked() {
            reset(socket);
        }
    }

    /// Resets every connection, and those that are being made as soon as they are.
    pub(crate) fn revoke(&self) {
        let mut sockets = lock(&self.sockets);
        self.is_revoked.store(true, Release);
        sockets.drain(..).filter_map(|socket| socket.upgrade()).for_each(|socket| reset(&socket));
    }

    /// Returns the error of an export whose connections were revoked.
    pub(crate) fn error(&self, side: Side, name: &str) -> Error {
        let message = format!("the connections to {name} were revoked: the right to use them has ended");
        Error::new(Code::Unreachable, side, Operation::Stop, message).maybe_applied()
    }
}

/// Ends a connection whatever is under way on it. Behind TLS the thread that encrypts resets the outer one.
fn reset(socket: &OwnedFd) {
    // A unix socket has none of it, and one that is gone takes nothing any more.
    let _ = setsockopt(socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 });
    // Drops what is queued and tells the peer at once, also while others hold the socket and have operations on it: a
    // close would wait for them. Only TCP knows it.
    let _ = rustix::net::connect_unspec(socket.as_fd());
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::super::connect::connect;
    use super::super::uri::Address;
    use super::super::wait_bound::WaitBound;
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// A connection whose receiver has not taken anything yet, and how much was sent.
    fn filled() -> (Arc<OwnedFd>, TcpStream, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = sender.write(&[7; 65536]) {
            sent += count;
        }
        (Arc::new(OwnedFd::from(sender)), receiver, sent)
    }

    /// Returns what a peer gets, and how it ends.
    fn received(mut receiver: TcpStream) -> (usize, Option<ErrorKind>) {
        let (mut got, mut buffer) = (0, vec![0; 65536]);
        loop {
            match receiver.read(&mut buffer) {
                Ok(0) => return (got, None),
                Ok(count) => got += count,
                Err(error) => return (got, Some(error.kind())),
            }
        }
    }

    #[test]
    fn a_revocation_drops_queued_bytes_though_the_socket_stays_open() {
        let revoker = ConnectionRevoker::default();
        let (socket, receiver, sent) = filled();
        revoker.register(&socket);
        revoker.revoke();
        revoker.revoke();
        let (got, end) = received(receiver);
        assert!(got < sent, "{got} of {sent} bytes arrived");
        assert_eq!(end, Some(ErrorKind::ConnectionReset));
        drop(socket);
    }

    #[test]
    fn a_connection_made_after_a_revocation_is_reset_at_once() {
        let revoker = ConnectionRevoker::default();
        revoker.revoke();
        let (socket, receiver, sent) = filled();
        revoker.register(&socket);
        let (got, end) = received(receiver);
        assert!(got < sent && end == Some(ErrorKind::ConnectionReset), "{got} of {sent} bytes, then {end:?}");
    }

    #[test]
    fn sockets_that_are_closed_are_forgotten() {
        let revoker = ConnectionRevoker::default();
        for _ in 0..3 {
            let (socket, ..) = filled();
            revoker.register(&socket);
        }
        assert_eq!(lock(&revoker.sockets).len(), 1, "only the socket of the last session is registered");
    }

    #[test]
    fn a_send_behind_a_gate_is_not_retried_for_long() {
        let gated = ConnectionRevoker::new(Some(Arc::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let timeout = |revoker: &ConnectionRevoker| {
            let deadline = WaitBound::new(Duration::from_secs(60), &|| false);
            let socket = connect(&address, revoker.user_timeout(), deadline).unwrap();
            getsockopt(&socket, sockopt::TcpUserTimeout).unwrap()
        };
        assert_eq!((timeout(&gated), timeout(&ConnectionRevoker::default())), (2500, 0));
        assert!(ConnectionRevoker::default().is_open() && !gated.is_open());
    }
}
