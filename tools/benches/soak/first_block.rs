//! Measures the time from `blockhaul submit` to the first block on the destination, in an idle center of three nodes.

use crate::measure::{Bound, Measure};
use crate::options::Options;
use crate::traffic::Traffic;
use blockhaul_testkit::scratch::MIB;
use blockhaul_testkit::test_cluster::{ExportPair, TestCluster};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(crate) fn measure(options: &Options) -> Vec<Measure> {
    let cluster = TestCluster::new(3, 3);
    let pair = ExportPair::new(&cluster, "small", 4 * MIB);
    let traffic = Traffic::of(&pair);
    let mut before = BTreeSet::new();
    let mut trial = |number: usize| {
        let id = format!("first{number}");
        let start = Instant::now();
        pair.submit(&cluster, &id, &["--overwrite"]);
        let first = traffic.first_write_of_others(&before);
        cluster.wait_for_success(&id);
        pair.assert_copied();
        before = traffic.writers();
        first - start
    };
    // The first submission opens connections between the nodes.
    trial(0);
    let times: Vec<Duration> = (1..=options.trials).map(trial).collect();
    vec![Measure::of_times("submit to first block written", &times, Bound::P99AtMost(100.0))]
}
