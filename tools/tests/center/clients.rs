//! Tests the requests of clients and the replies of a center.

use crate::support::{ExportPair, MIB, NEEDS, Task, TestCluster, need};
use std::time::Duration;

#[test]
fn a_repeated_request_is_the_same_task_and_other_work_of_that_name_is_refused() {
    need!("a_repeated_request_is_the_same_task_and_other_work_of_that_name_is_refused", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    // The result is the same for every node that is called first.
    for node in [&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[0]] {
        let args = ["submit", "noop", "50ms", "--id", "same", "--center", &node.address()];
        let outcome = cluster.dirs.blockhaul(&args);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }
    cluster.wait_for_success("same");
    let other = cluster.blockhaul(&["submit", "noop", "60ms", "--id", "same"]);
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.stderr.contains("EExists"), "{other:?}");
    assert_eq!(cluster.ask(&["list"]).len(), 1);
    assert_eq!(cluster.ask(&["list", "--state", "SUCCEEDED"]).len(), 1);
    assert_eq!(cluster.task("same").outcomes(), ["succeeded"], "it ran once");
}

#[test]
fn a_copy_is_paused_resumed_and_cancelled() {
    need!("a_copy_is_paused_resumed_and_cancelled", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    let pair = ExportPair::new(&cluster, "paused", 48 * MIB);
    pair.submit(&cluster, "paused", &["--limit", "2MiB/s"]);
    cluster.wait_for_progress("paused");
    cluster.ask(&["pause", "paused"]);
    cluster.wait_for("paused", "PAUSED", |task| task.state() == "PAUSED");
    let still = pair.writes();
    cluster.submit_noop("meanwhile", Duration::from_secs(1), &[]);
    cluster.wait_for_success("meanwhile");
    assert_eq!(pair.writes(), still, "a paused copy writes nothing");
    cluster.ask(&["resume", "paused"]);
    cluster.lift_limit("paused");
    let task = cluster.wait_for_success("paused");
    assert!(task.resumed() > 0, "{task:?}");
    pair.assert_copied();

    let pair = ExportPair::new(&cluster, "dropped", 48 * MIB);
    pair.submit(&cluster, "dropped", &["--limit", "2MiB/s"]);
    cluster.wait_for_progress("dropped");
    let waiting = cluster.launch(&["watch", "dropped"]);
    cluster.ask(&["cancel", "dropped"]);
    let task = cluster.wait_for("dropped", "its end", Task::is_over);
    assert_eq!((task.state(), task.outcomes()), ("CANCELLED", vec!["ECancelled".to_owned()]), "{task:?}");
    assert_eq!(waiting.end().code, Some(75), "the exit code of an interrupted copy");
    let again = cluster.ask(&["cancel", "dropped"]);
    assert_eq!(
        again.last().expect("it is shown")["state"],
        "CANCELLED",
        "cancelling an ended task shows its final state"
    );
    let unknown = cluster.blockhaul(&["cancel", "unknown"]);
    assert!(unknown.code == Some(1) && unknown.stderr.contains("ENotFound"), "{unknown:?}");
}

#[test]
fn only_copies_can_be_paused() {
    need!("only_copies_can_be_paused", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    cluster.submit_noop("noop", Duration::from_secs(2), &[]);
    for args in [&["pause", "noop"][..], &["resume", "noop"], &["set", "noop", "--limit", "1MiB/s"]] {
        let outcome = cluster.blockhaul(args);
        assert!(outcome.code == Some(1) && outcome.stderr.contains("EUnsupported"), "{outcome:?}");
    }
    assert_eq!(cluster.wait_for_success("noop").outcomes(), ["succeeded"]);
}

#[test]
fn tasks_wait_for_a_claim_a_slot_and_tasks_of_higher_priority() {
    need!("tasks_wait_for_a_claim_a_slot_and_tasks_of_higher_priority", &NEEDS);
    let cluster = TestCluster::with(1, 1, &["--slots", "2"]);
    let pair = ExportPair::new(&cluster, "one", 32 * MIB);
    pair.submit(&cluster, "first", &["--limit", "2MiB/s"]);
    cluster.wait_for_progress("first");
    pair.submit(&cluster, "second", &["--overwrite"]);
    let task = cluster.wait_for("second", "a reason", |task| !task.reason().is_empty());
    assert_eq!(task.state(), "PENDING", "two tasks never have one destination: {task:?}");
    // The waiting task delays no other task: not one with another destination, and not the order by priority.
    cluster.submit_noop("now", Duration::from_secs(1), &[]);
    cluster.wait_for("now", "RUNNING", |task| task.state() == "RUNNING");
    for (id, priority) in [("low", "1"), ("high", "8")] {
        cluster.submit_noop(id, Duration::from_millis(10), &["--priority", priority]);
    }
    let waits = cluster.task("high");
    assert!(waits.is_over() || !waits.reason().is_empty(), "{waits:?}");
    let began = |id: &str| cluster.wait_for_success(id).0["attempts"][0]["started_at"].clone();
    let (high, low) = (began("high"), began("low"));
    assert!(high.as_str() <= low.as_str(), "the task of higher priority starts first: {high} {low}");
    assert_eq!(cluster.task("second").state(), "PENDING");
    cluster.lift_limit("first");
    cluster.wait_for_success("first");
    cluster.wait_for_success("second");
    pair.assert_copied();
}

#[test]
fn a_task_that_no_node_can_run_has_a_reason_and_delays_no_other_task() {
    need!("a_task_that_no_node_can_run_has_a_reason_and_delays_no_other_task", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    cluster.submit_noop("nowhere", Duration::ZERO, &["--node", "n9", "--priority", "9"]);
    cluster.submit_noop("somewhere", Duration::from_millis(10), &[]);
    cluster.wait_for_success("somewhere");
    let task = cluster.wait_for("nowhere", "a reason", |task| task.reason().contains("n9"));
    assert_eq!(task.state(), "PENDING");
    let ended = cluster.ask(&["cancel", "nowhere"]);
    assert_eq!(ended.last().expect("it is shown")["state"], "CANCELLED");
}
