//! Tests the handle of a job: pausing, limits, cancelling at any moment, and calls from several threads.

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::Code;
use blockhaul_engine::job::StopReason;
use blockhaul_engine::progress::{Progress, Status};
use blockhaul_engine::spec::{BlockSize, CopySpec, Reflink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

fn engine() -> Engine {
    let small = BlockSize::new(64 << 10).unwrap();
    Engine::start(EngineConfig { block_size: Some(small), depth: Some(4), ..EngineConfig::default() }).unwrap()
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251 + at / 65536) as u8 | 1).collect()
}

fn spec(folder: &Path, name: &str) -> CopySpec {
    let copy = CopySpec::new(folder.join("source").into(), folder.join(name).into());
    CopySpec { reflink: Reflink::Never, ..copy }
}

/// Where the numbers may be: each stage at most the one before it, and none below what it was.
fn assert_ordered(before: &Progress, now: &Progress) {
    assert!(now.issued >= now.written && now.written >= now.durable, "{now:?}");
    assert!(now.issued >= before.issued && now.written >= before.written, "{before:?}, then {now:?}");
    assert!(now.durable >= before.durable, "{before:?}, then {now:?}");
}

#[test]
fn a_paused_job_makes_no_progress_until_it_is_resumed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bytes = data(8 << 20);
    std::fs::write(folder.path().join("source"), &bytes).unwrap();
    let engine = engine();
    let job = engine.submit(CopySpec { limit_bytes_per_second: Some(8 << 20), ..spec(folder.path(), "copy") });
    while job.progress().written == 0 {
        assert!(job.wait_for(Duration::from_millis(1)).is_none(), "{:?}", job.wait().error);
    }
    job.pause();
    job.set_limit(None);
    // What was in flight lands; then it stands still, however long one looks.
    let mut stood = job.progress();
    loop {
        assert!(job.wait_for(Duration::from_millis(60)).is_none(), "a paused job does not end: {:?}", job.wait());
        let now = job.progress();
        assert_ordered(&stood, &now);
        if now.issued == stood.issued && now.written == now.issued {
            break;
        }
        stood = now;
    }
    assert!(stood.issued < bytes.len() as u64, "it was paused before its end: {stood:?}");
    job.resume();
    let report = job.wait();
    assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    assert!(std::fs::read(folder.path().join("copy")).unwrap() == bytes);
}

#[test]
fn a_paused_job_can_be_cancelled() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("source"), data(4 << 20)).unwrap();
    let engine = engine();
    let job = engine.submit(CopySpec { limit_bytes_per_second: Some(4 << 20), ..spec(folder.path(), "copy") });
    job.pause();
    job.cancel(StopReason::DeadlineExceeded);
    job.cancel(StopReason::UserCancel);
    let report = job.wait();
    assert_eq!(report.status, Status::Interrupted, "the first reason holds: {report:?}");
    assert_eq!(report.error.map(|error| error.code), Some(Code::Timeout));
    assert!(report.quiesced);
}

#[test]
fn a_limit_can_be_lowered_and_lifted_while_a_job_runs() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bytes = data(8 << 20);
    std::fs::write(folder.path().join("source"), &bytes).unwrap();
    let engine = engine();
    let job = engine.submit(CopySpec { limit_bytes_per_second: Some(16 << 20), ..spec(folder.path(), "copy") });
    let mut before = job.progress();
    for rate in [Some(0), Some(1), Some(1 << 30), Some(1 << 20), None] {
        job.set_limit(rate);
        std::thread::sleep(Duration::from_millis(10));
        let now = job.progress();
        assert_ordered(&before, &now);
        before = now;
    }
    let report = job.wait();
    assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    assert!(std::fs::read(folder.path().join("copy")).unwrap() == bytes);
}

#[test]
fn progress_never_falls_for_concurrent_readers() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("source"), data(16 << 20)).unwrap();
    let engine = engine();
    let checkpoint = blockhaul_engine::spec::CheckpointLocation::File(folder.path().join("checkpoint"));
    let every = blockhaul_engine::spec::CheckpointEvery { bytes: 1 << 20, ..Default::default() };
    let copy = CopySpec { checkpoint, checkpoint_every: every, ..spec(folder.path(), "copy") };
    let job = engine.submit(CopySpec { limit_bytes_per_second: Some(64 << 20), ..copy });
    let over = Arc::new(AtomicBool::new(false));
    let eyes: Vec<_> = (0..4)
        .map(|_| {
            let (job, over) = (job.clone(), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut before = job.progress();
                while !over.load(Relaxed) {
                    let now = job.progress();
                    assert_ordered(&before, &now);
                    before = now;
                }
            })
        })
        .collect();
    let report = job.wait();
    over.store(true, Relaxed);
    eyes.into_iter().for_each(|eye| eye.join().unwrap());
    assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    assert_eq!(job.progress().durable, 16 << 20);
}
