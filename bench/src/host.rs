//! Describes the host: the facts that its numbers depend on.

use crate::meter::busy_and_stolen_seconds;
use crate::results::Host;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time for which the load of other programs is measured before the first trial.
const BUSY_SAMPLE_TIME: Duration = Duration::from_millis(300);

/// Describes the host and the file system of the directory for volumes.
pub(crate) fn describe(folder: &Path) -> Host {
    let report = blockhaul_engine::host::examine(&[folder.to_owned()]);
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            facts.insert(name.to_owned(), value);
        }
    };
    let ring =
        if report.io_uring.available { "available".to_owned() } else { report.io_uring.error.unwrap_or_default() };
    fact("io_uring", Some(ring));
    fact("memlock_bytes", Some(report.memlock_bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string())));
    fact("huge_pages", report.huge_pages);
    let device = device_below(folder);
    fact("scheduler", device.as_deref().and_then(scheduler));
    fact("governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
    fact("virtualisation", virtualisation());
    fact("load_average", read("/proc/loadavg"));
    fact("direct_align_bytes", report.paths.first().and_then(|path| path.direct_align_bytes).map(|it| it.to_string()));
    Host {
        kernel: report.kernel,
        cpu: cpu_field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cpus: u32::try_from(report.cpus_usable).unwrap_or(u32::MAX),
        memory_bytes: memory_bytes().unwrap_or(0),
        filesystem: report
            .paths
            .first()
            .and_then(|path| path.filesystem.clone())
            .unwrap_or_else(|| "unknown".to_owned()),
        device: device.as_deref().map_or_else(|| "unknown".to_owned(), name_of),
        facts,
    }
}

/// Measures how many CPUs other programs keep busy; `None` where the kernel does not say.
pub(crate) fn busy_cpus() -> Option<f64> {
    let (start, before) = (Instant::now(), busy_and_stolen_seconds()?.0);
    std::thread::sleep(BUSY_SAMPLE_TIME);
    let busy = busy_and_stolen_seconds()?.0 - before;
    Some((busy / start.elapsed().as_secs_f64()).max(0.0))
}

/// Returns the sysfs directory of the block device below a directory's file system.
fn device_below(folder: &Path) -> Option<PathBuf> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// Returns the name of a device, with its model if it has one.
fn name_of(device: &Path) -> String {
    let name = device.file_name().unwrap_or_default().display().to_string();
    let model = read(device.join("device/model")).or_else(|| read(device.join("../device/model")));
    model.map_or(name.clone(), |model| format!("{name} ({model})"))
}

/// Returns the I/O scheduler of a device; for a partition that of the whole device.
fn scheduler(device: &Path) -> Option<String> {
    let text = read(device.join("queue/scheduler")).or_else(|| read(device.join("../queue/scheduler")))?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(name, _)| name.to_owned());
    chosen.or(Some(text))
}

fn virtualisation() -> Option<String> {
    let flags = cpu_field("flags")?;
    let is_guest = flags.split_whitespace().any(|flag| flag == "hypervisor");
    Some(if is_guest { "virtual machine" } else { "none seen" }.to_owned())
}

fn cpu_field(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?;
    kib.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Reads a small text file of the kernel.
fn read(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_cpus_memory_and_a_kernel() {
        let host = describe(Path::new("/var/tmp"));
        assert!(host.cpus > 0 && host.memory_bytes > 0 && !host.kernel.is_empty() && !host.cpu.is_empty());
        assert!(host.facts.contains_key("io_uring"));
        assert!(busy_cpus().is_some_and(|busy| busy >= 0.0));
    }
}
