//! Runs one copy through all its attempts: the steps of the job's thread, in their order, without a thread.
//!
//! ```text
//! Idle -> Copying -> (Checking) -> Done
//!   ^--------'------------'  failed, cancelled, crashed; Stuck until the machine restarts if not quiesced
//! ```

use super::checks;
use super::faults::Faults;
use super::journal::SimRecorder;
use super::scenario::{Plan, rate};
use super::volume::SimVolume;
use super::world::{SharedWorld, TaskWorld};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::RangeSet;
use crate::job::StopReason;
use crate::job::pass_controller::{PassController, TurnOutcome, WorkerInboxes};
use crate::job::prepared_pass::{ComparedVolumes, CopyInputs, PreparedPass};
use crate::job::recorder::Recorder;
use crate::job::report_builder::{final_status as verdict, outcome};
use crate::job::segments::Expectation;
use crate::journal::{Header, JournalReader};
use crate::limits::BURST;
use crate::pass::control::JobControl;
use crate::pass::state::PassState;
use crate::progress::{Progress, Status};
use crate::ring::{FileId, Instant};
use crate::spec::{CheckpointLocation, DigestKind, Durability, Sparse, Verify};
use crate::volume::route::{Cache, IoMode, Offload, Route, SubmitMode};
use crate::volume::{KnownZero, Volume, VolumeKind, refuse_other};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Attempts after which a job has only faults that the engine heals.
const ROUGH_ATTEMPTS: u32 = 3;

/// A running pass.
#[derive(Debug)]
struct Running {
    controller: PassController<SimRecorder>,
    pass: Arc<PassState>,
    volumes: [Arc<dyn Volume>; 2],
}

#[derive(Debug)]
enum JobPhase {
    Idle,
    Copying(Running),
    /// The verification, with the recorder and root of the copy.
    Checking(Running, Option<[u8; 32]>),
    /// The attempt has ended with operations in flight.
    Stuck,
    Done,
}

/// A rate limit, since when it holds, and the bytes read by then.
#[derive(Debug)]
struct RateCheck {
    rate: u64,
    since: Instant,
    read: u64,
    /// Bytes that were admitted before.
    slack: u64,
}

/// One copy with all its attempts.
#[derive(Debug)]
pub(crate) struct SimJob {
    index: usize,
    plan: Plan,
    world: SharedWorld,
    phase: JobPhase,
    control: Arc<JobControl>,
    /// Time of the next turn.
    pub wake: Instant,
    /// Bytes of all slots.
    slots_bytes: u64,
    attempts: u32,
    /// Whether the next attempt discards the journal.
    restart: bool,
    corrupted: Option<u64>,
    /// Whether the journal of the earlier attempt has no records.
    earlier_is_empty: bool,
    fresh_starts: u32,
    reason: Option<StopReason>,
    seen: Option<Progress>,
    limit: Option<RateCheck>,
    /// Number of leaves read when the job was paused or cancelled; no more may be read.
    frozen: Option<usize>,
    pub resume_at: Option<Instant>,
    /// Durable ranges of a killed run whose journal is gone.
    claims: RangeSet,
    /// Durable ranges of the current run.
    durable: RangeSet,
}

impl SimJob {
    pub(crate) fn new(world: &SharedWorld, index: usize, plan: Plan, slots_bytes: u64) -> Self {
        Self {
            index,
            plan,
            world: world.clone(),
            phase: JobPhase::Idle,
            control: Arc::new(JobControl::new(None)),
            wake: Duration::ZERO,
            slots_bytes,
            attempts: 0,
            restart: false,
            corrupted: None,
            earlier_is_empty: false,
            fresh_starts: 0,
            reason: None,
            seen: None,
            limit: None,
            frozen: None,
            resume_at: None,
            claims: RangeSet::new(),
            durable: RangeSet::new(),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.phase, JobPhase::Done)
    }

    pub(crate) fn is_stuck(&self) -> bool {
        matches!(self.phase, JobPhase::Stuck)
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, JobPhase::Copying(_) | JobPhase::Checking(..))
    }

    /// Runs one turn of the job's thread.
    pub(crate) fn turn(&mut self, workers: &WorkerInboxes) {
        let now = self.world.lock().now;
        if self.resume_at.is_some_and(|at| now >= at) {
            self.set_paused(None);
        }
        if self.site(|site| site.sim_gate.as_mut().is_some_and(|sim_gate| sim_gate.look(now))) {
            self.frozen = None;
        }
        match &mut self.phase {
            JobPhase::Idle => self.start(workers),
            JobPhase::Copying(running) | JobPhase::Checking(running, _) => match running.controller.turn(now) {
                TurnOutcome::Wait(limit) => self.wake = now + limit,
                TurnOutcome::Over => self.end_round(workers),
            },
            JobPhase::Stuck | JobPhase::Done => self.wake = Duration::MAX,
        }
    }

    fn site<T>(&self, look: impl FnOnce(&mut TaskWorld) -> T) -> T {
        look(&mut self.world.lock().sites[self.index])
    }

    fn is_gate_closed(&self) -> bool {
        self.site(|site| site.sim_gate.as_ref().is_some_and(|sim_gate| !sim_gate.gate.is_open()))
    }

    fn start(&mut self, workers: &WorkerInboxes) {
        if let Some(opens_at) = self.site(|site| site.sim_gate.as_ref().and_then(|sim_gate| sim_gate.opens_at)) {
            self.wake = opens_at;
            return;
        }
        let gate = self.site(|site| site.sim_gate.as_ref().map(|sim_gate| Arc::clone(&sim_gate.gate)));
        self.control = Arc::new(JobControl::gated(self.plan.spec.limit_bytes_per_second, gate));
        self.control.set_window(self.plan.window.unwrap_or(u64::MAX));
        (self.reason, self.seen, self.frozen, self.resume_at) = (None, None, None, None);
        self.note_limit(self.plan.spec.limit_bytes_per_second, 0);
        let window = self.plan.window.unwrap_or(self.slots_bytes);
        self.world.lock().sites[self.index].audit.start(self.plan.leaf, window);
        match self.prepare() {
            Ok((start, recorder)) => {
                let volumes = [Arc::clone(&start.source), Arc::clone(&start.destination)];
                let prepared_pass =
                    PreparedPass::copy(&self.plan.spec, start, workers.len(), self.slots_bytes, &self.control);
                self.phase = JobPhase::Copying(self.lead(prepared_pass, workers, recorder, volumes));
            }
            Err(error) => self.give_up(Err(error), true),
        }
    }

    fn lead(
        &mut self,
        prepared_pass: PreparedPass,
        workers: &WorkerInboxes,
        recorder: SimRecorder,
        volumes: [Arc<dyn Volume>; 2],
    ) -> Running {
        let pass = Arc::clone(&prepared_pass.pass);
        let now = self.world.lock().now;
        self.wake = now;
        Running { controller: prepared_pass.into_controller(workers, recorder, now), pass, volumes }
    }

    /// Prepares an attempt as `job/start.rs` does, on simulated volumes.
    fn prepare(&mut self) -> Result<(CopyInputs, SimRecorder)> {
        let volumes = [0, 1].map(|side| SimVolume::open(&self.world, self.index as i32 * 2 + side));
        let [source, destination] = &volumes;
        let earlier = self.earlier();
        self.earlier_is_empty = earlier.as_ref().is_some_and(|reader| reader.durable().is_empty());
        if let Some(reader) = &earlier {
            refuse_other(reader.header(), reader.durable(), source.identity(), destination.identity())?;
        }
        let header = self.header(&volumes);
        let claims = self.take_claims();
        let recorder = match &earlier {
            Some(reader) => SimRecorder::resume(&self.world, self.index, reader),
            None if claims.is_empty() => {
                self.forget();
                SimRecorder::create(&self.world, self.index, &header)
            }
            None => {
                let mut recorder = SimRecorder::create(&self.world, self.index, &header);
                recorder.record_claims(&claims);
                recorder
            }
        };
        let mut known_zero = KnownZero::Nothing;
        if destination.kind() == VolumeKind::File && earlier.is_none() && claims.is_empty() {
            destination.resize(0)?;
            known_zero = KnownZero::Everything;
        }
        destination.resize(source.size_bytes())?;
        let digest = earlier.as_ref().map_or(self.plan.spec.digest, |reader| reader.header().digest);
        let durable = earlier.map_or(claims, |reader| reader.durable().clone());
        let (route, tail) = (self.route(&volumes), self.tail(&**destination));
        let [source, destination] = volumes;
        let leaf_bytes = self.plan.leaf;
        Ok((CopyInputs { source, destination, route, leaf_bytes, digest, durable, known_zero, tail }, recorder))
    }

    /// Returns the claimed ranges to resume from without a journal, unless the source has changed since.
    fn take_claims(&mut self) -> RangeSet {
        let claims = std::mem::take(&mut self.claims);
        let restart = self.restart || claims.is_empty();
        let holds = self.site(|site| {
            let holds = !restart && site.is_source_unchanged();
            site.has_claims |= holds;
            holds
        });
        if holds { claims } else { RangeSet::new() }
    }

    /// Notes the durable ranges before a crash, as a supervisor knows them.
    pub(crate) fn note_durable(&mut self) {
        let is_running = self.is_running() && self.site(|site| site.sim_gate.is_some());
        self.durable = if is_running { self.control.durable() } else { RangeSet::new() };
    }

    /// Removes the journal after a crash: the next run has only the claimed ranges.
    pub(crate) fn take_over(&mut self) {
        let durable = std::mem::take(&mut self.durable);
        if durable.is_empty() || self.is_done() {
            return;
        }
        self.world.lock().note(format_args!("job {} is taken over: {durable:?}", self.index));
        self.site(|site| site.journal = super::journal::SimJournalFile::default());
        self.claims = durable;
    }

    /// Closes the gate, now or in the middle of a worker's next turn.
    pub(crate) fn shut(&mut self, time: Duration, amidst: bool) {
        let now = self.world.lock().now;
        self.site(|site| site.sim_gate.iter_mut().for_each(|sim_gate| sim_gate.shut(now, time, amidst)));
    }

    /// Starts over: the model takes the current content of the source.
    fn forget(&mut self) {
        let world = &mut *self.world.lock();
        let site = &mut world.sites[self.index];
        (site.expected, site.expected_changes) = (site.disks[0].cached.clone(), site.disks[0].changes);
        site.has_claims = false;
        self.fresh_starts += 1;
        (self.restart, self.corrupted) = (false, None);
        world.note(format_args!("job {} starts afresh", self.index));
    }

    /// Returns the journal of an earlier attempt, unless it is discarded.
    fn earlier(&self) -> Option<JournalReader> {
        let journal = &self.world.lock().sites[self.index].journal;
        let wanted = journal.is_there() && !self.restart && self.plan.spec.checkpoint != CheckpointLocation::None;
        wanted.then(|| JournalReader::from_bytes(journal.bytes()).expect("a checkpoint can be read after any crash"))
    }

    fn header(&self, [source, destination]: &[Arc<dyn Volume>; 2]) -> Header {
        Header {
            source: source.identity().clone(),
            destination: destination.identity().clone(),
            size_bytes: source.size_bytes(),
            leaf_bytes: self.plan.leaf,
            digest: self.plan.spec.digest,
            started_ns: 0,
        }
    }

    fn route(&self, volumes: &[Arc<dyn Volume>; 2]) -> Route {
        let io_mode = |volume: &Arc<dyn Volume>| IoMode {
            submit: SubmitMode::Ring,
            cache: if volume.align_bytes() > 1 { Cache::Direct } else { Cache::Buffered },
        };
        let clones = self.world.lock().sites[self.index].disks[1].abilities.clones;
        Route {
            source: io_mode(&volumes[0]),
            destination: io_mode(&volumes[1]),
            offload: clones.then_some(Offload::Reflink),
        }
    }

    fn tail(&self, destination: &dyn Volume) -> Vec<u8> {
        let (size, align) = (self.plan.size, u64::from(destination.align_bytes()));
        match destination.kind() {
            VolumeKind::File => Vec::new(),
            VolumeKind::Device | VolumeKind::Export => {
                self.world.lock().sites[self.index].disks[1].cached.copy(size, size.next_multiple_of(align))
            }
        }
    }

    fn end_round(&mut self, workers: &WorkerInboxes) {
        let (running, checked) = match std::mem::replace(&mut self.phase, JobPhase::Idle) {
            JobPhase::Copying(running) => (running, None),
            JobPhase::Checking(running, root) => (running, Some(root)),
            other => panic!("no pass ends in {other:?}"),
        };
        let Running { controller, pass, volumes } = running;
        let quiesced = controller.is_quiesced();
        let outcome = outcome(&pass, &controller);
        {
            let world = self.world.lock();
            let audit = &world.sites[self.index].audit;
            assert!(!quiesced || audit.in_flight == 0, "{} operations are in flight at the end", audit.in_flight);
            assert!(quiesced || audit.hung, "not quiesced, though every operation was answered in time");
            let stopped = self.reason.is_some() || pass.failure().is_some();
            assert!(quiesced || stopped, "not quiesced without a stop");
        }
        let recorder = controller.into_recorder();
        match (outcome, checked) {
            (Err(error), _) => self.give_up(Err(error), quiesced),
            (Ok(()), None) => {
                let root =
                    recorder.reader().and_then(|reader| reader.root()).expect("a journal just written can be read");
                match self.plan.spec.verify {
                    Verify::Yes => self.check(workers, &recorder, volumes, root),
                    Verify::No => self.succeed(root),
                }
            }
            (Ok(()), Some(copied)) => self.end_check(&pass, &recorder, copied),
        }
    }

    /// Starts the verification.
    fn check(
        &mut self,
        workers: &WorkerInboxes,
        recorder: &SimRecorder,
        volumes: [Arc<dyn Volume>; 2],
        root: Option<[u8; 32]>,
    ) {
        self.corrupt();
        volumes[1].evict().expect("simulated caches can be dropped");
        let journal = Box::new(recorder.reader().expect("a journal just written can be read"));
        let expectation = Expectation::Journal(journal, Some(Arc::clone(&volumes[0])));
        let Plan { size, leaf, .. } = self.plan;
        let pair = ComparedVolumes { reference: &volumes[0], target: &volumes[1], size, leaf, sparse: Sparse::Auto };
        let prepared_pass = PreparedPass::compare(&pair, expectation, workers.len(), &self.control);
        let header = Header { digest: DigestKind::Xxh3, ..self.header(&volumes) };
        self.world.lock().sites[self.index].audit.copying = false;
        let scratch = SimRecorder::scratch(&self.world, &header);
        self.phase = JobPhase::Checking(self.lead(prepared_pass, workers, scratch, volumes), root);
    }

    /// Corrupts a byte between copy and verification, if that is planned.
    fn corrupt(&mut self) {
        if !std::mem::take(&mut self.plan.corrupt) || self.plan.size == 0 {
            return;
        }
        let world = &mut *self.world.lock();
        let offset = world.rng.u64(0..self.plan.size);
        let disk = &mut world.sites[self.index].disks[1];
        if disk.is_data(offset) {
            disk.corrupt(offset);
            self.corrupted = Some(offset);
            world.note(format_args!("job {}: byte {offset} is corrupted", self.index));
        }
    }

    fn end_check(&mut self, pass: &PassState, recorder: &SimRecorder, copied: Option<[u8; 32]>) {
        let differences = pass.differences();
        if let Some(offset) = self.corrupted {
            let found = differences.iter().any(|found| found.offset <= offset && offset < found.offset + found.length);
            assert!(found, "byte {offset} was corrupted, {differences:?} was found");
        }
        match differences.first() {
            None => {
                let root =
                    recorder.reader().and_then(|reader| reader.root()).expect("a journal just written can be read");
                assert!(root.is_some(), "a comparison digests everything");
                self.succeed(root.or(copied));
            }
            Some(difference) => {
                self.world.lock().note(format_args!("job {}: {difference:?}", self.index));
                let message = "it does not hold what was written to it";
                self.give_up(
                    Err(Error::new(Code::VerifyMismatch, Side::Destination, Operation::Verify, message)),
                    true,
                );
            }
        }
    }

    fn succeed(&mut self, root: Option<[u8; 32]>) {
        let status = verdict(Ok(()), true, true, self.control.cancelled()).0;
        assert_eq!(status, Status::Succeeded, "completion beats interruption");
        let world = &mut *self.world.lock();
        world.note(format_args!("job {} succeeds", self.index));
        let site = &mut world.sites[self.index];
        checks::success(site, &self.plan.spec, &self.control, self.plan.size, root);
        site.journal = super::journal::SimJournalFile::default();
        self.phase = JobPhase::Done;
    }

    /// Ends an attempt without success.
    fn give_up(&mut self, outcome: Result<()>, quiesced: bool) {
        let (status, error) = verdict(outcome, quiesced, true, self.control.cancelled());
        let error = error.expect("what did not succeed has an error");
        self.blame(status, &error, quiesced);
        self.attempts += 1;
        self.restart |= matches!(error.code, Code::VerifyMismatch | Code::SourceChanged | Code::CheckpointMismatch);
        self.restart |= self.corrupted.is_some();
        let world = &mut *self.world.lock();
        world.note(format_args!("job {}: {status:?}, {error}", self.index));
        let site = &mut world.sites[self.index];
        if self.attempts >= ROUGH_ATTEMPTS {
            site.faults = Faults { short: site.faults.short, again: site.faults.again, ..Faults::default() };
        }
        if self.plan.spec.checkpoint == CheckpointLocation::None {
            site.journal = super::journal::SimJournalFile::default();
        }
        self.phase = if quiesced { JobPhase::Idle } else { JobPhase::Stuck };
        self.wake = world.now + Duration::from_micros(world.rng.u64(0..10_000));
    }

    /// Checks that a failure has a cause and reports the first one. The reason of a stop wins over all causes except
    /// wrong data.
    fn blame(&self, status: Status, error: &Error, quiesced: bool) {
        assert_eq!(self.control.cancelled(), self.reason, "the first reason is kept");
        let is_about_data = matches!(error.code, Code::VerifyMismatch | Code::SourceChanged);
        if let (Some(reason), true, false) = (self.reason, quiesced, is_about_data) {
            let expected = if reason == StopReason::UserCancel { Status::Cancelled } else { Status::Interrupted };
            assert_eq!((status, error.code.as_str()), (expected, reason.as_str()), "the reason of a stop wins");
            return;
        }
        assert_eq!(status, Status::Failed);
        let world = self.world.lock();
        let site = &world.sites[self.index];
        let moved = matches!(error.operation, Operation::Read | Operation::Write | Operation::Zero);
        if let (Some(errno), true) = (error.errno, moved) {
            assert_eq!(
                site.audit.errors.first().map(|&first| first as i32),
                Some(errno),
                "the first error is kept: {error}"
            );
        }
        let excused = match error.code {
            Code::SourceChanged => site.disks[0].changes > 0 || !site.audit.troubles.is_empty(),
            Code::VerifyMismatch => self.corrupted.is_some() || site.disks[0].changes > 0,
            // After two fresh starts before the first flush, a power cut may restore a size that neither has seen last.
            Code::CheckpointMismatch => self.earlier_is_empty && self.fresh_starts > 1,
            Code::Timeout => !quiesced,
            _ => !site.audit.troubles.is_empty(),
        };
        assert!(excused, "failed without a cause: {error}");
    }

    /// Ends the process: only the content of the disks remains.
    pub(crate) fn crash(&mut self, power: bool) {
        if self.is_done() {
            return;
        }
        self.attempts += 1;
        let was_copying = matches!(self.phase, JobPhase::Copying(_));
        let was_running = self.is_running();
        self.phase = JobPhase::Idle;
        let mut world = self.world.lock();
        let now = world.now;
        self.wake = now + Duration::from_micros(world.rng.u64(0..10_000));
        let site = &mut world.sites[self.index];
        if self.plan.spec.checkpoint == CheckpointLocation::None {
            site.journal = super::journal::SimJournalFile::default();
        }
        if self.attempts >= ROUGH_ATTEMPTS {
            site.faults = Faults { short: site.faults.short, again: site.faults.again, ..Faults::default() };
        }
        drop(world);
        self.restart |= self.corrupted.is_some();
        let Some(reader) = self.earlier() else { return };
        let world = self.world.lock();
        let site = &world.sites[self.index];
        checks::beyond(site, self.plan.size);
        if power {
            checks::durable(site, &reader);
        }
        let counted = self.control.counters.durable.load(Relaxed);
        assert!(!was_running || self.control.durable().bytes() == counted, "durable ranges are not what is counted");
        assert!(!was_running || counted <= reader.durable().bytes(), "{counted} bytes were called durable");
        if was_copying {
            checks::redo(site, &self.plan.spec, &reader, self.slots_bytes);
        }
    }

    /// Checks the invariants after every step.
    pub(crate) fn inspect(&mut self) {
        if !self.is_running() {
            return;
        }
        let now = self.control.progress();
        if let Some(before) = &self.seen {
            checks::progress(before, &now);
        }
        self.seen = Some(now);
        let world = self.world.lock();
        let touched = world.sites[self.index].audit.touched.len();
        drop(world);
        if self.control.is_paused() || self.control.cancelled().is_some() || self.is_gate_closed() {
            assert_eq!(*self.frozen.get_or_insert(touched), touched, "a block was read after a pause or a cancel");
        }
        if let Some(RateCheck { rate, since, read, slack }) = self.limit {
            let allowed = (self.world.lock().now - since + BURST).as_secs_f64() * rate as f64
                + (slack + u64::from(self.plan.leaf)) as f64;
            let moved = self.control.counters.read.load(Relaxed) - read;
            assert!(moved as f64 <= allowed, "{moved} bytes were read, {allowed} are allowed by the limit");
        }
    }

    /// Cancels the copy, at random twice.
    pub(crate) fn cancel(&mut self) {
        if !self.is_running() {
            return;
        }
        let mut world = self.world.lock();
        for _ in 0..world.rng.usize(1..=2) {
            let reason = StopReason::ALL[world.rng.usize(0..StopReason::ALL.len())];
            world.note(format_args!("job {} is cancelled: {reason}", self.index));
            self.control.cancel(reason);
            self.reason.get_or_insert(reason);
        }
    }

    /// Pauses the copy until a time, or resumes it.
    pub(crate) fn set_paused(&mut self, until: Option<Instant>) {
        self.control.set_paused(until.is_some());
        self.resume_at = until;
        self.frozen = None;
    }

    /// Changes or removes the rate limit.
    pub(crate) fn set_limit(&mut self) {
        let rate = {
            let rng = &mut self.world.lock().rng;
            rng.bool().then(|| rate(rng, self.plan.size))
        };
        self.control.rate_limiter.set(rate);
        self.note_limit(rate, self.slots_bytes);
    }

    fn note_limit(&mut self, rate: Option<u64>, slack: u64) {
        let since = self.world.lock().now;
        let read = self.control.counters.read.load(Relaxed);
        self.limit = rate.map(|rate| RateCheck { rate, since, read, slack });
    }

    /// Changes a byte of the source from outside.
    pub(crate) fn change_source(&mut self) {
        let world = &mut *self.world.lock();
        if self.plan.size > 0 && !self.is_done() {
            let offset = world.rng.u64(0..self.plan.size);
            world.note(format_args!("job {}: byte {offset} of the source changes", self.index));
            let site = &mut world.sites[self.index];
            site.disks[0].change(offset, self.plan.size);
            // After the last check of the source it is not read any more.
            site.expected_changes += i64::from(site.audit.looked_again && self.is_running());
        }
    }

    /// Kills and restarts the server of the destination.
    pub(crate) fn restart_server(&mut self) {
        // Without a flush at the end, a server may lose writes after the success.
        let is_over =
            self.plan.spec.durability == Durability::None && self.control.progress().written == self.plan.size;
        if self.is_running() && !is_over {
            self.world.restart(FileId(self.index as i32 * 2 + 1));
        }
    }

    /// Returns whether an operation will not be answered, and the job is not stopped yet.
    pub(crate) fn hangs(&self) -> bool {
        self.is_running() && self.reason.is_none() && self.world.lock().sites[self.index].audit.hung
    }
}
