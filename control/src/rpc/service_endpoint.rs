//! Serves at the service address beside the address of the node: listens, checks that this process is what answers, and
//! ends the connections that came through the address before the address is removed.
//!
//! ```text
//!           begin: the address is on this node
//!  closed ------------------------------------> open
//!    ^                                           |
//!    '---- end: the address is about to go ------'
//! ```
//! What always holds:
//! - The socket lives as long as the process, because the kernel lets a socket bind to an address that is not on the
//!   host yet. So another process at that address and port is found at the start, and nothing is left to fail when the
//!   node leads.
//! - A connection through the address lives only while the endpoint is open. Otherwise it is closed as soon as it is
//!   accepted, by whichever socket. Its client connects again, and reaches the node that has the address then.

use super::connection_limit::GuardedStream;
use crate::cluster::service_address::Endpoint;
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest wait for a connection of this host to itself to be accepted: microseconds, unless the port has reached its
/// bound.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// Time for streams, which have been told the leader, to tell their clients.
const GOODBYE: Duration = Duration::from_millis(50);
/// Longest wait for connections to close once they are told to.
const CLOSE_MAX: Duration = Duration::from_millis(200);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Services as they are reached through the service address. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct ServiceEndpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    /// Cancelled while the endpoint is closed.
    open: Mutex<CancellationToken>,
    /// Connections through the address.
    connections: TaskTracker,
    /// Local address of the check's connection, and the channel that reports its arrival.
    check: Mutex<Option<(SocketAddr, oneshot::Sender<()>)>>,
}

impl ServiceEndpoint {
    /// Creates a closed endpoint at a service address, with the port of `socket`; also a socket of its own, unless
    /// `socket` covers the address already.
    ///
    /// # Errors
    /// `EBusy` if another process listens there, or another code of the system; each says what to change.
    pub(super) fn open(ip: IpAddr, socket: &TcpListener) -> Result<(Self, Option<TcpListener>)> {
        let listens = socket.local_addr().map_err(|error| of_bind(&error, SocketAddr::new(ip, 0)))?;
        let address = SocketAddr::new(ip, listens.port());
        let own = if covers(socket, listens.ip(), ip) {
            None
        } else {
            Some(bind(address).map_err(|error| of_bind(&error, address))?)
        };
        let (open, connections) = (CancellationToken::new(), TaskTracker::new());
        open.cancel();
        connections.close();
        Ok((Self(Arc::new(Inner { address, open: Mutex::new(open), connections, check: Mutex::default() })), own))
    }

    /// Takes an accepted connection: one through the service address ends with it. The check's own connection is
    /// answered and closed.
    pub(super) fn take(&self, mut connection: GuardedStream) -> Option<GuardedStream> {
        let inner = &*self.0;
        if connection.local_addr().map(|address| address.ip().to_canonical()).ok() != Some(inner.address.ip()) {
            return Some(connection);
        }
        let peer = connection.peer_addr().map(canonical).ok();
        if let Some((_, answered)) = locked(&inner.check).take_if(|(from, _)| Some(*from) == peer) {
            let _ = answered.send(());
            return None;
        }
        connection.end_with(locked(&inner.open).clone().cancelled_owned(), inner.connections.token());
        Some(connection)
    }

    fn take_connections(&self) {
        let mut open = locked(&self.0.open);
        if open.is_cancelled() {
            *open = CancellationToken::new();
        }
    }

    async fn ask(&self) -> io::Result<()> {
        let address = self.0.address;
        let socket = socket(address)?;
        socket.bind(SocketAddr::new(address.ip(), 0))?;
        let (answered, answer) = oneshot::channel();
        *locked(&self.0.check) = Some((canonical(socket.local_addr()?), answered));
        let _connection = socket.connect(address).await?;
        answer.await.map_err(|_| io::ErrorKind::Interrupted.into())
    }
}

#[async_trait]
impl Endpoint for ServiceEndpoint {
    async fn begin(&self) -> Result<()> {
        self.take_connections();
        let why = match timeout(ANSWER_MAX, self.ask()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        let what = format!("connect from this node to itself at the service address {}", self.0.address);
        let failed = Error::io(Side::Engine, Operation::Start, &why, what).with_code(Code::Unreachable);
        Err(Error { retryable: true, ..failed }.advise(
            "clients would get no answer, so the address is removed: check for a packet filter, or for a port without \
free connections",
        ))
    }

    async fn end(&self) {
        let Inner { open, connections, .. } = &*self.0;
        let open = locked(open).clone();
        if !open.is_cancelled() && !connections.is_empty() {
            sleep(GOODBYE).await;
        }
        open.cancel();
        let _ = timeout(CLOSE_MAX, connections.wait()).await;
    }
}

/// Tells whether a socket that listens at `listens` accepts connections to `ip`, too.
fn covers(socket: &TcpListener, listens: IpAddr, ip: IpAddr) -> bool {
    let is_both = || nix::sys::socket::getsockopt(socket, sockopt::Ipv6V6Only).is_ok_and(|only| !only);
    listens == ip || listens.is_unspecified() && (listens.is_ipv4() == ip.is_ipv4() || listens.is_ipv6() && is_both())
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// Listens at an address that need not be on this host.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn of_bind(error: &io::Error, address: SocketAddr) -> Error {
    let failed = Error::io(Side::Engine, Operation::Start, error, format!("listen at the service address {address}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => failed
            .with_code(Code::Busy)
            .advise("another process listens there: end it, or use another --vip or another port in --listen"),
        _ => failed
            .advise(format!("listen at all addresses instead: --listen 0.0.0.0:{} --advertise ADDR", address.port())),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::connection_limit::ConnectionLimit;
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    /// Another address of this host than the one that the services listen at.
    const SERVICE: &str = "127.0.0.2";

    async fn listening(at: &str) -> TcpListener {
        TcpListener::bind(at).await.unwrap()
    }

    /// Accepts for as long as it is polled; keeps the connections and reads from them, as a transport would.
    async fn accept(endpoint: &ServiceEndpoint, socket: &TcpListener) {
        let connection_limit = ConnectionLimit::new(8);
        loop {
            if let Some(mut connection) = endpoint.take(connection_limit.accept(socket).await) {
                tokio::spawn(async move { while connection.read(&mut [0]).await.is_ok_and(|read| read > 0) {} });
            }
        }
    }

    #[tokio::test]
    async fn a_socket_of_its_own_is_there_only_where_none_listens() {
        let service: IpAddr = SERVICE.parse().unwrap();
        let own = listening("127.0.0.1:0").await;
        let (_, second) = ServiceEndpoint::open(service, &own).unwrap();
        let at = second.as_ref().unwrap().local_addr().unwrap();
        assert_eq!(at, SocketAddr::new(service, own.local_addr().unwrap().port()), "the port of the first one");
        let error = ServiceEndpoint::open(service, &own).unwrap_err();
        assert!(error.code == Code::Busy && error.message.contains(&at.to_string()), "{error}");
        assert!(error.message.contains("--vip"), "{error}");
        for everywhere in ["0.0.0.0:0", "[::]:0"] {
            assert!(ServiceEndpoint::open(service, &listening(everywhere).await).unwrap().1.is_none(), "{everywhere}");
        }
        // Documentation's: on no host.
        let absent = ServiceEndpoint::open("192.0.2.1".parse().unwrap(), &own).unwrap();
        assert!(absent.1.is_some(), "an address that is not here yet");
        assert!(
            ServiceEndpoint::open("2001:db8::1".parse().unwrap(), &listening("0.0.0.0:0").await).unwrap().1.is_some()
        );
    }

    #[tokio::test]
    async fn connections_through_it_live_while_it_is_open() {
        let first = listening("0.0.0.0:0").await;
        let (endpoint, _) = ServiceEndpoint::open(SERVICE.parse().unwrap(), &first).unwrap();
        let port = first.local_addr().unwrap().port();
        let accepting = {
            let endpoint = endpoint.clone();
            tokio::spawn(async move { accept(&endpoint, &first).await })
        };
        let mut early = TcpStream::connect((SERVICE, port)).await.unwrap();
        assert_eq!(early.read(&mut [0]).await.unwrap_or(0), 0, "it is not open yet");
        endpoint.begin().await.unwrap();
        let mut through = TcpStream::connect((SERVICE, port)).await.unwrap();
        let mut beside = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        while endpoint.0.connections.is_empty() {
            tokio::task::yield_now().await;
        }
        // As when the address was removed by hand, and added again.
        endpoint.begin().await.unwrap();
        endpoint.end().await;
        assert!(endpoint.0.connections.is_empty(), "all are gone before the address is");
        assert_eq!(through.read(&mut [0]).await.unwrap_or(0), 0);
        assert!(timeout(GOODBYE, beside.read(&mut [0])).await.is_err(), "what came another way stays");
        endpoint.begin().await.unwrap();
        accepting.abort();
        assert!(accepting.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn an_address_that_is_not_here_or_that_nobody_takes_connections_at_is_not_answered() {
        let own = listening("127.0.0.1:0").await;
        for silent in [SERVICE, "192.0.2.1"] {
            let (endpoint, _socket) = ServiceEndpoint::open(silent.parse().unwrap(), &own).unwrap();
            let error = endpoint.begin().await.unwrap_err();
            assert!(error.code == Code::Unreachable && error.retryable && error.message.contains(silent), "{error}");
        }
    }
}
