//! Tests that each attempt has a log from its beginning to its outcome, and that a log that cannot be written stops nothing.

use super::*;
use crate::attempt_log::AttemptLogs;
use crate::model::Failure;
use crate::peers::{LogPart, LogQuery};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

fn logging(logs: &AttemptLogs) -> DefaultGuard {
    tracing::subscriber::set_default(tracing_subscriber::registry().with(logs.layer()))
}

/// Returns the log of the only attempt of a task, once the attempt has been logged to its end.
async fn log_of(logs: &AttemptLogs, record: &TaskRecord) -> LogPart {
    let query = LogQuery { task: record.id.clone(), assigned_ms: record.attempts[0].started_ms, offset: 0 };
    for _ in 0..6000 {
        match logs.read(query.clone()).await {
            Ok(part) if !part.is_live => return part,
            // The writer's thread knows nothing of the clock of the test.
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("the log of {} does not end", record.id)
}

#[tokio::test(start_paused = true)]
async fn an_attempt_logs_its_beginning_its_stop_and_its_outcome() {
    let (folder, logs) = (tempfile::tempdir().unwrap(), AttemptLogs::default());
    logs.open(folder.path());
    let _logging = logging(&logs);
    let harness = Harness::new().await;
    let copy = harness.running("fails", copy_of(FenceMethod::Local)).await;
    harness.running("stops", copy_of(FenceMethod::Local)).await;
    let error = Error::new(Code::SizeMismatch, Side::Destination, Operation::Open, "too \u{1b}[2J small");
    copy.end.send_replace(Some(End::Failed(Failure::from(&error))));
    let failed = harness.until("fails", TaskState::Failed).await;
    harness.write_event("stops", TaskEvent::CancelRequested);
    harness.handle.notify(Epoch(1), &id("stops")).await.unwrap();
    let stopped = harness.until("stops", TaskState::Cancelled).await;
    let text = String::from_utf8(log_of(&logs, &failed).await.text).unwrap();
    for said in [
        " INFO attempt begins node=n1 epoch=",
        "kind=\"copy\"",
        "source=\"",
        " INFO copy may write",
        " WARN work failed: too \\x1b[2J small code=ESizeMismatch side=\"destination\" operation=\"open\"",
        " INFO outcome stored state=\"FAILED\"",
        " INFO assignment ended status=Ended",
    ] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
    assert!(!text.contains("stops"), "{text}");
    let text = String::from_utf8(log_of(&logs, &stopped).await.text).unwrap();
    for said in ["asked to stop reason=UserCancel", "work stopped reason=ECancelled", "state=\"CANCELLED\""] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
    assert!(!text.contains("failed"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_task_succeeds_though_its_log_cannot_be_written() {
    let (folder, logs) = (tempfile::tempdir().unwrap(), AttemptLogs::default());
    std::fs::write(folder.path().join("attempt-logs"), "where the folder should be").unwrap();
    logs.open(folder.path());
    let _logging = logging(&logs);
    let harness = Harness::new().await;
    harness.submit("t", noop(1000));
    let assignment = harness.grant("t", "life");
    assert_eq!(harness.handle.assign(assignment).await, Ok(AssignResponse::Accepted));
    let record = harness.until("t", TaskState::Succeeded).await;
    let part = log_of(&logs, &record).await;
    assert!(part.text.is_empty() && part.missing.as_ref().unwrap().contains("cannot create"), "{part:?}");
}
