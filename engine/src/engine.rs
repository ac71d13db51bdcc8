//! Runs the worker threads that serve every job of the process.
//!
//! One engine per process is enough, and intended. Its workers are pinned to cores, and its memory is fixed when it
//! starts (cores x slots x block). Any number of jobs share both, fairly by bytes.

use crate::buffer::Arena;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::job::engine_resources::EngineResources;
use crate::job::resolved_supervision::ResolvedSupervision;
use crate::job::{CheckReport, JobHandle, JobState, check, compare, copy};
use crate::journal::JournalService;
use crate::limits::{ARENA_BYTES_PER_CORE, BLOCK_BYTES_DIRECT, DRAIN_LIMIT, SLOTS_PER_CORE_MAX};
use crate::pass::control::JobControl;
use crate::pass::rate_limiter::RateLimiter;
use crate::progress::Report;
use crate::ring::threads::ThreadRing;
use crate::ring::uring::{UringConfig, UringRing};
use crate::spec::{BlockSize, CopySpec, VerifySpec};
use crate::supervision::{OpenedVolumes, Supervision};
use crate::sync::lock;
use crate::worker::{CONNECTION_OPERATIONS, EXTRA_OPERATIONS, Worker, WorkerInbox};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Threads of the pool that stands in for a ring, per core: enough to keep a device busy with 1 MiB blocks.
const POOL_THREADS_PER_CORE: usize = 4;

/// Ring of the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingBackend {
    /// io_uring, or threads where the host denies it (logged, and named in the report's `path`).
    #[default]
    Auto,
    /// io_uring, or starting fails with `EUnsupported`.
    Uring,
    /// A small pool of pread/pwrite threads per core.
    Threads,
}

/// Settings of an engine. `None` is chosen for the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineConfig {
    /// Worker threads, 1 to the number of usable CPUs, each pinned to one. Default: all of them.
    pub cores: Option<usize>,
    /// Bytes of a slot: the largest block a job may use. Default 1 MiB.
    pub block_size: Option<BlockSize>,
    /// Slots per core, 1 to 256: the queue depth. Default: 8 MiB worth of blocks, at least 4, at most 64. More raises
    /// the memory, the latency of other users and of a cancel, and past the device's knee nothing else.
    pub depth: Option<usize>,
    /// Upper bound for all buffers together, in bytes: lowers the depth, and leaves fewer spare slots. Default: no
    /// bound of its own, and as many spare slots as usual ones, which take memory only in place of those whose device
    /// does not answer.
    pub memory_bytes: Option<u64>,
    /// Backend of the ring of each worker.
    pub backend: RingBackend,
}

/// Running workers. Dropping it waits for the reports of its jobs (cancel them first, or resume the paused ones), then
/// stops the workers. It waits for nothing that is in flight on a device that does not answer: the threads that do are
/// left behind, with what they use.
#[derive(Debug)]
pub struct Engine {
    resources: Arc<EngineResources>,
    /// Jobs with their threads, the ended ones until the next submission.
    jobs: Mutex<Vec<(Arc<JobState>, JoinHandle<()>)>>,
    workers: Vec<WorkerThread>,
    /// Limit of all copies together.
    copy_limit: Arc<RateLimiter>,
}

/// A worker's thread, and how it says that it ends and whether everything was answered.
#[derive(Debug)]
struct WorkerThread {
    thread: JoinHandle<()>,
    ended: Mutex<Receiver<bool>>,
}

/// An [`EngineConfig`] that fits the host.
#[derive(Clone, Copy, Debug)]
struct Layout {
    block_bytes: u32,
    slots: SlotCounts,
    backend: RingBackend,
}

/// Memory layout of each core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotCounts {
    /// The queue depth.
    usual: usize,
    /// Spare slots, in place of slots whose device does not answer. They take no memory until then.
    spare: usize,
}

impl Engine {
    /// Starts the workers.
    ///
    /// # Errors
    /// `EBadRequest` for a configuration outside its ranges; `EUnsupported` or `EOverloaded` if the host denies rings,
    /// threads or memory, with the remedy.
    pub fn start(config: EngineConfig) -> Result<Self> {
        let EngineConfig { cores, block_size, depth, memory_bytes, backend } = config;
        let cpus = usable_cpus();
        let cores = cores.unwrap_or(cpus.len());
        if cores == 0 || cores > cpus.len() {
            return Err(Error::bad_request(format!(
                "{cores} cores asked for, 1 to {} can be used by this process",
                cpus.len()
            )));
        }
        let block_bytes = block_size.map_or(BLOCK_BYTES_DIRECT, BlockSize::bytes);
        let layout = Layout { block_bytes, slots: slots(block_bytes, depth, memory_bytes, cores)?, backend };
        let syscalls: Arc<[AtomicU64]> = (0..cores).map(|_| AtomicU64::new(0)).collect();
        let inboxes: Arc<[Arc<WorkerInbox>]> = (0..cores).map(|_| Arc::default()).collect();
        let mut workers = Vec::new();
        let mut threads = false;
        let (ready, started) = channel();
        for (index, (&cpu, inbox)) in cpus.iter().zip(inboxes.iter()).enumerate() {
            let (inbox, syscalls, ready) = (Arc::clone(inbox), Arc::clone(&syscalls), ready.clone());
            let (tell, ended) = channel();
            // Sending fails only if the engine is gone.
            let body = move || _ = tell.send(serve(cpu, layout, inbox, &syscalls[index], &ready));
            let spawned = std::thread::Builder::new().name(format!("worker-{index}")).spawn(body);
            let spawned = spawned.inspect_err(|_| inboxes.iter().for_each(|inbox| inbox.stop()));
            let failed = |error| Error::io(Side::Engine, Operation::Start, &error, "start a worker thread");
            workers.push(WorkerThread { thread: spawned.map_err(failed)?, ended: Mutex::new(ended) });
        }
        drop(ready);
        let mut failed = None;
        for outcome in started.iter().take(cores) {
            match outcome {
                Ok(pool) => threads |= pool,
                Err(error) => failed = Some(error),
            }
        }
        let journals = match failed {
            None => JournalService::start(),
            Some(error) => Err(error),
        };
        let journals = journals.inspect_err(|_| inboxes.iter().for_each(|inbox| inbox.stop()))?;
        let window_bytes = u64::from(block_bytes) * (layout.slots.usual * cores) as u64;
        let resources = EngineResources { workers: inboxes, journals, block_bytes, window_bytes, threads, syscalls };
        let copy_limit = Arc::new(RateLimiter::new(None));
        Ok(Self { resources: Arc::new(resources), jobs: Mutex::default(), workers, copy_limit })
    }

    /// Starts a copy. Everything that can go wrong with it is in its report.
    #[must_use]
    pub fn submit(&self, spec: CopySpec) -> JobHandle {
        self.submit_supervised(spec, Supervision::default())
    }

    /// Starts a copy for a supervisor that holds its right to write, or has opened its volumes. Everything that can go
    /// wrong with it is in its report.
    #[must_use]
    pub fn submit_supervised(&self, spec: CopySpec, supervision: Supervision) -> JobHandle {
        let control = JobControl::gated(spec.limit_bytes_per_second, supervision.gate.clone());
        let control = control.sharing(Arc::clone(&self.copy_limit));
        self.spawn(control, move |resources, job| copy::copy(&spec, supervision, resources, job))
    }

    /// Limits all copies of this engine together; `None` lifts the limit. Holds from the next block of each, besides the
    /// limit of its own. 0 is treated as 1 byte per second.
    pub fn set_copy_limit(&self, bytes_per_second: Option<u64>) {
        self.copy_limit.set(bytes_per_second);
    }

    /// Checks a copy without making it: applies every refusal of its start, with the same errors in the same order, and
    /// changes nothing. Blocks: for the destination's lock up to the spec's `lock_wait`, for servers up to their
    /// request timeout, and for the extents of the source.
    ///
    /// # Errors
    /// The refusals of a copy.
    pub fn check(&self, spec: &CopySpec) -> Result<CheckReport> {
        self.check_supervised(spec, Supervision::default())
    }

    /// As [`Engine::check`], of a copy that a supervisor bounds. Nobody is asked to admit it.
    ///
    /// # Errors
    /// The refusals of a copy.
    pub fn check_supervised(&self, spec: &CopySpec, supervision: Supervision) -> Result<CheckReport> {
        let supervision = ResolvedSupervision::new(supervision, &Arc::default());
        check::check(spec, &supervision, &self.resources, &|| false)
    }

    /// Starts a comparison. Everything that can go wrong with it is in its report.
    #[must_use]
    pub fn verify(&self, spec: VerifySpec) -> JobHandle {
        self.verify_opened(spec, OpenedVolumes::default())
    }

    /// As [`Engine::verify`], of volumes that the caller has opened: their paths are not looked up.
    #[must_use]
    pub fn verify_opened(&self, spec: VerifySpec, opened: OpenedVolumes) -> JobHandle {
        self.spawn(JobControl::new(spec.limit_bytes_per_second), move |resources, job| {
            compare::verify(&spec, opened, resources, job)
        })
    }

    /// The number of workers.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.resources.workers.len()
    }

    /// Starts the job on a thread of its own.
    fn spawn(
        &self,
        control: JobControl,
        body: impl FnOnce(&EngineResources, &JobState) -> Report + Send + 'static,
    ) -> JobHandle {
        let job = Arc::new(JobState::new(Arc::new(control), self.cores()));
        let handle = JobHandle::new(Arc::clone(&job));
        let (resources, shared) = (Arc::clone(&self.resources), Arc::clone(&job));
        // What the job logs belongs to its caller's span.
        let span = tracing::Span::current();
        let spawned = std::thread::Builder::new().name("job".to_owned()).spawn(move || {
            let _in = span.entered();
            let end = EndOfJob { job: &shared, cores: resources.workers.len() };
            let report = body(&resources, &shared);
            drop(resources);
            end.with(report);
            shared.wait_for_unanswered();
        });
        match spawned {
            Ok(thread) => {
                let mut jobs = lock(&self.jobs);
                jobs.retain(|(_, thread)| !thread.is_finished());
                jobs.push((job, thread));
            }
            Err(error) => {
                let error = Error::io(Side::Engine, Operation::Start, &error, "start a thread for the job")
                    .with_code(Code::Overloaded);
                job.end(Report::not_started(error, self.cores()));
            }
        }
        handle
    }
}

/// Ends the job for its waiting callers, also if its thread panics where panics unwind.
struct EndOfJob<'a> {
    job: &'a JobState,
    cores: usize,
}

impl EndOfJob<'_> {
    fn with(self, report: Report) {
        self.job.end(report);
    }
}

impl Drop for EndOfJob<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error =
                Error::internal(Operation::Stop, "the job's thread panicked: its words are on stderr").maybe_applied();
            self.job.end(Report { quiesced: false, ..Report::not_started(error, self.cores) });
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Jobs first: between its two passes a job has nothing with the workers, and still needs them.
        for (job, thread) in lock(&self.jobs).drain(..) {
            if job.wait().quiesced {
                let _ = thread.join();
            }
        }
        self.resources.workers.iter().for_each(|inbox| inbox.stop());
        for WorkerThread { thread, ended } in self.workers.drain(..) {
            match lock(&ended).recv_timeout(DRAIN_LIMIT) {
                // A thread ends, for the kernel, when its operations are answered.
                Ok(false) | Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("worker left running: some of its operations were not answered");
                }
                // A worker that panicked has reported it; there is nothing left to wait for.
                Ok(true) | Err(RecvTimeoutError::Disconnected) => _ = thread.join(),
            }
        }
    }
}

/// A worker's thread, from its ring to its end. Says first whether the ring is the pool, or why there is none; in the
/// end, whether everything was answered.
fn serve(
    cpu: usize,
    layout: Layout,
    inbox: Arc<WorkerInbox>,
    syscalls: &AtomicU64,
    ready: &Sender<Result<bool>>,
) -> bool {
    pin(cpu);
    let refuse = |error| {
        // Sending fails only if the start of the engine has already failed.
        let _ = ready.send(Err(error));
        true
    };
    let SlotCounts { usual, spare } = layout.slots;
    let block_bytes = layout.block_bytes as usize;
    let (arena, aside) = match (Arena::new(block_bytes * usual), Arena::new(block_bytes * spare)) {
        (Ok(arena), Ok(aside)) => (Arc::new(arena), Arc::new(aside)),
        (Err(error), _) | (_, Err(error)) => return refuse(error),
    };
    let spares = aside.split(block_bytes, spare);
    let operations = usual + spare + 2 * EXTRA_OPERATIONS + CONNECTION_OPERATIONS;
    if layout.backend != RingBackend::Threads {
        match UringRing::new(UringConfig { slots: operations, arena: Some(&arena) }) {
            Ok(ring) => {
                return ready.send(Ok(false)).is_err()
                    || Worker::new(ring, arena.split(block_bytes, usual), spares, inbox).run(syscalls);
            }
            Err(denied) if layout.backend == RingBackend::Uring => {
                let error =
                    Error::new(Code::Unsupported, Side::Engine, Operation::Start, format!("no io_uring: {denied}"));
                return refuse(error);
            }
            Err(denied) => tracing::warn!(%denied, "io_uring is not available: copying with threads"),
        }
    }
    match ThreadRing::new(POOL_THREADS_PER_CORE, operations) {
        Ok(ring) => {
            ready.send(Ok(true)).is_err()
                || Worker::new(ring, arena.split(block_bytes, usual), spares, inbox).run(syscalls)
        }
        Err(error) => refuse(Error::io(Side::Engine, Operation::Start, &error, "start a pool of I/O threads")),
    }
}

/// Keeps the thread, and the memory it touches first, on one core. Where that is not allowed it is only slower.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// The CPUs this process may run on.
fn usable_cpus() -> Vec<usize> {
    let cpus: Vec<usize> = sched_getaffinity(Pid::from_raw(0)).map_or_else(
        |_| Vec::new(),
        |set| (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect(),
    );
    if cpus.is_empty() { (0..std::thread::available_parallelism().map_or(1, usize::from)).collect() } else { cpus }
}

/// With a bound on memory the spare slots are within it: one at least, wherever there are two.
fn slots(block_bytes: u32, depth: Option<usize>, memory: Option<u64>, cores: usize) -> Result<SlotCounts> {
    let block = u64::from(block_bytes);
    if let Some(depth) = depth.filter(|depth| *depth == 0 || *depth > SLOTS_PER_CORE_MAX) {
        return Err(Error::bad_request(format!("depth {depth} is not between 1 and {SLOTS_PER_CORE_MAX}")));
    }
    let by_default = usize::try_from(ARENA_BYTES_PER_CORE / block).unwrap_or(SLOTS_PER_CORE_MAX).clamp(4, 64);
    let wanted = depth.unwrap_or(by_default);
    let Some(memory) = memory else { return Ok(SlotCounts { usual: wanted, spare: wanted }) };
    match usize::try_from(memory / (block * cores as u64)).unwrap_or(usize::MAX) {
        0 => Err(Error::bad_request(format!(
            "{memory} bytes of memory do not hold one block of {block} bytes for each of {cores} cores: lower --block-size or --cores"
        ))),
        fit => {
            let usual = wanted.min(fit.saturating_sub(1)).max(1);
            Ok(SlotCounts { usual, spare: usual.min(fit - usual) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_follows_the_block_and_the_memory() {
        let mib = 1 << 20;
        let of = |usual, spare| Ok(SlotCounts { usual, spare });
        assert_eq!(slots(mib, None, None, 2), of(8, 8));
        assert_eq!(slots(64 << 10, None, None, 2), of(64, 64));
        assert_eq!(slots(64 << 20, None, None, 2), of(4, 4));
        assert_eq!(slots(mib, Some(200), Some(16 << 20), 2), of(7, 1));
        assert_eq!(slots(mib, None, Some(20 << 20), 2), of(8, 2));
        assert_eq!(slots(mib, None, Some(2 << 20), 2), of(1, 0));
        assert!(slots(mib, Some(0), None, 2).is_err() && slots(mib, Some(257), None, 2).is_err());
        assert!(slots(mib, None, Some(mib.into()), 2).is_err());
    }
}
