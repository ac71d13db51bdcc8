//! Tests the audit log as a whole: what its callers are told, and what is in the file.

use super::*;
use crate::model::OpId;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use tempfile::TempDir;

fn log() -> (TempDir, AuditLog) {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::start(folder.path(), NodeId::new("n1").unwrap()).unwrap();
    (folder, log)
}

fn change(task: &str) -> AuditedChange {
    AuditedChange {
        operation: OpId::fresh(),
        who: Some("ci".into()),
        role: Some("submit"),
        from: None,
        what: "Submit",
        target: Target::Task(task.to_owned()),
        detail: None,
    }
}

fn lines(folder: &TempDir) -> Vec<Value> {
    let text = fs::read_to_string(folder.path().join(FILE)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for so many lines: the last ones are not waited for by those who send them.
async fn wait_for_lines(folder: &TempDir, count: usize) -> Vec<Value> {
    for _ in 0..1000 {
        let found = lines(folder);
        if found.len() >= count {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{count} lines never came: {:?}", lines(folder));
}

#[tokio::test]
async fn the_first_line_is_there_before_the_change_and_the_second_after_it() {
    let (folder, log) = log();
    assert!(!folder.path().join(FILE).exists(), "no change, no file");
    let pending = log.begin(change("a"), Unlogged::Refused).await.unwrap();
    let before = lines(&folder);
    assert_eq!(before.len(), 1);
    assert_eq!((&before[0]["event"], &before[0]["task"]), (&"change-requested".into(), &"a".into()));
    pending.end(Ok(()));
    let all = wait_for_lines(&folder, 2).await;
    assert_eq!((&all[1]["event"], &all[1]["outcome"]), (&"change-ended".into(), &"succeeded".into()));
    assert_eq!(all[0]["operation"], all[1]["operation"]);
    let failed = log.begin(change("b"), Unlogged::Refused).await.unwrap();
    failed.end(Err((Code::Busy, String::from("it has ended"))));
    assert_eq!(wait_for_lines(&folder, 4).await[3]["outcome"], "EBusy");
}

#[tokio::test]
async fn a_change_that_nobody_waited_for_has_an_unknown_outcome() {
    let (folder, log) = log();
    drop(log.begin(change("a"), Unlogged::Refused).await.unwrap());
    assert_eq!(wait_for_lines(&folder, 2).await[1]["outcome"], "unknown");
}

#[tokio::test]
async fn many_changes_at_once_have_two_lines_each() {
    let (folder, log) = log();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let log = log.clone();
        calls.spawn(async move {
            let pending = log.begin(change(&format!("t{number}")), Unlogged::Refused).await.unwrap();
            pending.end(Ok(()));
        });
    }
    calls.join_all().await;
    let all = wait_for_lines(&folder, 400).await;
    for number in 0..200 {
        let of = all.iter().filter(|line| line["task"] == format!("t{number}"));
        let events: Vec<_> = of.map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["change-requested", "change-ended"]);
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_written_refuses_all_but_a_stop_and_recovers() {
    let (folder, log) = log();
    let path = folder.path().join(FILE);
    fs::create_dir(&path).unwrap();
    let refused = log.begin(change("a"), Unlogged::Refused).await.unwrap_err();
    assert_eq!((refused.code, refused.retryable), (Code::Io, true), "{refused}");
    for word in ["audit log", "nothing was changed", "cancel", "state directory of node n1"] {
        assert!(refused.message.contains(word), "{word}: {refused}");
    }
    log.begin(change("b"), Unlogged::Made).await.unwrap().end(Ok(()));
    // Its answer comes after the attempt to write the last line of the change before it, which nobody waits for.
    log.begin(change("after b"), Unlogged::Refused).await.unwrap_err();
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    assert_eq!(log.begin(change("c"), Unlogged::Refused).await.unwrap_err().code, Code::NoSpace);
    fs::remove_file(&path).unwrap();
    log.begin(change("d"), Unlogged::Refused).await.unwrap().end(Ok(()));
    let tasks: Vec<_> = wait_for_lines(&folder, 2).await.iter().map(|line| line["task"].clone()).collect();
    assert_eq!(tasks, ["d", "d"]);
}

/// A pipe that nobody reads stands for a disk that does not answer.
#[tokio::test]
async fn a_disk_that_does_not_answer_holds_up_nobody_for_long() {
    let (folder, log) = log();
    let path = folder.path().join(FILE);
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    let mut pipe = fs::OpenOptions::new();
    let mut pipe = pipe.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
    while pipe.write(b"\n").is_ok() {}
    let refused = log.begin(change("first"), Unlogged::Refused).await.unwrap_err();
    assert!(refused.message.contains("does not answer"), "{refused}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    // From now on nobody waits.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    log.begin(change("second"), Unlogged::Refused).await.unwrap_err();
    log.begin(change("third"), Unlogged::Made).await.unwrap().end(Ok(()));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::resume();
    // The disk answers again: what waited for it arrives, with the outcome.
    let mut text = String::new();
    for _ in 0..1000 {
        let mut some = vec![0; 1 << 16];
        if let Ok(read) = pipe.read(&mut some) {
            text.push_str(std::str::from_utf8(&some[..read]).unwrap());
        }
        if text.contains("third") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let found: Vec<Value> =
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_first: Vec<_> = found.iter().filter(|line| line["task"] == "first").map(|line| &line["event"]).collect();
    assert_eq!(of_first, ["change-requested", "change-ended"], "{found:?}");
    assert!(!text.contains("second"), "it was never queued");
    log.begin(change("fourth"), Unlogged::Refused).await.unwrap().end(Ok(()));
}
