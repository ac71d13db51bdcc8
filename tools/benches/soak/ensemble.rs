//! Kills the leading server of the ensemble, and measures how long until the center commits a write and whether copies
//! pause.

use crate::copies::{Copies, PAUSE};
use crate::measure::{Bound, Measure};
use crate::options::Options;
use std::time::{Duration, Instant};

pub(crate) fn measure(options: &Options) -> Vec<Measure> {
    let mut copies = Copies::new();
    let mut all = copies.begin();
    let (mut resumed, mut pauses) = (Vec::new(), Vec::new());
    for number in 0..options.trials {
        // The copies last for a dozen trials.
        if number % 5 == 4 {
            copies.end(&all);
            all = copies.begin();
        }
        let traffic = copies.traffic();
        let server = copies.cluster.ensemble.leader();
        let start = Instant::now();
        copies.cluster.ensemble.kill(server);
        copies.cluster.submit_noop(&format!("write{number}"), Duration::from_millis(1), &[]);
        let end = Instant::now();
        resumed.push(end - start);
        // A runner that has lost its session, and not only its connection, would pause here.
        std::thread::sleep(Duration::from_secs(1));
        let seen = Instant::now();
        pauses.extend(all.iter().map(|copy| traffic[copy.index].longest_pause(start, seen)).max());
        copies.cluster.ensemble.restart(server);
        copies.cluster.wait_until("a node leads", |cluster| cluster.leader().is_some());
        for copy in &all {
            let task = copies.cluster.task(&copy.id);
            assert_eq!(task.outcomes().len(), 1, "there is one attempt: {task:?}");
        }
    }
    copies.end(&all);
    vec![
        Measure::of_times("ZooKeeper's leader killed to the next write", &resumed, Bound::P99AtMost(2e3)),
        Measure::of_times("longest pause of copies meanwhile", &pauses, PAUSE),
    ]
}
