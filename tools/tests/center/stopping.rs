//! Tests orderly stops of a runner: with copies in flight, while one begins or ends, and while volumes fail; and how
//! nodes are retired.

use crate::support::{Address, ClusterRecords, ExportPair, MIB, Mode, NEEDS, Task, TcpProxy, TestCluster, need};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_stop_drains_all_copies_in_flight() {
    need!("a_stop_drains_all_copies_in_flight", &NEEDS);
    let mut cluster = TestCluster::new(1, 1);
    cluster.add(&[]);
    // Writes are slow enough that some are in flight when the stop comes.
    let slow = ["delay-write=300ms", "delay-zero=300ms"];
    let pair = |index| ExportPair::with(&cluster, &format!("p{index}"), 48 * MIB, &["--filter=delay"], &slow);
    let pairs: Vec<ExportPair> = (0..3).map(pair).collect();
    let id = |index: usize| format!("copy-{index}");
    for (index, pair) in pairs.iter().enumerate() {
        pair.submit(&cluster, &id(index), &["--limit", "4MiB/s"]);
    }
    (0..3).for_each(|index| assert_eq!(cluster.wait_for_progress(&id(index)), 0));
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    let first: Vec<_> = pairs.iter().map(ExportPair::connections).collect();
    cluster.nodes[1].start();
    // Wait for all of them before any limit is lifted: a copy may end sooner than the next one begins on a busy host.
    (0..3).for_each(|index| assert_eq!(cluster.wait_for_second_attempt(&id(index)), 1));
    for (index, pair) in pairs.iter().enumerate() {
        cluster.lift_limit(&id(index));
        let task = cluster.wait_for_success(&id(index));
        assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
        pair.assert_drained_before_next(&first[index]);
        pair.assert_copied();
    }
}

#[test]
fn a_copy_that_begins_during_a_stop_is_interrupted_and_writes_nothing() {
    need!("a_copy_that_begins_during_a_stop_is_interrupted_and_writes_nothing", &NEEDS);
    let mut cluster = TestCluster::new(2, 1);
    let leader = cluster.leader().expect("a node leads");
    let first = 1 - leader;
    let pair = ExportPair::new(&cluster, "pair", 8 * MIB);
    // The destination accepts connections and does not reply: the copy cannot begin to write.
    let Address::Tcp(port) = pair.destination.address() else { unreachable!("it listens on a port") };
    let wire = TcpProxy::to(&format!("127.0.0.1:{port}"));
    wire.set(Mode::Stall);
    let destination = format!("nbd://{}/", wire.address());
    cluster.ask(&["drain", &format!("n{leader}")]);
    cluster.submit("late", &pair.source.uri(), &destination, &[]);
    cluster.wait_until("the copy connects", |_| wire.connections() > 0);
    assert_eq!(cluster.nodes[first].stop().code(), Some(0));
    let task = cluster.wait_for("late", "its interruption", |task| task.state() == "PENDING");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt"], "{task:?}");
    assert_eq!((task.error(), pair.writes()), ("", 0), "{task:?}");
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    cluster.ask(&["drain", &format!("n{leader}"), "--undo"]);
    let task = cluster.wait_for_success("late");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
    pair.assert_copied();
}

#[test]
fn a_failure_during_a_stop_does_not_replace_the_reason() {
    need!("a_failure_during_a_stop_does_not_replace_the_reason", &NEEDS);
    let mut cluster = TestCluster::new(2, 1);
    let slow = ["delay-write=1", "delay-zero=1"];
    let mut pair = ExportPair::with(&cluster, "pair", 48 * MIB, &["--filter=delay"], &slow);
    // The copy must not run on the leader, which resigns before it stops its copies.
    let leader = cluster.leader().expect("a node leads");
    cluster.ask(&["drain", &format!("n{leader}")]);
    pair.submit(&cluster, "stopped", &["--limit", "8MiB/s", "--max-attempts", "1"]);
    let first = cluster.wait_for_progress("stopped");
    cluster.nodes[first].signal(Signal::SIGTERM);
    cluster.wait_until("the node stops", |cluster| cluster.nodes[first].log().contains("returning all tasks"));
    // The requests in flight fail, and all later ones would.
    std::thread::sleep(Duration::from_millis(200));
    pair.destination.kill();
    assert_eq!(cluster.nodes[first].wait().code(), Some(0));
    let task = cluster.wait_for("stopped", "the end of the first attempt", |task| !task.outcomes()[0].is_empty());
    assert_eq!((task.outcomes()[0].as_str(), task.error()), ("ERunnerInterrupt", ""), "{task:?}");
    assert!(!task.is_over(), "no failure is counted: {task:?}");
}

#[test]
fn a_cancel_near_the_end_cancels_the_copy_or_the_copy_succeeds() {
    need!("a_cancel_near_the_end_cancels_the_copy_or_the_copy_succeeds", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    for round in 0..10 {
        let (name, id) = (format!("p{round}"), format!("near-{round}"));
        let pair = ExportPair::new(&cluster, &name, 4 * MIB);
        pair.submit(&cluster, &id, &["--limit", "8MiB/s"]);
        cluster.wait_for(&id, "RUNNING", |task| task.is_over() || task.progress("written") > 0);
        std::thread::sleep(Duration::from_millis(40 * round));
        cluster.ask(&["cancel", &id]);
        let task = cluster.wait_for(&id, "its end", Task::is_over);
        match task.state() {
            "SUCCEEDED" => {
                assert_eq!((task.outcomes(), task.progress("durable")), (vec!["succeeded".into()], 4 * MIB as u64));
                pair.assert_copied();
            }
            "CANCELLED" => assert_eq!(task.outcomes(), ["ECancelled"], "{task:?}"),
            _ => panic!("a cancelled task has not failed: {task:?}"),
        }
    }
    assert!(cluster.records().claims().is_empty(), "all claims are released");
}

#[test]
fn a_node_drained_now_returns_its_copy_and_stays_registered() {
    need!("a_node_drained_now_returns_its_copy_and_stays_registered", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    pair.submit(&cluster, "moving", &["--limit", "2MiB/s"]);
    let first = cluster.wait_for_progress("moving");
    let old = pair.connections();
    let name = format!("n{first}");
    cluster.ask(&["drain", &name, "--now"]);
    assert_ne!(cluster.wait_for_second_attempt("moving"), first);
    assert_eq!(cluster.runners().len(), 2, "a drained node is still registered");
    cluster.lift_limit("moving");
    let task = cluster.wait_for_success("moving");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
    pair.assert_drained_before_next(&old);
    pair.assert_copied();
    cluster.submit_noop("waits", Duration::from_millis(10), &["--node", &name]);
    let task = cluster.wait_for("waits", "a reason", |task| task.reason().contains("draining"));
    assert_eq!(task.state(), "PENDING", "{task:?}");
    cluster.ask(&["drain", &name, "--undo"]);
    cluster.wait_for_success("waits");
}

#[test]
fn a_drained_node_finishes_its_task_and_gets_no_new_one() {
    need!("a_drained_node_finishes_its_task_and_gets_no_new_one", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    cluster.submit_noop("long", Duration::from_secs(2), &["--node", "n1"]);
    cluster.wait_for("long", "RUNNING", |task| task.state() == "RUNNING");
    cluster.ask(&["drain", "n1"]);
    (0..4).for_each(|index| cluster.submit_noop(&format!("other-{index}"), Duration::from_millis(10), &[]));
    for index in 0..4 {
        assert_eq!(cluster.wait_for_success(&format!("other-{index}")).runners(), ["n0"]);
    }
    assert_eq!(cluster.wait_for_success("long").outcomes(), ["succeeded"]);
}

#[test]
fn a_stop_is_bounded_when_a_volume_never_answers_and_a_second_signal_ends_the_process_at_once() {
    need!("a_stop_is_bounded_when_a_volume_never_answers_and_a_second_signal_ends_the_process_at_once", &NEEDS);
    let mut cluster = TestCluster::with(2, 1, &["--session-timeout", "6s", "--quiet-after", "5s"]);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    let Address::Tcp(port) = pair.destination.address() else { unreachable!("it listens on a port") };
    let wire = TcpProxy::to(&format!("127.0.0.1:{port}"));
    cluster.submit("stuck", &pair.source.uri(), &format!("nbd://{}/", wire.address()), &["--limit", "4MiB/s"]);
    let first = cluster.wait_for_progress("stuck");
    wire.set(Mode::Stall);
    // Neither the volume nor the ensemble answers: the stop is bounded all the same.
    cluster.cut_off(first);
    assert_eq!(cluster.nodes[first].stop().code(), Some(0), "a stop exits with 0");
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    cluster.reconnect(first);
    assert_ne!(cluster.wait_for_second_attempt("stuck"), first);
    // The same again, with a second signal.
    let second = 1 - first;
    wire.set(Mode::Stall);
    cluster.nodes[second].signal(Signal::SIGTERM);
    cluster.wait_until("the node stops", |cluster| cluster.nodes[second].log().contains("returning all tasks"));
    cluster.nodes[second].signal(Signal::SIGTERM);
    assert_eq!(cluster.nodes[second].wait().code(), Some(0));
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    cluster.start();
    cluster.lift_limit("stuck");
    cluster.wait_for_success("stuck");
    pair.assert_copied();
}
