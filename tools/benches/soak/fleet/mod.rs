//! Measures a center of the size that it is made for: a thousand runners, fifty thousand live tasks and a thousand
//! schedules on one ensemble of three servers.
//!
//! ```text
//! this process        clients, probes, measurements
//!   taskd x 3         real nodes: one of them leads; they run the copies of schedules, and probes
//!   host x 4          250 runners each: see `light_runners`
//!   java x 3          the ensemble
//! ```
//! The parts run one after the other on one center, except for the takeovers without load at the end, which are made by
//! several small centers on the same ensemble at once. A part that is left out by `--only` leaves the others as they are.

mod assignments;
mod cell;
mod decisions;
mod ensemble;
pub(crate) mod host;
mod instants;
pub(crate) mod light_runners;
mod memory;
pub(crate) mod options;
mod rest;
mod restart;
mod takeover;
mod timed_executor;

use crate::measure::Measure;
use cell::Cell;
use options::{FleetOptions, PARTS};
use std::num::NonZero;
use std::time::Instant;

/// Runs the parts that were requested; prints the measures of each when it has ended.
pub(crate) fn measure(options: &FleetOptions) -> Vec<Measure> {
    let start = Instant::now();
    let said = |text: &str| eprintln!("{:>5} s  {text}", start.elapsed().as_secs());
    let FleetOptions { runners, tasks, schedules, .. } = options;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    said(&format!("fleet: {runners} runners, {tasks} tasks, {schedules} schedules; {cores} cores for all of it ..."));
    let mut cell = Cell::new(options);
    let mut measures = Vec::new();
    for part in PARTS.into_iter().filter(|part| options.wants(part)) {
        said(&format!("{part} ..."));
        let some = match part {
            "rest" => rest::measure(&cell),
            "schedules" => rest::measure_schedules(&cell),
            "memory" => memory::measure(&mut cell),
            "instants" => instants::measure(&mut cell),
            "ensemble" => ensemble::measure(&mut cell),
            "assignments" => assignments::measure(&mut cell),
            "restart" => restart::measure(&mut cell),
            "leader" => takeover::measure_full(&mut cell),
            "takeover" => takeover::measure(&mut cell),
            other => unreachable!("no such part: {other}"),
        };
        some.iter().for_each(|measure| println!("{}\n{}", measure.json(), measure.row()));
        measures.extend(some);
    }
    said("done");
    measures
}
