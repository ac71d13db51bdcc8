//! Starts one `taskd` in a folder of its own.

use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::wire;
use blockhaul_testkit::signals;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For what comes soon on any machine, however busy.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// A folder with the daemon's state and the volumes.
pub(crate) struct Room(TempDir);

impl Room {
    pub(crate) fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(room.path("volumes")).unwrap();
        room
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// A volume's path as text.
    pub(crate) fn volume(&self, name: &str) -> String {
        text(&self.path("volumes").join(name)).to_owned()
    }

    /// `taskd --standalone` here, with more flags.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskd"));
        command.args(["--standalone", "--node-id", "n1", "--cores", "1"]);
        command.args(["--state-dir", text(&self.path("state")), "--allow-path", text(&self.path("volumes"))]);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(flags).env("RUST_LOG", "info").stdin(Stdio::null());
        command
    }

    /// What it says when it does not even start.
    pub(crate) fn refusal(&self, flags: &[&str]) -> Output {
        self.command(flags).output().unwrap()
    }

    pub(crate) fn start(&self, flags: &[&str]) -> Daemon {
        Daemon::start(self.command(flags))
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A process, killed when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Receiver<String>,
    pub(crate) address: String,
}

impl Daemon {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut daemon = Self { child, log, address: String::new() };
        let line = daemon.says("listening");
        daemon.address = line.split("listen=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        daemon
    }

    /// Waits for a line of the log with that word.
    pub(crate) fn says(&self, word: &str) -> String {
        let deadline = Instant::now() + SOON;
        let mut all = Vec::new();
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(word) {
                return line;
            }
            all.push(line);
        }
        panic!("it never said '{word}':\n{}", all.join("\n"));
    }

    pub(crate) fn client(&self) -> CenterClient {
        CenterClient::new(vec![self.address.clone()], Channels::default()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signals::send(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal);
    }

    /// Its exit code, once it has ended; `None` if a signal has ended it.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not end");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if it has ended, as most tests want it to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy of one volume to another.
pub(crate) fn work(source: &str, destination: &str) -> wire::CopyWork {
    wire::CopyWork { source: source.to_owned(), destination: destination.to_owned(), ..Default::default() }
}

/// A request for that copy.
pub(crate) fn copy(id: &str, work: wire::CopyWork) -> wire::SubmitRequest {
    wire::SubmitRequest {
        id: id.to_owned(),
        spec: Some(wire::Spec { work: Some(wire::spec::Work::Copy(work)) }),
        ..wire::SubmitRequest::default()
    }
}

/// Asks to remove the limit of a copy.
pub(crate) fn unlimited(id: &str) -> wire::SetRequest {
    wire::SetRequest { id: id.to_owned(), limit: Some(wire::Setting { value: None }), ..wire::SetRequest::default() }
}

/// A request for a copy from `a` to `b` that can be met on its way: it goes no faster than this, in bytes per second.
pub(crate) fn slow_copy(id: &str, room: &Room, limit: u64) -> wire::SubmitRequest {
    let work = work(&room.volume("a"), &room.volume("b"));
    copy(id, wire::CopyWork { limit: Some(limit), reflink: "never".to_owned(), ..work })
}

/// Bytes that no two blocks share.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut all = vec![0; bytes];
    random.fill(&mut all);
    all
}

/// Everything that a peer says until it hangs up, bounded.
pub(crate) fn read_all(stream: &mut std::net::TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}
