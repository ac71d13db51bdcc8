//! Tests changes of the leader, and the tasks that the previous leader had begun.

use crate::support::{ExportPair, MIB, Mode, NEEDS, Need, SHORT_SESSION, TestCluster, need};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_killed_leader_is_replaced_and_running_copies_continue() {
    need!("a_killed_leader_is_replaced_and_running_copies_continue", &NEEDS);
    let mut cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    let leader = cluster.leader().expect("a node leads");
    let runner = (leader + 1) % 3;
    pair.submit_on(&cluster, "steady", runner, &["--limit", "4MiB/s"]);
    assert_eq!(cluster.wait_for_progress("steady"), runner);
    let watched = cluster.launch(&["submit", "noop", "1ms", "--id", "next", "--node", &format!("n{runner}"), "--wait"]);
    let watching = cluster.launch(&["watch", "steady"]);
    cluster.nodes[leader].kill();
    cluster.wait_for_successor(leader);
    let connections = pair.connections();
    assert_eq!(watched.end().code, Some(0), "a client that waits for a task follows the new leader");
    cluster.lift_limit("steady");
    let watching = watching.end();
    assert_eq!(watching.code, Some(0), "{watching:?}");
    assert_eq!(watching.lines.last().expect("watch prints the task")["state"], "SUCCEEDED", "{watching:?}");
    let task = cluster.wait_for_success("steady");
    assert_eq!((task.outcomes(), task.runners()), (vec!["succeeded".into()], vec![format!("n{runner}")]), "{task:?}");
    assert_eq!(pair.connections(), connections, "the runner has not connected again");
    pair.assert_copied();
}

#[test]
fn a_leader_resumed_after_its_term_decides_nothing() {
    need!("a_leader_resumed_after_its_term_decides_nothing", &NEEDS);
    let cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    let leader = cluster.leader().expect("a node leads");
    cluster.nodes[leader].signal(Signal::SIGSTOP);
    let now = cluster.wait_for_successor(leader);
    cluster.submit_noop("meanwhile", Duration::from_millis(10), &[]);
    cluster.wait_for_success("meanwhile");
    let epoch = |cluster: &TestCluster| cluster.center().and_then(|center| center["epoch"].as_i64());
    let term = epoch(&cluster);
    cluster.nodes[leader].signal(Signal::SIGCONT);
    // The old leader may answer once from its cache; then it learns of the new leader.
    let address = cluster.nodes[leader].address();
    cluster.wait_until("the old leader follows", |cluster| {
        let asked = cluster.dirs.blockhaul(&["get", "meanwhile", "--center", &address]);
        asked.lines.last().is_some_and(|task| task["state"] == "SUCCEEDED")
    });
    cluster.wait_until_complete();
    assert_eq!((cluster.leader(), epoch(&cluster)), (Some(now), term), "the new leader still leads");
    cluster.submit_noop("after", Duration::from_millis(10), &[]);
    for id in ["after", "meanwhile"] {
        assert_eq!(cluster.wait_for_success(id).outcomes(), ["succeeded"], "no task runs twice");
    }
}

#[test]
fn a_new_leader_reads_every_task_and_continues_the_unfinished_ones() {
    need!("a_new_leader_reads_every_task_and_continues_the_unfinished_ones", &NEEDS);
    let mut cluster = TestCluster::with(2, 1, &[&SHORT_SESSION[..], &["--slots", "1"]].concat());
    for index in 0..10 {
        cluster.submit_noop(&format!("task-{index}"), Duration::from_millis(500), &[]);
    }
    let first = cluster.wait_for_success("task-0");
    let leader = cluster.leader().expect("a node leads");
    cluster.nodes[leader].kill();
    cluster.wait_for_successor(leader);
    assert_eq!(cluster.ask(&["list"]).len(), 10);
    for index in 0..10 {
        cluster.wait_for_success(&format!("task-{index}"));
    }
    assert_eq!(cluster.task("task-0").0["attempts"], first.0["attempts"], "a finished task is not run again");
}

#[test]
fn a_decision_of_a_killed_leader_is_executed_once() {
    need!("a_decision_of_a_killed_leader_is_executed_once", &NEEDS);
    let mut cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 8 * MIB);
    let leader = cluster.leader().expect("a node leads");
    let runner = (leader + 1) % 3;
    // The decision is stored; the call to the runner does not arrive.
    cluster.inbound_link(runner).set(Mode::Stall);
    pair.submit(&cluster, "decided", &["--node", &format!("n{runner}")]);
    let task = cluster.wait_for("decided", "the decision", |task| task.state() == "ASSIGNED");
    assert_eq!(task.runners(), [format!("n{runner}")], "{task:?}");
    cluster.nodes[leader].kill();
    cluster.inbound_link(runner).set(Mode::Cut);
    cluster.inbound_link(runner).set(Mode::Pass);
    cluster.wait_for_successor(leader);
    let task = cluster.wait_for_success("decided");
    let attempts = task.0["attempts"].as_array().expect("a list");
    let began = attempts.iter().filter(|attempt| !attempt["epoch"].is_null()).count();
    assert_eq!(began, 1, "one attempt has begun: {task:?}");
    assert_eq!(task.outcomes().last().map(String::as_str), Some("succeeded"), "{task:?}");
    pair.assert_copied();
}

#[test]
fn a_leader_whose_clock_is_off_resigns_and_does_not_stand_until_the_clock_is_set() {
    let needs = [&NEEDS[..], &[Need::Program("faketime")]].concat();
    need!("a_leader_whose_clock_is_off_resigns_and_does_not_stand_until_the_clock_is_set", &needs);
    let mut cluster = TestCluster::idle(3, 1, &SHORT_SESSION);
    let clock = cluster.dirs.file("clock", b"+0d\n");
    cluster.nodes[0].fake_clock(&clock);
    cluster.nodes[0].start();
    cluster.wait_until("n0 leads", |cluster| cluster.leader() == Some(0));
    cluster.start();
    std::fs::write(&clock, "+1d\n").expect("it was made above");
    let next = cluster.wait_for_successor(0);
    cluster.wait_until("n0 logs that it does not stand for election", |cluster| {
        cluster.nodes[0].log().contains("not standing for election")
    });
    cluster.wait_until("the runners show the wrong clock", |cluster| {
        let runners = cluster.ask(&["runners"]);
        runners
            .iter()
            .any(|runner| runner["clock_is_off"] == true && runner["clock_offset_ms"].as_i64() > Some(86_000_000))
    });
    cluster.nodes[next].kill();
    let last = cluster.wait_for_successor(next);
    assert_eq!(last, 3 - next, "a node whose clock is off is not elected");
    std::fs::write(&clock, "+0d\n").expect("it was made above");
    cluster.wait_until("n0 logs that its clock is right again", |cluster| {
        cluster.nodes[0].log().contains("agrees with its peers'")
    });
    cluster.nodes[last].kill();
    assert_eq!(cluster.wait_for_successor(last), 0);
    assert_eq!(cluster.nodes[0].log().matches("not standing for election").count(), 1, "{}", cluster.nodes[0].log());
}
