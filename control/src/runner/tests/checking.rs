//! Tests that work is checked behind the policy as an attempt would be refused, and that a check changes nothing.

use super::*;
use crate::execution::{CompareJob, CopyJob, HookJob, Reference, Work};
use crate::model::TaskVolume;
use crate::policy::Policy;
use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::{Code, Error};
use blockhaul_hooks::HookName;
use serde_json::Value;

/// Length of the source.
const SOURCE_BYTES: usize = 1 << 20;

/// A folder that the policy allows, and an executor over the engine.
struct Fixture {
    root: tempfile::TempDir,
    executor: EngineExecutor,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        std::fs::write(root.path().join("in/a"), vec![7; SOURCE_BYTES]).unwrap();
        std::fs::write(root.path().join("in/full"), vec![9; SOURCE_BYTES]).unwrap();
        std::fs::write(root.path().join("outside"), vec![9; SOURCE_BYTES]).unwrap();
        let engine = Engine::start(EngineConfig { cores: Some(1), ..EngineConfig::default() }).unwrap();
        let policy = Policy::new(&[root.path().join("in")], &[]).unwrap();
        let executor = EngineExecutor::new(Arc::new(engine), policy, node(), &root.path().join("state"), None).unwrap();
        Self { root, executor }
    }

    fn volume(&self, name: &str) -> TaskVolume {
        TaskVolume::parse(self.root.path().join(name).to_str().unwrap(), Some(&node())).unwrap()
    }

    fn copy(&self, source: &str, destination: &str) -> CopyJob {
        let TaskSpec::Copy(copy) = copy_of(FenceMethod::Local) else { unreachable!("it is a copy") };
        let (source, destination) = (self.volume(source), self.volume(destination));
        CopyJob { source, destination, ..copy.job().unwrap() }
    }

    async fn check(&self, work: Work) -> std::result::Result<Value, Error> {
        let before = self.files();
        let checked = self.executor.check(work).await;
        assert_eq!(self.files(), before, "nothing is created or changed");
        checked
    }

    async fn refusal(&self, work: Work) -> Code {
        self.check(work).await.unwrap_err().code
    }

    /// Returns all files with their length, in the order of their names.
    fn files(&self) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for folder in ["", "in", "state", "state/journals"] {
            for entry in std::fs::read_dir(self.root.path().join(folder)).unwrap().flatten() {
                found.push((format!("{folder}/{}", entry.file_name().display()), entry.metadata().unwrap().len()));
            }
        }
        found.sort();
        found
    }
}

#[tokio::test]
async fn a_copy_is_planned_or_refused_as_an_attempt_would_be() {
    let fixture = Fixture::new();
    let plan = fixture.check(Work::Copy(fixture.copy("in/a", "in/new"))).await.unwrap();
    assert_eq!((&plan["source_bytes"], &plan["data_bytes"]), (&SOURCE_BYTES.into(), &SOURCE_BYTES.into()), "{plan}");
    assert!(plan["free_bytes"].as_u64().is_some_and(|free| free > 0) && plan["path"].is_string(), "{plan}");
    let refused = [
        (fixture.copy("in/missing", "in/new"), Code::NotFound),
        (fixture.copy("outside", "in/new"), Code::Permission),
        (fixture.copy("in/a", "outside"), Code::Permission),
        (fixture.copy("in/a", "elsewhere"), Code::Permission),
        (fixture.copy("in/a", "in/none/new"), Code::NotFound),
        (fixture.copy("in/a", "in/full"), Code::Exists),
        (fixture.copy("in/a", "in/a"), Code::SameVolume),
    ];
    for (job, code) in refused {
        let shown = format!("{job:?}");
        assert_eq!(fixture.refusal(Work::Copy(job)).await, code, "{shown}");
    }
    let over = CopyJob { overwrite: true, ..fixture.copy("in/a", "in/full") };
    assert!(fixture.check(Work::Copy(over)).await.is_ok());
    let content = std::fs::read(fixture.root.path().join("in/full")).unwrap();
    assert!(content.iter().all(|byte| *byte == 9));
}

#[tokio::test]
async fn comparisons_and_hooks_are_checked_too() {
    let fixture = Fixture::new();
    let compare = |reference: &str, volume: &str| {
        let (reference, volume) = (Reference::Volume(fixture.volume(reference)), fixture.volume(volume));
        Work::Compare(CompareJob { reference, volume, limit: None })
    };
    assert!(fixture.check(compare("in/a", "in/full")).await.is_ok());
    assert_eq!(fixture.refusal(compare("in/a", "outside")).await, Code::Permission);
    assert_eq!(fixture.refusal(compare("in/missing", "in/a")).await, Code::NotFound);
    let hook = HookName::parse("h").unwrap();
    let job = HookJob { hook, arguments: Vec::new(), input: Vec::new(), timeout: Duration::from_secs(1) };
    assert_eq!(fixture.refusal(Work::Hook(job)).await, Code::Unsupported, "this node has no hooks");
    assert_eq!(fixture.check(Work::Nothing).await.unwrap(), serde_json::json!({}));
}
