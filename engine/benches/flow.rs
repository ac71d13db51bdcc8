//! Measures what a task of a flow costs: time on one core, and memory while it is kept.
//!
//! ```text
//! cargo bench --package blockhaul-engine --bench flow
//! ```
//! Prints, for tasks without callbacks, the nanoseconds from its making to its end, alone and in a chain, and the bytes of
//! a task that has not ended. Asserts nothing: numbers are compared between builds on one machine.

use blockhaul_engine::flow::graph::Condition;
use blockhaul_engine::flow::scheduler::{Flow, Scheduler, Task};
use std::time::Instant;

/// Tasks of one measurement.
const TASKS: u32 = 200_000;
/// Measurements, of which the fastest counts.
const ROUNDS: u32 = 7;

fn main() {
    // First: memory that was used before would be used again.
    println!("{:>8.0} bytes for a task that waits", bytes());
    println!(
        "{:>8.0} ns for a task",
        fastest(|scheduler| (0..TASKS).map(|_| finished(scheduler, None)).for_each(drop))
    );
    println!("{:>8.0} ns for a task of a chain", fastest(chain));
}

/// Makes a task that succeeds at once.
fn finished(scheduler: &Scheduler, after: Option<&Task>) -> Task {
    let task = scheduler.task().run(|| Ok(()));
    let task = match after {
        Some(on) => task.after(on, Condition::Success).build(),
        None => task.build(),
    };
    task.schedule();
    scheduler.progress();
    task
}

fn chain(scheduler: &Scheduler) {
    let first = scheduler.task().build();
    let mut last = first.clone();
    for _ in 0..TASKS {
        let next = scheduler.task().run(|| Ok(())).after(&last, Condition::Success).build();
        next.schedule();
        last = next;
    }
    first.complete(Ok(()));
    assert_eq!(scheduler.progress(), TASKS as usize);
}

fn fastest(work: impl Fn(&Scheduler)) -> f64 {
    let once = || {
        let scheduler = Flow::default().scheduler();
        let start = Instant::now();
        work(&scheduler);
        start.elapsed().as_nanos() as f64 / f64::from(TASKS)
    };
    (0..ROUNDS).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn bytes() -> f64 {
    let scheduler = Flow::default().scheduler();
    let gate = scheduler.task().build();
    let before = resident_bytes();
    for _ in 0..TASKS {
        scheduler.task().run(|| Ok(())).after(&gate, Condition::Success).build().schedule();
    }
    (resident_bytes() - before) as f64 / f64::from(TASKS)
}

/// Returns the memory of this process that is in use.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kibibytes.and_then(|text| text.parse::<u64>().ok()).expect("it is a number") * 1024
}
