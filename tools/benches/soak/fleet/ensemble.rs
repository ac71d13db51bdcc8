//! Kills the leading server of the ensemble while all tasks are live, and measures the pause of decisions.

use super::cell::Cell;
use super::decisions::Decisions;
use crate::measure::{Bound, Measure};
use std::time::{Duration, SystemTime};

/// Tasks of a trial, and the time between two: for longer than a pause may be.
const TASKS: u32 = 60;
const INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn measure(cell: &mut Cell) -> Vec<Measure> {
    cell.fill();
    let mut pauses = Vec::new();
    for number in 0..cell.options.trials.div_ceil(2) {
        let (name, center) = (format!("elect{number}"), cell.center.clone());
        let decisions = cell.runtime.block_on(Decisions::submit(&center, &name, TASKS, INTERVAL, true));
        let server = cell.cluster.ensemble.leader();
        decisions.wait_for_first();
        let since = SystemTime::now();
        cell.cluster.ensemble.kill(server);
        pauses.push(cell.runtime.block_on(decisions.longest_pause(&center, since)));
        cell.cluster.ensemble.restart(server);
        cell.wait_until_complete();
    }
    vec![Measure::of_times("ZooKeeper's leader killed: pause of decisions", &pauses, Bound::P99AtMost(2e3))]
}
