//! Sixteen jobs at once take the memory of one: cores x slots x block, and a little for the rest.
//!
//! Measured in a process of its own, this binary started again: the peak of a process never falls.

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::{Checkpoint, CopySpec, Reflink};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const JOBS: usize = 16;
/// Of each source; a half of it is hole.
const SIZE: u64 = 24 << 20;
/// What the engine may take beside its buffers.
const REST_KIB: u64 = 8 << 10;
/// Tells the second process what to do.
const ROLE: &str = "BLOCKHAUL_MEMORY_FOLDER";

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn sixteen_jobs_stay_within_the_bound() {
    if let Some(folder) = std::env::var_os(ROLE) {
        return measure(Path::new(&folder));
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for job in 0..JOBS {
        let file = File::create(folder.path().join(format!("source-{job}"))).unwrap();
        file.set_len(SIZE).unwrap();
        let piece = vec![job as u8 + 1; 1 << 20];
        (0..SIZE >> 20).step_by(2).for_each(|at| file.write_all_at(&piece, at << 20).unwrap());
    }
    let measured = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sixteen_jobs_stay_within_the_bound", "--nocapture"])
        .env(ROLE, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&measured.stdout);
    assert!(measured.status.success(), "{said}{}", String::from_utf8_lossy(&measured.stderr));
    assert!(said.contains("peak of sixteen jobs"), "it measured nothing: {said}");
    for job in 0..JOBS {
        let (source, copy) = (folder.path().join(format!("source-{job}")), folder.path().join(format!("copy-{job}")));
        assert!(std::fs::read(source).unwrap() == std::fs::read(copy).unwrap(), "job {job}");
    }
}

/// In the second process: the peak with all jobs at once against the bound.
fn measure(folder: &Path) {
    let before = peak_kib();
    let engine = Engine::start(EngineConfig::default()).unwrap();
    let jobs: Vec<_> = (0..JOBS)
        .map(|job| {
            let (source, copy) = (folder.join(format!("source-{job}")), folder.join(format!("copy-{job}")));
            let checkpoint = Checkpoint::File(folder.join(format!("checkpoint-{job}")));
            engine.submit(CopySpec { checkpoint, reflink: Reflink::Never, ..CopySpec::new(source.into(), copy.into()) })
        })
        .collect();
    for job in jobs {
        let report = job.wait();
        assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    }
    let took = peak_kib() - before;
    // 8 MiB of slots on every core.
    let bound = engine.cores() as u64 * (8 << 10) + REST_KIB;
    println!("peak of sixteen jobs: {took} KiB of {bound}");
    assert!(took <= bound, "{JOBS} jobs took {took} KiB, the bound is {bound}");
}
