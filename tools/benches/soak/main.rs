//! Measures how fast a center of three nodes recovers from faults, and how much it carries: distributions over many
//! trials.
//!
//! Tests assert order and outcome; bounds in seconds are measured here, on real processes and a real ensemble:
//!
//! ```text
//! cargo xtask soak [--trials N] [--cells N] [--tasks N] [--runners N] [NAME...]
//! ```
//! Prints one JSON object per measure with its samples, then a table; exits with 1 if a bound is exceeded. When started
//! as a test, it makes one trial of the shortest measure, to show that it works.

#![forbid(unsafe_code)]

mod copies;
mod ensemble;
mod first_block;
mod fleet;
mod group;
mod leader;
mod load;
mod loss;
mod measure;
mod options;
mod queue;
mod traffic;

use blockhaul_testkit::test_cluster::NEEDS;
use blockhaul_testkit::{Requirement, unmet};
use measure::Measure;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use options::Options;
use std::process::ExitCode;

/// A measurement with its name.
type Named = (&'static str, fn(&Options) -> Vec<Measure>);

/// All measurements, in their order.
const ALL: [Named; 9] = [
    ("first-block", first_block::measure),
    ("dependent", first_block::measure_dependent),
    ("stop", |options| loss::measure(options, loss::LossKind::Stopped)),
    ("kill", |options| loss::measure(options, loss::LossKind::Killed)),
    ("leader", leader::measure),
    ("ensemble", ensemble::measure),
    ("queue", queue::measure),
    ("group", group::measure),
    ("load", load::measure),
];

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1), &ALL.map(|(name, _)| name)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            return ExitCode::from(2);
        }
    };
    if let Err(missing) = NEEDS.as_slice().meet() {
        unmet("soak", &missing);
        return ExitCode::SUCCESS;
    }
    // Several clusters with their proxies need thousands of descriptors.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has limits");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a limit may be raised as far as it goes");
    let mut measures = Vec::new();
    for (name, measure) in ALL.iter().filter(|(name, _)| options.wants(name)) {
        eprintln!("{name} ...");
        let some = measure(&options);
        some.iter().for_each(|measure| println!("{}", measure.json()));
        measures.extend(some);
    }
    println!("\n{}", Measure::heading());
    measures.iter().for_each(|measure| println!("{}", measure.row()));
    if options.is_soak && measures.iter().any(Measure::is_missed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
