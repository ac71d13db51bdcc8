//! Tests that a device that does not answer costs its own job only.
//!
//! Method: a file system is frozen (`fsfreeze`) under one job, while others run in the same engine, are cancelled, and
//! end. A frozen file system blocks its writers in the kernel, where no signal ends the wait, as a dead disk does; but
//! it can be thawed. It always is: by the test, when the test fails, and by a watchdog.

use blockhaul_engine::engine::{Engine, EngineConfig, RingBackend};
use blockhaul_engine::error::{Code, Result};
use blockhaul_engine::job::{JobHandle, StopReason};
use blockhaul_engine::progress::{Progress, Report, Status};
use blockhaul_engine::spec::{CheckpointLocation, CopySpec, Direct, Overwrite, Reflink};
use blockhaul_engine::supervision::{Admission, AdmissionRequest, Supervision};
use blockhaul_testkit::need;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for anything that does happen.
const PATIENCE: Duration = Duration::from_secs(180);
/// Time after which a frozen file system is thawed, so that a hung test ends.
const FROZEN_MAX: Duration = Duration::from_secs(400);
const MIB: u64 = 1 << 20;
/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// Slots of the one worker.
const DEPTH: u64 = 4;

fn run(command: &[&str]) -> std::result::Result<String, String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.map_err(|error| format!("{}: {error}", command[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// An ext4 that can be frozen. Thawed, unmounted and detached on drop.
struct Disk {
    folder: TempDir,
    device: Option<String>,
    is_mounted: bool,
    is_over: Arc<AtomicBool>,
}

impl Disk {
    fn fresh(options: &str) -> std::result::Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root to mount and freeze".into());
        }
        // In memory, so that nothing here waits for the disk of this host, which others may keep busy for minutes.
        let folder = tempfile::tempdir_in(MEMORY).map_err(|error| format!("{MEMORY}: {error}"))?;
        let mut disk = Self { folder, device: None, is_mounted: false, is_over: Arc::default() };
        let image = disk.folder.path().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(512 * MIB)).map_err(|error| error.to_string())?;
        fs::create_dir(disk.point()).map_err(|error| error.to_string())?;
        let image = image.to_str().expect("a path of this test");
        run(&["mkfs.ext4", "-q", "-F", image])?;
        disk.device = Some(run(&["losetup", "--find", "--show", image])?);
        let point = disk.point();
        run(&["mount", "-t", "ext4", "-o", options, disk.device.as_ref().expect("attached"), text(&point)])?;
        disk.is_mounted = true;
        Ok(disk)
    }

    fn point(&self) -> PathBuf {
        self.folder.path().join("point")
    }

    fn freeze(&self) {
        run(&["fsfreeze", "--freeze", text(&self.point())]).expect("an ext4 can be frozen");
        let (point, is_over) = (self.point(), Arc::clone(&self.is_over));
        std::thread::spawn(move || {
            let started = Instant::now();
            while started.elapsed() < FROZEN_MAX && !is_over.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(100));
            }
            if !is_over.load(SeqCst) {
                let _ = run(&["fsfreeze", "--unfreeze", text(&point)]);
            }
        });
    }

    fn thaw(&self) {
        run(&["fsfreeze", "--unfreeze", text(&self.point())]).expect("what was frozen can be thawed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        let point = self.point();
        // Whatever a failing test has left frozen and in use.
        let _ = run(&["fsfreeze", "--unfreeze", text(&point)]);
        if self.is_mounted {
            let _ = run(&["umount", "--lazy", text(&point)]);
        }
        if let Some(device) = &self.device {
            let _ = run(&["losetup", "--detach", device]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this test")
}

fn engine(backend: RingBackend) -> Engine {
    let config = EngineConfig { cores: Some(1), depth: Some(DEPTH as usize), backend, ..EngineConfig::default() };
    Engine::start(config).unwrap()
}

/// A source of so many MiB without a hole.
fn source(folder: &Path, name: &str, mib: u64) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, vec![0xA7; (mib * MIB) as usize]).unwrap();
    path
}

fn copy(from: &Path, to: &Path, direct: Direct) -> CopySpec {
    CopySpec {
        checkpoint: CheckpointLocation::None,
        reflink: Reflink::Never,
        overwrite: Overwrite::Yes,
        direct,
        lock_wait: Duration::ZERO,
        ..CopySpec::new(from.to_path_buf().into(), to.to_path_buf().into())
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn succeeds(job: &JobHandle, what: &str) {
    let report = job.wait_for(PATIENCE).unwrap_or_else(|| panic!("{what} does not end: {:?}", job.progress()));
    assert_eq!(report.status, Status::Succeeded, "{what}: {:?}", report.error);
}

/// Not quiet, and named as what it is.
fn is_left_behind(report: &Report) {
    let code = report.error.as_ref().map(|error| error.code);
    assert_eq!((report.status, report.quiesced, code), (Status::Failed, false, Some(Code::Timeout)), "{report:?}");
}

/// A copy in the middle of which its destination is frozen, and that has every slot by then.
fn stalled(engine: &Engine, disk: &Disk, from: &Path, direct: Direct) -> JobHandle {
    let spec = CopySpec { limit_bytes_per_second: Some(32 * MIB), ..copy(from, &disk.point().join("copy"), direct) };
    let job = engine.submit(spec);
    until("the copy begins", || job.progress().written > 0);
    disk.freeze();
    job.set_limit(None);
    // What is frozen takes nothing any more. A source that is in memory is read in smaller blocks through it.
    let block = if direct == Direct::Yes { MIB } else { MIB / 4 };
    let is_full = |progress: Progress| progress.issued - progress.written >= DEPTH * block;
    until("it has every slot", || is_full(job.progress()));
    job
}

fn healthy_jobs_go_on(disk: &Disk, healthy: &Disk, direct: Direct, backend: RingBackend) {
    let engine = engine(backend);
    let folder = healthy.point();
    let large = source(&folder, "large", 128);
    let small = source(&folder, "small", 24);
    let beside = |name: &str| engine.submit(copy(&small, &folder.join(name), direct));
    let job = stalled(&engine, disk, &large, direct);
    succeeds(&beside("first"), "a job beside a stalled one");
    let slow = CopySpec { limit_bytes_per_second: Some(MIB), ..copy(&large, &folder.join("slow"), direct) };
    let slow = engine.submit(slow);
    until("it begins", || slow.progress().written > 0);
    slow.cancel(StopReason::UserCancel);
    let report = slow.wait_for(PATIENCE).expect("a job beside a stalled one can be cancelled");
    assert_eq!((report.status, report.quiesced), (Status::Cancelled, true), "{:?}", report.error);
    assert!(job.wait_for(Duration::ZERO).is_none(), "the stalled one waits");
    job.cancel(StopReason::UserCancel);
    is_left_behind(&job.wait_for(PATIENCE).expect("a report, though the device does not answer"));
    succeeds(&beside("second"), "a job after the stalled one was given up");
    assert!(!job.wait_quiet_for(Duration::ZERO), "it is not quiet while it is frozen");
    disk.thaw();
    assert!(job.wait_quiet_for(PATIENCE), "the job waits for the last answer");
    // Its lock went with its last operation, and its slots serve others.
    let again = engine.submit(copy(&small, &disk.point().join("copy"), direct));
    succeeds(&again, "a copy to the same destination");
    for name in ["first", "second"] {
        assert!(fs::read(folder.join(name)).unwrap() == fs::read(&small).unwrap(), "{name}");
    }
}

#[test]
fn a_frozen_destination_delays_no_other_job() {
    let test = "a_frozen_destination_delays_no_other_job";
    for (options, direct, backend) in [
        ("defaults", Direct::Yes, RingBackend::Auto),
        ("defaults", Direct::Auto, RingBackend::Auto),
        // Writes that the caller itself would wait for.
        ("data=journal", Direct::No, RingBackend::Auto),
        ("defaults", Direct::Yes, RingBackend::Threads),
    ] {
        let (disk, healthy) = (need!(test, Disk::fresh(options)), need!(test, Disk::fresh("defaults")));
        healthy_jobs_go_on(&disk, &healthy, direct, backend);
    }
}

/// Creating the destination is a call that does not come back, and no signal ends it.
#[test]
fn a_job_that_hangs_at_its_start_is_reported_and_ends_later() {
    let test = "a_job_that_hangs_at_its_start_is_reported_and_ends_later";
    let disk = need!(test, Disk::fresh("defaults"));
    let engine = engine(RingBackend::Auto);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let small = source(folder.path(), "small", 1);
    disk.freeze();
    let job = engine.submit(copy(&small, &disk.point().join("copy"), Direct::Auto));
    succeeds(&engine.submit(copy(&small, &folder.path().join("beside"), Direct::Auto)), "a job beside it");
    job.cancel(StopReason::RunnerInterrupt);
    is_left_behind(&job.wait_for(PATIENCE).expect("a report, though the call does not come back"));
    // The engine ends without it.
    drop(engine);
    assert!(!job.wait_quiet_for(Duration::ZERO));
    disk.thaw();
    assert!(job.wait_quiet_for(PATIENCE), "it is quiet when the call has come back");
}

/// Blocks until the test releases it.
struct Hanging {
    begun: Mutex<Sender<()>>,
    released: Mutex<Receiver<()>>,
}

impl Admission for Hanging {
    fn admit(&self, _destination: &AdmissionRequest<'_>) -> Result<()> {
        self.begun.lock().unwrap().send(()).unwrap();
        let _ = self.released.lock().unwrap().recv();
        Ok(())
    }
}

/// The same without root: what hangs is a question.
#[test]
fn a_blocked_thread_of_a_job_delays_its_own_job_only() {
    let engine = engine(RingBackend::Auto);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let small = source(folder.path(), "small", 1);
    let ((begun, has_begun), (release, released)) = (channel(), channel());
    let admission = Arc::new(Hanging { begun: Mutex::new(begun), released: Mutex::new(released) });
    let supervision = Supervision { admission: Some(admission), ..Supervision::default() };
    let target = folder.path().join("copy");
    let job = engine.submit_supervised(copy(&small, &target, Direct::Auto), supervision);
    has_begun.recv().unwrap();
    job.cancel(StopReason::UserCancel);
    is_left_behind(&job.wait_for(PATIENCE).expect("a report, though the call does not come back"));
    is_left_behind(&job.wait());
    let busy = engine.submit(copy(&small, &target, Direct::Auto)).wait();
    assert_eq!(busy.error.map(|error| error.code), Some(Code::Busy), "it has its lock until it is quiet");
    assert!(!job.wait_quiet_for(Duration::ZERO));
    release.send(()).unwrap();
    assert!(job.wait_quiet_for(PATIENCE));
    is_left_behind(&job.wait());
    succeeds(&engine.submit(copy(&small, &target, Direct::Auto)), "the next job");
}
