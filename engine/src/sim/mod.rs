//! Simulates the engine: production code under a seed, with a clock of its own.
//!
//! Goal: never a silent wrong copy, whatever fails and whenever it stops. Method: a seed defines an engine of one to
//! three workers, a few copies between simulated volumes, and their faults and events: latency, reordering, short
//! transfers, errors, devices that never answer, cancels, pauses, limits, a source that changes, kills, power cuts,
//! servers that lose acknowledged writes in a restart, gates that close at any moment, and runs that another process
//! continues from claimed ranges, without a journal. Workers, worker passes, slots, pass controllers, segment sources,
//! planners and journals are the real ones; only ring, volumes and the journal's file are simulated, and one thread
//! takes turns among them. A model of bytes checks every step.
//!
//! ```text
//! Scenario -> Machine -> Worker<SimRing> -> World (clock, chance, disks, operations in flight)
//!                   `--> SimJob -> PassController<SimRecorder> -'        checks: invariants
//! ```
//! Seeds with remainder 0, 2 or 5 modulo 7 have volumes behind servers, and seeds with remainder 1, 5 or 8 modulo 11
//! have copies behind write gates; all other seeds have local volumes without gates. Rings answer out of order. Threads
//! are not simulated: races of real threads have other tests, and so have inline operations, which act on real
//! descriptors.

mod sim_gate;
mod operation_audit;
mod disk;
mod faults;
mod image;
mod journal;
mod checks;
mod machine;
mod scenario;
mod server;
mod sim_job;
mod volume;
pub(crate) mod world;

use machine::Machine;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 300;
/// Environment variable of the first seed; without a count this seed is replayed with a trace.
const FIRST: &str = "BLOCKHAUL_SIM_SEED";
/// Environment variable of the number of seeds.
const COUNT: &str = "BLOCKHAUL_SIM_SEEDS";

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs one seed; prints how to replay it if it fails.
fn run(seed: u64, trace: bool) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| Machine::new(seed, trace).run()));
    if let Err(cause) = &outcome {
        let message = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
        println!("seed {seed}: {}", message.unwrap_or("it failed").replace('\n', " "));
        println!("replay: {FIRST}={seed} cargo test -p blockhaul-engine --release --lib sim::seeds -- --nocapture");
    }
    outcome.is_ok()
}

#[test]
fn seeds() {
    let (first, count) = (number(FIRST), number(COUNT));
    let count = count.unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let (next, end) = (AtomicU64::new(first.unwrap_or(0)), first.unwrap_or(0) + count);
    let failed = AtomicU64::new(0);
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|&seed| seed < end) {
            if !run(seed, count == 1) {
                failed.fetch_add(1, Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)));
    });
    assert_eq!(failed.into_inner(), 0, "seeds of {count} failed; each has printed how to replay it");
}

/// Unanswered operations of one job do not delay the other jobs.
#[test]
fn a_dead_device_stops_its_own_job_only() {
    let beside = |seed| Machine::new(seed, false).run_beside_a_dead_device();
    let looked: usize = (0..SEEDS).map(|seed| usize::from(beside(seed))).sum();
    assert!(looked > 50, "only {looked} seeds have more than one job");
}

/// Seeds that failed before a defect was fixed. When a change gives seeds another meaning, revert each fix once and
/// find the first seed that fails.
const FOUND: [(u64, &str); 9] = [
    (3, "zeros waited for the end of their segment while they took all room for unrecorded bytes"),
    (4, "the unaligned end of zeros on a device was requested, not written"),
    (10, "--sparse never skipped zeros in data where space could not be reserved"),
    (53, "a destination whose truncation was lost with the power could not be resumed"),
    (73, "zeros that had to be written waited behind blocks that waited for them"),
    (241, "--sparse never took a refused request for allocated zeros as done"),
    (367, "--no-sync recorded a stopped copy without a flush"),
    (916, "a complete copy whose last flush hung could not be stopped"),
    (372, "a source that was found changed at the end was overruled by the count of recorded bytes"),
];

#[test]
fn fixed_defects_stay_fixed() {
    for (seed, defect) in FOUND {
        assert!(run(seed, false), "again: {defect}");
    }
}
