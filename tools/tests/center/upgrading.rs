//! Tests centers whose nodes run different versions: the oldest supported one, and the one of this build.

use crate::support::{ClusterRecords, ExportPair, LONG_SESSION, MIB, NEEDS, TestCluster, need, oldest_taskd};
use blockhaul_testkit::skipped;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Starts three nodes of the oldest version, and a copy that has recorded a checkpoint.
fn old_cluster(oldest: &Path) -> (TestCluster, ExportPair) {
    let mut cluster = TestCluster::idle(3, 1, &LONG_SESSION);
    cluster.nodes.iter_mut().for_each(|node| node.run_version(Some(oldest.to_owned())));
    cluster.start();
    let pair = ExportPair::new(&cluster, "pair", 64 * MIB);
    pair.submit(&cluster, "steady", &["--limit", "2MiB/s"]);
    cluster.wait_for_checkpoint("steady");
    (cluster, pair)
}

/// Stops a node in good order and starts it as another version.
fn change_version(cluster: &mut TestCluster, node: usize, program: Option<PathBuf>) {
    assert!(cluster.nodes[node].stop().success(), "it stops in good order:\n{}", cluster.nodes[node].log());
    cluster.nodes[node].run_version(program);
    cluster.start();
}

/// Runs a task on every node.
fn assert_every_node_runs_a_task(cluster: &TestCluster, round: &str) {
    let ids = (0..cluster.nodes.len()).map(|node| format!("{round}-n{node}"));
    for (node, id) in ids.clone().enumerate() {
        cluster.submit_noop(&id, Duration::from_millis(1), &["--node", &format!("n{node}")]);
    }
    ids.for_each(|id| assert_eq!(cluster.wait_for_success(&id).outcomes(), ["succeeded"], "{id}"));
}

/// Returns the level of the center; 0 while nobody answers who knows it.
fn level(cluster: &TestCluster) -> u64 {
    cluster.center().and_then(|center| center["level"].as_u64()).unwrap_or_default()
}

#[test]
fn nodes_are_upgraded_one_by_one_and_a_copy_continues() {
    let test = "nodes_are_upgraded_one_by_one_and_a_copy_continues";
    need!(test, &NEEDS);
    let oldest = match oldest_taskd() {
        Ok(oldest) => oldest,
        Err(missing) => return skipped(test, &missing),
    };
    let (mut cluster, pair) = old_cluster(&oldest);
    // The leader last: an old leader assigns tasks to new runners, and a new leader continues its tasks.
    let leader = cluster.leader().expect("a node leads");
    let others = (0..3).filter(|node| *node != leader);
    for node in others.chain([leader]) {
        change_version(&mut cluster, node, None);
        assert_every_node_runs_a_task(&cluster, &format!("after-n{node}"));
    }
    cluster.wait_until("the level is raised", |cluster| level(cluster) == 2);
    cluster.lift_limit("steady");
    let task = cluster.wait_for_success("steady");
    let interrupted = |outcome: &String| outcome == "ERunnerInterrupt" || outcome == "succeeded";
    assert!(task.outcomes().iter().all(interrupted), "the copy was only interrupted: {task:?}");
    pair.assert_copied();
}

#[test]
fn a_new_leader_works_with_old_runners_and_an_old_one_takes_over_again() {
    let test = "a_new_leader_works_with_old_runners_and_an_old_one_takes_over_again";
    need!(test, &NEEDS);
    let oldest = match oldest_taskd() {
        Ok(oldest) => oldest,
        Err(missing) => return skipped(test, &missing),
    };
    let (mut cluster, pair) = old_cluster(&oldest);
    change_version(&mut cluster, 0, None);
    // The new node is elected while the others are stopped; then they are its runners.
    for node in [1, 2] {
        assert!(cluster.nodes[node].stop().success());
    }
    cluster.wait_until("n0 leads", |cluster| cluster.leader() == Some(0));
    cluster.start();
    assert_eq!(cluster.leader(), Some(0));
    assert_every_node_runs_a_task(&cluster, "under-new");
    assert_eq!(level(&cluster), 1, "older nodes are there");
    let refused = cluster.blockhaul(&["submit", "noop", "1s", "--delay", "1s"]);
    let error = refused.lines.last().map(|report| report["error"].clone()).unwrap_or_default();
    assert_eq!(error["code"], "EUnsupported", "{refused:?}");
    cluster.ask(&["pause", "steady"]);
    cluster.wait_for("steady", "PAUSED", |task| task.state() == "PAUSED");
    // An old leader decodes, keeps and continues what the new leader has stored.
    change_version(&mut cluster, 0, Some(oldest));
    assert_every_node_runs_a_task(&cluster, "under-old");
    assert_eq!(cluster.task("steady").state(), "PAUSED");
    cluster.ask(&["resume", "steady"]);
    cluster.lift_limit("steady");
    cluster.wait_for_success("steady");
    pair.assert_copied();
    let center = cluster.center().expect("a node leads");
    assert_eq!(center["unreadable"].as_array().map(Vec::len), Some(0), "{center}");
}
