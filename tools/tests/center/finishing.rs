//! Tests the main promise: a copy is submitted, its runner dies, and the copy completes on another node, byte-equal.

use crate::support::{ClusterRecords, ExportPair, MIB, NEEDS, SHORT_SESSION, TestCluster, assert_same, mixed, need};

#[test]
fn a_copy_moves_from_a_killed_runner_to_another_and_finishes() {
    need!("a_copy_moves_from_a_killed_runner_to_another_and_finishes", &NEEDS);
    let mut cluster = TestCluster::with(3, 3, &SHORT_SESSION);
    let pair = ExportPair::new(&cluster, "moving", 64 * MIB);
    let (source, destination) = (pair.source.uri(), pair.destination.uri());
    let waiting =
        cluster.launch(&["submit", "copy", &source, &destination, "--id", "moving", "--limit", "4MiB/s", "--wait"]);
    let first = cluster.wait_for_checkpoint("moving");
    cluster.nodes[first].kill();
    assert_ne!(cluster.wait_for_second_attempt("moving"), first);
    cluster.lift_limit("moving");
    let outcome = waiting.end();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.lines.last().expect("submit prints the task")["state"], "SUCCEEDED", "{outcome:?}");
    let task = cluster.task("moving");
    assert_eq!((task.state(), task.error()), ("SUCCEEDED", ""), "{task:?}");
    assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
    assert!(task.resumed() > 0, "the second attempt resumes: {task:?}");
    pair.assert_copied();
    assert!(cluster.records().claims().is_empty(), "the claim is released");
}

#[test]
fn a_copy_between_files_of_one_node_runs_there_and_is_verified() {
    need!("a_copy_between_files_of_one_node_runs_there_and_is_verified", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    let bytes = mixed(9 * MIB + 4096, 3);
    cluster.fill("source", &bytes);
    cluster.submit("local", &cluster.uri(1, "source"), &cluster.uri(1, "destination"), &["--verify"]);
    let task = cluster.wait_for_success("local");
    assert_eq!(task.runners(), ["n1"], "{task:?}");
    assert_eq!(task.0["fence"], "local", "{task:?}");
    assert_eq!(task.progress("verified"), bytes.len() as u64, "{task:?}");
    assert_same(&cluster.read("destination"), &bytes, "the destination");
}
