//! Tests that a thousand jobs in one engine leave no descriptor and no thread behind, however they end.
//!
//! A test binary of its own: other tests would open and close descriptors meanwhile.

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::{CheckpointLocation, CopySpec, Overwrite, Reference, VerifySpec};
use std::path::Path;
use std::time::Duration;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Success, a comparison, a refusal and a cancel.
fn run_four(engine: &Engine, folder: &Path) {
    let (source, destination) = (folder.join("source"), folder.join("copy"));
    let copy = CopySpec {
        overwrite: Overwrite::Yes,
        checkpoint: CheckpointLocation::File(folder.join("checkpoint")),
        ..CopySpec::new(source.clone().into(), destination.clone().into())
    };
    let report = engine.submit(copy.clone()).wait();
    assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    let same = VerifySpec::new(Reference::Volume(source.clone().into()), destination.clone().into());
    assert_eq!(engine.verify(same).wait().status, Status::Succeeded);
    let itself = CopySpec::new(source.clone().into(), source.into());
    assert_eq!(engine.submit(itself).wait().status, Status::Failed);
    let cancelled = engine.submit(CopySpec { checkpoint: CheckpointLocation::None, ..copy });
    cancelled.cancel(StopReason::UserCancel);
    let _ = cancelled.wait();
}

/// The number of descriptors once threads that are ending have ended.
fn settled(threads_wanted: usize) -> usize {
    for _ in 0..1000 {
        if threads() <= threads_wanted {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(threads() <= threads_wanted, "{} threads are left, {threads_wanted} were there", threads());
    open_descriptors()
}

#[test]
fn a_thousand_jobs_leak_nothing() {
    let shm = Path::new("/dev/shm");
    let place = if shm.is_dir() { shm } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let folder = tempfile::tempdir_in(place).unwrap();
    std::fs::write(folder.path().join("source"), vec![7; 10_000]).unwrap();
    // What a process keeps for all of its engines, such as the pipe for signals of the asynchronous runtime, is there
    // after the first one.
    let first = Engine::start(EngineConfig::default()).unwrap();
    run_four(&first, folder.path());
    drop(first);
    let bare = open_descriptors();
    let engine = Engine::start(EngineConfig::default()).unwrap();
    run_four(&engine, folder.path());
    // Kernel workers of the rings count as threads and come and go: a few more than at first are no leak.
    let at_ease = threads() + 8;
    let before = settled(at_ease);
    (0..250).for_each(|_| run_four(&engine, folder.path()));
    let after = settled(at_ease);
    assert_eq!(after, before, "descriptors before and after a thousand jobs");
    drop(engine);
    assert_eq!(settled(at_ease), bare, "an engine that is gone holds nothing");
}
