//! Runs one `taskd` process with its own state directory and its own path to the coordination service.

use super::{TestDirs, port, taskd, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A stop may take 20 s; what takes three times that hangs.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Of a node's log, when its test fails.
const LINES_SHOWN: usize = 120;

/// The library that fakes a clock.
pub(crate) fn fake_clock_library() -> String {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH)
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: String,
    port: u16,
    args: Vec<String>,
    /// Contents of its environment besides what every node gets.
    variables: Vec<(&'static str, OsString)>,
    /// Another version than the one of this build.
    program: Option<PathBuf>,
    state: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node that is not started yet.
    pub(crate) fn new(dirs: &TestDirs, id: &str) -> Self {
        let port = port();
        let state = dirs.path(&format!("{id}.state"));
        let listen = format!("127.0.0.1:{port}");
        let log = dirs.path(&format!("{id}.output"));
        let mut node = Self {
            id: id.to_owned(),
            port,
            args: Vec::new(),
            variables: Vec::new(),
            program: None,
            state,
            log,
            child: None,
        };
        let state = text(&node.state).to_owned();
        node.set_flags(&["--node-id", id, "--listen", &listen, "--state-dir", &state]);
        node
    }

    /// More words of its command line: a flag that is there already is told anew.
    pub(crate) fn set_flags(&mut self, args: &[&str]) {
        for pair in args.chunks(2) {
            if let Some(at) = self.args.iter().position(|word| word == pair[0]) {
                self.args.drain(at..at + pair.len());
            }
            self.args.extend(pair.iter().map(|&word| word.to_owned()));
        }
    }

    /// Has its wall clock faked from its next start on: the file says by how much, as `+1d`, and may be written anew.
    pub(crate) fn fake_clock(&mut self, file: &Path) {
        self.variables = vec![
            ("LD_PRELOAD", OsString::from(fake_clock_library())),
            ("FAKETIME_TIMESTAMP_FILE", file.into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
    }

    /// Runs another version of `taskd` from its next start on; `None`: the one of this build.
    pub(crate) fn run_version(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    /// A file of its state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Where its clients reach it.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the process; does not wait for anything.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.id);
        let log = File::options().create(true).append(true).open(&self.log).expect("the room can be written");
        let program = self.program.as_deref().unwrap_or_else(|| taskd::built());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(&self.args).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUST_BACKTRACE", "1");
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| String::from("info")));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("there are descriptors")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("run setpriv: {error}")));
    }

    /// What it has logged in all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.id));
        Pid::from_raw(i32::try_from(child.id()).expect("ids are small"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("signal {}: {error}", self.id));
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} does not run", self.id));
        let until = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < until, "{} does not end:\n{}", self.id, self.log());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Whether it was started, and not waited for since.
    pub(crate) fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Whether its process is there.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("it is our child").is_none())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            eprintln!("-- the last of what {} said:\n{last}", self.id);
        }
    }
}
