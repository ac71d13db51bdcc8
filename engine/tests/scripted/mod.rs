//! Serves NBD on a unix socket and does with each request what a script says, for outages that no real server can be
//! made to have at the right moment. Newstyle, structured replies to reads and questions for block status.

use std::io::{Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const ZERO: u16 = 6;
pub(crate) const STATUS: u16 = 7;

/// Has flags, flush, zeros and several connections.
const FLAGS: u16 = 1 | 4 | 64 | 256;

/// One request, and the number of its connection.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) connection: usize,
    pub(crate) command: u16,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) payload: Vec<u8>,
}

/// Reaction of the script.
#[derive(Debug)]
pub(crate) enum Act {
    /// Done, or these bytes for a read.
    Done(Vec<u8>),
    /// Block status: lengths and flags.
    Extents(Vec<(u32, u32)>),
    /// This error.
    Failed(u32),
    /// No word, ever.
    Silence,
    /// Every connection ends.
    CutAll,
}

/// Open connections, by number.
type Peers = Mutex<Vec<(usize, UnixStream)>>;
type Script = dyn Fn(&Request) -> Act + Send + Sync;

/// Listens until its directory is gone.
pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    peers: Arc<Peers>,
}

impl Server {
    /// Serves `size` bytes at `folder/name`. Asks `lets_in` with the number of a connection and of those that are open.
    pub(crate) fn start(
        folder: &Path,
        name: &str,
        size: u64,
        lets_in: impl Fn(usize, usize) -> bool + Send + 'static,
        script: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let socket = folder.join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let (peers, script): (Arc<Peers>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let known = Arc::clone(&peers);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let mut open = known.lock().unwrap();
                if !lets_in(number, open.len()) {
                    continue;
                }
                open.push((number, stream.try_clone().unwrap()));
                let (known, script) = (Arc::clone(&known), Arc::clone(&script));
                std::thread::spawn(move || {
                    // However it ends, the connection does.
                    let _ = serve(&stream, number, size, &*script, &known);
                    let _ = stream.shutdown(Shutdown::Both);
                    known.lock().unwrap().retain(|(of, _)| *of != number);
                });
            }
        });
        Self { socket, peers }
    }

    /// Ends every connection.
    pub(crate) fn cut_all(&self) {
        cut(&self.peers);
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

fn cut(peers: &Peers) {
    for (_, peer) in peers.lock().unwrap().drain(..) {
        let _ = peer.shutdown(Shutdown::Both);
    }
}

fn serve(mut stream: &UnixStream, connection: usize, size: u64, script: &Script, peers: &Peers) -> Result<()> {
    negotiate(stream, size)?;
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let command = u16::from_be_bytes([head[6], head[7]]);
        let cookie = &head[8..16];
        let offset = u64::from_be_bytes(head[16..24].try_into().unwrap());
        let len = u32::from_be_bytes(head[24..].try_into().unwrap());
        let mut payload = vec![0; if command == WRITE { len as usize } else { 0 }];
        stream.read_exact(&mut payload)?;
        if command == 2 {
            return Ok(());
        }
        let chunk = |kind: u16, body: &[&[u8]]| {
            let len = body.iter().map(|part| part.len()).sum::<usize>() as u32;
            let head = [&0x668e_33ef_u32.to_be_bytes()[..], &1_u16.to_be_bytes(), &kind.to_be_bytes(), cookie];
            [&head.concat()[..], &len.to_be_bytes(), &body.concat()].concat()
        };
        let simple = |error: u32| [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), cookie].concat();
        let answer = match script(&Request { connection, command, offset, len, payload }) {
            Act::Done(bytes) if command == READ => chunk(1, &[&offset.to_be_bytes(), &bytes]),
            Act::Done(_) => simple(0),
            Act::Failed(error) => simple(error),
            Act::Extents(extents) => {
                let pair = |(len, flags): &(u32, u32)| [len.to_be_bytes(), flags.to_be_bytes()].concat();
                chunk(5, &[&1_u32.to_be_bytes(), &extents.iter().flat_map(pair).collect::<Vec<_>>()])
            }
            Act::Silence => continue,
            Act::CutAll => {
                cut(peers);
                return Ok(());
            }
        };
        stream.write_all(&answer)?;
    }
}

fn negotiate(mut stream: &UnixStream, size: u64) -> Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let mut data = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
        stream.read_exact(&mut data)?;
        let reply = |kind: u32, data: &[u8]| {
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            let len = (data.len() as u32).to_be_bytes();
            [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &len, data].concat()
        };
        let (info, ack) = ([&[0, 0][..], &size.to_be_bytes(), &FLAGS.to_be_bytes()].concat(), reply(1, &[]));
        let answer = match option {
            7 => [reply(3, &info), ack].concat(),
            8 => ack,
            10 => [reply(4, b"\0\0\0\x01base:allocation"), ack].concat(),
            _ => reply(0x8000_0001, &[]),
        };
        stream.write_all(&answer)?;
        if option == 7 {
            return Ok(());
        }
    }
}
