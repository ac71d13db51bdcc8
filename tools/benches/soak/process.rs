//! Reads from the kernel what a process uses.

use nix::unistd::{Pid, SysconfVar, sysconf};
use std::time::Duration;

/// Returns the memory of a process in MiB: `VmRSS`, what it has now, or `VmHWM`, the most that it has had.
#[allow(clippy::cast_precision_loss, reason = "sizes are small")]
pub(crate) fn memory_mib(pid: Pid, which: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':'));
    let kib = line.expect("the kernel counts it").trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number of KiB") as f64 / 1024.0
}

/// Returns the processor time that all threads of a process have used so far.
pub(crate) fn cpu_time(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name of the program, in parentheses, may contain spaces. The times are the 14th and the 15th field.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().expect("a number of ticks")).sum();
    let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    Duration::from_millis(ticks * 1000 / second.unwrap_or(100))
}
