//! The real worker: the engine behind a policy, with files.

use super::*;
use crate::policy::Policy;
use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use blockhaul_engine::gate::Gate;
use blockhaul_engine::job::Reason;
use std::path::PathBuf;
use xattr::FileExt;

const MIB: u64 = 1 << 20;

/// A folder that the policy allows, and a worker.
struct Desk {
    root: tempfile::TempDir,
    executor: CopyExecutor,
}

impl Desk {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        std::fs::write(root.path().join("in/a"), content()).unwrap();
        let engine = Engine::start(EngineConfig { cores: Some(1), ..EngineConfig::default() }).unwrap();
        let policy = Policy::new(&[root.path().join("in")], &[]).unwrap();
        let executor = CopyExecutor::new(Arc::new(engine), policy, node(), &root.path().join("state")).unwrap();
        Self { root, executor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn work(&self, destination: &str) -> (Execution, oneshot::Receiver<WritePermitRequest>) {
        let TaskSpec::Copy(copy) = copy_of(Fence::Local) else { unreachable!("it is a copy") };
        let name = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let copy = CopyTask { source: name("in/a"), destination: name(destination), ..copy };
        let gate = Arc::new(Gate::closed());
        gate.open_until(Duration::MAX);
        let (admission, question) = oneshot::channel();
        let work = Execution {
            task: id("t"),
            created_ms: 5,
            copy,
            epoch: Epoch(10),
            admitted: false,
            earlier: vec![],
            durable: DurableMap::default(),
            gate,
            admission,
        };
        (work, question)
    }

    /// How a copy ends that is interrupted on its way.
    async fn interrupted(&self, destination: &str, digest: &str) -> Outcome {
        let (mut work, question) = self.work(destination);
        work.copy.digest = digest.to_owned();
        work.copy.limit = Some(MIB);
        let running = self.executor.start(work);
        question.await.unwrap().answer.send(Ok(())).unwrap();
        while running.progress().written == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        running.cancel(Reason::RunnerInterrupt);
        running.ended().await
    }

    /// Carries work out; its question is answered with yes. What it was going to go on from comes back as well.
    async fn carry_out(
        &self,
        work: Execution,
        question: oneshot::Receiver<WritePermitRequest>,
    ) -> (DurableMap, Outcome) {
        let running = self.executor.start(work);
        let WritePermitRequest { durable, answer } = question.await.unwrap();
        answer.send(Ok(())).unwrap();
        (durable, running.ended().await)
    }

    fn mark(&self, name: &str) -> Option<String> {
        let file = std::fs::File::open(self.path(name)).unwrap();
        file.get_xattr("user.blockhaul.epoch").unwrap().map(|value| String::from_utf8(value).unwrap())
    }
}

fn content() -> Vec<u8> {
    (0..4 * MIB).map(|index| (index / 4096 % 251) as u8 + 1).collect()
}

#[tokio::test]
async fn a_file_is_copied_once_its_runner_has_said_yes() {
    let desk = Desk::new();
    let (work, question) = desk.work("in/b");
    let running = desk.executor.start(work);
    let WritePermitRequest { durable, answer } = question.await.unwrap();
    assert!(durable.is_empty());
    assert_eq!(std::fs::metadata(desk.path("in/b")).unwrap().len(), 0, "untouched until then");
    assert_eq!(desk.mark("in/b"), None, "it may never be told: then what is known of the destination holds");
    answer.send(Ok(())).unwrap();
    let outcome = running.ended().await;
    assert_eq!((&outcome.end, outcome.quiesced), (&End::Succeeded, true), "{outcome:?}");
    assert_eq!((outcome.progress.durable, desk.mark("in/b").as_deref()), (4 * MIB, Some("10")));
    assert_eq!(outcome.report.unwrap()["status"], "succeeded");
    assert!(std::fs::read(desk.path("in/b")).unwrap() == content());
    assert_eq!(desk.executor.kept(), [], "the journal is gone");
}

#[tokio::test]
async fn a_no_leaves_nothing_behind() {
    let desk = Desk::new();
    for dropped in [false, true] {
        let (work, question) = desk.work("in/new");
        let running = desk.executor.start(work);
        let question = question.await.unwrap();
        if dropped {
            drop(question);
        } else {
            let error = Error::new(Code::Fenced, Side::Coordination, Operation::Start, "somebody else's");
            question.answer.send(Err(error)).unwrap();
        }
        let outcome = running.ended().await;
        match outcome.end {
            End::Failed(failure) if !dropped => assert_eq!(failure.code, Code::Fenced),
            End::Stopped(Reason::RunnerInterrupt) if dropped => {}
            other => panic!("{other:?}"),
        }
        assert!(!desk.path("in/new").exists(), "the file that was created for it is gone");
    }
    std::fs::write(desk.path("in/empty"), "").unwrap();
    let (work, question) = desk.work("in/empty");
    let running = desk.executor.start(work);
    drop(question);
    assert!(matches!(running.ended().await.end, End::Stopped(_)));
    assert!(desk.path("in/empty").exists(), "it was there before");
}

#[tokio::test]
async fn what_the_rules_refuse_is_not_even_asked_about() {
    let desk = Desk::new();
    std::fs::write(desk.path("in/full"), "data").unwrap();
    std::fs::write(desk.path("out"), "").unwrap();
    for (destination, code) in [
        ("in/full", Code::Exists),
        ("out", Code::Permission),
        ("in/../out", Code::Permission),
        ("in/a", Code::SameVolume),
    ] {
        let (work, question) = desk.work(destination);
        let outcome = desk.executor.start(work).ended().await;
        let End::Failed(failure) = outcome.end else { panic!("{destination}: {outcome:?}") };
        assert_eq!(failure.code, code, "{destination}: {failure}");
        assert!(question.await.is_err(), "{destination}");
    }
    assert_eq!(desk.mark("in/full"), None);
}

#[tokio::test]
async fn a_later_grant_keeps_an_older_one_off() {
    let desk = Desk::new();
    std::fs::File::create(desk.path("in/b")).unwrap().set_xattr("user.blockhaul.epoch", b"11").unwrap();
    let (work, question) = desk.work("in/b");
    let outcome = desk.executor.start(work).ended().await;
    let End::Failed(failure) = outcome.end else { panic!("{outcome:?}") };
    assert_eq!(failure.code, Code::Fenced);
    assert!(question.await.is_err(), "nobody was asked");
    assert_eq!((desk.mark("in/b").as_deref(), std::fs::metadata(desk.path("in/b")).unwrap().len()), (Some("11"), 0));
}

/// A destination whose first half was copied under grant `mark`, as another process left it.
async fn gone_on_with(mark: &str, length: u64) -> (DurableMap, Outcome) {
    let desk = Desk::new();
    let mut there = content()[..usize::try_from(2 * MIB).unwrap()].to_vec();
    there.resize(usize::try_from(4 * MIB).unwrap(), 0);
    there.truncate(usize::try_from(length).unwrap());
    std::fs::write(desk.path("in/b"), &there).unwrap();
    let file = std::fs::File::open(desk.path("in/b")).unwrap();
    file.set_xattr("user.blockhaul.epoch", mark.as_bytes()).unwrap();
    let (work, question) = desk.work("in/b");
    let work = Execution { admitted: true, earlier: vec![Epoch(3), Epoch(7)], durable: copies::bytes(2 * MIB), ..work };
    let running = desk.executor.start(work);
    let Ok(WritePermitRequest { durable, answer }) = question.await else {
        return (DurableMap::default(), running.ended().await);
    };
    answer.send(Ok(())).unwrap();
    let outcome = running.ended().await;
    assert_eq!(outcome.end, End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(desk.path("in/b")).unwrap() == content());
    (durable, outcome)
}

#[tokio::test]
async fn what_the_record_calls_durable_holds_only_of_the_file_that_it_was_said_of() {
    let (durable, outcome) = gone_on_with("7", 4 * MIB).await;
    assert_eq!(durable, copies::bytes(2 * MIB));
    assert_eq!(outcome.report.unwrap()["bytes"]["resumed"], 2 * MIB, "not copied again");
    for (mark, length) in [("5", 4 * MIB), ("7", MIB)] {
        let (durable, outcome) = gone_on_with(mark, length).await;
        let End::Failed(failure) = outcome.end else { panic!("of another file, or of a longer one: {outcome:?}") };
        assert!(durable.is_empty() && failure.code == Code::Exists, "nobody has judged it: {failure:?}");
    }
    let (durable, _) = gone_on_with("5", 0).await;
    assert!(durable.is_empty(), "an empty one is copied to from the beginning");
}

/// What the record would have of a copy that was interrupted, and what that has left.
async fn known(desk: &Desk, digest: &str) -> DurableMap {
    let outcome = desk.interrupted("in/b", digest).await;
    assert_eq!(outcome.durable.evidence().leaves.is_empty(), digest == "none", "{outcome:?}");
    assert!(outcome.durable.evidence().source.is_some(), "{outcome:?}");
    // Another node has no journal.
    desk.executor.forget(&id("t"), 5);
    outcome.durable
}

#[tokio::test]
async fn volumes_that_were_replaced_between_two_attempts_are_noticed() {
    let (source, destination) = (("in/a", Code::SourceChanged), ("in/b", Code::CheckpointMismatch));
    for (digest, (replaced, code)) in [("xxh3", source), ("xxh3", destination), ("none", source), ("none", destination)]
    {
        let desk = Desk::new();
        let durable = known(&desk, digest).await;
        let file = std::fs::File::options().write(true).open(desk.path(replaced)).unwrap();
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xee; length], 0).unwrap();
        let (work, _question) = desk.work("in/b");
        let work = Execution { admitted: true, earlier: vec![Epoch(10)], durable, ..work };
        let outcome = desk.executor.start(work).ended().await;
        let End::Failed(failure) = outcome.end else { panic!("{outcome:?}") };
        assert_eq!(failure.code, code, "{failure:?}");
    }
}

#[tokio::test]
async fn a_cancel_holds_at_any_moment() {
    let desk = Desk::new();
    for reason in [Reason::RunnerInterrupt, Reason::UserCancel, Reason::LeaseLost] {
        let (work, question) = desk.work("in/b");
        let running = desk.executor.start(work);
        running.cancel(reason);
        running.cut();
        running.set_limit(Some(1));
        let answered = tokio::spawn(async move {
            if let Ok(question) = question.await {
                _ = question.answer.send(Ok(()));
            }
        });
        let outcome = running.ended().await;
        assert_eq!((outcome.end, outcome.quiesced), (End::Stopped(reason), true));
        answered.await.unwrap();
    }
}

#[tokio::test]
async fn an_interrupted_copy_keeps_its_journal_until_it_is_forgotten() {
    let desk = Desk::new();
    let outcome = desk.interrupted("in/b", "none").await;
    assert_eq!((&outcome.end, outcome.quiesced), (&End::Stopped(Reason::RunnerInterrupt), true));
    assert!(outcome.durable.bytes() > 0 && outcome.durable.bytes() < 4 * MIB, "{outcome:?}");
    assert_eq!(desk.executor.kept(), [(id("t"), 5)]);

    let (work, question) = desk.work("in/b");
    let work =
        Execution { epoch: Epoch(12), admitted: true, earlier: vec![Epoch(10)], durable: outcome.durable, ..work };
    let (durable, outcome) = desk.carry_out(work, question).await;
    assert!(durable.bytes() > 0 && outcome.end == End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(desk.path("in/b")).unwrap() == content());
    std::fs::write(desk.path("state/journals/t.6.journal"), "").unwrap();
    desk.executor.forget(&id("t"), 6);
    desk.executor.forget(&id("t"), 6);
    assert_eq!(desk.executor.kept(), []);
}

#[tokio::test]
async fn a_journal_is_worth_nothing_when_somebody_else_has_written_the_destination() {
    let desk = Desk::new();
    assert!(desk.interrupted("in/b", "none").await.durable.bytes() > 0);
    std::fs::write(desk.path("in/b"), vec![7; content().len()]).unwrap();
    let file = std::fs::File::open(desk.path("in/b")).unwrap();
    file.set_xattr("user.blockhaul.epoch", b"11").unwrap();

    let again = |work: Execution| Execution { epoch: Epoch(12), admitted: true, earlier: vec![Epoch(10)], ..work };
    let (work, _question) = desk.work("in/b");
    let outcome = desk.executor.start(again(work)).ended().await;
    let End::Failed(failure) = outcome.end else { panic!("somebody else's data: {outcome:?}") };
    assert_eq!(failure.code, Code::Exists, "{failure:?}");
    assert!(std::fs::read(desk.path("in/b")).unwrap() == vec![7; content().len()]);

    let (mut work, question) = desk.work("in/b");
    work.copy.overwrite = true;
    let (durable, outcome) = desk.carry_out(again(work), question).await;
    assert!(durable.is_empty() && outcome.end == End::Succeeded, "{outcome:?}");
    assert!(std::fs::read(desk.path("in/b")).unwrap() == content());
}

#[tokio::test]
async fn destinations_are_resolved_by_who_can_see_them() {
    let desk = Desk::new();
    let resolve = async |destination: &str| {
        let TaskSpec::Copy(copy) = copy_of(Fence::Local) else { unreachable!("it is a copy") };
        let copy = CopyTask { destination: destination.to_owned(), ..copy };
        desk.executor.resolve(&copy).await.map_err(|error| error.code)
    };
    let path = desk.path("in/a");
    let names = resolve(path.to_str().unwrap()).await.unwrap();
    assert!(names.len() == 2 && names[0].starts_with("file:n1:"), "{names:?}");
    assert_eq!(resolve(&format!("file://n1{}", path.display())).await.unwrap(), names);
    assert_eq!(resolve(&format!("file://n2{}", path.display())).await, Err(Code::Unreachable));
    assert_eq!(resolve("/etc/passwd").await, Err(Code::Permission));
    assert_eq!(resolve("nbds://Store/x").await, Ok(vec![String::from("nbd://store/x")]));
    assert_eq!(resolve("nbd+unix:///x?socket=/nowhere").await, Err(Code::NotFound));
}
