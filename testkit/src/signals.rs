//! Sends signals to processes. A process that is stopped has stopped when the call returns.

use std::{
    fs,
    io::{self, ErrorKind},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Sends a signal. After SIGSTOP it waits until every thread of the process has stopped: `kill` returns before, and
/// a thread that still runs may answer, write or die.
///
/// # Panics
/// If the process does not exist.
pub fn send(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to the process {pid}: {error}"));
    while signal == Signal::SIGSTOP && runs(pid).expect("a process that was not waited for is in /proc") {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Returns whether a thread of the process runs or sleeps.
fn runs(pid: Pid) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = match fs::read_to_string(thread?.path().join("stat")) {
            Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH) => {
                continue;
            }
            other => other?,
        };
        // The state follows the name, which is in parentheses and may contain some. A thread in state D stops before it
        // returns to the program.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if !matches!(state, Some('T' | 't' | 'D' | 'Z' | 'X')) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn a_stopped_process_has_stopped() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("there is a shell");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("ids are small"));
        for _ in 0..50 {
            send(pid, Signal::SIGSTOP);
            assert!(!runs(pid).expect("it is our child"));
            send(pid, Signal::SIGCONT);
            while !runs(pid).expect("it is our child") {
                thread::yield_now();
            }
        }
        child.kill().and_then(|()| child.wait()).expect("it is our child");
    }
}
