//! Tests volumes that are replaced or changed between two attempts of a task, on one node and on two.

use crate::support::{ClusterRecords, ExportPair, MIB, NEEDS, Task, TestCluster, mixed, need};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIZE: usize = 48 * MIB;
const SLOWLY: [&str; 2] = ["--limit", "4MiB/s"];

/// Overwrites the first half, which includes everything that the first attempt has copied.
fn overwrite(path: &Path) {
    let file = File::options().write(true).open(path).expect("a file of ours");
    file.write_all_at(&mixed(SIZE / 2, 99), 0).and_then(|()| file.sync_all()).expect("there is room");
}

/// Pauses a task once its record has durable progress.
fn pause(cluster: &TestCluster, id: &str) {
    cluster.wait_for_checkpoint(id);
    cluster.ask(&["pause", id]);
    let task = cluster.wait_for(id, "PAUSED", |task| task.state() == "PAUSED" || task.is_over());
    assert_eq!(task.state(), "PAUSED", "{task:?}");
}

fn assert_fails(cluster: &TestCluster, id: &str, code: &str) {
    cluster.ask(&["resume", id]);
    assert_ends(cluster, id, code);
}

fn assert_ends(cluster: &TestCluster, id: &str, code: &str) {
    let task = cluster.wait_for(id, "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", code), "{task:?}");
}

#[test]
fn a_source_file_that_is_written_to_between_two_attempts_fails_its_task() {
    need!("a_source_file_that_is_written_to_between_two_attempts_fails_its_task", &NEEDS);
    let mut cluster = TestCluster::with(1, 1, &["--fence-command", "/bin/true"]);
    let pair = ExportPair::new(&cluster, "pair", SIZE);
    for (id, fence) in [("by-hand", "manual"), ("by-program", "command")] {
        cluster.fill("source", &mixed(SIZE, 3));
        let args = [&SLOWLY[..], &["--fence", fence, "--overwrite"]].concat();
        cluster.submit(id, &cluster.uri(0, "source"), &pair.destination.uri(), &args);
        pause(&cluster, id);
        overwrite(&cluster.volume("source"));
        assert_fails(&cluster, id, "ESourceChanged");
    }
    cluster.fill("source", &mixed(SIZE, 3));
    let args = [&SLOWLY[..], &["--fence", "manual", "--overwrite"]].concat();
    cluster.submit("restarted", &cluster.uri(0, "source"), &pair.destination.uri(), &args);
    cluster.wait_for_checkpoint("restarted");
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    overwrite(&cluster.volume("source"));
    cluster.start();
    assert_ends(&cluster, "restarted", "ESourceChanged");
}

#[test]
fn another_node_notices_that_an_export_was_replaced() {
    need!("another_node_notices_that_an_export_was_replaced", &NEEDS);
    for (name, replaced, code) in [("from", "from.golden", "ESourceChanged"), ("to", "to.image", "ECheckpointMismatch")]
    {
        let cluster = TestCluster::new(2, 1);
        let pair = ExportPair::new(&cluster, name, SIZE);
        pair.submit_on(&cluster, name, 0, &SLOWLY);
        pause(&cluster, name);
        overwrite(&cluster.dirs.path(replaced));
        cluster.ask(&["drain", &cluster.nodes[0].id]);
        assert_fails(&cluster, name, code);
        let runners = cluster.task(name).runners();
        assert_eq!(runners.last(), Some(&cluster.nodes[1].id), "{runners:?}");
    }
}

#[test]
fn a_local_destination_that_was_replaced_is_not_written_over() {
    need!("a_local_destination_that_was_replaced_is_not_written_over", &NEEDS);
    let mut cluster = TestCluster::new(1, 1);
    cluster.fill("source", &mixed(SIZE, 3));
    let copy = |cluster: &TestCluster, id: &str| {
        cluster.submit(
            id,
            &cluster.uri(0, "source"),
            &cluster.uri(0, id),
            &[&SLOWLY[..], &["--reflink", "never"]].concat(),
        );
    };
    copy(&cluster, "content");
    pause(&cluster, "content");
    overwrite(&cluster.volume("content"));
    assert_fails(&cluster, "content", "ECheckpointMismatch");

    copy(&cluster, "file");
    cluster.wait_for_checkpoint("file");
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    std::fs::remove_file(cluster.volume("file")).expect("it was copied to");
    let others = mixed(MIB, 5);
    cluster.fill("file", &others);
    cluster.nodes[0].start();
    let task = cluster.wait_for("file", "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", "EExists"), "{task:?}");
    assert!(cluster.read("file") == others, "the other file is unchanged");
}

#[test]
fn a_copy_without_evidence_gives_the_reason_and_starts_over() {
    need!("a_copy_without_evidence_gives_the_reason_and_starts_over", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    let pair = ExportPair::new(&cluster, "pair", SIZE);
    pair.submit(&cluster, "blind", &[&SLOWLY[..], &["--digest", "none"]].concat());
    cluster.wait_for_checkpoint("blind");
    let task = cluster.task("blind");
    for word in ["start over", "--verify", "--source-stable"] {
        assert!(task.reason().contains(word), "{task:?}");
    }
    pause(&cluster, "blind");
    cluster.ask(&["resume", "blind"]);
    cluster.lift_limit("blind");
    let task = cluster.wait_for_success("blind");
    assert_eq!(task.resumed(), 0, "{task:?}");
    pair.assert_copied();

    pair.submit(&cluster, "stable", &[&SLOWLY[..], &["--digest", "none", "--source-stable", "--overwrite"]].concat());
    pause(&cluster, "stable");
    assert!(!cluster.task("stable").reason().contains("start over"));
    cluster.ask(&["resume", "stable"]);
    cluster.lift_limit("stable");
    assert!(cluster.wait_for_success("stable").resumed() > 0);
    pair.assert_copied();
}
