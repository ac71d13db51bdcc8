//! Kills the leading node, and measures how long until a task is assigned again and whether copies on other nodes
//! pause.

use crate::copies::{Copies, PAUSE, in_clusters};
use crate::measure::{Bound, Measure};
use crate::options::Options;
use std::time::{Duration, Instant};

pub(crate) fn measure(options: &Options) -> Vec<Measure> {
    let (assigned, pauses): (Vec<_>, Vec<_>) = in_clusters(options, trial).into_iter().unzip();
    vec![
        Measure::of_times("SIGKILL of the leader to the next assignment", &assigned, Bound::P99AtMost(14e3)),
        Measure::of_times("longest pause of copies on other nodes meanwhile", &pauses, PAUSE),
    ]
}

fn trial(copies: &mut Copies, number: usize) -> (Duration, Duration) {
    let all = copies.begin();
    let traffic = copies.traffic();
    let leader = copies.leader();
    let id = format!("next{number}");
    let start = Instant::now();
    copies.cluster.nodes[leader].kill();
    copies.cluster.submit_noop(&id, Duration::from_millis(1), &[]);
    copies.cluster.wait_for(&id, "its assignment", |task| !task.outcomes().is_empty());
    let end = Instant::now();
    let elsewhere = all.iter().filter(|copy| copy.node != leader);
    let pause = elsewhere.map(|copy| traffic[copy.index].longest_pause(start, end)).max();
    copies.end(&all);
    copies.restart_node(leader);
    (end - start, pause.unwrap_or_default())
}
