//! Runs one `taskd` process with its own state directory and its own path to the coordination service.

use super::port;
use crate::nbd::TestDirs;
use crate::programs;
use crate::signals;
use crate::test_dir::text;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A stop may take 20 s; a process that takes three times as long hangs.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Lines of a node's log that are printed when its test fails.
const LINES_SHOWN: usize = 120;

/// Returns the path of the library that fakes the wall clock of a process.
pub fn fake_clock_library() -> String {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH)
}

/// A node.
#[derive(Debug)]
pub struct Node {
    pub id: String,
    port: u16,
    args: Vec<String>,
    /// Environment variables besides those of every node.
    variables: Vec<(&'static str, OsString)>,
    /// Program of another version; `None`: the one of this build.
    program: Option<PathBuf>,
    state: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Creates a node without starting it.
    pub fn new(dirs: &TestDirs, id: &str) -> Self {
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

    /// Sets flags for the next start, as pairs of flag and value; a flag that is set already is replaced.
    pub fn set_flags(&mut self, args: &[&str]) {
        for pair in args.chunks(2) {
            if let Some(at) = self.args.iter().position(|word| word == pair[0]) {
                self.args.drain(at..at + pair.len());
            }
            self.args.extend(pair.iter().map(|&word| word.to_owned()));
        }
    }

    /// Fakes the wall clock from the next start on. `file` holds the offset, such as `+1d`, and may be changed at any
    /// time.
    pub fn fake_clock(&mut self, file: &Path) {
        self.variables = vec![
            ("LD_PRELOAD", OsString::from(fake_clock_library())),
            ("FAKETIME_TIMESTAMP_FILE", file.into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
    }

    /// Sets the program for the next start; `None`: the one of this build.
    pub fn run_version(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    /// Returns the path of a file in the state directory.
    pub fn state(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Returns the address for clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the process; does not wait for anything.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.id);
        let log = File::options().create(true).append(true).open(&self.log).expect("the directory is writable");
        let program = self.program.as_deref().unwrap_or_else(|| programs::taskd());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(&self.args).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUST_BACKTRACE", "1");
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| String::from("info")));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("there are descriptors")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("run setpriv: {error}")));
    }

    /// Returns the log of all incarnations.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the process ID.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.id));
        Pid::from_raw(i32::try_from(child.id()).expect("ids are small"))
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        signals::send(self.pid(), signal);
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
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

    /// Sends SIGTERM and waits until the process has ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Tells whether the process was started and not waited for since.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Tells whether the process runs.
    pub fn is_running(&mut self) -> bool {
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
            eprintln!("-- the end of the log of {}:\n{last}", self.id);
        }
    }
}
