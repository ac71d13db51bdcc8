//! Runs `blockhaul` in a scratch directory, without the environment of the caller.

use crate::programs::{blockhaul, temporary_folder};
use crate::schema;
use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const MIB: usize = 1 << 20;

/// Time after which a command counts as hung and is killed; ten times as long as any command takes.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// The scratch directory of one test, removed on drop.
pub struct Scratch(TempDir);

/// Result of a run with `--json`.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub lines: Vec<Value>,
    pub stderr: String,
}

impl Outcome {
    /// Returns the last line, which is the report of a job, or the error of another command.
    pub fn report(&self) -> &Value {
        let report = self.lines.last().unwrap_or_else(|| panic!("nothing on stdout: {}", self.stderr));
        let is_last = ["report", "error"].map(Value::from).contains(&report["event"]);
        assert!(is_last, "the last line is a report or an error: {report}");
        report
    }

    /// Returns the error's code; `null` without an error.
    pub fn error_code(&self) -> &Value {
        &self.report()["error"]["code"]
    }

    pub fn assert_done(&self) {
        assert_eq!(self.code, Some(0), "{self:#?}");
        assert_eq!(self.report()["status"], "succeeded", "{self:#?}");
    }

    /// Checks that the command failed with `code`, on stdout and stderr.
    pub fn assert_failed(&self, exit: i32, code: &str) {
        assert_eq!(self.code, Some(exit), "{self:#?}");
        assert_eq!(self.error_code(), code, "{self:#?}");
        assert!(self.stderr.contains(&format!("blockhaul: {code}: ")), "{self:#?}");
    }
}

impl Scratch {
    pub fn new() -> Self {
        // In the build directory: the system's temporary directory is often in memory, without direct I/O and small.
        Self(tempfile::tempdir_in(temporary_folder()).expect("the build directory can be written"))
    }

    /// Creates a directory that every user can reach.
    pub fn public() -> Self {
        Self(tempfile::tempdir_in("/var/tmp").expect("it can be written"))
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file; returns its path.
    pub fn file(&self, name: impl AsRef<Path>, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("the scratch directory can be written");
        path
    }

    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
    }

    /// Returns a command in the scratch directory, with its state in `state`.
    pub fn blockhaul<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::from_std(self.process(args));
        command.timeout(COMMAND_TIMEOUT);
        command
    }

    /// As [`Scratch::blockhaul`], for tests that interact with the running process.
    pub fn process<S: AsRef<OsStr>>(&self, args: &[S]) -> std::process::Command {
        self.program(&blockhaul(), args)
    }

    /// Returns a shell script in the same environment.
    pub fn shell(&self, script: &str) -> std::process::Command {
        self.program(Path::new("sh"), &["-c", script])
    }

    fn program<S: AsRef<OsStr>>(&self, program: &Path, args: &[S]) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("STATE_DIRECTORY", self.path("state"))
            .args(args);
        command
    }

    /// Runs a command with `--json` and reads its lines, each of which must be one object.
    pub fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        outcome(&self.blockhaul(args).arg("--json").output().expect("the program was built"))
    }

    /// Returns every file with its content, to check that a command changes nothing.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut seen = BTreeMap::new();
        walk(self.0.path(), &mut seen);
        seen
    }
}

fn walk(directory: &Path, seen: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    for entry in fs::read_dir(directory).expect("it was just listed") {
        let path = entry.expect("no other process changes the directory").path();
        seen.insert(path.clone(), fs::read(&path).ok());
        if path.is_dir() {
            walk(&path, seen);
        }
    }
}

/// Reads the lines of a run with `--json`.
///
/// # Panics
/// If a line is not one of the published events.
pub fn outcome(output: &std::process::Output) -> Outcome {
    let stdout = String::from_utf8(output.stdout.clone()).expect("JSON is text");
    let object = |line: &str| match serde_json::from_str(line) {
        Ok(value @ Value::Object(_)) => {
            schema::assert_described(&value);
            value
        }
        other => panic!("'{line}' is not one JSON object: {other:?}"),
    };
    Outcome {
        code: output.status.code(),
        lines: stdout.lines().map(object).collect(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits until `holds` returns true.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < COMMAND_TIMEOUT, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns bytes without runs of zeros, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| word()).collect();
    bytes.truncate(length);
    bytes
}
