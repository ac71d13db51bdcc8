//! Measures how fast a center of three nodes recovers from faults, and how much it carries: distributions over many
//! trials.
//!
//! Tests assert order and outcome; bounds in seconds are measured here, on real processes and a real ensemble:
//!
//! ```text
//! cargo xtask soak [--trials N] [--cells N] [--tasks N] [--runners N] [NAME...]
//! cargo xtask soak fleet [--runners N] [--tasks N] [--schedules N] [--trials N] [--full-trials N] [--only PART[,PART...]]
//! ```
//! Prints one JSON object per measure with its samples, then a table; exits with 1 if a bound is exceeded. When started
//! as a test, it makes one trial of the shortest measure, and a few parts of the smallest fleet, to show that they work.

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
mod process;
mod queue;
mod traffic;

use blockhaul_testkit::test_cluster::NEEDS;
use blockhaul_testkit::{Requirement, unmet};
use fleet::host;
use fleet::options::FleetOptions;
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

/// What to do, by the command line.
enum Task {
    /// Measure faults of small centers, and loads.
    Measures(Options),
    /// Measure a large center.
    Fleet(FleetOptions),
    /// Make one trial of each, as a test.
    Trial(Options),
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Several clusters with their proxies, and many runners, need thousands of descriptors.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has limits");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a limit may be raised as far as it goes");
    if let Some((host::FLAG, args)) = args.split_first().map(|(first, args)| (first.as_str(), args)) {
        return host::serve(args);
    }
    let task = match parse(args) {
        Ok(Some(task)) => task,
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
    let (measures, is_soak) = match task {
        Task::Measures(options) => (measure(&options), true),
        Task::Fleet(options) => (fleet::measure(&options), true),
        Task::Trial(options) => ([measure(&options), fleet::measure(&FleetOptions::smallest())].concat(), false),
    };
    println!("\n{}", Measure::heading());
    measures.iter().for_each(|measure| println!("{}", measure.row()));
    if is_soak && measures.iter().any(Measure::is_missed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Parses the arguments. `None`: there is nothing to do.
fn parse(args: Vec<String>) -> Result<Option<Task>, String> {
    // Cargo adds this flag for benchmarks, not for tests.
    let is_soak = args.iter().any(|word| word == "--bench");
    let words: Vec<String> = args.into_iter().filter(|word| word != "--bench").collect();
    if !is_soak {
        // A filter of tests matches nothing here.
        return Ok(words.is_empty().then(|| Task::Trial(Options::shortest(ALL[0].0))));
    }
    match words.split_first() {
        Some((first, rest)) if first == "fleet" => FleetOptions::parse(rest).map(Task::Fleet).map(Some),
        _ => Options::parse(words, &ALL.map(|(name, _)| name)).map(Task::Measures).map(Some),
    }
}

/// Makes all measurements that were requested; prints each with its samples.
fn measure(options: &Options) -> Vec<Measure> {
    let mut measures = Vec::new();
    for (name, measure) in ALL.iter().filter(|(name, _)| options.wants(name)) {
        eprintln!("{name} ...");
        let some = measure(options);
        some.iter().for_each(|measure| println!("{}", measure.json()));
        measures.extend(some);
    }
    measures
}
