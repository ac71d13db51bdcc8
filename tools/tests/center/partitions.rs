//! Tests partitions: nodes cut off from the ensemble, from one of its servers, or from each other, while the servers of
//! the volumes reach all of them.

use crate::support::{
    ClusterRecords, ExportPair, LONG_SESSION, MIB, Mode, NEEDS, SHORT_SESSION, Settings, TestCluster, assert_same,
    mixed, need,
};
use std::time::Duration;

#[test]
fn a_runner_cut_off_from_the_center_stops_writing_before_another_one_starts() {
    need!("a_runner_cut_off_from_the_center_stops_writing_before_another_one_starts", &NEEDS);
    let cluster = TestCluster::with(3, 1, &["--quiet-after", "5s"]);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    let first = (cluster.leader().expect("a node leads") + 1) % 3;
    pair.submit_on(&cluster, "moving", first, &["--limit", "2MiB/s"]);
    assert_eq!(cluster.wait_for_checkpoint("moving"), first);
    let old = pair.connections();
    cluster.cut_off(first);
    assert_ne!(cluster.wait_for_second_attempt("moving"), first);
    pair.wait_for_more_writes(&cluster);
    cluster.reconnect(first);
    cluster.wait_until_complete();
    let task = pair.assert_taken_over(&cluster, "moving", &old);
    assert!(task.resumed() > 0, "{task:?}");
}

#[test]
fn a_leader_and_a_runner_both_cut_off_neither_decide_nor_write() {
    need!("a_leader_and_a_runner_both_cut_off_neither_decide_nor_write", &NEEDS);
    let cluster = TestCluster::with(3, 1, &["--quiet-after", "5s"]);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    let leader = cluster.leader().expect("a node leads");
    let first = (leader + 1) % 3;
    pair.submit_on(&cluster, "moving", first, &["--limit", "2MiB/s"]);
    assert_eq!(cluster.wait_for_checkpoint("moving"), first);
    let old = pair.connections();
    // The two nodes still reach each other: calls of the old leader must have no effect.
    [leader, first].into_iter().for_each(|node| cluster.cut_off(node));
    let third = 3 - leader - first;
    assert_eq!(cluster.wait_for_successor(leader), third);
    assert_eq!(cluster.wait_for_second_attempt("moving"), third);
    pair.wait_for_more_writes(&cluster);
    [leader, first].into_iter().for_each(|node| cluster.reconnect(node));
    cluster.wait_until_complete();
    assert_eq!(cluster.leader(), Some(third), "a node that comes back follows");
    pair.assert_taken_over(&cluster, "moving", &old);
}

#[test]
fn a_local_copy_continues_without_the_center() {
    need!("a_local_copy_continues_without_the_center", &NEEDS);
    let cluster = TestCluster::with(2, 1, &SHORT_SESSION);
    let bytes = mixed(24 * MIB, 13);
    cluster.fill("source", &bytes);
    let node = 1 - cluster.leader().expect("a node leads");
    let (source, destination) = (cluster.uri(node, "source"), cluster.uri(node, "destination"));
    cluster.submit("local", &source, &destination, &["--limit", "4MiB/s"]);
    cluster.wait_for_progress("local");
    cluster.cut_off(node);
    cluster.wait_for("local", "LOST", |task| task.state() == "LOST");
    // The copy completes without any contact to the center.
    cluster.wait_until("all bytes", |cluster| cluster.read("destination") == bytes);
    assert_eq!(cluster.task("local").state(), "LOST");
    cluster.reconnect(node);
    let task = cluster.wait_for_success("local");
    assert_eq!(task.outcomes(), ["succeeded"], "there was one attempt: {task:?}");
    assert_same(&cluster.read("destination"), &bytes, "the destination");
}

#[test]
fn a_runner_whose_server_stalls_connects_to_another() {
    need!("a_runner_whose_server_stalls_connects_to_another", &NEEDS);
    let cluster = TestCluster::with(2, 3, &LONG_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    pair.submit(&cluster, "steady", &["--limit", "4MiB/s"]);
    let first = cluster.wait_for_progress("steady");
    let silent = cluster.server_of(first).expect("the runner is connected");
    cluster.server_link(first, silent).set(Mode::Stall);
    cluster.wait_until("another server", |cluster| {
        (0..3).any(|server| server != silent && cluster.server_link(first, server).connections() > 0)
    });
    pair.wait_for_more_writes(&cluster);
    cluster.lift_limit("steady");
    let task = cluster.wait_for_success("steady");
    assert_eq!(task.outcomes(), ["succeeded"], "{task:?}");
    pair.assert_copied();
}

#[test]
fn a_runner_whose_server_is_isolated_leaves_that_server_and_keeps_its_copy() {
    need!("a_runner_whose_server_is_isolated_leaves_that_server_and_keeps_its_copy", &NEEDS);
    let cluster = TestCluster::on(Settings { wired: true, ..Settings::new(3) }, 2, &LONG_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    pair.submit(&cluster, "steady", &["--limit", "2MiB/s"]);
    let first = cluster.wait_for_progress("steady");
    let ahead = cluster.ensemble.leader();
    // Only a follower can lag behind.
    cluster.server_link(first, ahead).set(Mode::Cut);
    cluster.wait_until("the runner is connected to a follower", |cluster| {
        cluster.server_of(first).is_some_and(|server| server != ahead)
    });
    let behind = cluster.server_of(first).expect("the runner is connected");
    cluster.server_link(first, ahead).set(Mode::Pass);
    cluster.ensemble.isolate(behind);
    // That server still answers reads; only writes through it get no answer.
    cluster.wait_until("the runner connects to another server", |cluster| {
        cluster.server_of(first).is_some_and(|server| server != behind)
    });
    pair.wait_for_more_writes(&cluster);
    cluster.ensemble.rejoin(behind);
    cluster.lift_limit("steady");
    let task = cluster.wait_for_success("steady");
    assert_eq!(task.outcomes(), ["succeeded"], "{task:?}");
    pair.assert_copied();
}

#[test]
fn a_runner_that_the_leader_cannot_call_continues() {
    need!("a_runner_that_the_leader_cannot_call_continues", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    let pair = ExportPair::new(&cluster, "pair", 32 * MIB);
    let leader = cluster.leader().expect("a node leads");
    let first = 1 - leader;
    pair.submit_on(&cluster, "steady", first, &["--limit", "4MiB/s"]);
    cluster.wait_for_progress("steady");
    [leader, first].into_iter().for_each(|node| cluster.inbound_link(node).set(Mode::Stall));
    // No call arrives in either direction: the record alone carries the state.
    let task = cluster.wait_for_success("steady");
    assert_eq!(task.outcomes(), ["succeeded"], "{task:?}");
    pair.assert_copied();
    for node in [leader, first] {
        cluster.inbound_link(node).set(Mode::Cut);
        cluster.inbound_link(node).set(Mode::Pass);
    }
    cluster.submit_noop("after", Duration::from_millis(10), &["--node", &format!("n{first}")]);
    cluster.wait_for_success("after");
}

#[test]
fn writes_with_lost_answers_take_effect_once() {
    need!("writes_with_lost_answers_take_effect_once", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    let leader = cluster.leader().expect("a node leads");
    for round in 0..12 {
        let id = format!("lost-{round}");
        // In turn, the leader's and the runner's writes lose their answers.
        let link = cluster.server_link(if round % 2 == 0 { leader } else { 1 - leader }, 0);
        link.set(Mode::LoseAnswers);
        let args = ["submit", "noop", "100ms", "--id", &id, "--node", &format!("n{}", 1 - leader)];
        let asked = cluster.launch(&args);
        std::thread::sleep(Duration::from_millis(200 + 50 * round));
        link.set(Mode::Cut);
        link.set(Mode::Pass);
        let outcome = asked.end();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }
    for round in 0..12 {
        let task = cluster.wait_for_success(&format!("lost-{round}"));
        let outcomes = task.outcomes();
        let (last, earlier) = outcomes.split_last().expect("the task has attempts");
        assert_eq!(last, "succeeded", "{task:?}");
        // An assignment whose answer was lost may be revoked before it begins; an attempt that begins runs once.
        assert!(earlier.iter().all(|outcome| outcome != "succeeded"), "{task:?}");
    }
    assert!(cluster.records().claims().is_empty(), "all claims are released");
}
