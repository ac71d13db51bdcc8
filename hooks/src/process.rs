//! Reads the processes of the host from `/proc`, and signals them.
//!
//! A number alone does not name a process: the kernel uses numbers again. Number and start time together do, for as
//! long as the host runs. A signal goes through a descriptor of the process (pidfd), on which the start time is checked
//! once more, so that it never reaches a process that was not meant.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

/// A process, as long as the host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessKey {
    pub(crate) pid: i32,
    /// Clock ticks from the start of the host to the start of the process.
    pub(crate) start_ticks: u64,
}

/// What `/proc/PID/stat` says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub(crate) key: ProcessKey,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) phase: Phase,
}

/// How far a process has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A thread of it may still do something.
    Living,
    /// No thread is left; its parent has not asked for its end yet.
    Ended,
}

impl ProcessStat {
    /// Parses the content of `/proc/PID/stat`.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        // The name of the program stands in parentheses, and may hold parentheses, blanks and newlines itself.
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(&text[..open]).ok()?.trim().parse().ok()?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<i32>().ok();
        // The first thread of a process may end before the others, and looks like a zombie then.
        let is_ended = ["Z", "X", "x"].contains(fields.first()?) && number(17)? <= 1;
        Some(Self {
            key: ProcessKey { pid, start_ticks: fields.get(19)?.parse().ok()? },
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            phase: if is_ended { Phase::Ended } else { Phase::Living },
        })
    }

    /// Reads what is known about the process of this number; `None` if there is none.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads all processes that we can see.
    ///
    /// # Errors
    /// Those of listing `/proc`, and of a limit that keeps a process from being read: then the list would have gaps.
    pub(crate) fn read_all() -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            match fs::read(format!("/proc/{pid}/stat")) {
                Ok(text) => found.extend(Self::parse(&text)),
                // It has ended since it was listed.
                Err(error) if matches!(error.raw_os_error(), Some(GONE_ENOENT | GONE_ESRCH)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

const GONE_ENOENT: i32 = Errno::ENOENT as i32;
const GONE_ESRCH: i32 = Errno::ESRCH as i32;

/// Opens a descriptor of the process; it polls as readable when the process has ended.
pub(crate) fn open_process(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_pid() > 0).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal to this very process, if it is still there.
pub(crate) fn signal_process(key: ProcessKey, signal: Signal) {
    let Ok(descriptor) = open_process(key.pid) else { return };
    // From here on the descriptor refers to one process for certain. It is the one that is meant if it has its start
    // time: what `/proc` shows under the number is that process, or the process has ended and the signal goes nowhere.
    if ProcessStat::read(key.pid).is_some_and(|stat| stat.key == key)
        && let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32)
    {
        // It may have ended by now, or have taken another user's identity, which nobody but root can signal.
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}

/// Kills all processes of the group in which `member` is, at once, so that none of them can escape by forking.
pub(crate) fn kill_group_of(member: &ProcessStat) {
    // Numbers below mean something else to the kernel: our own group, and every process.
    if member.group <= 1 {
        return;
    }
    // A group has its number as long as a process is in it, so the number can only be wrong if the whole group ends
    // between these two calls and all numbers of the host are used up once.
    if ProcessStat::read(member.key.pid).is_some_and(|stat| stat.key == member.key && stat.group == member.group) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(member.group), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(name: &str, state: &str, threads: u32) -> Option<ProcessStat> {
        let rest = format!("0 -1 4194560 10 0 0 0 1 2 3 4 20 0 {threads} 0 98765 1 1");
        ProcessStat::parse(format!("42 ({name}) {state} 7 40 41 {rest}\n").as_bytes())
    }

    #[test]
    fn a_line_is_parsed_whatever_the_program_calls_itself() {
        for name in ["sh", "a b", ") Z 1 1 1", "x)\n(y", ""] {
            let stat = stat(name, "S", 1).unwrap();
            assert_eq!(stat.key, ProcessKey { pid: 42, start_ticks: 98765 }, "{name}");
            assert_eq!((stat.parent, stat.group, stat.session, stat.phase), (7, 40, 41, Phase::Living), "{name}");
        }
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        assert_eq!(stat("sh", "Z", 1).unwrap().phase, Phase::Ended);
        assert_eq!(stat("sh", "X", 0).unwrap().phase, Phase::Ended);
        assert_eq!(stat("sh", "Z", 2).unwrap().phase, Phase::Living);
        assert_eq!(stat("sh", "D", 1).unwrap().phase, Phase::Living);
    }

    #[test]
    fn we_are_among_all_processes() {
        let own = i32::try_from(std::process::id()).unwrap();
        let all = ProcessStat::read_all().unwrap();
        let found = all.iter().find(|process| process.key.pid == own).unwrap();
        assert_eq!(found.key, ProcessStat::read(own).unwrap().key);
        assert_eq!(found.session, nix::unistd::getsid(None).unwrap().as_raw());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ProcessStat::parse(&bytes);
            let _ = ProcessStat::parse(&[b"1 (a) ".as_slice(), &bytes].concat());
        }
    }
}
