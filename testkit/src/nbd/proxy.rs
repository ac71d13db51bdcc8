//! Forwards between a client and a server, and can stall, cut and resume the connections.
//!
//! Every connection has its own state, so that open connections can stall while new ones pass. Two threads carry a
//! connection, one in each direction. Both check its state before every piece, and end when either side closes or the
//! proxy is dropped.

use super::server::Address;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two checks of a connection's state.
const POLL_INTERVAL: Duration = Duration::from_millis(3);

/// A connection to the server.
#[derive(Debug)]
enum Upstream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A proxied connection.
#[derive(Debug)]
struct ProxiedConnection {
    client: TcpStream,
    server: Upstream,
    stalls: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    server: Address,
    port: u16,
    proxied: Mutex<Vec<Arc<ProxiedConnection>>>,
    /// Whether new connections stall from their first byte on.
    stalls_new: AtomicBool,
    over: AtomicBool,
}

/// A proxy on a port of 127.0.0.1 to a server of this host.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy to the server at `address`.
    pub fn to(address: &Address) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
        listener.set_nonblocking(true).expect("it is a socket");
        let port = listener.local_addr().expect("it is bound").port();
        let proxied = Mutex::new(Vec::new());
        let (stalls_new, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { server: address.clone(), port, proxied, stalls_new, over });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self { shared, accepting: Some(accepting) }
    }

    pub fn address(&self) -> Address {
        Address::Tcp(self.shared.port)
    }

    /// Returns the URI of an export through the proxy.
    pub fn uri(&self, export: &str) -> String {
        self.address().uri(export)
    }

    /// Stalls the open connections; new ones pass.
    pub fn stall_open(&self) {
        self.shared.each(|connection| connection.stalls.store(true, SeqCst));
    }

    /// Stalls open and new connections.
    pub fn stall(&self) {
        self.shared.stalls_new.store(true, SeqCst);
        self.stall_open();
    }

    /// Forwards again, starting with the bytes that were held back.
    pub fn resume(&self) {
        self.shared.stalls_new.store(false, SeqCst);
        self.shared.each(|connection| connection.stalls.store(false, SeqCst));
    }

    /// Closes all connections and drops the bytes that were held back.
    pub fn cut(&self) {
        self.shared.each(ProxiedConnection::close);
        self.shared.proxied.lock().expect("no thread panics while it holds the lock").clear();
    }

    /// Returns the number of connections so far that were not cut.
    pub fn connections(&self) -> usize {
        self.shared.proxied.lock().expect("no thread panics while it holds the lock").len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        self.cut();
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.cut();
    }
}

impl Shared {
    fn each(&self, change: impl Fn(&ProxiedConnection)) {
        self.proxied
            .lock()
            .expect("no thread panics while it holds the lock")
            .iter()
            .for_each(|connection| change(connection));
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.over.load(SeqCst) {
            match listener.accept() {
                Ok((client, _)) => self.open(client),
                Err(_) => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Connects a client to the server; if the server cannot be reached, closes the connection.
    fn open(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = Upstream::connect(&self.server) else { return };
        let _ = client.set_nodelay(true);
        let limited = client
            .set_nonblocking(false)
            .and_then(|()| client.set_read_timeout(Some(POLL_INTERVAL)))
            .and_then(|()| server.set_read_timeout(Some(POLL_INTERVAL)));
        limited.unwrap_or_else(|error| panic!("connect to {:?}: {error}", self.server));
        let stalls = AtomicBool::new(self.stalls_new.load(SeqCst));
        let connection = Arc::new(ProxiedConnection { client, server, stalls });
        self.proxied.lock().expect("no thread panics while it holds the lock").push(Arc::clone(&connection));
        for carry in [ProxiedConnection::carry_requests, ProxiedConnection::carry_replies] {
            let connection = Arc::clone(&connection);
            // Ends with the connection, which ends with the proxy.
            std::thread::spawn(move || carry(&connection));
        }
    }
}

impl Upstream {
    fn connect(address: &Address) -> std::io::Result<Self> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            Address::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    fn set_read_timeout(&self, limit: Option<Duration>) -> std::io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(limit),
            Self::Tcp(stream) => stream.set_read_timeout(limit),
        }
    }

    fn shutdown(&self) {
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for &Upstream {
    fn read(&mut self, piece: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Upstream::Unix(stream) => (&*stream).read(piece),
            Upstream::Tcp(stream) => (&*stream).read(piece),
        }
    }
}

impl Write for &Upstream {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        match self {
            Upstream::Unix(stream) => (&*stream).write(piece),
            Upstream::Tcp(stream) => (&*stream).write(piece),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl ProxiedConnection {
    fn carry_requests(&self) {
        self.carry(&self.client, &self.server);
        self.close();
    }

    fn carry_replies(&self) {
        self.carry(&self.server, &self.client);
        self.close();
    }

    fn carry(&self, mut from: impl Read, mut to: impl Write) {
        let mut piece = vec![0; 64 << 10];
        loop {
            if self.stalls.load(SeqCst) {
                std::thread::sleep(POLL_INTERVAL);
                // The connection may have been cut: a stalled one does not read and would not notice.
                if self.is_closed() {
                    return;
                }
                continue;
            }
            match from.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    self.hold();
                    if to.write_all(&piece[..length]).is_err() {
                        return;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits until the connection is not stalled.
    fn hold(&self) {
        while self.stalls.load(SeqCst) && !self.is_closed() {
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Tells whether the client, the server or the proxy has closed the connection.
    fn is_closed(&self) -> bool {
        let ended = |result: std::io::Result<usize>| match result {
            Ok(length) => length == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        ended(self.client.peek(&mut [0]))
    }

    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        self.server.shutdown();
    }
}
