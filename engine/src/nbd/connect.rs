//! Connects to an address within a given time.
//!
//! Sockets are close-on-exec; they are connected without blocking and handed out blocking. A name is looked up on a
//! thread of its own, because the system's resolver can neither be bounded nor cancelled; the thread ends when the
//! resolver gives up.

use super::uri::Address;
use super::wait_bound::WaitBound;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, sockopt};
use nix::sys::socket::{connect as start_connecting, getsockopt, setsockopt, socket};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Seconds without a word before TCP asks whether the peer is still there.
const KEEPALIVE_IDLE_S: u32 = 10;
/// Seconds between such questions.
const KEEPALIVE_INTERVAL_S: u32 = 5;
/// Unanswered ones that end the connection.
const KEEPALIVE_COUNT: u32 = 3;

/// Connects to the server at an address; every address of a name is tried. TCP fails when bytes stay unacknowledged for
/// `user_timeout`; without one, after the system's timeout.
///
/// # Errors
/// The error of the last address, with the operating system's number where there is one.
pub(super) fn connect(
    address: &Address,
    user_timeout: Option<Duration>,
    deadline: WaitBound<'_>,
) -> io::Result<OwnedFd> {
    match address {
        Address::Unix(path) => unix(path, deadline),
        Address::Tcp { host, port } => {
            let addresses = resolve(host, *port, deadline)?;
            let mut outcome = Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
            for (at, address) in addresses.iter().enumerate() {
                outcome = tcp(*address, user_timeout, deadline.share(addresses.len() - at));
                if outcome.is_ok() || deadline.piece().is_err() {
                    break;
                }
            }
            outcome
        }
    }
}

fn unix(path: &Path, deadline: WaitBound<'_>) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    loop {
        let socket = unconnected(AddressFamily::Unix)?;
        match start_connecting(socket.as_raw_fd(), &address) {
            Ok(()) => return blocking(socket),
            // The queue of the server is full, and nothing says when it no longer is.
            Err(Errno::EAGAIN) => thread::sleep(deadline.piece()?),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn tcp(address: SocketAddr, user_timeout: Option<Duration>, deadline: WaitBound<'_>) -> io::Result<OwnedFd> {
    let address = SockaddrStorage::from(address);
    let family = address.family().ok_or(Errno::EAFNOSUPPORT)?;
    let socket = unconnected(family)?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    if let Some(limit) = user_timeout {
        setsockopt(&socket, sockopt::TcpUserTimeout, &u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))?;
    }
    match start_connecting(socket.as_raw_fd(), &address) {
        Ok(()) => return blocking(socket),
        Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    deadline.wait(socket.as_fd(), PollFlags::POLLOUT)?;
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => blocking(socket),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

fn unconnected(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

fn blocking(socket: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
    fcntl(&socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(socket)
}

fn resolve(host: &str, port: u16, deadline: WaitBound<'_>) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    thread::Builder::new().name("nbd-resolve".to_owned()).spawn(move || {
        let addresses = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // The caller may not be waiting any more.
        let _ = sender.send(addresses);
    })?;
    loop {
        match receiver.recv_timeout(deadline.piece()?) {
            Ok(addresses) => return addresses,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the resolver ended without a word")),
        }
    }
}
