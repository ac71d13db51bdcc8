//! Tests faults of the coordination service: servers that die, pause, lose quorum, or lose their data.

use crate::support::{
    ClusterRecords, ExportPair, LONG_SESSION, MIB, NEEDS, Node, SHORT_SESSION, Settings, TestCluster, assert_same,
    mixed, need, run, text,
};
use std::time::Duration;

/// Checks that a network copy survives `fault` in its first attempt.
fn assert_copy_survives(fault: impl FnOnce(&mut TestCluster, &ExportPair)) {
    // With a short sync limit followers leave a silent leader soon.
    let mut cluster = TestCluster::on(Settings { sync_limit: 4, ..Settings::new(3) }, 2, &LONG_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    pair.submit(&cluster, "steady", &["--limit", "3MiB/s"]);
    cluster.wait_for_progress("steady");
    fault(&mut cluster, &pair);
    cluster.lift_limit("steady");
    let task = cluster.wait_for_success("steady");
    assert_eq!(task.outcomes(), ["succeeded"], "{task:?}");
    pair.assert_copied();
    cluster.submit_noop("after", Duration::from_millis(10), &[]);
    cluster.wait_for_success("after");
}

#[test]
fn copies_continue_when_zookeepers_leader_is_killed() {
    need!("copies_continue_when_zookeepers_leader_is_killed", &NEEDS);
    assert_copy_survives(|cluster, pair| {
        let leader = cluster.ensemble.leader();
        cluster.ensemble.kill(leader);
        let writes = pair.writes();
        assert_ne!(cluster.ensemble.leader(), leader);
        cluster.wait_until("more writes", |_| pair.writes() > writes);
    });
}

#[test]
fn copies_continue_when_zookeepers_leader_pauses() {
    need!("copies_continue_when_zookeepers_leader_pauses", &NEEDS);
    assert_copy_survives(|cluster, pair| {
        let leader = cluster.ensemble.leader();
        cluster.ensemble.pause(leader);
        // The remaining servers elect another leader.
        assert_ne!(cluster.ensemble.leader(), leader);
        pair.wait_for_more_writes(cluster);
        cluster.ensemble.resume(leader);
    });
}

#[test]
fn without_a_quorum_network_copies_stop_local_copies_continue_and_no_node_exits() {
    need!("without_a_quorum_network_copies_stop_local_copies_continue_and_no_node_exits", &NEEDS);
    let mut cluster = TestCluster::with(2, 3, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    let bytes = mixed(40 * MIB, 17);
    cluster.fill("source", &bytes);
    cluster.submit("local", &cluster.uri(0, "source"), &cluster.uri(0, "destination"), &["--limit", "4MiB/s"]);
    pair.submit(&cluster, "network", &["--limit", "2MiB/s"]);
    cluster.wait_for_progress("local");
    cluster.wait_for_checkpoint("network");
    let old = pair.connections();
    [0, 1].into_iter().for_each(|server| cluster.ensemble.kill(server));
    // The lease ends and the network copy is cut off; the local copy has no lease.
    cluster.wait_until("the network copy is cut off", |cluster| {
        cluster.nodes.iter().any(|node| node.log().contains("lease lost"))
    });
    let writes = pair.writes();
    cluster.wait_until("all of the local bytes", |cluster| cluster.read("destination") == bytes);
    assert_eq!(pair.writes(), writes, "a network copy writes nothing without a lease");
    assert!(cluster.nodes.iter_mut().all(Node::is_running));
    [0, 1].into_iter().for_each(|server| cluster.ensemble.restart(server));
    cluster.wait_until_complete();
    let task = cluster.wait_for_success("local");
    assert_eq!(task.outcomes(), ["succeeded"], "there was one attempt: {task:?}");
    assert_same(&cluster.read("destination"), &bytes, "the local destination");
    cluster.lift_limit("network");
    let task = cluster.wait_for_success("network");
    assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    pair.assert_no_overlap(&old);
    pair.assert_copied();
}

#[test]
fn runners_register_again_after_an_outage_longer_than_their_sessions() {
    need!("runners_register_again_after_an_outage_longer_than_their_sessions", &NEEDS);
    let mut cluster = TestCluster::with(2, 1, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 96 * MIB);
    let bytes = mixed(80 * MIB, 19);
    cluster.fill("source", &bytes);
    cluster.submit("local", &cluster.uri(0, "source"), &cluster.uri(0, "destination"), &["--limit", "2MiB/s"]);
    pair.submit(&cluster, "network", &["--limit", "2MiB/s"]);
    cluster.wait_for_progress("local");
    cluster.wait_for_checkpoint("network");
    let old = pair.connections();
    cluster.ensemble.kill(0);
    cluster.wait_until("all sessions have ended", |cluster| {
        cluster.nodes.iter().all(|node| node.log().contains("session ended"))
    });
    cluster.ensemble.restart(0);
    cluster.wait_until_complete();
    ["local", "network"].into_iter().for_each(|id| cluster.lift_limit(id));
    let task = cluster.wait_for_success("local");
    assert_eq!(task.outcomes(), ["succeeded"], "there was one attempt: {task:?}");
    assert_same(&cluster.read("destination"), &bytes, "the local destination");
    let task = cluster.wait_for_success("network");
    assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    pair.assert_no_overlap(&old);
    pair.assert_copied();
}

#[test]
fn copies_resume_after_all_nodes_and_servers_were_killed() {
    need!("copies_resume_after_all_nodes_and_servers_were_killed", &NEEDS);
    let mut cluster = TestCluster::with(2, 3, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    let bytes = mixed(64 * MIB, 23);
    cluster.fill("source", &bytes);
    cluster.submit("local", &cluster.uri(0, "source"), &cluster.uri(0, "destination"), &["--limit", "3MiB/s"]);
    pair.submit(&cluster, "network", &["--limit", "3MiB/s"]);
    for id in ["local", "network"] {
        cluster.wait_for_checkpoint(id);
    }
    cluster.nodes.iter_mut().for_each(Node::kill);
    (0..3).for_each(|server| cluster.ensemble.kill(server));
    (0..3).for_each(|server| cluster.ensemble.launch(server));
    (0..3).for_each(|server| cluster.ensemble.wait_until_it_serves(server));
    cluster.start();
    for id in ["local", "network"] {
        cluster.lift_limit(id);
        let task = cluster.wait_for_success(id);
        assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
        assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    }
    assert_same(&cluster.read("destination"), &bytes, "the local destination");
    pair.assert_copied();
}

#[test]
fn an_older_state_of_the_service_is_not_acted_on() {
    need!("an_older_state_of_the_service_is_not_acted_on", &NEEDS);
    let mut cluster = TestCluster::with(1, 1, &SHORT_SESSION);
    let bytes = mixed(MIB, 29);
    cluster.fill("source", &bytes);
    // The state that is restored later: a copy is submitted and has not begun.
    cluster.ask(&["drain", "n0"]);
    let (source, destination) = (cluster.uri(0, "source"), cluster.uri(0, "destination"));
    cluster.submit("early", &source, &destination, &[]);
    cluster.ensemble.kill(0);
    let (data, kept) = (cluster.ensemble.data(0), cluster.dirs.path("kept"));
    run("cp", &["-a", text(&data), text(&kept)]);
    cluster.ensemble.restart(0);
    // The state that is lost: the copy has succeeded, and a term has begun whose epoch is far higher.
    for number in 0..30 {
        cluster.submit_noop(&format!("forgotten{number}"), Duration::from_millis(1), &[]);
    }
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    cluster.start();
    cluster.ask(&["drain", "n0", "--undo"]);
    cluster.wait_for_success("early");
    cluster.fill("destination", b"content of a later owner");
    cluster.ensemble.kill(0);
    std::fs::remove_dir_all(&data).expect("the ensemble is stopped");
    run("cp", &["-a", text(&kept), text(&data)]);
    cluster.ensemble.restart(0);
    // A restored server refuses sessions that have seen a later transaction.
    let registered = |cluster: &TestCluster| cluster.nodes[0].log().matches(" registered node=").count();
    let before = registered(&cluster);
    cluster.wait_until("another session", |cluster| registered(cluster) > before);
    cluster.wait_until_complete();
    assert_eq!(cluster.task("early").state(), "PENDING", "the restored record is used");
    cluster.ask(&["drain", "n0", "--undo"]);
    cluster.wait_until("an error in the log", |cluster| {
        cluster.nodes[0].log().contains("call refused: lower leader epoch than seen before")
    });
    let task = cluster.wait_for("early", "a reason", |task| !task.reason().is_empty());
    assert!(!task.is_over() && task.outcomes().iter().all(|outcome| outcome != "succeeded"), "{task:?}");
    assert_eq!(cluster.read("destination"), b"content of a later owner");
}
