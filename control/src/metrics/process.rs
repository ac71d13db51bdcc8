//! Reports the process itself, by the names that Prometheus client libraries share: `process_cpu_seconds_total` and others.

use super::{Real, whole};
use procfs::process::{LimitValue, Process};
use procfs::{WithCurrentSystemInfo, ticks_per_second};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

type Seconds = Counter<f64, AtomicU64>;

/// Registers the metrics of this process. What cannot be read is left out.
pub(super) fn register(registry: &mut Registry) {
    let Ok(process) = Process::myself() else { return };
    if let Ok(stat) = process.stat() {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second() as f64;
        let cpu = Seconds::default();
        cpu.inc_by(seconds(stat.utime + stat.stime));
        registry.register_with_unit("process_cpu", "Processor time of this process", Unit::Seconds, cpu);
        let resident = whole(stat.rss_bytes().get());
        registry.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, resident);
        registry.register_with_unit("process_virtual_memory", "Virtual memory", Unit::Bytes, whole(stat.vsize));
        if let Ok(boot) = procfs::boot_time_secs() {
            let started = Real::default();
            #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
            started.set(boot as f64 + seconds(stat.starttime));
            let help = "Start of this process since 1970";
            registry.register_with_unit("process_start_time", help, Unit::Seconds, started);
        }
    }
    if let Ok(open) = process.fd_count() {
        registry.register("process_open_fds", "Open descriptors", whole(open as u64));
    }
    if let Ok(LimitValue::Value(most)) = process.limits().map(|limits| limits.max_open_files.soft_limit) {
        registry.register("process_max_fds", "Most open descriptors", whole(most));
    }
}
