//! `copy-bench`: measures the engine against rival programs and against the limits of the machine.
//!
//! ```text
//! args -> run -> scenario (prepared in a directory of its own: volumes, servers, targets)
//!                  -> trial_loop (order of trials, what counts) -> executor (reset, run, verify) -> launch, meter
//!         results <- target runs
//! results -> goals, table, report; two results -> compare
//! ```
//! The harness does nothing while a trial runs. Every target, the engine included, works in a process of its own.
#![forbid(unsafe_code)]

mod args;
mod goals;
mod compare;
mod trial_loop;
mod content;
mod copy_executor;
mod warning;
mod grouped_warnings;
mod engine_process;
mod trial_executor;
mod format;
mod foreground;
mod histogram;
mod host;
mod interrupt;
mod launch;
mod meter;
mod program;
mod report;
mod results;
mod run;
#[cfg(test)]
mod sample_results;
mod scale;
mod scenario;
mod workdir;
mod relative;
mod stats;
mod table;
mod target;
mod volume;
mod pretouch;

use args::{Cli, Command, RawRun};
use clap::Parser;
use compare::Verdict;
use run::RunOptions;
use scale::Scale;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Exit code of shells for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::EngineProcess { request }) => code(engine_process::main(&request)),
        Some(Command::Pretouch { bytes }) => {
            pretouch::touch(bytes);
            ExitCode::SUCCESS
        }
        Some(Command::Compare { old, new }) => compare_runs(&old, &new),
        Some(Command::Run(raw)) => measure(&raw),
        None => measure(&cli.run),
    }
}

/// Runs the scenarios and prints the results. Fails if a target of ours failed or, with `--check`, a goal was missed.
fn measure(raw: &RawRun) -> ExitCode {
    if raw.list {
        scenario::ALL.iter().for_each(|scenario| println!("{:<16} {}", scenario.name, scenario.about));
        return ExitCode::SUCCESS;
    }
    let options = resolve(raw);
    let outcome = match run::run(&options) {
        Ok(outcome) => outcome,
        Err(why) => {
            eprintln!("copy-bench: {why}");
            return ExitCode::FAILURE;
        }
    };
    // The reader of stdout may be gone; the files are complete.
    let _ = table::print(&outcome.results, &mut io::stdout().lock());
    eprintln!("results: {}", options.out.join("results.json").display());
    eprintln!("report:  {}", options.out.join("report.html").display());
    let mut complaints = run::failures(&outcome.results);
    if raw.check {
        complaints.extend(goals::misses(&outcome.results));
    }
    complaints.iter().for_each(|line| eprintln!("{line}"));
    if outcome.stopped { ExitCode::from(INTERRUPTED) } else { code(complaints.is_empty()) }
}

/// Resolves the flags. Destructures all of them, so that a new flag does not compile until it is handled.
fn resolve(raw: &RawRun) -> RunOptions {
    let RawRun { scenario, quick, tiny, out, trials, check: _, dir, list: _ } = raw.clone();
    let scale = match (quick, tiny) {
        (_, true) => Scale::Tiny,
        (true, false) => Scale::Quick,
        (false, false) => Scale::Full,
    };
    let wanted = |it: &scenario::Scenario| scenario.is_empty() || scenario.iter().any(|name| name == it.name);
    RunOptions {
        scenarios: scenario::ALL.into_iter().filter(wanted).collect(),
        scale,
        trials,
        out: out.unwrap_or_else(run::default_out),
        dir: dir.unwrap_or_else(run::default_dir),
    }
}

fn compare_runs(old: &Path, new: &Path) -> ExitCode {
    match compare::run(old, new) {
        Ok(comparison) => {
            let _ = comparison.print(&mut io::stdout().lock());
            // A comparison without anything to compare is a failure.
            code(!matches!(comparison.verdict(), Verdict::Regression | Verdict::CannotBeCompared))
        }
        Err(why) => {
            eprintln!("copy-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
