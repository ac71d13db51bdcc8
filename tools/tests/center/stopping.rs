//! Tests orderly stops of a runner: with copies in flight, while one begins or ends, and while volumes fail; and how
//! nodes are retired.

use crate::support::{Address, Cell, CellRecords, ExportPair, MIB, Mode, NEEDS, Task, TcpProxy, need};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_stop_drains_all_copies_in_flight() {
    need!("a_stop_drains_all_copies_in_flight", &NEEDS);
    let mut cell = Cell::new(1, 1);
    cell.add(&[]);
    // Writes are slow enough that some are in flight when the stop comes.
    let slow = ["delay-write=300ms", "delay-zero=300ms"];
    let pair = |index| ExportPair::with(&cell, &format!("p{index}"), 48 * MIB, &["--filter=delay"], &slow);
    let pairs: Vec<ExportPair> = (0..3).map(pair).collect();
    let id = |index: usize| format!("copy-{index}");
    for (index, pair) in pairs.iter().enumerate() {
        pair.submit(&cell, &id(index), &["--limit", "4MiB/s"]);
    }
    (0..3).for_each(|index| assert_eq!(cell.wait_for_progress(&id(index)), 0));
    assert_eq!(cell.nodes[0].stop().code(), Some(0));
    let first: Vec<_> = pairs.iter().map(ExportPair::connections).collect();
    cell.nodes[1].start();
    // Wait for all of them before any limit is lifted: a copy may end sooner than the next one begins on a busy host.
    (0..3).for_each(|index| assert_eq!(cell.wait_for_second_attempt(&id(index)), 1));
    for (index, pair) in pairs.iter().enumerate() {
        cell.lift_limit(&id(index));
        let task = cell.wait_for_success(&id(index));
        assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
        pair.assert_drained_before_next(&first[index]);
        pair.assert_copied();
    }
}

#[test]
fn a_copy_that_begins_during_a_stop_is_interrupted_and_writes_nothing() {
    need!("a_copy_that_begins_during_a_stop_is_interrupted_and_writes_nothing", &NEEDS);
    let mut cell = Cell::new(2, 1);
    let leader = cell.leader().expect("a node leads");
    let first = 1 - leader;
    let pair = ExportPair::new(&cell, "pair", 8 * MIB);
    // The destination accepts connections and does not reply: the copy cannot begin to write.
    let Address::Tcp(port) = pair.destination.address() else { unreachable!("it listens on a port") };
    let wire = TcpProxy::to(&format!("127.0.0.1:{port}"));
    wire.set(Mode::Stall);
    let destination = format!("nbd://{}/", wire.address());
    cell.ask(&["drain", &format!("n{leader}")]);
    cell.submit("late", &pair.source.uri(), &destination, &[]);
    cell.wait_until("the copy connects", |_| wire.connections() > 0);
    assert_eq!(cell.nodes[first].stop().code(), Some(0));
    let task = cell.wait_for("late", "its interruption", |task| task.state() == "PENDING");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt"], "{task:?}");
    assert_eq!((task.error(), pair.writes()), ("", 0), "{task:?}");
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    cell.ask(&["drain", &format!("n{leader}"), "--undo"]);
    let task = cell.wait_for_success("late");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
    pair.assert_copied();
}

#[test]
fn a_failure_during_a_stop_does_not_replace_the_reason() {
    need!("a_failure_during_a_stop_does_not_replace_the_reason", &NEEDS);
    let mut cell = Cell::new(2, 1);
    let slow = ["delay-write=1", "delay-zero=1"];
    let mut pair = ExportPair::with(&cell, "pair", 48 * MIB, &["--filter=delay"], &slow);
    // The copy must not run on the leader, which resigns before it stops its copies.
    let leader = cell.leader().expect("a node leads");
    cell.ask(&["drain", &format!("n{leader}")]);
    pair.submit(&cell, "stopped", &["--limit", "8MiB/s", "--max-attempts", "1"]);
    let first = cell.wait_for_progress("stopped");
    cell.nodes[first].signal(Signal::SIGTERM);
    cell.wait_until("the node stops", |cell| cell.nodes[first].log().contains("returning all tasks"));
    // The requests in flight fail, and all later ones would.
    std::thread::sleep(Duration::from_millis(200));
    pair.destination.kill();
    assert_eq!(cell.nodes[first].wait().code(), Some(0));
    let task = cell.wait_for("stopped", "the end of the first attempt", |task| !task.outcomes()[0].is_empty());
    assert_eq!((task.outcomes()[0].as_str(), task.error()), ("ERunnerInterrupt", ""), "{task:?}");
    assert!(!task.is_over(), "no failure is counted: {task:?}");
}

#[test]
fn a_cancel_near_the_end_cancels_the_copy_or_the_copy_succeeds() {
    need!("a_cancel_near_the_end_cancels_the_copy_or_the_copy_succeeds", &NEEDS);
    let cell = Cell::new(2, 1);
    for round in 0..10 {
        let (name, id) = (format!("p{round}"), format!("near-{round}"));
        let pair = ExportPair::new(&cell, &name, 4 * MIB);
        pair.submit(&cell, &id, &["--limit", "8MiB/s"]);
        cell.wait_for(&id, "RUNNING", |task| task.is_over() || task.progress("written") > 0);
        std::thread::sleep(Duration::from_millis(40 * round));
        cell.ask(&["cancel", &id]);
        let task = cell.wait_for(&id, "its end", Task::is_over);
        match task.state() {
            "SUCCEEDED" => {
                assert_eq!((task.outcomes(), task.progress("durable")), (vec!["succeeded".into()], 4 * MIB as u64));
                pair.assert_copied();
            }
            "CANCELLED" => assert_eq!(task.outcomes(), ["ECancelled"], "{task:?}"),
            _ => panic!("a cancelled task has not failed: {task:?}"),
        }
    }
    assert!(cell.records().claims().is_empty(), "all claims are released");
}

#[test]
fn a_node_drained_now_returns_its_copy_and_stays_registered() {
    need!("a_node_drained_now_returns_its_copy_and_stays_registered", &NEEDS);
    let cell = Cell::new(2, 1);
    let pair = ExportPair::new(&cell, "pair", 64 * MIB);
    pair.submit(&cell, "moving", &["--limit", "2MiB/s"]);
    let first = cell.wait_for_progress("moving");
    let old = pair.connections();
    let name = format!("n{first}");
    cell.ask(&["drain", &name, "--now"]);
    assert_ne!(cell.wait_for_second_attempt("moving"), first);
    assert_eq!(cell.runners().len(), 2, "a drained node is still registered");
    cell.lift_limit("moving");
    let task = cell.wait_for_success("moving");
    assert_eq!(task.outcomes(), ["ERunnerInterrupt", "succeeded"], "{task:?}");
    pair.assert_drained_before_next(&old);
    pair.assert_copied();
    cell.submit_noop("waits", Duration::from_millis(10), &["--node", &name]);
    let task = cell.wait_for("waits", "a reason", |task| task.reason().contains("draining"));
    assert_eq!(task.state(), "PENDING", "{task:?}");
    cell.ask(&["drain", &name, "--undo"]);
    cell.wait_for_success("waits");
}

#[test]
fn a_drained_node_finishes_its_task_and_gets_no_new_one() {
    need!("a_drained_node_finishes_its_task_and_gets_no_new_one", &NEEDS);
    let cell = Cell::new(2, 1);
    cell.submit_noop("long", Duration::from_secs(2), &["--node", "n1"]);
    cell.wait_for("long", "RUNNING", |task| task.state() == "RUNNING");
    cell.ask(&["drain", "n1"]);
    (0..4).for_each(|index| cell.submit_noop(&format!("other-{index}"), Duration::from_millis(10), &[]));
    for index in 0..4 {
        assert_eq!(cell.wait_for_success(&format!("other-{index}")).runners(), ["n0"]);
    }
    assert_eq!(cell.wait_for_success("long").outcomes(), ["succeeded"]);
}

#[test]
fn a_stop_is_bounded_when_a_volume_never_answers_and_a_second_signal_ends_the_process_at_once() {
    need!("a_stop_is_bounded_when_a_volume_never_answers_and_a_second_signal_ends_the_process_at_once", &NEEDS);
    let mut cell = Cell::with(2, 1, &["--session-timeout", "6s", "--quiet-after", "5s"]);
    let pair = ExportPair::new(&cell, "pair", 64 * MIB);
    let Address::Tcp(port) = pair.destination.address() else { unreachable!("it listens on a port") };
    let wire = TcpProxy::to(&format!("127.0.0.1:{port}"));
    cell.submit("stuck", &pair.source.uri(), &format!("nbd://{}/", wire.address()), &["--limit", "4MiB/s"]);
    let first = cell.wait_for_progress("stuck");
    wire.set(Mode::Stall);
    // Neither the volume nor the ensemble answers: the stop is bounded all the same.
    cell.cut_off(first);
    assert_eq!(cell.nodes[first].stop().code(), Some(0), "a stop exits with 0");
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    cell.reconnect(first);
    assert_ne!(cell.wait_for_second_attempt("stuck"), first);
    // The same again, with a second signal.
    let second = 1 - first;
    wire.set(Mode::Stall);
    cell.nodes[second].signal(Signal::SIGTERM);
    cell.wait_until("the node stops", |cell| cell.nodes[second].log().contains("returning all tasks"));
    cell.nodes[second].signal(Signal::SIGTERM);
    assert_eq!(cell.nodes[second].wait().code(), Some(0));
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    cell.start();
    cell.lift_limit("stuck");
    cell.wait_for_success("stuck");
    pair.assert_copied();
}
