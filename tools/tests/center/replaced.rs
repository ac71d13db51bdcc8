//! Tests volumes that are replaced or changed between two attempts of a task, on one node and on two.

use crate::support::{Cell, CellRecords, ExportPair, MIB, NEEDS, Task, mixed, need};
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
fn pause(cell: &Cell, id: &str) {
    cell.wait_for_checkpoint(id);
    cell.ask(&["pause", id]);
    let task = cell.wait_for(id, "PAUSED", |task| task.state() == "PAUSED" || task.is_over());
    assert_eq!(task.state(), "PAUSED", "{task:?}");
}

fn assert_fails(cell: &Cell, id: &str, code: &str) {
    cell.ask(&["resume", id]);
    assert_ends(cell, id, code);
}

fn assert_ends(cell: &Cell, id: &str, code: &str) {
    let task = cell.wait_for(id, "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", code), "{task:?}");
}

#[test]
fn a_source_file_that_is_written_to_between_two_attempts_fails_its_task() {
    need!("a_source_file_that_is_written_to_between_two_attempts_fails_its_task", &NEEDS);
    let mut cell = Cell::with(1, 1, &["--fence-command", "/bin/true"]);
    let pair = ExportPair::new(&cell, "pair", SIZE);
    for (id, fence) in [("by-hand", "manual"), ("by-program", "command")] {
        cell.fill("source", &mixed(SIZE, 3));
        let args = [&SLOWLY[..], &["--fence", fence, "--overwrite"]].concat();
        cell.submit(id, &cell.uri(0, "source"), &pair.destination.uri(), &args);
        pause(&cell, id);
        overwrite(&cell.volume("source"));
        assert_fails(&cell, id, "ESourceChanged");
    }
    cell.fill("source", &mixed(SIZE, 3));
    let args = [&SLOWLY[..], &["--fence", "manual", "--overwrite"]].concat();
    cell.submit("restarted", &cell.uri(0, "source"), &pair.destination.uri(), &args);
    cell.wait_for_checkpoint("restarted");
    assert_eq!(cell.nodes[0].stop().code(), Some(0));
    overwrite(&cell.volume("source"));
    cell.start();
    assert_ends(&cell, "restarted", "ESourceChanged");
}

#[test]
fn another_node_notices_that_an_export_was_replaced() {
    need!("another_node_notices_that_an_export_was_replaced", &NEEDS);
    for (name, replaced, code) in [("from", "from.golden", "ESourceChanged"), ("to", "to.image", "ECheckpointMismatch")]
    {
        let cell = Cell::new(2, 1);
        let pair = ExportPair::new(&cell, name, SIZE);
        pair.submit_on(&cell, name, 0, &SLOWLY);
        pause(&cell, name);
        overwrite(&cell.dirs.path(replaced));
        cell.ask(&["drain", &cell.nodes[0].id]);
        assert_fails(&cell, name, code);
        let runners = cell.task(name).runners();
        assert_eq!(runners.last(), Some(&cell.nodes[1].id), "{runners:?}");
    }
}

#[test]
fn a_local_destination_that_was_replaced_is_not_written_over() {
    need!("a_local_destination_that_was_replaced_is_not_written_over", &NEEDS);
    let mut cell = Cell::new(1, 1);
    cell.fill("source", &mixed(SIZE, 3));
    let copy = |cell: &Cell, id: &str| {
        cell.submit(id, &cell.uri(0, "source"), &cell.uri(0, id), &[&SLOWLY[..], &["--reflink", "never"]].concat());
    };
    copy(&cell, "content");
    pause(&cell, "content");
    overwrite(&cell.volume("content"));
    assert_fails(&cell, "content", "ECheckpointMismatch");

    copy(&cell, "file");
    cell.wait_for_checkpoint("file");
    assert_eq!(cell.nodes[0].stop().code(), Some(0));
    std::fs::remove_file(cell.volume("file")).expect("it was copied to");
    let others = mixed(MIB, 5);
    cell.fill("file", &others);
    cell.nodes[0].start();
    let task = cell.wait_for("file", "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", "EExists"), "{task:?}");
    assert!(cell.read("file") == others, "the other file is unchanged");
}

#[test]
fn a_copy_without_evidence_gives_the_reason_and_starts_over() {
    need!("a_copy_without_evidence_gives_the_reason_and_starts_over", &NEEDS);
    let cell = Cell::new(1, 1);
    let pair = ExportPair::new(&cell, "pair", SIZE);
    pair.submit(&cell, "blind", &[&SLOWLY[..], &["--digest", "none"]].concat());
    cell.wait_for_checkpoint("blind");
    let task = cell.task("blind");
    for word in ["start over", "--verify", "--source-stable"] {
        assert!(task.reason().contains(word), "{task:?}");
    }
    pause(&cell, "blind");
    cell.ask(&["resume", "blind"]);
    cell.lift_limit("blind");
    let task = cell.wait_for_success("blind");
    assert_eq!(task.resumed(), 0, "{task:?}");
    pair.assert_copied();

    pair.submit(&cell, "stable", &[&SLOWLY[..], &["--digest", "none", "--source-stable", "--overwrite"]].concat());
    pause(&cell, "stable");
    assert!(!cell.task("stable").reason().contains("start over"));
    cell.ask(&["resume", "stable"]);
    cell.lift_limit("stable");
    assert!(cell.wait_for_success("stable").resumed() > 0);
    pair.assert_copied();
}
