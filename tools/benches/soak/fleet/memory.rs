//! Measures the memory of the leader's process while all tasks are live, and what they cost the ensemble.

use super::cell::{Cell, count};
use super::rest::writes_by_runner;
use crate::measure::{Bound, Measure};
use crate::process::memory_mib;
use std::time::Duration;

/// Duration of the measurement of writes.
const LASTS: Duration = Duration::from_secs(30);

pub(crate) fn measure(cell: &mut Cell) -> Vec<Measure> {
    cell.fill();
    let writes = writes_by_runner(cell, LASTS);
    let status = cell.runtime.block_on(cell.center.status());
    let live: usize = ["PENDING", "ASSIGNED", "RUNNING"].iter().map(|state| count(&status, state)).sum();
    assert!(live >= cell.options.tasks, "all tasks are live: {:?}", status.tasks);
    let (_, leader) = cell.leader();
    let (now, peak) = (memory_mib(leader, "VmRSS"), memory_mib(leader, "VmHWM"));
    vec![
        Measure::new("memory of the leader's process, all tasks live", "MiB", vec![now], Bound::AtMost(512.0)),
        Measure::new("its peak", "MiB", vec![peak], Bound::None),
        Measure::new("writes to ZooKeeper, all slots held, by runner", "1/s", vec![writes], Bound::AtMost(0.7)),
    ]
}
