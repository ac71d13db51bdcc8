//! Goal: a supervised copy changes its destination only when it may, reaches the volumes that it was given, and goes on
//! from what others have done. Method: local copies, with gates, admissions and descriptors in the hand of the test.

use blockhaul_engine::engine::{Engine, EngineConfig, RingBackend};
use blockhaul_engine::error::{Code, Error, Result};
use blockhaul_engine::extent::{ByteRange, RangeSet};
use blockhaul_engine::job::{JobHandle, StopReason};
use blockhaul_engine::progress::{Report, Status};
use blockhaul_engine::spec::{
    BlockSize, CheckpointEvery, CheckpointLocation, CopySpec, Direct, Overwrite, ResumePolicy, Verify,
};
use blockhaul_engine::supervision::{Admission, AdmissionRequest, OpenedDestination, Supervision};
use blockhaul_engine::write_gate::WriteGate;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

/// A directory on a file system with `O_DIRECT`, a source of 24 MiB in it, and an engine.
struct TestBed {
    folder: tempfile::TempDir,
    engine: Engine,
}

impl TestBed {
    fn new() -> Self {
        Self::with(RingBackend::Auto, Path::new("/var/tmp"))
    }

    fn with(backend: RingBackend, place: &Path) -> Self {
        let folder = tempfile::tempdir_in(place).unwrap();
        let engine = Engine::start(EngineConfig { cores: Some(1), backend, ..EngineConfig::default() }).unwrap();
        let bed = Self { folder, engine };
        fs::write(bed.path("source"), bytes()).unwrap();
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Of small blocks, and records as often as can be.
    fn spec(&self) -> CopySpec {
        CopySpec {
            block_size: Some(BlockSize::new(64 << 10).unwrap()),
            checkpoint: CheckpointLocation::File(self.path("journal")),
            checkpoint_every: CheckpointEvery { bytes: MIB, time: Duration::from_millis(1) },
            ..CopySpec::new(self.path("source").into(), self.path("destination").into())
        }
    }

    fn submit(&self, spec: CopySpec, supervision: Supervision) -> JobHandle {
        self.engine.submit_supervised(spec, supervision)
    }

    fn refused(&self, spec: CopySpec, supervision: Supervision, code: Code) -> Report {
        let report = self.submit(spec, supervision).wait();
        assert_eq!(report.error.as_ref().map(|error| error.code), Some(code), "{report:?}");
        report
    }

    fn assert_copied(&self, report: &Report) {
        assert_eq!(report.status, Status::Succeeded, "{report:?}");
        assert!(fs::read(self.path("destination")).unwrap() == bytes(), "the copy differs");
    }

    /// A run that is stopped after some of its data became durable, and what it said of that.
    fn half_copied(&self) -> RangeSet {
        let limit_bytes_per_second = Some(16 * MIB);
        let job = self.submit(CopySpec { limit_bytes_per_second, ..self.spec() }, Supervision::default());
        while job.durable_ranges().bytes() < 4 * MIB {
            std::thread::yield_now();
        }
        job.cancel(StopReason::RunnerInterrupt);
        let report = job.wait();
        assert_eq!((report.status, report.bytes.durable), (Status::Interrupted, job.durable_ranges().bytes()));
        job.durable_ranges()
    }

    /// Goes on from the work of a run whose journal is elsewhere.
    fn taken_over(&self) -> CopySpec {
        CopySpec {
            checkpoint: CheckpointLocation::File(self.path("journal of another host")),
            resume_policy: ResumePolicy::Resume,
            overwrite: Overwrite::Yes,
            ..self.spec()
        }
    }
}

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251 + at / MIB) as u8 | 1).collect()
}

fn gated(gate: &Arc<WriteGate>) -> Supervision {
    Supervision { gate: Some(Arc::clone(gate)), ..Supervision::default() }
}

fn claiming(durable: &RangeSet) -> Supervision {
    Supervision { durable: Some(durable.clone()), ..Supervision::default() }
}

/// Far longer than any of these copies takes.
fn is_held_up(job: &JobHandle) -> bool {
    job.wait_for(Duration::from_millis(400)).is_none()
}

#[test]
fn nothing_of_the_destination_changes_before_the_gate_opens() {
    let bed = TestBed::new();
    fs::write(bed.path("destination"), b"as it was").unwrap();
    let gate = Arc::new(WriteGate::closed());
    let job = bed.submit(CopySpec { overwrite: Overwrite::Yes, ..bed.spec() }, gated(&gate));
    assert!(is_held_up(&job));
    assert_eq!(fs::read(bed.path("destination")).unwrap(), b"as it was");
    gate.open_until(Duration::MAX);
    bed.assert_copied(&job.wait());
}

/// Closes the gate of a copy under way, sees that nothing changes, and lets it go on.
fn closes_and_opens(bed: &TestBed, direct: Direct) {
    let gate = Arc::new(WriteGate::closed());
    gate.open_until(Duration::MAX);
    let limit_bytes_per_second = Some(32 * MIB);
    let job = bed.submit(CopySpec { direct, limit_bytes_per_second, ..bed.spec() }, gated(&gate));
    while job.progress().written < MIB {
        std::thread::yield_now();
    }
    gate.close();
    // What was submitted lands; then there is nothing more.
    assert!(is_held_up(&job));
    let (written, content) = (job.progress().written, fs::read(bed.path("destination")).unwrap());
    assert!(is_held_up(&job) && written < SIZE, "{:?}", job.progress());
    assert!(job.progress().written == written && fs::read(bed.path("destination")).unwrap() == content);
    job.set_limit(None);
    gate.open_until(WriteGate::now() + Duration::from_secs(3600));
    let report = job.wait();
    bed.assert_copied(&report);
    assert_eq!(job.durable_ranges(), RangeSet::from_iter([ByteRange::new(0, SIZE)]), "{report:?}");
    fs::remove_file(bed.path("destination")).unwrap();
}

#[test]
fn a_copy_waits_at_a_closed_gate_and_continues_on_every_path() {
    for (backend, place) in
        [(RingBackend::Auto, "/var/tmp"), (RingBackend::Auto, "/dev/shm"), (RingBackend::Threads, "/var/tmp")]
    {
        let bed = TestBed::with(backend, Path::new(place));
        for direct in [Direct::Auto, Direct::No] {
            closes_and_opens(&bed, direct);
        }
    }
}

#[test]
fn a_copy_cancelled_behind_a_closed_gate_ends_with_its_reason_and_can_be_resumed() {
    let bed = TestBed::new();
    let gate = Arc::new(WriteGate::closed());
    gate.open_until(Duration::MAX);
    let limit_bytes_per_second = Some(32 * MIB);
    let job = bed.submit(CopySpec { limit_bytes_per_second, ..bed.spec() }, gated(&gate));
    while job.durable_ranges().bytes() < MIB {
        std::thread::yield_now();
    }
    gate.close();
    assert!(is_held_up(&job));
    job.cancel(StopReason::LeaseLost);
    let report = job.wait();
    let code = report.error.as_ref().map(|error| error.code);
    assert_eq!(
        (report.status, code, report.quiesced),
        (Status::Interrupted, Some(Code::LeaseLost), true),
        "{report:?}"
    );
    let durable = job.durable_ranges();
    assert!(durable.bytes() == report.bytes.durable && durable.bytes() >= MIB, "{report:?}");
    let report = bed.engine.submit(CopySpec { resume_policy: ResumePolicy::Resume, ..bed.spec() }).wait();
    bed.assert_copied(&report);
    assert_eq!((report.bytes.resumed, report.digest.is_some()), (durable.bytes(), true));
}

#[test]
fn a_copy_that_never_passed_the_gate_leaves_the_destination_unchanged() {
    let bed = TestBed::new();
    fs::write(bed.path("destination"), b"as it was").unwrap();
    let gate = Arc::new(WriteGate::closed());
    for name in ["destination", "missing"] {
        let destination = bed.path(name).into();
        let job = bed.submit(CopySpec { overwrite: Overwrite::Yes, destination, ..bed.spec() }, gated(&gate));
        assert!(is_held_up(&job));
        job.cancel(StopReason::UserCancel);
        assert_eq!(job.wait().status, Status::Cancelled);
        let _ = fs::remove_file(bed.path("journal"));
    }
    assert!(fs::read(bed.path("destination")).unwrap() == b"as it was" && !bed.path("missing").exists());
}

/// The inode, whether it is empty, whether there is a journal, and the size: as an admission was shown them.
type Asked = (Option<u64>, bool, bool, u64);

/// Notes what it is asked, and answers.
struct Judge {
    asked: Mutex<Vec<Asked>>,
    answer: Result<()>,
}

impl Judge {
    fn with(answer: Result<()>) -> (Arc<Self>, Supervision) {
        let judge = Arc::new(Self { asked: Mutex::default(), answer });
        let admission: Arc<dyn Admission> = Arc::<Self>::clone(&judge);
        (judge, Supervision { admission: Some(admission), ..Supervision::default() })
    }

    fn asked(&self) -> Vec<(Option<u64>, bool, bool, u64)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Admission for Judge {
    fn admit(&self, destination: &AdmissionRequest<'_>) -> Result<()> {
        let AdmissionRequest { file, kind: _, is_empty, has_journal, size_bytes } = *destination;
        let inode = file.map(|file| File::from(file.try_clone_to_owned().unwrap()).metadata().unwrap().ino());
        self.asked.lock().unwrap().push((inode, is_empty, has_journal, size_bytes));
        self.answer.clone()
    }
}

#[test]
fn admission_is_requested_once_and_before_the_first_change() {
    let bed = TestBed::new();
    let refusal = || Err(Error::bad_request("not you"));
    let (judge, supervision) = Judge::with(refusal());
    bed.refused(bed.spec(), supervision, Code::BadRequest);
    let asked = judge.asked();
    assert!(matches!(asked[..], [(Some(_), true, false, 0)]), "{asked:?}");
    assert!(!bed.path("destination").exists() && !bed.path("journal").exists(), "what was created is gone");

    fs::write(bed.path("destination"), b"as it was").unwrap();
    let inode = fs::metadata(bed.path("destination")).unwrap().ino();
    let (judge, supervision) = Judge::with(refusal());
    bed.refused(CopySpec { overwrite: Overwrite::Yes, ..bed.spec() }, supervision, Code::BadRequest);
    assert_eq!(judge.asked(), [(Some(inode), false, false, 9)]);
    assert_eq!(fs::read(bed.path("destination")).unwrap(), b"as it was");

    // A rule comes first.
    let (judge, supervision) = Judge::with(Ok(()));
    bed.refused(bed.spec(), supervision, Code::Exists);
    assert_eq!(judge.asked(), []);

    fs::remove_file(bed.path("destination")).unwrap();
    bed.half_copied();
    let (judge, supervision) = Judge::with(Ok(()));
    let report = bed.submit(CopySpec { resume_policy: ResumePolicy::Resume, ..bed.spec() }, supervision).wait();
    bed.assert_copied(&report);
    let asked = judge.asked();
    assert!(matches!(asked[..], [(Some(_), false, true, SIZE)]), "{asked:?}");
}

/// Both volumes by descriptor.
fn opened(bed: &TestBed, created: bool) -> Supervision {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(bed.path("destination"));
    let parent = Some(File::open(bed.folder.path()).unwrap().into());
    let destination = OpenedDestination { file: OwnedFd::from(file.unwrap()), created, parent };
    let source = Some(File::open(bed.path("source")).unwrap().into());
    Supervision { source, destination: Some(destination), ..Supervision::default() }
}

#[test]
fn a_copy_uses_the_given_descriptors_whatever_the_names_lead_to() {
    for verify in [Verify::No, Verify::Yes] {
        let bed = TestBed::new();
        let supervision = opened(&bed, true);
        for name in ["source", "destination"] {
            fs::rename(bed.path(name), bed.path(&format!("moved {name}"))).unwrap();
            fs::write(bed.path(name), b"of another owner").unwrap();
        }
        let report = bed.submit(CopySpec { verify, ..bed.spec() }, supervision).wait();
        assert_eq!(report.status, Status::Succeeded, "{report:?}");
        assert!(fs::read(bed.path("moved destination")).unwrap() == bytes(), "the copy differs");
        assert_eq!(fs::read(bed.path("destination")).unwrap(), b"of another owner");
    }
}

#[test]
fn a_given_destination_follows_the_rules_and_is_never_removed() {
    let bed = TestBed::new();
    fs::write(bed.path("destination"), b"as it was").unwrap();
    bed.refused(bed.spec(), opened(&bed, false), Code::Exists);
    let (_, refusing) = Judge::with(Err(Error::bad_request("not you")));
    let refusing = Supervision { admission: refusing.admission, ..opened(&bed, true) };
    bed.refused(bed.spec(), refusing, Code::BadRequest);
    assert_eq!(fs::read(bed.path("destination")).unwrap(), b"as it was");
    // The same file on both sides, by other names.
    let twice = Supervision { source: Some(File::open(bed.path("destination")).unwrap().into()), ..opened(&bed, true) };
    bed.refused(bed.spec(), twice, Code::SameVolume);
    // Its name is removed before the copy ends: the copied data would be lost.
    let supervision = opened(&bed, true);
    fs::remove_file(bed.path("destination")).unwrap();
    bed.refused(bed.spec(), supervision, Code::NotFound);
}

#[test]
fn descriptors_without_a_volume_or_a_path_are_refused() {
    let bed = TestBed::new();
    let folder = || Some(File::open(bed.folder.path()).unwrap().into());
    let given = Supervision { source: folder(), ..Supervision::default() };
    bed.refused(bed.spec(), given, Code::BadRequest);
    let export = blockhaul_engine::volume::Locator::parse("nbd://127.0.0.1:1/x").unwrap();
    let spec = CopySpec { source: export, ..bed.spec() };
    let report = bed.refused(spec, opened(&bed, true), Code::BadRequest);
    assert!(report.error.unwrap().message.contains("no descriptor"));
}

#[test]
fn a_copy_by_descriptors_is_resumed_by_its_journal() {
    let bed = TestBed::new();
    let durable = bed.half_copied();
    let spec = CopySpec { resume_policy: ResumePolicy::Resume, ..bed.spec() };
    let report = bed.submit(spec, opened(&bed, false)).wait();
    bed.assert_copied(&report);
    assert_eq!(report.bytes.resumed, durable.bytes());
}

#[test]
fn claimed_ranges_are_not_copied_again() {
    for verify in [Verify::No, Verify::Yes] {
        let bed = TestBed::new();
        let durable = bed.half_copied();
        // What is not durable may be anything.
        let destination = File::options().write(true).open(bed.path("destination")).unwrap();
        durable.gaps(ByteRange::new(0, SIZE)).for_each(|gap| destination.write_all_at(b"rest", gap.start()).unwrap());
        let spec = CopySpec { verify, ..bed.taken_over() };
        let report = bed.submit(spec, claiming(&durable)).wait();
        bed.assert_copied(&report);
        assert_eq!((report.bytes.resumed, report.bytes.written), (durable.bytes(), SIZE - durable.bytes()));
        let reason = report.digest_reason.unwrap_or_default();
        assert!(report.digest.is_some() == (verify == Verify::Yes), "{reason}");
        assert!(verify == Verify::Yes || reason.contains("by a run elsewhere"), "{reason}");
    }
}

#[test]
fn a_verification_reads_claimed_ranges() {
    let bed = TestBed::new();
    let durable = bed.half_copied();
    let first = durable.iter().next().unwrap();
    let destination = File::options().write(true).open(bed.path("destination")).unwrap();
    // Between the ends, where no sample is read.
    destination.write_all_at(b"\0", first.start() + MIB + 100).unwrap();
    let spec = CopySpec { verify: Verify::Yes, ..bed.taken_over() };
    let error = bed.refused(spec.clone(), claiming(&durable), Code::VerifyMismatch).error.unwrap();
    assert_eq!(error.offset, Some(first.start() + MIB), "{error:?}");
    destination.write_all_at(b"\0", first.start() + 100).unwrap();
    fs::remove_file(bed.path("journal of another host")).unwrap();
    bed.refused(spec, claiming(&durable), Code::CheckpointMismatch);
}

#[test]
fn claims_are_trimmed_to_leaves_and_added_to_the_journals_ranges() {
    let bed = TestBed::new();
    let durable = bed.half_copied();
    let last = durable.iter().last().unwrap().end();
    // The copy of the rest is made by hand; of its ends too little is claimed for a whole leaf.
    let destination = File::options().write(true).open(bed.path("destination")).unwrap();
    let (start, end) = (last + MIB, SIZE - MIB);
    destination.write_all_at(&bytes()[start as usize..end as usize], start).unwrap();
    destination.sync_all().unwrap();
    let claims = RangeSet::from_iter([ByteRange::new(start + 1, end - 1)]);
    let spec = CopySpec { resume_policy: ResumePolicy::Resume, overwrite: Overwrite::Yes, ..bed.spec() };
    let report = bed.submit(spec, claiming(&claims)).wait();
    bed.assert_copied(&report);
    assert_eq!(report.bytes.resumed, durable.bytes() + (end - start) - 2 * (64 << 10));
}

#[test]
fn claims_that_do_not_fit_or_without_resume_are_refused() {
    let bed = TestBed::new();
    let claims = RangeSet::from_iter([ByteRange::new(0, 4 * MIB)]);
    let error = bed.refused(bed.taken_over(), claiming(&claims), Code::CheckpointMismatch).error.unwrap();
    assert!(error.message.contains("missing") && !bed.path("destination").exists(), "{error:?}");
    bed.refused(bed.spec(), claiming(&claims), Code::BadRequest);
    let created = Supervision { durable: Some(claims.clone()), ..opened(&bed, true) };
    bed.refused(bed.taken_over(), created, Code::CheckpointMismatch);
    fs::write(bed.path("destination"), vec![7; 4 * MIB as usize - 1]).unwrap();
    let error = bed.refused(bed.taken_over(), claiming(&claims), Code::CheckpointMismatch).error.unwrap();
    assert!(error.message.contains("4194303 bytes"), "{error:?}");
    assert_eq!(fs::metadata(bed.path("destination")).unwrap().len(), 4 * MIB - 1);
    // No claims are none.
    bed.assert_copied(&bed.submit(bed.taken_over(), claiming(&RangeSet::new())).wait());
}

#[test]
fn a_job_without_servers_ignores_a_cut() {
    let bed = TestBed::new();
    let job = bed.submit(bed.spec(), Supervision::default());
    job.revoke_connections();
    let report = job.wait();
    job.revoke_connections();
    bed.assert_copied(&report);
}
