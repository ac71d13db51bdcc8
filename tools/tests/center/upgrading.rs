//! Tests centers whose nodes run different versions: the oldest supported one, and the one of this build.

use crate::support::{Cell, CellRecords, ExportPair, LONG_SESSION, MIB, NEEDS, need, oldest_taskd};
use blockhaul_testkit::skipped;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Starts three nodes of the oldest version, and a copy that has recorded a checkpoint.
fn old_cell(oldest: &Path) -> (Cell, ExportPair) {
    let mut cell = Cell::idle(3, 1, &LONG_SESSION);
    cell.nodes.iter_mut().for_each(|node| node.run_version(Some(oldest.to_owned())));
    cell.start();
    let pair = ExportPair::new(&cell, "pair", 64 * MIB);
    pair.submit(&cell, "steady", &["--limit", "2MiB/s"]);
    cell.wait_for_checkpoint("steady");
    (cell, pair)
}

/// Stops a node in good order and starts it as another version.
fn change_version(cell: &mut Cell, node: usize, program: Option<PathBuf>) {
    assert!(cell.nodes[node].stop().success(), "it stops in good order:\n{}", cell.nodes[node].log());
    cell.nodes[node].run_version(program);
    cell.start();
}

/// Runs a task on every node.
fn assert_every_node_runs_a_task(cell: &Cell, round: &str) {
    let ids = (0..cell.nodes.len()).map(|node| format!("{round}-n{node}"));
    for (node, id) in ids.clone().enumerate() {
        cell.submit_noop(&id, Duration::from_millis(1), &["--node", &format!("n{node}")]);
    }
    ids.for_each(|id| assert_eq!(cell.wait_for_success(&id).outcomes(), ["succeeded"], "{id}"));
}

#[test]
fn nodes_are_upgraded_one_by_one_and_a_copy_continues() {
    let test = "nodes_are_upgraded_one_by_one_and_a_copy_continues";
    need!(test, &NEEDS);
    let oldest = match oldest_taskd() {
        Ok(oldest) => oldest,
        Err(missing) => return skipped(test, &missing),
    };
    let (mut cell, pair) = old_cell(&oldest);
    // The leader last: an old leader assigns tasks to new runners, and a new leader continues its tasks.
    let leader = cell.leader().expect("a node leads");
    let others = (0..3).filter(|node| *node != leader);
    for node in others.chain([leader]) {
        change_version(&mut cell, node, None);
        assert_every_node_runs_a_task(&cell, &format!("after-n{node}"));
    }
    cell.lift_limit("steady");
    let task = cell.wait_for_success("steady");
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
    let (mut cell, pair) = old_cell(&oldest);
    change_version(&mut cell, 0, None);
    // The new node is elected while the others are stopped; then they are its runners.
    for node in [1, 2] {
        assert!(cell.nodes[node].stop().success());
    }
    cell.wait_until("n0 leads", |cell| cell.leader() == Some(0));
    cell.start();
    assert_eq!(cell.leader(), Some(0));
    assert_every_node_runs_a_task(&cell, "under-new");
    cell.ask(&["pause", "steady"]);
    cell.wait_for("steady", "PAUSED", |task| task.state() == "PAUSED");
    // An old leader decodes, keeps and continues what the new leader has stored.
    change_version(&mut cell, 0, Some(oldest));
    assert_every_node_runs_a_task(&cell, "under-old");
    assert_eq!(cell.task("steady").state(), "PAUSED");
    cell.ask(&["resume", "steady"]);
    cell.lift_limit("steady");
    cell.wait_for_success("steady");
    pair.assert_copied();
    let center = cell.center().expect("a node leads");
    assert_eq!(center["unreadable"].as_array().map(Vec::len), Some(0), "{center}");
}
