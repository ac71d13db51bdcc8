//! Runs `blockhaul` in a test directory, alone or while the test interferes.

use crate::programs::blockhaul;
use crate::schema;
use crate::scratch::{Outcome, outcome};
use crate::signals;
use crate::test_dir::{TestDir, text};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Time after which a command counts as hung and is killed; ten times as long as any command takes.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

impl TestDir {
    /// Returns a command in the test directory, without the caller's environment, with checkpoints in `state`.
    pub fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.root()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("STATE_DIRECTORY", self.path("state")).stdin(Stdio::null()).args(args);
        command
    }

    /// Runs `blockhaul ARGS --json` to its end.
    pub fn blockhaul(&self, args: &[&str]) -> Outcome {
        let mut command = self.command(&blockhaul(), args);
        command.arg("--json");
        let limited = assert_cmd::Command::from_std(command).timeout(COMMAND_TIMEOUT).output();
        outcome(&limited.expect("the program was built"))
    }

    /// Runs `WRAPPER blockhaul ARGS --json` to its end.
    pub fn wrapped(&self, wrapper: &[&str], args: &[&str]) -> Outcome {
        let (first, rest) = wrapper.split_first().expect("a wrapper is a program");
        let mut command = self.command(Path::new(first), rest);
        command.arg(blockhaul()).args(args).arg("--json");
        let limited = assert_cmd::Command::from_std(command).timeout(COMMAND_TIMEOUT).output();
        outcome(&limited.expect("its need was checked"))
    }

    /// As [`TestDir::wrapped`], while `strace` fails a system call: `inject` is its `--inject` argument. Also returns
    /// whether the call was made.
    pub fn injected(&self, inject: &str, args: &[&str]) -> (Outcome, bool) {
        let call = inject.split(':').next().expect("there is always a first");
        let (trace, inject) = (format!("--trace={call}"), format!("--inject={inject}"));
        // A hung program must not outlive its tracer.
        let watched = ["timeout", "--signal=KILL", "60"];
        let outcome =
            self.wrapped(&[&["strace", "-f", "-qqq", "-o", "trace", &trace, &inject], &watched[..]].concat(), args);
        let was_made = std::fs::read_to_string(self.path("trace")).is_ok_and(|trace| trace.contains("INJECTED"));
        (outcome, was_made)
    }

    /// Starts `blockhaul ARGS --json`.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::spawn(self.command(&blockhaul(), args).arg("--json"))
    }

    /// Returns the decoded checkpoint; `None` if there is none.
    pub fn checkpoint(&self) -> Option<Value> {
        let path = self.checkpoint_path()?;
        let output = self.command(&blockhaul(), &["inspect", "--json", text(&path)]).output().expect("it was built");
        assert!(output.status.success(), "inspect {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).expect("inspect prints JSON"))
    }

    /// Returns the path of the only checkpoint; `None` if there is none.
    pub fn checkpoint_path(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.path("state")).into_iter().flatten().flatten();
        let mut journals =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "journal"));
        let found = journals.next();
        assert!(journals.next().is_none(), "one copy, one checkpoint");
        found
    }
}

/// A running process. Killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Lines of stdout, read by a thread so that waiting for them can time out.
    lines: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    until: Instant,
}

impl Running {
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program was built");
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        let (print, lines) = channel();
        // Ends with the process or with the receiver.
        std::thread::spawn(move || {
            let mut stdout = stdout;
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if print.send(std::mem::take(&mut line)).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new(), until: Instant::now() + COMMAND_TIMEOUT }
    }

    /// Returns the next line of stdout; `None` at its end.
    ///
    /// # Panics
    /// If the process hangs.
    fn line(&mut self) -> Option<Vec<u8>> {
        match self.lines.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                let stderr = self.stderr();
                panic!("the process hangs: {} {stderr}", String::from_utf8_lossy(&self.seen));
            }
        }
    }

    /// Returns stderr, after the process has ended.
    fn stderr(&mut self) -> String {
        let mut stderr = String::new();
        let _ = self.child.stderr.take().expect("it was asked for").read_to_string(&mut stderr);
        stderr
    }

    pub fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("ids are small"))
    }

    pub fn signal(&self, signal: Signal) {
        signals::send(self.id(), signal);
    }

    /// Returns the next progress line that satisfies `when`.
    ///
    /// # Panics
    /// If the process ends before.
    pub fn until(&mut self, when: impl Fn(&Value) -> bool) -> Value {
        self.until_line(|line| line["event"] == "progress" && when(line))
    }

    /// Returns the next line of any kind that satisfies `when`.
    ///
    /// # Panics
    /// If the process ends before.
    pub fn until_line(&mut self, when: impl Fn(&Value) -> bool) -> Value {
        loop {
            let Some(line) = self.line() else {
                let stderr = self.stderr();
                panic!("the process ended too soon: {} {stderr}", String::from_utf8_lossy(&self.seen));
            };
            self.seen.extend_from_slice(&line);
            let value: Value = serde_json::from_slice(&line).expect("every line is an object");
            schema::assert_described(&value);
            if when(&value) {
                return value;
            }
        }
    }

    /// Waits until the process has ended.
    pub fn end(self) -> Outcome {
        self.end_with_status().0
    }

    /// As [`Running::end`], also returns the exit status, for processes that end by a signal.
    pub fn end_with_status(mut self) -> (Outcome, ExitStatus) {
        while let Some(line) = self.line() {
            self.seen.extend_from_slice(&line);
        }
        let mut stdout = std::mem::take(&mut self.seen);
        let mut stderr = Vec::new();
        self.child.stderr.take().expect("it was asked for").read_to_end(&mut stderr).expect("the pipe is ours");
        let status = self.child.wait().expect("it is our child");
        // A killed process may leave an incomplete line.
        let whole = stdout.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        stdout.truncate(whole);
        (outcome(&Output { status, stdout, stderr }), status)
    }

    /// Kills the process.
    pub fn crash(self) -> Outcome {
        self.signal(Signal::SIGKILL);
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells whether some bytes are written.
pub fn moving(progress: &Value) -> bool {
    progress["written"].as_u64() > Some(0)
}

/// Tells whether some bytes are durable.
pub fn recorded(progress: &Value) -> bool {
    progress["durable"].as_u64() > Some(0)
}
