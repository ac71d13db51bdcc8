//! Tests assignments up to the last write about them.

use super::*;
use crate::model::{Failure, TaskChanges, VerifyTask};
use crate::peers::{AssignmentStatus, CallError, StartStage};
use blockhaul_engine::error::{Code, Error, Operation, Side};

fn failure(code: Code) -> End {
    End::Failed(Failure::from(&Error::new(code, Side::Source, Operation::Read, "for a test")))
}

#[tokio::test(start_paused = true)]
async fn a_noop_task_runs_its_time_and_succeeds() {
    let harness = Harness::new().await;
    harness.submit("t", noop(3000));
    let assignment = harness.grant("t", "life");
    let epoch = assignment.epoch;
    assert_eq!(harness.handle.assign(assignment.clone()).await, Ok(AssignResponse::Accepted));
    assert_eq!(harness.handle.assign(assignment.clone()).await, Ok(AssignResponse::Accepted), "again");
    let record = harness.until("t", TaskState::Running).await;
    assert_eq!((record.epoch, record.attempts[0].epoch, record.attempts[0].quiet), (Some(epoch), Some(epoch), false));
    assert_eq!(harness.handle.query(assignment.clone()).await, Ok(AssignmentStatus::Held));
    let began = Instant::now();
    let record = harness.until("t", TaskState::Succeeded).await;
    assert!((2900..3200).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!((record.attempts.len(), record.attempts[0].outcome.as_deref()), (1, Some("succeeded")));
    assert!(!harness.has_claim("t"), "the claim was removed with its end");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(harness.handle.query(assignment.clone()).await, Ok(AssignmentStatus::Ended));
    assert_eq!(harness.handle.assign(assignment).await, Ok(AssignResponse::Accepted), "the task has ended");
    assert_eq!(harness.leader.changed.lock().unwrap().len(), 2, "one hint for each write");
}

#[tokio::test(start_paused = true)]
async fn a_copy_may_write_only_once_running_is_stored() {
    let harness = Harness::new().await;
    *harness.executor.opening.lock().unwrap() = Duration::from_secs(1);
    harness.submit("t", copy_of(FenceMethod::Local));
    let assignment = harness.grant("t", "life");
    harness.handle.assign(assignment.clone()).await.unwrap();
    let copy = harness.copy("t").await;
    assert_eq!(harness.record("t").state, TaskState::Assigned);
    assert!(copy.admitted.borrow().is_none());
    assert_eq!(harness.handle.query(assignment.clone()).await, Ok(AssignmentStatus::Waits(StartStage::Opening)));
    copy.is_admitted().await.unwrap();
    assert_eq!(harness.handle.query(assignment).await, Ok(AssignmentStatus::Held));
    let record = harness.record("t");
    assert!(record.state == TaskState::Running && record.admitted);
    assert!(copy.gate.is_open_at(Duration::from_secs(1 << 32)), "a lock is enough: no lease");
}

#[tokio::test(start_paused = true)]
async fn lost_replies_of_any_write_change_nothing() {
    for nth in 1..=6 {
        let harness = Harness::registered(Store::default(), Arc::default(), "life").await;
        harness.store.lose_every(nth);
        if nth == 1 {
            harness.store.lose_replies(3);
        }
        let copy = harness.running("t", copy_of(FenceMethod::Lease)).await;
        *copy.durable.lock().unwrap() = 50;
        sleep(Duration::from_secs(12)).await;
        assert_eq!(harness.record("t").map, executor::bytes(50), "every {nth}th reply lost");
        copy.end.send_replace(Some(End::Succeeded));
        let record = harness.until("t", TaskState::Succeeded).await;
        assert_eq!((record.attempts.len(), record.failures), (1, 0), "every {nth}th reply lost");
        assert_eq!(*copy.cuts.lock().unwrap(), 0, "every {nth}th reply lost");
        assert!(!harness.has_claim("t"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_assignment_is_not_begun() {
    let harness = Harness::new().await;
    harness.submit("t", copy_of(FenceMethod::Local));
    let assignment = harness.grant("t", "life");
    harness.revoke("t");
    assert_eq!(harness.record("t").state, TaskState::Pending);
    harness.handle.assign(assignment.clone()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(harness.executor.all.lock().unwrap().is_empty());
    assert_eq!(harness.handle.query(assignment.clone()).await, Ok(AssignmentStatus::Unknown));
    let Ok(AssignResponse::Refused { code, .. }) = harness.handle.assign(assignment).await else {
        panic!("taken again")
    };
    assert_eq!(code, Code::Fenced);
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_is_revoked_before_its_permit_never_writes() {
    let harness = Harness::new().await;
    *harness.executor.opening.lock().unwrap() = Duration::from_secs(1);
    harness.submit("t", copy_of(FenceMethod::Local));
    let assignment = harness.grant("t", "life");
    harness.handle.assign(assignment).await.unwrap();
    let copy = harness.copy("t").await;
    harness.revoke("t");
    assert_eq!(copy.is_admitted().await, Err(Code::Fenced));
    sleep(Duration::from_secs(1)).await;
    let record = harness.record("t");
    assert_eq!((record.state, record.attempts.len()), (TaskState::Pending, 1));
    assert!(harness.handle.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_was_queried_and_unknown_is_refused_from_then_on() {
    let harness = Harness::new().await;
    harness.submit("t", noop(1));
    let assignment = harness.grant("t", "life");
    assert_eq!(harness.handle.query(assignment.clone()).await, Ok(AssignmentStatus::Unknown));
    assert!(matches!(harness.handle.assign(assignment).await, Ok(AssignResponse::Refused { .. })));
    assert_eq!(harness.record("t").state, TaskState::Assigned);
}

#[tokio::test(start_paused = true)]
async fn lower_epochs_other_incarnations_and_full_slots_are_refused() {
    let harness = Harness::new().await;
    for task in ["a", "b", "c", "d"] {
        harness.running(task, copy_of(FenceMethod::Local)).await;
    }
    harness.submit("e", noop(1));
    let assignment = harness.grant("e", "life");
    let refused = |answer: Result<AssignResponse, CallError>| match answer {
        Ok(AssignResponse::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(harness.handle.assign(assignment.clone()).await), Code::Overloaded);
    let other = Assignment { incarnation: Incarnation("other".into()), ..assignment.clone() };
    assert_eq!(refused(harness.handle.assign(other).await), Code::Fenced);

    harness.handle.notify(Epoch(9), &id("a")).await.unwrap();
    assert_eq!(harness.memory.leader_epoch().unwrap(), Epoch(9), "it outlives the process");
    assert_eq!(refused(harness.handle.assign(assignment.clone()).await), Code::Fenced);
    for answer in [
        harness.handle.query(assignment.clone()).await.map(drop),
        harness.handle.notify(Epoch(8), &id("a")).await,
        harness.handle.interrupt(Epoch(8)).await,
        harness.handle.resolve(Epoch(8), &copy_of(FenceMethod::Local)).await.map(drop),
    ] {
        assert!(matches!(answer, Err(CallError::Refused { code: Code::Fenced, .. })), "{answer:?}");
    }
    assert!(harness.handle.resolve(Epoch(9), &copy_of(FenceMethod::Local)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_when_that_may_help() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    *copy.durable.lock().unwrap() = 40;
    copy.end.send_replace(Some(failure(Code::Unreachable)));
    let record = harness.until("t", TaskState::Pending).await;
    let wait = record.not_before_ms - record.updated_ms;
    assert!(record.failures == 1 && (750..=1250).contains(&wait), "{wait} ms");
    assert_eq!((record.map, record.holder), (executor::bytes(40), None));
    assert!(harness.is_free("t"), "the claim stays the task's");
    assert!(harness.executor.forgotten.lock().unwrap().is_empty(), "the journal is for the next attempt");

    harness.executor.all.lock().unwrap().clear();
    let again = harness.grant("t", "life");
    harness.handle.assign(again).await.unwrap();
    let copy = harness.copy("t").await;
    copy.is_admitted().await.unwrap();
    copy.end.send_replace(Some(failure(Code::NoSpace)));
    let record = harness.until("t", TaskState::Failed).await;
    assert_eq!((record.failures, record.error.map(|error| error.code)), (2, Some(Code::NoSpace)));
    assert!(!harness.has_claim("t"));
    assert_eq!(*harness.executor.forgotten.lock().unwrap(), [id("t")]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_follows_the_desired_state_and_the_limit_of_its_record() {
    let harness = Harness::new().await;
    let paused = harness.running("p", copy_of(FenceMethod::Local)).await;
    harness.write_event("p", TaskEvent::ChangesRequested(TaskChanges::limit(Some(77))));
    harness.handle.notify(Epoch(1), &id("p")).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    assert_eq!(*paused.limit.lock().unwrap(), Some(77));
    *paused.durable.lock().unwrap() = 30;
    harness.write_event("p", TaskEvent::PauseRequested);
    harness.handle.notify(Epoch(1), &id("p")).await.unwrap();
    let record = harness.until("p", TaskState::Paused).await;
    assert_eq!((record.failures, record.map, record.holder), (0, executor::bytes(30), None));
    assert_eq!(record.attempts[0].outcome.as_deref(), Some("ECancelled"));

    harness.running("c", copy_of(FenceMethod::Local)).await;
    harness.write_event("c", TaskEvent::CancelRequested);
    harness.handle.notify(Epoch(1), &id("c")).await.unwrap();
    harness.until("c", TaskState::Cancelled).await;
    assert!(!harness.has_claim("c") && harness.has_claim("p"));

    let done = harness.running("d", copy_of(FenceMethod::Local)).await;
    harness.write_event("d", TaskEvent::CancelRequested);
    done.end.send_replace(Some(End::Succeeded));
    harness.until("d", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn success_waits_until_earlier_attempts_have_drained() {
    let harness = Harness::new().await;
    harness.submit("t", copy_of(FenceMethod::Lease));
    harness.grant("t", "gone");
    harness.write_event("t", TaskEvent::Started { epoch: Epoch(1) });
    harness.revoke("t");
    harness.write_event("t", TaskEvent::Fenced(state_machine::FenceProof::LeaseOver));
    let assignment = harness.grant("t", "life");
    harness.handle.assign(assignment).await.unwrap();
    let copy = harness.copy("t").await;
    copy.is_admitted().await.unwrap();
    copy.end.send_replace(Some(End::Succeeded));
    harness.until("t", TaskState::Verifying).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(harness.record("t").state, TaskState::Verifying);
    harness.write_event("t", TaskEvent::AttemptDrained { attempt: 0 });
    let record = harness.until("t", TaskState::Succeeded).await;
    assert_eq!(record.attempts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn checkpoints_are_stored_and_progress_is_reported_at_limited_rates() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    let writes = harness.store.writes();
    for second in 1..=20_u64 {
        for part in 0..20 {
            *copy.durable.lock().unwrap() = second * 20 + part;
            sleep(Duration::from_millis(50)).await;
        }
    }
    let record = harness.record("t");
    assert!(
        record.progress.durable >= 10 * 20 && record.map.bytes() == record.progress.durable,
        "{:?}",
        record.progress
    );
    let checkpoints = harness.store.writes() - writes;
    assert!((2..=5).contains(&checkpoints), "{checkpoints}");
    let reports = harness.leader.progress.lock().unwrap();
    assert!((60..=81).contains(&reports.len()), "{} reports in 20 s", reports.len());
    assert!(reports.windows(2).all(|two| two[1].0 - two[0].0 >= Duration::from_millis(250)));
}

#[tokio::test(start_paused = true)]
async fn journals_of_ended_tasks_are_deleted() {
    let (store, memory) = (Store::default(), Arc::new(Memory::default()));
    let harness = Harness::start(store, memory, "life");
    harness.submit("open", noop(1));
    harness.submit("later", noop(1));
    let kept = [("open", 5), ("later", 4), ("unknown", 5)].map(|(task, created)| (id(task), created));
    *harness.executor.kept.lock().unwrap() = kept.to_vec();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*harness.executor.forgotten.lock().unwrap(), [id("later"), id("unknown")]);
}

/// Log of this thread, as `taskd` writes it.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Returns what was logged since the last call.
    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn every_line_of_an_attempt_names_it() {
    // With a single subscriber alive, `tracing` caches for all threads whether a span is enabled, and may ask the
    // thread of another test, which has no subscriber.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    for (filter, expected) in [("info", 3), ("warn", 1)] {
        let log = Log::default();
        let writer = log.clone();
        let logging = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter);
        let logging = logging.with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(logging);
        let harness = Harness::new().await;
        harness.submit("t", copy_of(FenceMethod::Lease));
        let first = harness.grant("t", "life");
        harness.revoke("t");
        let assignment = harness.grant("t", "life");
        assert!(first.epoch < assignment.epoch);
        harness.handle.assign(assignment.clone()).await.unwrap();
        let copy = harness.copy("t").await;
        copy.is_admitted().await.unwrap();
        log.lines();
        // Other parts of the runner log in its span, too: its lease ends.
        harness.store.cut(true);
        sleep(Duration::from_secs(15)).await;
        harness.store.cut(false);
        harness.until("t", TaskState::Pending).await;
        sleep(Duration::from_millis(10)).await;
        let lines = log.lines();
        let of_it = format!("attempt{{task=t epoch={} attempt=2 ", assignment.epoch);
        let own: Vec<_> = lines.iter().filter(|line| line.contains(&of_it)).collect();
        assert!(own.len() >= expected, "with {filter}: {lines:#?}");
        assert!(own.iter().any(|line| line.contains("copy cut off")), "with {filter}: {lines:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_comparison_of_what_is_written_meanwhile_is_tried_again() {
    let verify = || TaskSpec::Verify(VerifyTask { node: Some(node()), ..VerifyTask::example("/in/a", "/in/b") });
    let harness = Harness::new().await;
    let path = paths::claim("file:file://n1/in/b");
    let claim = |holder| Claim {
        destination: String::from("file:file://n1/in/b"),
        task: id("copy"),
        holder,
        op: OpId::fresh(),
        unknown: Default::default(),
    };
    let create = |holder| Op::Create { path: path.clone(), data: claim(holder).encode(), mode: CreateMode::Persistent };
    harness.store.write(&[create(Some(holder("other")))]);
    harness.submit("early", verify());
    let assignment = harness.grant("early", "life");
    harness.handle.assign(assignment).await.unwrap();
    let early = harness.until("early", TaskState::Pending).await;
    assert_eq!(early.reason, "EBusy: task copy writes file://n1/in/b");
    // Only what somebody works on is being written.
    harness.store.write(&[Op::Delete { path: path.clone(), version: 0 }]);
    harness.store.write(&[create(None)]);
    let compared = harness.running("calm", verify()).await;
    compared.end.send_replace(Some(End::Succeeded));
    harness.until("calm", TaskState::Succeeded).await;
    // A claim that comes and goes leaves a trace.
    harness.store.write(&[Op::Delete { path: path.clone(), version: 0 }]);
    for end in [End::Succeeded, failure(Code::VerifyMismatch)] {
        let task = if end == End::Succeeded { "equal" } else { "different" };
        let compared = harness.running(task, verify()).await;
        harness.store.write(&[create(Some(holder("other")))]);
        harness.store.write(&[Op::Delete { path: path.clone(), version: 0 }]);
        compared.end.send_replace(Some(end));
        let again = harness.until(task, TaskState::Pending).await;
        assert_eq!(again.reason, "EBusy: another task has written file://n1/in/b meanwhile");
    }
}

/// A service that has lost its history uses versions again for other records.
#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_reconnect_is_not_written_upon() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    harness.store.cut(true);
    let other = TaskRecord { holder: Some(holder("other")), op: OpId::fresh(), ..harness.record("t") };
    harness.store.replace(&paths::task(&id("t")), other.encode());
    harness.store.cut(false);
    copy.end.send_replace(Some(End::Succeeded));
    sleep(Duration::from_secs(30)).await;
    assert_eq!(harness.record("t"), other);
}
