//! Runs one `taskd`, and the client program.

use super::test_cluster::{SOON, wait_until};
use blockhaul_testkit::{programs, signals};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Returns the path of `taskd`, which was built before the test was isolated.
pub(crate) fn taskd() -> PathBuf {
    if std::env::var_os(super::INSIDE).is_some() { programs::taskd_path() } else { programs::taskd().to_owned() }
}

/// Returns the path of `blockhaul`.
pub(crate) fn blockhaul() -> PathBuf {
    programs::blockhaul()
}

/// A process that is killed when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the process in the folder of `log`, where a core file would be found, and appends its output to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the folder is writable");
        command.current_dir(log.parent().expect("a file has a folder")).stdin(Stdio::null());
        command.env("RUST_BACKTRACE", "1").env("RUST_LOG", "info");
        command.stdout(output.try_clone().expect("there are descriptors")).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("run {:?}: {error}", command.get_program()));
        Self { child, log: log.to_owned() }
    }

    /// Starts a standalone node with further flags.
    pub(crate) fn alone(folder: &Path, flags: &[&str]) -> Self {
        Self::start(Self::command(folder, flags), &folder.join("said"))
    }

    /// As [`Daemon::alone`], with the log in a pipe.
    pub(crate) fn alone_logging_to(folder: &Path, log: PipeWriter) -> Self {
        let mut command = Self::command(folder, &[]);
        let child = command.stdin(Stdio::null()).stderr(log).spawn().expect("it was built");
        Self { child, log: folder.join("said") }
    }

    /// Returns the command of [`Daemon::alone`].
    pub(crate) fn command(folder: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(taskd());
        command.args(["--standalone", "--node-id", "n1", "--cores", "1", "--memory", "8MiB", "--state-dir"]);
        command.arg(folder.join("state")).args(flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("ids are small"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signals::send(self.pid(), signal);
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log contains `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        wait_until(&format!("'{text}' in {}", self.log.display()), || self.log().contains(text));
    }

    /// Tells whether the process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Waits until the process has ended; returns its exit code, `None` if a signal has ended it.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("-- {}:\n{}", self.log.display(), self.log());
        }
    }
}

/// Tells whether a process has installed its handlers.
pub(crate) fn catches(process: Pid, signal: Signal) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim).unwrap_or("0");
    u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & (1 << (signal as u64 - 1)) != 0)
}
