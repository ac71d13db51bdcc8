//! Measures the time from `blockhaul submit` to the first block on the destination, in an idle center of three nodes.

use crate::measure::{Bound, Measure};
use crate::options::Options;
use crate::traffic::Traffic;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_testkit::scratch::MIB;
use blockhaul_testkit::test_cluster::{ExportPair, TestCluster};
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Measures the time from the end of a task to the first block of a copy that waits for it.
pub(crate) fn measure_dependent(options: &Options) -> Vec<Measure> {
    let cluster = TestCluster::new(3, 3);
    let pair = ExportPair::new(&cluster, "small", 4 * MIB);
    let traffic = Traffic::of(&pair);
    let mut before = BTreeSet::new();
    let mut trial = |number: usize| {
        let (first, id) = (format!("first{number}"), format!("copy{number}"));
        cluster.submit_noop(&first, Duration::from_millis(500), &[]);
        pair.submit(&cluster, &id, &["--overwrite", "--after", &first]);
        let written = traffic.first_write_of_others(&before);
        let since = SystemTime::now() - written.elapsed();
        let ended = cluster.wait_for_success(&first).0["updated_at"].as_str().map(Timestamp::parse);
        let Some(Ok(Timestamp(ended_ms))) = ended else { panic!("a time: {ended:?}") };
        cluster.wait_for_success(&id);
        before = traffic.writers();
        since.duration_since(UNIX_EPOCH + Duration::from_millis(ended_ms)).unwrap_or_default()
    };
    trial(0);
    let times: Vec<Duration> = (1..=options.trials).map(trial).collect();
    vec![Measure::of_times("end of a task to the first block of its dependent", &times, Bound::P99AtMost(150.0))]
}

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
