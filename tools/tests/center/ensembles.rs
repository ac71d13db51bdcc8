//! Tests faults of the coordination service: servers that die, pause, lose quorum, or lose their data.

use crate::support::{
    Cell, CellRecords, ExportPair, LONG_SESSION, MIB, NEEDS, Node, SHORT_SESSION, Settings, assert_same, mixed, need,
    run, text,
};
use std::time::Duration;

/// Checks that a network copy survives `fault` in its first attempt.
fn assert_copy_survives(fault: impl FnOnce(&mut Cell, &ExportPair)) {
    // With a short sync limit followers leave a silent leader soon.
    let mut cell = Cell::on(Settings { sync_limit: 4, ..Settings::new(3) }, 2, &LONG_SESSION);
    let pair = ExportPair::new(&cell, "pair", 96 * MIB);
    pair.submit(&cell, "steady", &["--limit", "3MiB/s"]);
    cell.wait_for_progress("steady");
    fault(&mut cell, &pair);
    cell.lift_limit("steady");
    let task = cell.wait_for_success("steady");
    assert_eq!(task.outcomes(), ["succeeded"], "{task:?}");
    pair.assert_copied();
    cell.submit_noop("after", Duration::from_millis(10), &[]);
    cell.wait_for_success("after");
}

#[test]
fn copies_continue_when_zookeepers_leader_is_killed() {
    need!("copies_continue_when_zookeepers_leader_is_killed", &NEEDS);
    assert_copy_survives(|cell, pair| {
        let leader = cell.ensemble.leader();
        cell.ensemble.kill(leader);
        let writes = pair.writes();
        assert_ne!(cell.ensemble.leader(), leader);
        cell.wait_until("more writes", |_| pair.writes() > writes);
    });
}

#[test]
fn copies_continue_when_zookeepers_leader_pauses() {
    need!("copies_continue_when_zookeepers_leader_pauses", &NEEDS);
    assert_copy_survives(|cell, pair| {
        let leader = cell.ensemble.leader();
        cell.ensemble.pause(leader);
        // The remaining servers elect another leader.
        assert_ne!(cell.ensemble.leader(), leader);
        pair.wait_for_more_writes(cell);
        cell.ensemble.resume(leader);
    });
}

#[test]
fn without_a_quorum_network_copies_stop_local_copies_continue_and_no_node_exits() {
    need!("without_a_quorum_network_copies_stop_local_copies_continue_and_no_node_exits", &NEEDS);
    let mut cell = Cell::with(2, 3, &SHORT_SESSION);
    let pair = ExportPair::new(&cell, "pair", 96 * MIB);
    let bytes = mixed(40 * MIB, 17);
    cell.fill("source", &bytes);
    cell.submit("local", &cell.uri(0, "source"), &cell.uri(0, "destination"), &["--limit", "4MiB/s"]);
    pair.submit(&cell, "network", &["--limit", "2MiB/s"]);
    cell.wait_for_progress("local");
    cell.wait_for_checkpoint("network");
    let old = pair.connections();
    [0, 1].into_iter().for_each(|server| cell.ensemble.kill(server));
    // The lease ends and the network copy is cut off; the local copy has no lease.
    cell.wait_until("the network copy is cut off", |cell| {
        cell.nodes.iter().any(|node| node.log().contains("lease lost"))
    });
    let writes = pair.writes();
    cell.wait_until("all of the local bytes", |cell| cell.read("destination") == bytes);
    assert_eq!(pair.writes(), writes, "a network copy writes nothing without a lease");
    assert!(cell.nodes.iter_mut().all(Node::is_running));
    [0, 1].into_iter().for_each(|server| cell.ensemble.restart(server));
    cell.wait_until_complete();
    let task = cell.wait_for_success("local");
    assert_eq!(task.outcomes(), ["succeeded"], "there was one attempt: {task:?}");
    assert_same(&cell.read("destination"), &bytes, "the local destination");
    cell.lift_limit("network");
    let task = cell.wait_for_success("network");
    assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    pair.assert_no_overlap(&old);
    pair.assert_copied();
}

#[test]
fn runners_register_again_after_an_outage_longer_than_their_sessions() {
    need!("runners_register_again_after_an_outage_longer_than_their_sessions", &NEEDS);
    let mut cell = Cell::with(2, 1, &SHORT_SESSION);
    let pair = ExportPair::new(&cell, "pair", 96 * MIB);
    let bytes = mixed(80 * MIB, 19);
    cell.fill("source", &bytes);
    cell.submit("local", &cell.uri(0, "source"), &cell.uri(0, "destination"), &["--limit", "2MiB/s"]);
    pair.submit(&cell, "network", &["--limit", "2MiB/s"]);
    cell.wait_for_progress("local");
    cell.wait_for_checkpoint("network");
    let old = pair.connections();
    cell.ensemble.kill(0);
    cell.wait_until("all sessions have ended", |cell| {
        cell.nodes.iter().all(|node| node.log().contains("session ended"))
    });
    cell.ensemble.restart(0);
    cell.wait_until_complete();
    ["local", "network"].into_iter().for_each(|id| cell.lift_limit(id));
    let task = cell.wait_for_success("local");
    assert_eq!(task.outcomes(), ["succeeded"], "there was one attempt: {task:?}");
    assert_same(&cell.read("destination"), &bytes, "the local destination");
    let task = cell.wait_for_success("network");
    assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    pair.assert_no_overlap(&old);
    pair.assert_copied();
}

#[test]
fn copies_resume_after_all_nodes_and_servers_were_killed() {
    need!("copies_resume_after_all_nodes_and_servers_were_killed", &NEEDS);
    let mut cell = Cell::with(2, 3, &SHORT_SESSION);
    let pair = ExportPair::new(&cell, "pair", 64 * MIB);
    let bytes = mixed(64 * MIB, 23);
    cell.fill("source", &bytes);
    cell.submit("local", &cell.uri(0, "source"), &cell.uri(0, "destination"), &["--limit", "3MiB/s"]);
    pair.submit(&cell, "network", &["--limit", "3MiB/s"]);
    for id in ["local", "network"] {
        cell.wait_for_checkpoint(id);
    }
    cell.nodes.iter_mut().for_each(Node::kill);
    (0..3).for_each(|server| cell.ensemble.kill(server));
    (0..3).for_each(|server| cell.ensemble.launch(server));
    (0..3).for_each(|server| cell.ensemble.wait_until_it_serves(server));
    cell.start();
    for id in ["local", "network"] {
        cell.lift_limit(id);
        let task = cell.wait_for_success(id);
        assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
        assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    }
    assert_same(&cell.read("destination"), &bytes, "the local destination");
    pair.assert_copied();
}

#[test]
fn an_older_state_of_the_service_is_not_acted_on() {
    need!("an_older_state_of_the_service_is_not_acted_on", &NEEDS);
    let mut cell = Cell::with(1, 1, &SHORT_SESSION);
    let bytes = mixed(MIB, 29);
    cell.fill("source", &bytes);
    // The state that is restored later: a copy is submitted and has not begun.
    cell.ask(&["drain", "n0"]);
    let (source, destination) = (cell.uri(0, "source"), cell.uri(0, "destination"));
    cell.submit("early", &source, &destination, &[]);
    cell.ensemble.kill(0);
    let (data, kept) = (cell.ensemble.data(0), cell.dirs.path("kept"));
    run("cp", &["-a", text(&data), text(&kept)]);
    cell.ensemble.restart(0);
    // The state that is lost: the copy has succeeded, and a term has begun whose epoch is far higher.
    for number in 0..30 {
        cell.submit_noop(&format!("forgotten{number}"), Duration::from_millis(1), &[]);
    }
    assert_eq!(cell.nodes[0].stop().code(), Some(0));
    cell.start();
    cell.ask(&["drain", "n0", "--undo"]);
    cell.wait_for_success("early");
    cell.fill("destination", b"content of a later owner");
    cell.ensemble.kill(0);
    std::fs::remove_dir_all(&data).expect("the ensemble is stopped");
    run("cp", &["-a", text(&kept), text(&data)]);
    cell.ensemble.restart(0);
    // A restored server refuses sessions that have seen a later transaction.
    let registered = |cell: &Cell| cell.nodes[0].log().matches(" registered node=").count();
    let before = registered(&cell);
    cell.wait_until("another session", |cell| registered(cell) > before);
    cell.wait_until_complete();
    assert_eq!(cell.task("early").state(), "PENDING", "the restored record is used");
    cell.ask(&["drain", "n0", "--undo"]);
    cell.wait_until("an error in the log", |cell| {
        cell.nodes[0].log().contains("call refused: lower leader epoch than seen before")
    });
    let task = cell.wait_for("early", "a reason", |task| !task.reason().is_empty());
    assert!(!task.is_over() && task.outcomes().iter().all(|outcome| outcome != "succeeded"), "{task:?}");
    assert_eq!(cell.read("destination"), b"content of a later owner");
}
