//! Bounds the number of connections of a port, in all and from one peer, and the time until a connection's first
//! request.
//!
//! ```text
//! accepted --- too many of that peer --> closed at once
//!     |
//!     |--- no complete request within FIRST_REQUEST_WAIT --> ended, however much it has sent
//!     v
//! served, for as long as it likes and answers pings
//! ```
//! What always holds: every admitted connection has sent a request or is waited for with a bound, and no peer has more
//! than its share of connections. So a stranger can use up neither all connections nor the descriptors that copies
//! need.

use super::limits::{CONNECTIONS_MAX, FIRST_REQUEST_WAIT, PEER_SHARE};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::transport::server::Connected;

/// Wait after a connection could not be accepted, as when there are no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Time after which a peer with too many connections is logged again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Raises the descriptor limit of this process as far as the system permits; returns it.
pub(crate) fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return hard;
    }
    soft
}

/// Returns the connection bound of a port for so many descriptors: half of those are left for volumes, journals and
/// calls.
pub(crate) fn connections_max(descriptors: u64) -> usize {
    usize::try_from(descriptors / 2).unwrap_or(CONNECTIONS_MAX).clamp(1, CONNECTIONS_MAX)
}

/// Connection bound of a port. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Semaphore>,
    peer_max: usize,
    peers: Mutex<HashMap<IpAddr, usize>>,
    said: Mutex<Option<Instant>>,
}

impl ConnectionLimit {
    /// Admits so many connections at once, and a quarter of them at most from one peer.
    pub(crate) fn new(connections: usize) -> Self {
        let places = Arc::new(Semaphore::new(connections));
        let peer_max = (connections / PEER_SHARE).max(1);
        Self(Arc::new(Inner { places, peer_max, peers: Mutex::default(), said: Mutex::default() }))
    }

    /// Accepts the next connection within the bound; others wait in the system's backlog.
    pub(crate) async fn accept(&self, socket: &TcpListener) -> GuardedStream {
        loop {
            let Ok(permit) = Arc::clone(&self.0.places).acquire_owned().await else {
                // Nobody closes it.
                return std::future::pending().await;
            };
            match socket.accept().await {
                Ok((stream, peer)) => match self.place(peer.ip(), permit) {
                    Some(place) => return GuardedStream::new(stream, place),
                    None => self.say(peer.ip()),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// Admits one more connection of this peer, unless it has its share.
    fn place(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<ConnectionPermit> {
        let peer = network(address);
        let mut peers = self.0.peers();
        let count = peers.entry(peer).or_default();
        if *count >= self.0.peer_max {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { peer, connection_limit: self.clone(), _permit: permit })
    }

    fn say(&self, peer: IpAddr) {
        let (mut said, now) = (self.0.said.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if said.is_none_or(|said| said + SAY_AGAIN <= now) {
            *said = Some(now);
            tracing::warn!(%peer, connections = self.0.peer_max, "too many connections of a peer: closing new ones");
        }
    }
}

impl Inner {
    fn peers(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what counts as one peer: for version 6 the network that one host has for itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

/// Permit of one connection.
#[derive(Debug)]
struct ConnectionPermit {
    peer: IpAddr,
    connection_limit: ConnectionLimit,
    _permit: OwnedSemaphorePermit,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut peers = self.connection_limit.0.peers();
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Whether a connection has sent a request: set by the service that sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestSeen(Arc<AtomicBool>);

impl RequestSeen {
    /// Records that a request has been seen.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Connection that counts, and that must send a request soon.
#[derive(Debug)]
pub(crate) struct GuardedStream {
    stream: TcpStream,
    asked: RequestSeen,
    /// Deadline of its first request; `None` once that has arrived.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Ends it from outside.
    end: Option<(Pin<Box<WaitForCancellationFutureOwned>>, TaskTrackerToken)>,
    _place: ConnectionPermit,
}

impl GuardedStream {
    fn new(stream: TcpStream, place: ConnectionPermit) -> Self {
        // Small answers do not wait for more; a socket that refuses is slower, not wrong.
        let _ = stream.set_nodelay(true);
        let deadline = Some(Box::pin(sleep(FIRST_REQUEST_WAIT)));
        Self { stream, asked: RequestSeen::default(), deadline, end: None, _place: place }
    }

    /// Ends the connection when `cancelled` fires, whatever it does then; `counted` is dropped with it.
    pub(super) fn end_with(&mut self, cancelled: WaitForCancellationFutureOwned, counted: TaskTrackerToken) {
        self.end = Some((Box::pin(cancelled), counted));
    }

    /// Returns the address of the peer.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Returns the local address.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Ready with an error when it was told to end.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some((cancelled, _)) = &mut self.end else { return Poll::Pending };
        ready!(cancelled.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the service address is not on this node"))
    }

    /// Ready with an error when its deadline has passed without a request.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.asked.is_set() {
            self.deadline = None;
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no request of the peer in time"))
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(error) = self.poll_deadline(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for GuardedStream {
    type ConnectInfo = RequestSeen;

    fn connect_info(&self) -> RequestSeen {
        self.asked.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn half_of_the_descriptors_are_left_for_copies() {
        assert_eq!((connections_max(1024), connections_max(1 << 20), connections_max(0)), (512, CONNECTIONS_MAX, 1));
    }

    #[test]
    fn a_host_of_version_6_is_its_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::7"), of("2001:db8:0:1:ffff::1"));
        assert_ne!(of("2001:db8:0:1::7"), of("2001:db8:0:2::7"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[tokio::test]
    async fn a_peer_has_a_share_and_gets_it_back() {
        let (connection_limit, socket) = (ConnectionLimit::new(8), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let mut ours = Vec::new();
        for _ in 0..2 {
            ours.push(TcpStream::connect(address).await.unwrap());
        }
        let first = connection_limit.accept(&socket).await;
        let _second = connection_limit.accept(&socket).await;
        let mut surplus = TcpStream::connect(address).await.unwrap();
        // From another address of this host: another peer.
        let other = tokio::net::TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let _other = other.connect(address).await.unwrap();
        let third = connection_limit.accept(&socket).await;
        assert_eq!(third.peer_addr().unwrap().ip(), "127.0.0.2".parse::<IpAddr>().unwrap());
        assert_eq!(surplus.read(&mut [0]).await.unwrap_or(0), 0, "it is closed at once");
        drop(first);
        let _again = TcpStream::connect(address).await.unwrap();
        connection_limit.accept(&socket).await;
    }

    #[tokio::test]
    async fn who_sends_without_asking_is_ended_and_who_has_asked_is_not() {
        let (connection_limit, socket) = (ConnectionLimit::new(8), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let (mut talks, mut asks) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (mut talking, mut asking) =
            (connection_limit.accept(&socket).await, connection_limit.accept(&socket).await);
        for stream in [&mut talks, &mut asks] {
            stream.write_all(b"P").await.unwrap();
        }
        for guarded in [&mut talking, &mut asking] {
            guarded.read_exact(&mut [0]).await.unwrap();
        }
        asking.asked.set();
        tokio::time::pause();
        tokio::time::advance(FIRST_REQUEST_WAIT * 2).await;
        assert_eq!(talking.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        tokio::time::resume();
        asks.write_all(b"Q").await.unwrap();
        assert_eq!(asking.read(&mut [0]).await.unwrap(), 1);
    }
}
