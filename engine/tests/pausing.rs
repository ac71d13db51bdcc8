//! Goal: a paused job does nothing, whatever kind of work is next. Method: a copy that needs no worker at all, paused
//! before it can start.

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::CopySpec;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::time::Duration;

#[test]
fn a_paused_job_does_not_skip_holes_either() {
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (folder.path().join("a"), folder.path().join("b"));
    File::create(&source).unwrap().set_len(1 << 30).unwrap();
    let held = Flock::lock(File::create(&destination).unwrap(), FlockArg::LockExclusive).unwrap();
    let engine = Engine::start(EngineConfig { cores: Some(1), ..EngineConfig::default() }).unwrap();
    let job = engine.submit(CopySpec::new(source.into(), destination.into()));
    job.pause();
    drop(held);
    while job.path().is_none() {
        std::thread::yield_now();
    }
    // Far longer than the copy of a hole takes; a pause without end for one that is paused.
    assert!(job.wait_for(Duration::from_millis(200)).is_none(), "{:?}", job.progress());
    assert_eq!(job.progress().issued, 0);
    job.resume();
    let report = job.wait();
    assert_eq!((report.status, report.bytes.skipped), (Status::Succeeded, 1 << 30), "{report:?}");
}
