//! Forwards TCP connections between clients and one server, and can stall or cut them.
//!
//! Listens on a free port of 127.0.0.1. A mode applies to open and to new connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Treatment of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All bytes are forwarded.
    Pass,
    /// Bytes of the server are lost; bytes of the client are forwarded.
    LoseAnswers,
    /// No bytes are forwarded until the mode changes; connections stay open.
    Stall,
    /// Connections are closed, new ones at once.
    Cut,
}

/// A proxy to one server. Its connections are closed on drop.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    server: SocketAddr,
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug)]
struct Now {
    mode: Mode,
    /// Both ends of every connection.
    streams: Vec<TcpStream>,
    /// Connections that neither end has closed.
    open: usize,
}

impl TcpProxy {
    /// Starts a proxy to the server at `HOST:PORT`, numeric.
    pub fn to(server: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
        let address = listener.local_addr().expect("the socket is bound");
        let now = Mutex::new(Now { mode: Mode::Pass, streams: Vec::new(), open: 0 });
        let server = server.parse().expect("the address is numeric");
        let state = Arc::new(State { server, now, changed: Condvar::new() });
        let taker = state.clone();
        // Ends with the process: nothing else needs the port.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|client| taker.connect(client)));
        Self { address, state }
    }

    /// Returns the address for clients.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Sets the mode.
    pub fn set(&self, mode: Mode) {
        let mut now = self.state.now();
        now.mode = mode;
        if mode == Mode::Cut {
            for stream in now.streams.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.state.changed.notify_all();
    }

    /// Returns the number of connections that neither end has closed.
    pub fn connections(&self) -> usize {
        self.state.now().open
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
    }
}

impl State {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.server) else { return };
        let (Ok(()), Ok(())) = (client.set_nodelay(true), server.set_nodelay(true)) else { return };
        let mut now = self.now();
        if now.mode == Mode::Cut {
            return;
        }
        now.open += 1;
        for (from, to, answers) in [(&client, &server, false), (&server, &client, true)] {
            let (Ok(from), Ok(to), Ok(end)) = (from.try_clone(), to.try_clone(), from.try_clone()) else { return };
            now.streams.push(end);
            let state = self.clone();
            std::thread::spawn(move || state.pump(from, to, answers));
        }
    }

    /// Forwards bytes in one direction until an end is closed, and then closes the other end.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, answers: bool) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let stalled = self.changed.wait_while(self.now(), |now| now.mode == Mode::Stall);
            let mode = stalled.unwrap_or_else(PoisonError::into_inner).mode;
            let is_lost = answers && mode == Mode::LoseAnswers;
            if mode == Mode::Cut || (!is_lost && to.write_all(&buffer[..length]).is_err()) {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
        self.now().open -= usize::from(answers);
    }
}
