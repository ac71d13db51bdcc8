//! Races `cancel` with `submit` and `wait`: in every order each job ends once, quiesced, with a correct report.
//!
//! The number of copies is `BLOCKHAUL_RACES` (2000).

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::Code;
use blockhaul_engine::job::StopReason;
use blockhaul_engine::progress::{Report, Status};
use blockhaul_engine::spec::{CopySpec, Overwrite};
use std::path::Path;
use std::time::Duration;

const SIZE: usize = 3 * 4096 + 7;

fn races() -> usize {
    std::env::var("BLOCKHAUL_RACES").map_or(2000, |text| text.parse().expect("BLOCKHAUL_RACES is a number"))
}

/// Checks the report of a job against the volumes.
fn assert_true(report: &Report, destination: &Path, data: &[u8]) {
    assert!(report.quiesced, "{report:?}");
    let code = report.error.as_ref().map(|error| error.code);
    match report.status {
        Status::Succeeded => {
            assert_eq!(code, None, "{report:?}");
            assert!(std::fs::read(destination).unwrap() == data, "a success with other bytes");
        }
        Status::Cancelled => assert_eq!(code, Some(Code::Cancelled), "{report:?}"),
        Status::Interrupted => assert_eq!(code, Some(Code::RunnerInterrupt), "{report:?}"),
        Status::Failed | Status::Differs => panic!("nothing is wrong with the volumes: {report:?}"),
    }
}

#[test]
fn cancel_races_submit_and_wait() {
    // Memory, where there is some: a race is about threads, not about a disk.
    let shm = Path::new("/dev/shm");
    let place = if shm.is_dir() { shm } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let folder = tempfile::tempdir_in(place).unwrap();
    let data: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8 + 1).collect();
    let source = folder.path().join("source");
    std::fs::write(&source, &data).unwrap();
    let engine = Engine::start(EngineConfig::default()).unwrap();
    let (engine, data, source) = (&engine, &data, &source);
    let mut endings = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let destination = folder.path().join(format!("copy-{worker}"));
                scope.spawn(move || race(engine, source, &destination, data, worker, races() / 4))
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    endings.sort_unstable();
    endings.dedup();
    assert!(endings.len() > 1, "all races ended alike ({endings:?}): nothing raced");
}

/// Copies one after the other; gives how they ended.
fn race(engine: &Engine, source: &Path, to: &Path, data: &[u8], worker: usize, count: usize) -> Vec<&'static str> {
    let mut endings = Vec::new();
    for turn in 0..count {
        let spec = CopySpec::new(source.into(), to.into());
        let job = engine.submit(CopySpec { overwrite: Overwrite::Yes, ..spec });
        let (first, second) = match turn % 2 {
            0 => (StopReason::UserCancel, StopReason::RunnerInterrupt),
            _ => (StopReason::RunnerInterrupt, StopReason::UserCancel),
        };
        let report = std::thread::scope(|scope| {
            let waits = scope.spawn(|| job.wait());
            // From before the job's thread runs to after its end.
            std::thread::sleep(Duration::from_micros((turn * 37 + worker * 11) as u64 % 1500));
            let cancels = scope.spawn(|| job.cancel(second));
            job.cancel(first);
            cancels.join().unwrap();
            let report = waits.join().unwrap();
            assert_eq!(report.status, job.wait().status, "all waiters get the same status");
            report
        });
        assert_true(&report, to, data);
        endings.push(report.status.as_str());
    }
    endings
}
