//! Tests faults of a single runner: killed, stopped, paused, started twice.

use crate::support::{
    ClusterRecords, ExportPair, LONG_SESSION, MIB, NEEDS, SHORT_SESSION, TestCluster, assert_same, mixed, need,
};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_restarted_runner_continues_its_local_copy() {
    need!("a_restarted_runner_continues_its_local_copy", &NEEDS);
    let mut cluster = TestCluster::new(2, 1);
    let bytes = mixed(48 * MIB, 11);
    cluster.fill("source", &bytes);
    cluster.submit("local", &cluster.uri(1, "source"), &cluster.uri(1, "destination"), &["--limit", "4MiB/s"]);
    assert_eq!(cluster.wait_for_checkpoint("local"), 1);
    cluster.nodes[1].kill();
    // The node replaces the registration of its earlier incarnation without waiting for its session to expire.
    cluster.nodes[1].start();
    cluster.wait_for_second_attempt("local");
    cluster.lift_limit("local");
    let task = cluster.wait_for_success("local");
    assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
    assert_eq!(task.runners(), ["n1", "n1"], "{task:?}");
    assert!(task.resumed() > 0, "{task:?}");
    assert_same(&cluster.read("destination"), &bytes, "the destination");
}

#[test]
fn the_network_copy_of_a_killed_runner_continues_on_another_node() {
    need!("the_network_copy_of_a_killed_runner_continues_on_another_node", &NEEDS);
    let mut cluster = TestCluster::with(2, 1, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 48 * MIB);
    // The leader's own runner: its node loses both roles.
    let leader = cluster.leader().expect("a node leads");
    pair.submit_on(&cluster, "moving", leader, &["--limit", "4MiB/s"]);
    assert_eq!(cluster.wait_for_checkpoint("moving"), leader);
    let old = pair.connections();
    cluster.nodes[leader].kill();
    assert_ne!(cluster.wait_for_second_attempt("moving"), leader);
    let task = pair.assert_taken_over(&cluster, "moving", &old);
    assert!(task.resumed() > 0, "{task:?}");
}

/// Stops the node that runs a copy; it is the leader or another node.
fn stop_and_return(is_leader: bool) {
    let mut cluster = TestCluster::new(2, 1);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    let leader = cluster.leader().expect("a node leads");
    let first = if is_leader { leader } else { 1 - leader };
    // One failure would fail the task.
    pair.submit_on(&cluster, "moving", first, &["--limit", "4MiB/s", "--max-attempts", "1"]);
    assert_eq!(cluster.wait_for_progress("moving"), first);
    let old = pair.connections();
    let status = cluster.nodes[first].stop();
    assert_eq!(status.code(), Some(0), "{status:?}");
    assert_ne!(cluster.wait_for_second_attempt("moving"), first);
    let moved = cluster.task("moving");
    assert_eq!((moved.error(), &*moved.outcomes()[0]), ("", "ERunnerInterrupt"), "{moved:?}");
    assert!(moved.progress("durable") < 64 * MIB as u64, "a stop does not wait for the end of the copy: {moved:?}");
    cluster.lift_limit("moving");
    let task = cluster.wait_for_success("moving");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
    assert!(task.resumed() > 0, "{task:?}");
    pair.assert_drained_before_next(&old);
    pair.assert_copied();
}

#[test]
fn a_stopped_runner_returns_its_copy_and_no_failure_is_counted() {
    need!("a_stopped_runner_returns_its_copy_and_no_failure_is_counted", &NEEDS);
    stop_and_return(false);
}

#[test]
fn a_stopped_leader_resigns_and_returns_its_copy() {
    need!("a_stopped_leader_resigns_and_returns_its_copy", &NEEDS);
    stop_and_return(true);
}

#[test]
fn a_moved_copy_goes_on_from_its_checkpoint_on_another_node() {
    need!("a_moved_copy_goes_on_from_its_checkpoint_on_another_node", &NEEDS);
    let cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    pair.submit(&cluster, "moving", &["--limit", "4MiB/s"]);
    let first = cluster.wait_for_checkpoint("moving");
    let target = format!("n{}", (first + 1) % 3);
    cluster.ask(&["move", "moving", "--to", &target]);
    cluster.ask(&["set", "moving", "--limit", "none", "--priority", "9", "--deadline", "1h"]);
    let task = cluster.wait_for_success("moving");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
    assert!(task.node() == target && task.resumed() > 0 && task.0["priority"] == 9, "{task:?}");
    pair.assert_copied();
    let refused = cluster.blockhaul(&["move", "moving"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("EBusy"), "{refused:?}");
}

#[test]
fn a_runner_paused_for_less_than_its_lease_keeps_its_copy() {
    need!("a_runner_paused_for_less_than_its_lease_keeps_its_copy", &NEEDS);
    let cluster = TestCluster::with(2, 1, &LONG_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 48 * MIB);
    pair.submit(&cluster, "paused", &["--limit", "4MiB/s"]);
    let first = cluster.wait_for_progress("paused");
    cluster.nodes[first].signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    cluster.nodes[first].signal(Signal::SIGCONT);
    cluster.lift_limit("paused");
    let task = cluster.wait_for_success("paused");
    assert_eq!(task.outcomes(), ["succeeded"], "{task:?}");
    pair.assert_copied();
}

#[test]
fn a_runner_paused_past_its_lease_writes_no_more() {
    need!("a_runner_paused_past_its_lease_writes_no_more", &NEEDS);
    let cluster = TestCluster::with(3, 1, &["--quiet-after", "5s"]);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    pair.submit(&cluster, "moving", &["--limit", "2MiB/s"]);
    let first = cluster.wait_for_checkpoint("moving");
    let old = pair.connections();
    cluster.nodes[first].signal(Signal::SIGSTOP);
    let asleep = std::time::Instant::now();
    assert_ne!(cluster.wait_for_second_attempt("moving"), first);
    pair.wait_for_more_writes(&cluster);
    std::thread::sleep(Duration::from_secs(20).saturating_sub(asleep.elapsed()));
    cluster.nodes[first].signal(Signal::SIGCONT);
    cluster.wait_until("the node registers again", |cluster| {
        cluster.nodes[first].log().matches(" registered node=").count() > 1
    });
    pair.assert_taken_over(&cluster, "moving", &old);
}

#[test]
fn a_second_node_of_the_same_name_is_refused_until_the_first_is_gone() {
    need!("a_second_node_of_the_same_name_is_refused_until_the_first_is_gone", &NEEDS);
    let mut cluster = TestCluster::new(1, 1);
    cluster.add(&["--node-id", "n0"]);
    cluster.nodes[1].start();
    cluster.wait_until("an error in the log", |cluster| {
        cluster.nodes[1].log().contains("another taskd is registered under this node's name")
    });
    let runners = cluster.ask(&["runners"]);
    assert_eq!(runners.len(), 1, "{runners:?}");
    let first = runners[0]["incarnation"].clone();
    cluster.wait_until("the refused process is shown", |cluster| {
        cluster.ask(&["runners"])[0]["refused_namesakes"].as_array().is_some_and(|all| all.len() == 1)
    });
    cluster.submit_noop("still", Duration::from_millis(10), &[]);
    cluster.wait_for_success("still");
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    cluster.wait_until("the second process registers", |cluster| {
        let runners = cluster.ask(&["runners"]);
        runners.len() == 1 && runners[0]["registered"] == true && runners[0]["incarnation"] != first
    });
}

#[test]
fn a_node_shows_its_starts_its_last_task_and_how_its_taskd_ended_before() {
    need!("a_node_shows_its_starts_its_last_task_and_how_its_taskd_ended_before", &NEEDS);
    let mut cluster = TestCluster::with(2, 1, &SHORT_SESSION);
    let shown = |cluster: &TestCluster| {
        let mut runners = cluster.ask(&["runners", "--wide"]);
        runners.retain(|runner| runner["node"] == "n1" && runner["registered"] == true);
        runners.pop().unwrap_or_default()
    };
    cluster.wait_until("n1 registers", |cluster| shown(cluster)["starts"] == 1);
    let first = shown(&cluster);
    assert!(first["last_end"].is_null() && first["idle_since"].is_null() && first["level"] == 2, "{first}");
    cluster.submit_noop("t", Duration::from_millis(10), &["--node", "n1"]);
    cluster.wait_for_success("t");
    let idle = shown(&cluster);
    assert_eq!((&idle["last_task"], &idle["idle_since"]), (&"t".into(), &idle["last_task_ended_at"]), "{idle}");
    assert!(cluster.nodes[1].stop().success());
    cluster.start();
    cluster.wait_until("n1 registers again", |cluster| shown(cluster)["starts"] == 2);
    let stopped = shown(&cluster);
    assert_eq!(
        (&stopped["last_end"], &stopped["last_end_detail"]),
        (&"stopped".into(), &"SIGTERM".into()),
        "{stopped}"
    );
    assert!(stopped["last_end_at"].is_string(), "{stopped}");
    cluster.nodes[1].kill();
    cluster.start();
    cluster.wait_until("n1 registers once more", |cluster| shown(cluster)["starts"] == 3);
    let killed = shown(&cluster);
    assert!(killed["last_end"] == "crashed" && killed["last_end_at"].is_null(), "{killed}");
}
