//! Reads CPU time, memory and written bytes of processes and kernel workers from `/proc`.
//!
//! CPU time and memory of processes come from `wait4` when they end; workers of io_uring are threads of the process and
//! included. Writeback, loop devices and file system journals run in threads of the kernel. Their CPU time is read
//! before and after a trial. It is an estimate, because other processes use these threads as well.

use std::collections::BTreeMap;
use std::fs;

/// Name prefixes of kernel threads that do I/O on behalf of processes.
const WORKERS: [&str; 5] = ["kworker", "loop", "jbd2", "xfs", "kswapd"];

/// CPU time of kernel workers so far, in nanoseconds by thread ID.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelWorkers(BTreeMap<u32, u64>);

impl KernelWorkers {
    /// Reads the CPU times of all kernel workers.
    pub(crate) fn sample() -> Self {
        let workers = processes().filter(|id| is_worker(*id)).filter_map(|id| Some((id, on_cpu_ns(id)?)));
        Self(workers.collect())
    }

    /// Returns the CPU seconds since `earlier`. Workers that ended in between are not included.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> f64 {
        let spent = |(id, now): (&u32, &u64)| now.saturating_sub(earlier.0.get(id).copied().unwrap_or(0));
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let total = self.0.iter().map(spent).sum::<u64>() as f64;
        total / 1e9
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns whether the process is a kernel thread with the name of a worker.
fn is_worker(id: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { return false };
    let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { return false };
    let is_of_the_kernel = rest.split_whitespace().nth(1) == Some("2");
    is_of_the_kernel && WORKERS.iter().any(|worker| name.starts_with(worker))
}

fn on_cpu_ns(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
    stat.split_whitespace().next()?.parse().ok()
}

/// Returns the bytes that a running process has caused to be written to storage; `None` once it has ended.
pub(crate) fn written_bytes(id: u32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{id}/io")).ok()?, "write_bytes:")
}

/// Returns the peak memory of a running process since its exec; `None` once it has ended.
pub(crate) fn peak_rss_bytes(id: u32) -> Option<u64> {
    Some(field(&fs::read_to_string(format!("/proc/{id}/status")).ok()?, "VmHWM:")? << 10)
}

/// Returns the seconds since boot that all CPUs were busy, and that the hypervisor stole.
pub(crate) fn busy_and_stolen_seconds() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, interrupts, soft_interrupts, stolen, ..] = ticks[..] else { return None };
    // The kernel reports hundredths of a second on every architecture.
    Some(((user + nice + system + interrupts + soft_interrupts) / 100.0, stolen / 100.0))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_workers_never_go_back() {
        let earlier = KernelWorkers::sample();
        let later = KernelWorkers::sample();
        assert!(later.seconds_since(&earlier) >= 0.0);
        assert!(KernelWorkers(BTreeMap::from([(1, 5), (2, 3)])).seconds_since(&KernelWorkers::default()) > 0.0);
        let one = |ns| KernelWorkers(BTreeMap::from([(7, ns)]));
        assert!((one(3_000_000_000).seconds_since(&one(1_000_000_000)) - 2.0).abs() < 1e-9);
        assert!(!is_worker(std::process::id()));
    }

    #[test]
    fn ended_processes_have_no_numbers() {
        assert!(written_bytes(std::process::id()).is_some());
        assert!(peak_rss_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!((written_bytes(u32::MAX), peak_rss_bytes(u32::MAX)), (None, None));
        assert_eq!(field("read_bytes: 1\nwrite_bytes: 23\n", "write_bytes:"), Some(23));
    }
}
