//! Tests tasks that wait for others, while their runner and the leader die.

use crate::support::{ClusterRecords, ExportPair, MIB, NEEDS, SHORT_SESSION, Task, TestCluster, need};
use std::time::Duration;

#[test]
fn tasks_run_after_others_although_the_runner_and_the_leader_die() {
    need!("tasks_run_after_others_although_the_runner_and_the_leader_die", &NEEDS);
    let mut cluster = TestCluster::with(3, 3, &SHORT_SESSION);
    let pairs = ["one", "two"].map(|name| ExportPair::new(&cluster, name, 48 * MIB));
    for (pair, id) in pairs.iter().zip(["one", "two"]) {
        // Slow enough that both run while nodes die.
        pair.submit(&cluster, id, &["--limit", "512KiB/s"]);
    }
    let check = ["submit", "verify", &pairs[0].source.uri(), &pairs[0].destination.uri(), "--id", "check"];
    let after = ["--after", "one", "--after", "two:success"];
    assert_eq!(cluster.blockhaul(&[&check[..], &after].concat()).code, Some(0));
    cluster.submit_noop("alarm", Duration::ZERO, &["--after", "one:failure"]);
    cluster.submit_noop("thaw", Duration::ZERO, &["--after", "one:end", "--after", "two:end"]);
    let waiting = cluster.wait_for("thaw", "a reason", |task| task.reason().contains("task one"));
    assert_eq!((waiting.state(), waiting.0["after"][0]["condition"].as_str()), ("PENDING", Some("end")), "{waiting:?}");

    let first = cluster.wait_for_checkpoint("one");
    cluster.nodes[first].kill();
    assert_ne!(cluster.wait_for_second_attempt("one"), first);
    cluster.nodes[first].start();
    let leader = cluster.leader().expect("a node leads");
    cluster.nodes[leader].kill();
    cluster.nodes[leader].start();
    for id in ["one", "two"] {
        assert!(!cluster.task(id).is_over());
        assert_eq!(cluster.task("thaw").state(), "PENDING");
        cluster.lift_limit(id);
        cluster.wait_for_success(id);
    }
    let ended = |id: &str| cluster.task(id).0["updated_at"].as_str().map(str::to_owned);
    for id in ["check", "thaw"] {
        let task = cluster.wait_for_success(id);
        let started = task.0["attempts"][0]["started_at"].as_str().map(str::to_owned);
        assert!(started >= ended("one") && started >= ended("two"), "{task:?}");
    }
    let alarm = cluster.wait_for("alarm", "its end", Task::is_over);
    assert_eq!((alarm.state(), alarm.0["error"]["code"].as_str()), ("SKIPPED", Some("EDependency")), "{alarm:?}");
    assert!(alarm.outcomes().is_empty(), "it never started: {alarm:?}");
    assert_eq!(cluster.blockhaul(&["watch", "alarm"]).code, Some(1));
    pairs.iter().for_each(ExportPair::assert_copied);
}

#[test]
fn a_dependency_on_nothing_or_in_other_words_is_refused() {
    need!("a_dependency_on_nothing_or_in_other_words_is_refused", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    for (after, exit, code) in [("none", 1, "ENotFound"), ("none:soon", 2, "EBadRequest"), ("a/b", 2, "EBadRequest")] {
        let outcome = cluster.blockhaul(&["submit", "noop", "--id", "x", "--after", after]);
        assert!(outcome.code == Some(exit) && outcome.stderr.contains(code), "{after}: {outcome:?}");
    }
    cluster.submit_noop("long", Duration::from_secs(600), &[]);
    cluster.submit_noop("later", Duration::ZERO, &["--after", "long"]);
    let kept = cluster.blockhaul(&["cancel", "long"]);
    assert_eq!(kept.code, Some(0), "{kept:?}");
    cluster.wait_for("later", "its end", |task| task.state() == "SKIPPED");
    assert_eq!(cluster.blockhaul(&["remove", "long", "later"]).code, Some(0));
}
