//! Tests the executor over the real engine behind a policy, with files.

use super::*;
use crate::execution::{CompareJob, Executor, Reference};
use crate::model::TaskVolume;
use crate::policy::Policy;
use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::write_gate::WriteGate;
use std::path::PathBuf;
use xattr::FileExt;

const MIB: u64 = 1 << 20;

/// Folder that the policy allows, and an executor over the engine.
struct Fixture {
    root: tempfile::TempDir,
    executor: EngineExecutor,
}

/// One attempt at a copy.
struct TestAttempt {
    copy: CopyTask,
    execution: Execution,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        std::fs::write(root.path().join("in/a"), content()).unwrap();
        let engine = Engine::start(EngineConfig { cores: Some(1), ..EngineConfig::default() }).unwrap();
        let policy = Policy::new(&[root.path().join("in")], &[]).unwrap();
        let executor = EngineExecutor::new(Arc::new(engine), policy, node(), &root.path().join("state"), None).unwrap();
        Self { root, executor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn work(&self, destination: &str) -> (TestAttempt, oneshot::Receiver<WritePermitRequest>) {
        let TaskSpec::Copy(copy) = copy_of(FenceMethod::Local) else { unreachable!("it is a copy") };
        let name = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let copy = CopyTask { source: name("in/a"), destination: name(destination), ..copy };
        let gate = Arc::new(WriteGate::closed());
        gate.open_until(Duration::MAX);
        let (admission, permit_request) = oneshot::channel();
        let execution = Execution {
            task: id("t"),
            group: None,
            created_ms: 5,
            attempt: 1,
            epoch: Epoch(10),
            admitted: false,
            earlier: vec![],
            mark: None,
            durable: DurableMap::default(),
            gate,
            admission,
        };
        (TestAttempt { copy, execution }, permit_request)
    }

    /// Runs a copy, and interrupts it half-way. Returns its outcome.
    async fn interrupted(&self, destination: &str, digest: &str) -> Outcome {
        let (mut work, permit_request) = self.work(destination);
        work.copy.digest = digest.to_owned();
        work.copy.limit = Some(MIB);
        let running = self.start(work);
        permit_request.await.unwrap().answer.send(Ok(())).unwrap();
        while running.progress().written == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        running.cancel(StopReason::RunnerInterrupt);
        running.ended().await
    }

    fn start(&self, work: TestAttempt) -> Arc<dyn ExecutionHandle> {
        self.executor.copy(work.copy.job().unwrap(), work.execution)
    }

    /// Carries out work, and grants its write permit. Returns the durable ranges of the request, and the outcome.
    async fn carry_out(
        &self,
        work: TestAttempt,
        permit_request: oneshot::Receiver<WritePermitRequest>,
    ) -> (DurableMap, Outcome) {
        let running = self.start(work);
        let WritePermitRequest { durable, answer } = permit_request.await.unwrap();
        answer.send(Ok(())).unwrap();
        (durable, running.ended().await)
    }

    fn stored_epoch(&self, name: &str) -> Option<String> {
        let file = std::fs::File::open(self.path(name)).unwrap();
        file.get_xattr("user.blockhaul.epoch").unwrap().map(|value| String::from_utf8(value).unwrap())
    }
}

fn content() -> Vec<u8> {
    (0..4 * MIB).map(|index| (index / 4096 % 251) as u8 + 1).collect()
}

#[tokio::test]
async fn a_file_is_copied_once_its_runner_has_permitted_it() {
    let fixture = Fixture::new();
    let (work, permit_request) = fixture.work("in/b");
    let running = fixture.start(work);
    let WritePermitRequest { durable, answer } = permit_request.await.unwrap();
    assert!(durable.is_empty());
    assert_eq!(std::fs::metadata(fixture.path("in/b")).unwrap().len(), 0, "untouched until then");
    assert_eq!(fixture.stored_epoch("in/b"), None, "the stored epoch changes only with the permit");
    answer.send(Ok(())).unwrap();
    let outcome = running.ended().await;
    assert_eq!((&outcome.end, outcome.quiesced), (&End::Succeeded, true), "{outcome:?}");
    assert_eq!((outcome.progress.durable, fixture.stored_epoch("in/b").as_deref()), (4 * MIB, Some("10")));
    assert_eq!(outcome.report.unwrap()["status"], "succeeded");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == content());
    assert_eq!(fixture.executor.kept(), [], "the journal is gone");
}

#[tokio::test]
async fn a_refused_permit_leaves_nothing_behind() {
    let fixture = Fixture::new();
    for dropped in [false, true] {
        let (work, permit_request) = fixture.work("in/new");
        let running = fixture.start(work);
        let permit_request = permit_request.await.unwrap();
        if dropped {
            drop(permit_request);
        } else {
            let error = Error::new(Code::Fenced, Side::Coordination, Operation::Start, "another runner's task");
            permit_request.answer.send(Err(error)).unwrap();
        }
        let outcome = running.ended().await;
        match outcome.end {
            End::Failed(failure) if !dropped => assert_eq!(failure.code, Code::Fenced),
            End::Stopped(StopReason::RunnerInterrupt) if dropped => {}
            other => panic!("{other:?}"),
        }
        assert!(!fixture.path("in/new").exists(), "the file that was created for it is gone");
    }
    std::fs::write(fixture.path("in/empty"), "").unwrap();
    let (work, permit_request) = fixture.work("in/empty");
    let running = fixture.start(work);
    drop(permit_request);
    assert!(matches!(running.ended().await.end, End::Stopped(_)));
    assert!(fixture.path("in/empty").exists(), "it was there before");
}

#[tokio::test]
async fn no_permit_is_requested_for_what_the_rules_refuse() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("in/full"), "data").unwrap();
    std::fs::write(fixture.path("out"), "").unwrap();
    for (destination, code) in [
        ("in/full", Code::Exists),
        ("out", Code::Permission),
        ("in/../out", Code::Permission),
        ("in/a", Code::SameVolume),
    ] {
        let (work, permit_request) = fixture.work(destination);
        let outcome = fixture.start(work).ended().await;
        let End::Failed(failure) = outcome.end else { panic!("{destination}: {outcome:?}") };
        assert_eq!(failure.code, code, "{destination}: {failure}");
        assert!(permit_request.await.is_err(), "{destination}");
    }
    assert_eq!(fixture.stored_epoch("in/full"), None);
}

#[tokio::test]
async fn a_later_grant_keeps_an_older_one_from_writing() {
    let fixture = Fixture::new();
    std::fs::File::create(fixture.path("in/b")).unwrap().set_xattr("user.blockhaul.epoch", b"11").unwrap();
    let (work, permit_request) = fixture.work("in/b");
    let outcome = fixture.start(work).ended().await;
    let End::Failed(failure) = outcome.end else { panic!("{outcome:?}") };
    assert_eq!(failure.code, Code::Fenced);
    assert!(permit_request.await.is_err(), "no permit was requested");
    assert_eq!(
        (fixture.stored_epoch("in/b").as_deref(), std::fs::metadata(fixture.path("in/b")).unwrap().len()),
        (Some("11"), 0)
    );
}

/// Continues a copy whose destination was left by another process with the stored epoch `epoch` and `length` bytes.
async fn continued(epoch: &str, length: u64) -> (DurableMap, Outcome) {
    let fixture = Fixture::new();
    let mut there = content()[..usize::try_from(2 * MIB).unwrap()].to_vec();
    there.resize(usize::try_from(4 * MIB).unwrap(), 0);
    there.truncate(usize::try_from(length).unwrap());
    std::fs::write(fixture.path("in/b"), &there).unwrap();
    let file = std::fs::File::open(fixture.path("in/b")).unwrap();
    file.set_xattr("user.blockhaul.epoch", epoch.as_bytes()).unwrap();
    let (work, permit_request) = fixture.work("in/b");
    let work = TestAttempt {
        execution: Execution {
            admitted: true,
            earlier: vec![Epoch(3), Epoch(7)],
            durable: executor::bytes(2 * MIB),
            ..work.execution
        },
        copy: work.copy,
    };
    let running = fixture.start(work);
    let Ok(WritePermitRequest { durable, answer }) = permit_request.await else {
        return (DurableMap::default(), running.ended().await);
    };
    answer.send(Ok(())).unwrap();
    let outcome = running.ended().await;
    assert_eq!(outcome.end, End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == content());
    (durable, outcome)
}

#[tokio::test]
async fn durable_ranges_of_the_record_count_only_for_their_file() {
    let (durable, outcome) = continued("7", 4 * MIB).await;
    assert_eq!(durable, executor::bytes(2 * MIB));
    assert_eq!(outcome.report.unwrap()["bytes"]["resumed"], 2 * MIB, "not copied again");
    for (epoch, length) in [("5", 4 * MIB), ("7", MIB)] {
        let (durable, outcome) = continued(epoch, length).await;
        let End::Failed(failure) = outcome.end else {
            panic!("durable ranges of another or a longer file: {outcome:?}")
        };
        assert!(
            durable.is_empty() && failure.code == Code::Exists,
            "the destination was not admitted before: {failure:?}"
        );
    }
    let (durable, _) = continued("5", 0).await;
    assert!(durable.is_empty(), "an empty one is copied to from the beginning");
}

/// Interrupts a copy and deletes its journal. Returns the durable map that its record would have.
async fn known(fixture: &Fixture, digest: &str) -> DurableMap {
    let outcome = fixture.interrupted("in/b", digest).await;
    assert_eq!(outcome.durable.evidence().leaves.is_empty(), digest == "none", "{outcome:?}");
    assert!(outcome.durable.evidence().source.is_some(), "{outcome:?}");
    // As on another node, which has no journal.
    fixture.executor.forget(&id("t"), 5);
    outcome.durable
}

#[tokio::test]
async fn volumes_that_were_replaced_between_two_attempts_are_detected() {
    let (source, destination) = (("in/a", Code::SourceChanged), ("in/b", Code::CheckpointMismatch));
    for (digest, (replaced, code)) in [("xxh3", source), ("xxh3", destination), ("none", source), ("none", destination)]
    {
        let fixture = Fixture::new();
        let durable = known(&fixture, digest).await;
        let file = std::fs::File::options().write(true).open(fixture.path(replaced)).unwrap();
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xee; length], 0).unwrap();
        let (work, _question) = fixture.work("in/b");
        let work = TestAttempt {
            execution: Execution { admitted: true, earlier: vec![Epoch(10)], durable, ..work.execution },
            copy: work.copy,
        };
        let outcome = fixture.start(work).ended().await;
        let End::Failed(failure) = outcome.end else { panic!("{outcome:?}") };
        assert_eq!(failure.code, code, "{failure:?}");
    }
}

#[tokio::test]
async fn a_cancel_takes_effect_at_any_time() {
    let fixture = Fixture::new();
    for reason in [StopReason::RunnerInterrupt, StopReason::UserCancel, StopReason::LeaseLost] {
        let (work, permit_request) = fixture.work("in/b");
        let running = fixture.start(work);
        running.cancel(reason);
        running.cut();
        running.set_limit(Some(1));
        let answered = tokio::spawn(async move {
            if let Ok(permit_request) = permit_request.await {
                _ = permit_request.answer.send(Ok(()));
            }
        });
        let outcome = running.ended().await;
        assert_eq!((outcome.end, outcome.quiesced), (End::Stopped(reason), true));
        answered.await.unwrap();
    }
}

#[tokio::test]
async fn an_interrupted_copy_keeps_its_journal_until_it_is_deleted() {
    let fixture = Fixture::new();
    let outcome = fixture.interrupted("in/b", "none").await;
    assert_eq!((&outcome.end, outcome.quiesced), (&End::Stopped(StopReason::RunnerInterrupt), true));
    assert!(outcome.durable.bytes() > 0 && outcome.durable.bytes() < 4 * MIB, "{outcome:?}");
    assert_eq!(fixture.executor.kept(), [(id("t"), 5)]);

    let (work, permit_request) = fixture.work("in/b");
    let work = TestAttempt {
        execution: Execution {
            epoch: Epoch(12),
            admitted: true,
            earlier: vec![Epoch(10)],
            durable: outcome.durable,
            ..work.execution
        },
        copy: work.copy,
    };
    let (durable, outcome) = fixture.carry_out(work, permit_request).await;
    assert!(durable.bytes() > 0 && outcome.end == End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == content());
    std::fs::write(fixture.path("state/journals/t.6.journal"), "").unwrap();
    fixture.executor.forget(&id("t"), 6);
    fixture.executor.forget(&id("t"), 6);
    assert_eq!(fixture.executor.kept(), []);
}

#[tokio::test]
async fn a_journal_is_ignored_when_another_writer_has_written_the_destination() {
    let fixture = Fixture::new();
    assert!(fixture.interrupted("in/b", "none").await.durable.bytes() > 0);
    std::fs::write(fixture.path("in/b"), vec![7; content().len()]).unwrap();
    let file = std::fs::File::open(fixture.path("in/b")).unwrap();
    file.set_xattr("user.blockhaul.epoch", b"11").unwrap();

    let again = |work: TestAttempt| {
        let execution = Execution { epoch: Epoch(12), admitted: true, earlier: vec![Epoch(10)], ..work.execution };
        TestAttempt { execution, ..work }
    };
    let (work, _question) = fixture.work("in/b");
    let outcome = fixture.start(again(work)).ended().await;
    let End::Failed(failure) = outcome.end else { panic!("another writer's data: {outcome:?}") };
    assert_eq!(failure.code, Code::Exists, "{failure:?}");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == vec![7; content().len()]);

    let (mut work, permit_request) = fixture.work("in/b");
    work.copy.overwrite = true;
    let (durable, outcome) = fixture.carry_out(again(work), permit_request).await;
    assert!(durable.is_empty() && outcome.end == End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == content());
}

#[tokio::test]
async fn destinations_are_resolved_by_the_nodes_that_have_them() {
    let fixture = Fixture::new();
    let resolve = async |destination: &str| {
        let TaskSpec::Copy(copy) = copy_of(FenceMethod::Local) else { unreachable!("it is a copy") };
        let copy = CopyTask { destination: destination.to_owned(), ..copy };
        fixture.executor.resolve(&copy.job().unwrap().destination).await.map_err(|error| error.code)
    };
    let path = fixture.path("in/a");
    let names = resolve(path.to_str().unwrap()).await.unwrap();
    assert!(names.len() == 2 && names[0].starts_with("file:n1:"), "{names:?}");
    assert_eq!(resolve(&format!("file://n1{}", path.display())).await.unwrap(), names);
    assert_eq!(resolve(&format!("file://n2{}", path.display())).await, Err(Code::Unreachable));
    assert_eq!(resolve("/etc/passwd").await, Err(Code::Permission));
    assert_eq!(resolve("nbds://Store/x").await, Ok(vec![String::from("nbd://store/x")]));
    assert_eq!(resolve("nbd+unix:///x?socket=/nowhere").await, Err(Code::NotFound));
}

#[tokio::test]
async fn volumes_are_compared_behind_the_policy_once_the_runner_has_permitted_it() {
    let fixture = Fixture::new();
    let mut other = content();
    other[5 << 10] ^= 1;
    std::fs::write(fixture.path("in/same"), content()).unwrap();
    std::fs::write(fixture.path("in/other"), other).unwrap();
    std::fs::write(fixture.path("out"), content()).unwrap();
    let volume = |name: &str| TaskVolume::parse(fixture.path(name).to_str().unwrap(), Some(&node())).unwrap();
    for (name, code) in [
        ("in/same", None),
        ("in/other", Some(Code::VerifyMismatch)),
        ("out", Some(Code::Permission)),
        ("in/missing", Some(Code::NotFound)),
    ] {
        let (TestAttempt { execution, .. }, permit_request) = fixture.work("in/b");
        let reference = Reference::Volume(volume("in/a"));
        let running = fixture.executor.compare(CompareJob { reference, volume: volume(name), limit: None }, execution);
        let permitted =
            tokio::spawn(async move { permit_request.await.map(|asked| asked.answer.send(Ok(())).is_ok()) });
        let outcome = running.ended().await;
        let found = match &outcome.end {
            End::Succeeded => None,
            End::Failed(failure) => Some(failure.code),
            End::Stopped(reason) => panic!("stopped: {reason:?}"),
        };
        assert_eq!((found, outcome.quiesced), (code, true), "{name}: {outcome:?}");
        assert_eq!(
            permitted.await.unwrap().is_ok(),
            !matches!(code, Some(Code::Permission | Code::NotFound)),
            "{name}"
        );
        if let End::Failed(failure) = outcome.end
            && code == Some(Code::VerifyMismatch)
        {
            assert_eq!(failure.offset, Some(0), "the first leaf that differs: {failure:?}");
        }
    }
    assert!(!fixture.path("in/b").exists(), "a comparison creates nothing");
}

#[tokio::test]
async fn a_refused_or_cancelled_comparison_reads_nothing() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("in/same"), content()).unwrap();
    let volume = |name: &str| TaskVolume::parse(fixture.path(name).to_str().unwrap(), Some(&node())).unwrap();
    for is_cancelled in [false, true] {
        let (TestAttempt { execution, .. }, permit_request) = fixture.work("in/b");
        let job =
            CompareJob { reference: Reference::Volume(volume("in/a")), volume: volume("in/same"), limit: Some(1) };
        let running = fixture.executor.compare(job, execution);
        let WritePermitRequest { answer, .. } = permit_request.await.unwrap();
        if is_cancelled {
            running.cancel(StopReason::UserCancel);
            answer.send(Ok(())).unwrap();
        } else {
            drop(answer);
        }
        let outcome = running.ended().await;
        assert!(matches!(outcome.end, End::Stopped(_)), "{outcome:?}");
        assert_eq!(outcome.progress.verified, 0);
    }
}

/// A second attempt under an order, with what a record written by hand would say of the first one.
fn forged(work: TestAttempt, mark: &str) -> TestAttempt {
    let execution = Execution {
        epoch: Epoch(12),
        admitted: true,
        earlier: vec![Epoch(10)],
        durable: executor::bytes(4 * MIB),
        mark: Some(mark.to_owned()),
        ..work.execution
    };
    TestAttempt { execution, ..work }
}

#[tokio::test]
async fn under_an_order_nothing_counts_but_the_nodes_own_mark_and_journal() {
    let fixture = Fixture::new();
    let (mut work, permit_request) = fixture.work("in/b");
    (work.copy.limit, work.copy.digest) = (Some(MIB), String::from("xxh3"));
    work.execution.mark = Some("m".repeat(32));
    let running = fixture.start(work);
    permit_request.await.unwrap().answer.send(Ok(())).unwrap();
    while running.progress().written == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    running.cancel(StopReason::RunnerInterrupt);
    let outcome = running.ended().await;
    assert!(outcome.durable.bytes() > 0 && outcome.durable.bytes() < 4 * MIB, "{outcome:?}");

    // Another order has not written it, whatever the record says.
    let (work, _permit) = fixture.work("in/b");
    let other = TestAttempt { execution: Execution { task: id("u"), ..work.execution }, ..work };
    let outcome = fixture.start(forged(other, &"n".repeat(32))).ended().await;
    let End::Failed(failure) = outcome.end else { panic!("it was not admitted: {outcome:?}") };
    assert_eq!(failure.code, Code::Exists, "{failure:?}");

    // The same order goes on from the journal, and not from the ranges of the record.
    let (work, permit_request) = fixture.work("in/b");
    let (durable, outcome) = fixture.carry_out(forged(work, &"m".repeat(32)), permit_request).await;
    assert!(durable.is_empty() && outcome.end == End::Succeeded, "{outcome:?}");
    let resumed = outcome.report.unwrap()["bytes"]["resumed"].as_u64().unwrap();
    assert!(resumed > 0 && resumed < 4 * MIB, "{resumed} bytes");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == content());
}

#[tokio::test]
async fn a_mark_counts_only_with_the_epoch_that_it_names() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("in/b"), vec![7; content().len()]).unwrap();
    let file = std::fs::File::open(fixture.path("in/b")).unwrap();
    let mark = "m".repeat(32);
    // An order has written it under epoch 10, and something else under 11.
    file.set_xattr("user.blockhaul.order", format!("10 {mark}").as_bytes()).unwrap();
    file.set_xattr("user.blockhaul.epoch", b"11").unwrap();
    let (work, _permit) = fixture.work("in/b");
    let outcome = fixture.start(forged(work, &mark)).ended().await;
    let End::Failed(failure) = outcome.end else { panic!("another writer's data: {outcome:?}") };
    assert_eq!(failure.code, Code::Exists, "{failure:?}");
    file.set_xattr("user.blockhaul.epoch", b"10").unwrap();
    let (work, permit_request) = fixture.work("in/b");
    let (_, outcome) = fixture.carry_out(forged(work, &mark), permit_request).await;
    assert_eq!(outcome.end, End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(fixture.path("in/b")).unwrap() == content(), "copied from the start: there is no journal");
}
