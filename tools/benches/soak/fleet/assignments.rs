//! Measures how many tasks a second are assigned to the runners, when all slots become free at once.

use super::cell::{Cell, count};
use crate::measure::{Bound, Measure};
use crate::process::memory_mib;
use blockhaul_control::rpc::wire::CenterStatus;
use std::time::Instant;

/// States of the tasks that still have to end.
const LIVE: [&str; 4] = ["PENDING", "ASSIGNED", "RUNNING", "CANCELLING"];

pub(crate) fn measure(cell: &mut Cell) -> Vec<Measure> {
    cell.fill();
    let queued = cell.options.tasks - cell.holders();
    // The middle half of the queue: neither its start, while slots are released, nor its end.
    let quarter = queued / 4;
    cell.release();
    let pending_at_most = |most: usize| {
        let wait = cell.center.wait_for("the queue to shrink", |status| count(status, "PENDING") <= most);
        cell.runtime.block_on(wait);
        Instant::now()
    };
    let start = pending_at_most(3 * quarter);
    let end = pending_at_most(quarter);
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let rate = (2 * quarter) as f64 / (end - start).as_secs_f64();
    let are_over = |status: &CenterStatus| {
        LIVE.iter().all(|state| count(status, state) == 0) && count(status, "SUCCEEDED") >= queued
    };
    let done = cell.center.wait_for("all tasks to end", are_over);
    cell.runtime.block_on(done);
    let (_, leader) = cell.leader();
    let peak = memory_mib(leader, "VmHWM");
    vec![
        Measure::new("assignments committed", "1/s", vec![rate], Bound::AtLeast(400.0)),
        Measure::new("peak memory of the leader's process", "MiB", vec![peak], Bound::AtMost(512.0)),
    ]
}
