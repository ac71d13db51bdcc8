//! Tests that sixteen jobs at once share the buffers of one: cores x slots x block, and a little for each of them.
//!
//! Measured in a process of its own, this binary started again: the peak of a process never falls. Servers are threads
//! of the first process.

#[allow(dead_code, reason = "these servers only answer")]
mod scripted;

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::{CheckpointLocation, CopySpec, Reflink};
use blockhaul_engine::volume::Locator;
use scripted::{Act, READ, STATUS, Server};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const JOBS: usize = 16;
/// Of each source; a half of it is hole.
const SIZE: u64 = 24 << 20;
/// What the engine may take beside its buffers.
const REST_KIB: u64 = 5 << 10;
/// And for each job at once: the stack of its thread, and what the allocator keeps for that thread.
const JOB_KIB: u64 = 384;
/// And for each that is between servers: tables and headers of its connections, one to each side for every core.
const SERVERS_KIB: u64 = 384;
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
    measure_in_another_process("sixteen_jobs_stay_within_the_bound", folder.path());
    for job in 0..JOBS {
        let (source, copy) = (folder.path().join(format!("source-{job}")), folder.path().join(format!("copy-{job}")));
        assert!(std::fs::read(source).unwrap() == std::fs::read(copy).unwrap(), "job {job}");
    }
}

#[test]
fn sixteen_jobs_between_servers_stay_within_the_bound() {
    if let Some(folder) = std::env::var_os(ROLE) {
        return measure_servers(Path::new(&folder));
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let answer = |request: &scripted::Request| match request.command {
        READ => Act::Done(vec![0xC3; request.len as usize]),
        STATUS => Act::Extents(vec![(request.len, 0)]),
        _ => Act::Done(Vec::new()),
    };
    let server = |name: String| Server::start(folder.path(), &name, SIZE, |_, _| true, answer);
    let _servers: Vec<_> = (0..JOBS).flat_map(|job| [server(format!("s{job}")), server(format!("d{job}"))]).collect();
    measure_in_another_process("sixteen_jobs_between_servers_stay_within_the_bound", folder.path());
}

/// Starts this binary again, for one test.
fn measure_in_another_process(test: &str, folder: &Path) {
    let measured = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&measured.stdout);
    assert!(measured.status.success(), "{said}{}", String::from_utf8_lossy(&measured.stderr));
    assert!(said.contains("peak of sixteen jobs"), "it measured nothing: {said}");
    println!("{said}");
}

/// In the second process: all jobs at once, from server to server.
fn measure_servers(folder: &Path) {
    let export = |name: String| {
        Locator::parse(&format!("nbd+unix:///?socket={}", folder.join(name).display())).expect("a URI of this test")
    };
    let spec = |job: usize| CopySpec {
        checkpoint: CheckpointLocation::File(folder.join(format!("checkpoint-{job}"))),
        overwrite: blockhaul_engine::spec::Overwrite::Yes,
        ..CopySpec::new(export(format!("s{job}")), export(format!("d{job}")))
    };
    measure_jobs(spec, JOB_KIB + SERVERS_KIB);
}

/// In the second process: the peak with all jobs at once against the bound.
fn measure(folder: &Path) {
    let spec = |job: usize| {
        let (source, copy) = (folder.join(format!("source-{job}")), folder.join(format!("copy-{job}")));
        let checkpoint = CheckpointLocation::File(folder.join(format!("checkpoint-{job}")));
        CopySpec { checkpoint, reflink: Reflink::Never, ..CopySpec::new(source.into(), copy.into()) }
    };
    measure_jobs(spec, JOB_KIB);
}

fn measure_jobs(spec: impl Fn(usize) -> CopySpec, job_kib: u64) {
    let before = peak_kib();
    let cores = std::thread::available_parallelism().unwrap().get();
    // 8 MiB of slots on every core, the spare ones included: on a busy machine some may be used.
    let memory_bytes = Some(cores as u64 * (8 << 20));
    let engine = Engine::start(EngineConfig { memory_bytes, cores: Some(cores), ..EngineConfig::default() }).unwrap();
    let jobs: Vec<_> = (0..JOBS).map(|job| engine.submit(spec(job))).collect();
    for job in jobs {
        let report = job.wait();
        assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    }
    let took = peak_kib() - before;
    let bound = engine.cores() as u64 * (8 << 10) + REST_KIB + JOBS as u64 * job_kib;
    println!("peak of sixteen jobs: {took} KiB of {bound}");
    assert!(took <= bound, "{JOBS} jobs took {took} KiB, the bound is {bound}");
}
