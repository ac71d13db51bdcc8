//! Runs a scripted server: correct, unless the script of the test says otherwise.
//!
//! Its bytes are in memory, behind a cache that a crash loses (see [`Store`]). It listens on a unix socket, serves
//! every connection on a thread of its own, and records what it sees: a test can check whether a client disconnected
//! properly and closed the connection. Protocol violations of the client are recorded as well.

mod handshake;
pub mod reply;
mod store;
pub mod wire;

pub use handshake::{option_reply, option_reply_with};
pub use store::Store;

use super::server::Address;
use super::test_dirs::TestDirs;
use handshake::Agreed;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait; ten times as long as any wait of a test takes.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Time between two checks for a new client.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Largest payload of a request, in bytes.
const PAYLOAD_MAX: u32 = 64 << 20;

/// Command of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Zero,
    Status,
    Other(u16),
}

/// A request as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub connection: u64,
    pub command: Command,
    pub flags: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    /// Whether replies of this connection are structured.
    pub structured: bool,
}

/// An event at the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Connected(u64),
    Requested(Request),
    /// The connection has ended, by an end of file or a reset.
    Closed(u64),
    /// The client broke the protocol.
    ProtocolViolation(u64, String),
}

/// Reaction to an option or a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The correct reply.
    Correct,
    /// The correct reply, twice.
    CorrectTwice,
    /// These bytes instead of a reply; the request is not executed.
    Replace(Vec<u8>),
    /// These bytes; then the peer closes the connection.
    ReplaceAndClose(Vec<u8>),
    /// No reply; the peer keeps reading.
    NoReply,
    /// The peer closes the connection.
    Close,
}

type OptionScript = Box<dyn Fn(u32, &[u8]) -> Reaction + Send + Sync>;
type RequestScript = Box<dyn Fn(&Request) -> Reaction + Send + Sync>;

/// Reactions of a peer. The default is correct everywhere.
#[derive(Default)]
pub struct PeerScript {
    /// Greeting instead of the correct one.
    pub greeting: Option<Vec<u8>>,
    /// Reacts to every option, given its number and the correct reply.
    pub on_option: Option<OptionScript>,
    /// Reacts to every request.
    pub on_request: Option<RequestScript>,
}

impl PeerScript {
    /// Creates a script that reacts to requests.
    pub fn on_request(script: impl Fn(&Request) -> Reaction + Send + Sync + 'static) -> Self {
        Self { on_request: Some(Box::new(script)), ..Self::default() }
    }

    /// Creates a script that reacts to options.
    pub fn on_option(script: impl Fn(u32, &[u8]) -> Reaction + Send + Sync + 'static) -> Self {
        Self { on_option: Some(Box::new(script)), ..Self::default() }
    }
}

/// Properties of the export.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub structured: bool,
    /// A flush counts for every connection.
    pub multi_conn: bool,
    /// Least, preferred and most bytes of a request.
    pub blocks: Option<(u32, u32, u32)>,
    /// Transmission flags beyond the usual ones.
    pub further_flags: u16,
}

impl Default for Offer {
    fn default() -> Self {
        Self { structured: true, multi_conn: true, blocks: None, further_flags: 0 }
    }
}

/// A scripted server. Stopped on drop, with all its connections.
pub struct Peer {
    shared: Arc<Shared>,
    path: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    store: Mutex<Store>,
    offer: Mutex<Offer>,
    script: PeerScript,
    seen: Mutex<Vec<Seen>>,
    happened: Condvar,
    /// Connections that are open.
    open: Mutex<BTreeMap<u64, UnixStream>>,
    next: AtomicU64,
    is_up: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The thread of a connection may have panicked; the test reports that itself.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

impl Peer {
    /// Starts a peer that serves `bytes` at the socket `name`.
    pub fn start(dirs: &TestDirs, name: &str, bytes: Vec<u8>, offer: Offer, script: PeerScript) -> Self {
        let seed = bytes.len() as u64;
        Self::over(dirs, name, Store::new(bytes, offer.multi_conn, seed), offer, script)
    }

    /// As [`Peer::start`], with the test's own store.
    pub fn over(dirs: &TestDirs, name: &str, store: Store, offer: Offer, script: PeerScript) -> Self {
        let shared = Arc::new(Shared {
            store: Mutex::new(store),
            offer: Mutex::new(offer),
            script,
            seen: Mutex::default(),
            happened: Condvar::new(),
            open: Mutex::default(),
            next: AtomicU64::new(0),
            is_up: AtomicBool::new(false),
        });
        let mut peer = Self { shared, path: dirs.socket(name), accepting: None };
        peer.restart();
        peer
    }

    pub fn address(&self) -> Address {
        Address::Unix(self.path.clone())
    }

    pub fn uri(&self) -> String {
        self.address().uri("")
    }

    /// Listens again at the same socket, with the content that the crash has left.
    pub fn restart(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path).expect("the directory is writable");
        listener.set_nonblocking(true).expect("it is a socket");
        self.shared.is_up.store(true, SeqCst);
        let shared = Arc::clone(&self.shared);
        self.accepting = Some(std::thread::spawn(move || shared.accept(&listener)));
    }

    /// Crashes: closes the socket and all connections, and loses unflushed writes.
    pub fn kill(&mut self) {
        self.shared.is_up.store(false, SeqCst);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("accepting does not panic");
        }
        // The lock of the store keeps connections from writing between the crash and their end.
        let mut store = lock(&self.shared.store);
        let open = std::mem::take(&mut *lock(&self.shared.open));
        store.crash();
        drop(store);
        for stream in open.into_values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.shared.store)
    }

    /// Changes the properties that the next connections negotiate.
    pub fn offer(&self, offer: Offer) {
        *lock(&self.shared.offer) = offer;
    }

    /// Returns all events so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Waits until the events satisfy `when`.
    pub fn wait_until(&self, what: &str, when: impl Fn(&[Seen]) -> bool) {
        let until = Instant::now() + WAIT_MAX;
        let mut seen = lock(&self.shared.seen);
        while !when(&seen) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "timed out waiting for: {what}: the last events are {:?}", last_of(&seen));
            seen = self.shared.happened.wait_timeout(seen, left).expect("no thread panics while it holds the lock").0;
        }
    }

    /// Waits until all connections have ended; tells for each whether its last request was a disconnect.
    pub fn disconnects(&self) -> BTreeMap<u64, bool> {
        self.wait_until("all clients to close", |seen| {
            let count = |matches: fn(&Seen) -> bool| seen.iter().filter(|&seen| matches(seen)).count();
            count(|seen| matches!(seen, Seen::Connected(_))) == count(|seen| matches!(seen, Seen::Closed(_)))
        });
        let mut disconnected = BTreeMap::new();
        for seen in self.seen() {
            match seen {
                Seen::Connected(connection) => drop(disconnected.insert(connection, false)),
                Seen::Requested(request) => {
                    disconnected.insert(request.connection, request.command == Command::Disconnect);
                }
                Seen::Closed(_) | Seen::ProtocolViolation(..) => {}
            }
        }
        disconnected
    }

    /// # Panics
    /// If a client has broken the protocol.
    pub fn assert_no_violations(&self) {
        let violations: Vec<Seen> =
            self.seen().into_iter().filter(|seen| matches!(seen, Seen::ProtocolViolation(..))).collect();
        assert!(violations.is_empty(), "the client broke the protocol: {violations:?}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn last_of(seen: &[Seen]) -> &[Seen] {
    &seen[seen.len().saturating_sub(20)..]
}

impl Shared {
    fn note(&self, seen: Seen) {
        lock(&self.seen).push(seen);
        self.happened.notify_all();
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        while self.is_up.load(SeqCst) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(POLL_INTERVAL);
                continue;
            };
            let connection = self.next.fetch_add(1, SeqCst);
            stream.set_nonblocking(false).expect("it is a socket");
            lock(&self.open).insert(connection, stream.try_clone().expect("there are descriptors"));
            self.note(Seen::Connected(connection));
            let shared = Arc::clone(self);
            // Ends with the connection, which ends with the peer.
            std::thread::spawn(move || shared.serve(connection, stream));
        }
    }

    fn serve(&self, connection: u64, stream: UnixStream) {
        let mut client =
            PeerConnection { reader: BufReader::with_capacity(256 << 10, stream), connection, structured: false };
        let ended =
            self.negotiate(&mut client).and_then(|goes_on| if goes_on { self.transmit(&mut client) } else { Ok(()) });
        match ended {
            // The peer has ended the connection; wait until the client closes it.
            Ok(()) => {
                let _ = client.stream().shutdown(Shutdown::Write);
                let _ = io::copy(&mut client.reader, &mut io::sink());
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.note(Seen::ProtocolViolation(connection, error.to_string()));
            }
            Err(_) => {}
        }
        let _ = client.stream().shutdown(Shutdown::Both);
        lock(&self.open).remove(&connection);
        self.note(Seen::Closed(connection));
    }

    fn negotiate(&self, client: &mut PeerConnection) -> io::Result<bool> {
        let (offer, size) = (*lock(&self.offer), lock(&self.store).size() as u64);
        let agreed = handshake::negotiate(client, &offer, size, &self.script)?;
        if let Agreed::Yes { structured } = agreed {
            client.structured = structured;
        }
        Ok(agreed != Agreed::No)
    }

    /// Replies to requests until the client disconnects or the script ends the connection.
    fn transmit(&self, client: &mut PeerConnection) -> io::Result<()> {
        loop {
            let (request, payload) = client.request()?;
            self.note(Seen::Requested(request.clone()));
            let reaction = self.script.on_request.as_ref().map_or(Reaction::Correct, |script| script(&request));
            match reaction {
                Reaction::Correct | Reaction::CorrectTwice if request.command == Command::Disconnect => return Ok(()),
                Reaction::Correct => client.write_all(&self.answer(&request, &payload)?)?,
                Reaction::CorrectTwice => {
                    let reply = self.answer(&request, &payload)?;
                    client.write_all(&[&reply[..], &reply].concat())?;
                }
                Reaction::Replace(bytes) => client.write_all(&bytes)?,
                Reaction::ReplaceAndClose(bytes) => {
                    client.write_all(&bytes)?;
                    return Ok(());
                }
                Reaction::NoReply => {}
                Reaction::Close => return Ok(()),
            }
        }
    }

    /// Executes a request and returns the reply. Requests of a connection that a crash has ended are not executed.
    fn answer(&self, request: &Request, payload: &[u8]) -> io::Result<Vec<u8>> {
        let mut store = lock(&self.store);
        if !lock(&self.open).contains_key(&request.connection) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let Request { cookie, structured, connection, .. } = *request;
        let range = request.range(store.size())?;
        let through = request.flags & 1 != 0;
        match request.command {
            Command::Read if structured => {
                return Ok(reply::data(cookie, wire::chunk::DONE, request.offset, store.read(range)));
            }
            Command::Read => return Ok(reply::simple(cookie, 0, store.read(range))),
            Command::Write => store.write(connection, range, Some(payload), through),
            Command::Zero => store.write(connection, range, None, through),
            Command::Flush => store.flush(connection),
            Command::Status => return Ok(reply::status(cookie, reply::ALLOCATION, &store.status(range))),
            Command::Trim | Command::Disconnect => {}
            Command::Other(_) => return Ok(refusal(request)),
        }
        Ok(if structured { reply::done(cookie) } else { reply::simple(cookie, 0, &[]) })
    }
}

fn refusal(request: &Request) -> Vec<u8> {
    if request.structured {
        reply::error(request.cookie, wire::EINVAL, "no such command")
    } else {
        reply::simple(request.cookie, wire::EINVAL, &[])
    }
}

impl Request {
    /// # Errors
    /// The range lies past the end of the export, which violates the protocol.
    fn range(&self, size: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(self.length as usize);
        if end > size {
            let what = format!("{:?} of {} bytes at {} of {size}", self.command, self.length, self.offset);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(start..end)
    }
}

/// One connection.
struct PeerConnection {
    reader: BufReader<UnixStream>,
    connection: u64,
    structured: bool,
}

impl PeerConnection {
    fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Reads the next request with its payload.
    fn request(&mut self) -> io::Result<(Request, Vec<u8>)> {
        let magic = u32::from_be_bytes(take(self)?);
        if magic != wire::REQUEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a request begins with {magic:#x}")));
        }
        let flags = u16::from_be_bytes(take(self)?);
        let command = match u16::from_be_bytes(take(self)?) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::Zero,
            7 => Command::Status,
            other => Command::Other(other),
        };
        let cookie = u64::from_be_bytes(take(self)?);
        let offset = u64::from_be_bytes(take(self)?);
        let length = u32::from_be_bytes(take(self)?);
        let mut payload = Vec::new();
        if command == Command::Write {
            if length > PAYLOAD_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a write of {length} bytes")));
            }
            payload = vec![0; length as usize];
            self.read_exact(&mut payload)?;
        }
        let (connection, structured) = (self.connection, self.structured);
        Ok((Request { connection, command, flags, cookie, offset, length, structured }, payload))
    }
}

impl Read for PeerConnection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }
}

impl Write for PeerConnection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
