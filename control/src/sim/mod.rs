//! Simulates dispatcher, runners, elections, leases and sessions: production code on one thread and a clock that the
//! simulation owns.
//!
//! Goal: under any faults at any time, a destination has at most one effective writer, a task that is reported as done
//! is done, and no task is lost. Method: a seed determines three to five nodes with one process each, a coordination
//! service with all its faults ([`crate::coord::sim`]), volumes with slow disks and late writes, clients that cancel,
//! pause and resume tasks, and faults: crashes, power cuts, paused processes, partitions, expired sessions, outages,
//! lost answers, late writes, lost watches, repeated calls, clocks that jump, and history that goes back. Checkers
//! observe every committed record and every write to a volume.
//!
//! ```text
//! Scenario -> World -> SimNode -> SimProcess of production tasks -> coord::sim (service), net (calls), executor, disk
//!                 `-> Client                       invariants: records; disk: writes; RunResult
//! ```
//! What is not simulated: threads (production code has one per process here), the engine, the wire formats.

mod allowed_transitions;
mod client;
mod clock;
mod disk;
mod environment;
mod group_invariants;
mod hooks;
mod invariants;
mod net;
mod node;
mod volume_name;
mod defect;
pub(crate) mod process;
mod scenario;
mod placement_invariants;
mod retry_invariants;
mod schedule_invariants;
mod run_result;
mod subscriber;
mod executor;
mod world;

use defect::Defect;
use run_result::Counts;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use world::World;

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 100;
/// First seed; alone, it is replayed with its trace.
const FIRST: &str = "BLOCKHAUL_SIM_SEED";
/// Number of seeds.
const COUNT: &str = "BLOCKHAUL_SIM_SEEDS";

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Result of a seed.
#[derive(Debug, Default, PartialEq)]
struct SeedResult {
    /// First violation.
    failure: Option<String>,
    /// Digest of all events.
    digest: u64,
    /// Number of faults by kind.
    faults: Counts,
    /// Number of events of tasks and volumes by kind.
    events: Counts,
}

/// Prints the log of production code while the guard lives, filtered by `RUST_LOG`, or by a default.
fn log() -> tracing::subscriber::DefaultGuard {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "blockhaul_control=warn".into());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout).without_time();
    tracing::subscriber::set_default(logs.with_ansi(false).with_target(false).finish())
}

/// Creates a runtime of one thread, with a clock that advances only when no task has work.
fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without sockets needs nothing")
}

/// Runs one seed.
fn run_seed(seed: u64, trace: bool, defect: Option<Defect>) -> SeedResult {
    let runtime = runtime();
    let _logs = trace.then(log);
    let result =
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { World::new(seed, trace, defect).run().await })));
    match result {
        Ok(result) => {
            let (failure, digest) = (result.failure(), result.digest());
            SeedResult { failure, digest, faults: result.faults(), events: result.events() }
        }
        Err(cause) => {
            let message = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
            SeedResult {
                failure: Some(format!("panic: {}", message.unwrap_or("without a message"))),
                ..SeedResult::default()
            }
        }
    }
}

/// Result of many seeds.
#[derive(Debug, Default)]
struct Total {
    failed: u64,
    faults: Counts,
    events: Counts,
}

impl Total {
    fn add(&mut self, seed: u64, result: SeedResult) {
        if let Some(failure) = result.failure {
            println!("seed {seed}: {} -- replay: cargo xtask sim control --seed {seed}", failure.replace('\n', " "));
            self.failed += 1;
        }
        result.faults.into_iter().for_each(|(kind, times)| *self.faults.entry(kind).or_default() += times);
        result.events.into_iter().for_each(|(what, times)| *self.events.entry(what).or_default() += times);
    }
}

fn listed(counts: &Counts) -> String {
    let each: Vec<String> = counts.iter().map(|(what, times)| format!("{times} {what}")).collect();
    each.join("; ")
}

/// Runs seeds on all cores.
fn run_seeds(first: u64, count: u64) -> Total {
    let next = AtomicU64::new(first);
    let total = Mutex::new(Total::default());
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|seed| seed - first < count) {
            let result = run_seed(seed, count == 1, None);
            total.lock().expect("no thread panics with it").add(seed, result);
        }
    };
    std::thread::scope(|scope| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)));
    });
    total.into_inner().expect("no thread panics with it")
}

#[test]
fn seeds_of_centers() {
    let (first, count) = (number(FIRST), number(COUNT));
    let count = count.unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let total = run_seeds(first.unwrap_or(0), count);
    println!("{count} seeds, {} faults: {}", total.faults.values().sum::<u64>(), listed(&total.faults));
    println!("seen: {}", listed(&total.events));
    assert_eq!(total.failed, 0, "of {count} seeds failed; each has printed how to replay it");
}

/// In this seed the answer to a registration came after the end of the stop in which it was written.
#[test]
fn a_runner_that_registers_while_it_stops_is_given_tasks_again() {
    assert_eq!(run_seeds(15_612, 1).failed, 0);
}

#[test]
fn nodes_at_rest_leave_the_service_alone() {
    for seed in 0..5 {
        let requests = runtime().block_on(async { World::new(seed, false, None).requests_at_rest().await });
        println!("seed {seed}: {requests:.2} requests a second and node");
        assert!(requests < 10.0, "seed {seed}: {requests} requests a second and node");
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..5 {
        assert_eq!(run_seed(seed, false, None), run_seed(seed, false, None), "seed {seed}");
    }
}
