//! Provides a connection that can fail: passes bytes between clients and one server until it is told otherwise.
//!
//! Takes TCP connections on a free port of 127.0.0.1. A fault holds for open connections and for new ones.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They arrive.
    Pass,
    /// Those of the server are lost; those of the client arrive.
    LoseAnswers,
    /// None arrives before it passes again, and nobody is told.
    Stall,
    /// Connections are cut, and new ones at once.
    Cut,
}

/// The connection. Cut when it is dropped.
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
    /// A wire to the server at `HOST:PORT`, numeric.
    pub fn to(server: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
        let address = listener.local_addr().expect("it is bound");
        let now = Mutex::new(Now { mode: Mode::Pass, streams: Vec::new(), open: 0 });
        let server = server.parse().expect("the address is numeric");
        let state = Arc::new(State { server, now, changed: Condvar::new() });
        let taker = state.clone();
        // Ends with the process: nothing else needs the port.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|client| taker.connect(client)));
        Self { address, state }
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on.
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

    /// Connections that neither end has closed.
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

    /// Moves bytes one way until an end is closed, and then closes the other.
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
