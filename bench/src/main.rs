//! `copy-bench`: the engine against its rivals and against the limit of the machine, in one run.
//!
//! ```text
//! args -> run -> scenario (staged in a room of the site: volumes, servers; contestants by target)
//!                  -> conduct (order of trials, what counts) -> executor (reset, perform, judge) -> launch, meter
//!         results <- findings
//! results -> check, table, report; two of them -> compare
//! ```
//! The harness itself stays small and does nothing while a trial runs: the engine, too, works in a process of its own.
#![forbid(unsafe_code)]

mod args;
mod audit;
mod check;
mod compare;
mod conduct;
mod contestant;
mod content;
mod copying;
mod doubt;
mod doubted;
mod engine_process;
mod executor;
mod figure;
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
mod samples;
mod scale;
mod scenario;
mod site;
mod standing;
mod stats;
mod table;
mod target;
mod volume;
mod warm_up;

use args::{Cli, Command, RawRun};
use clap::Parser;
use compare::Verdict;
use run::Asked;
use scale::Scale;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// As shells call a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::EngineProcess { order }) => code(engine_process::main(&order)),
        Some(Command::WarmUp { bytes }) => {
            warm_up::touch(bytes);
            ExitCode::SUCCESS
        }
        Some(Command::Compare { old, new }) => compare_runs(&old, &new),
        Some(Command::Run(raw)) => measure(&raw),
        None => measure(&cli.run),
    }
}

/// Measures, shows what was found, and says whether all is well.
fn measure(raw: &RawRun) -> ExitCode {
    if raw.list {
        scenario::ALL.iter().for_each(|scenario| println!("{:<16} {}", scenario.name, scenario.about));
        return ExitCode::SUCCESS;
    }
    let asked = resolve(raw);
    let done = match run::run(&asked) {
        Ok(done) => done,
        Err(why) => {
            eprintln!("copy-bench: {why}");
            return ExitCode::FAILURE;
        }
    };
    // A reader that went away has seen enough; the files are complete.
    let _ = table::print(&done.results, &mut io::stdout().lock());
    eprintln!("results: {}", asked.out.join("results.json").display());
    eprintln!("report:  {}", asked.out.join("report.html").display());
    let mut complaints = run::failures(&done.results);
    complaints.extend(done.results.check().into_iter().map(|line| format!("does not add up: {line}")));
    if raw.check {
        complaints.extend(check::misses(&done.results));
    }
    complaints.iter().for_each(|line| eprintln!("{line}"));
    if done.stopped { ExitCode::from(INTERRUPTED) } else { code(complaints.is_empty()) }
}

/// What the flags mean; all of them, so that a new one does not compile until somebody decides.
fn resolve(raw: &RawRun) -> Asked {
    let RawRun { scenario, quick, tiny, out, trials, check: _, dir, list: _ } = raw.clone();
    let scale = match (quick, tiny) {
        (_, true) => Scale::Tiny,
        (true, false) => Scale::Quick,
        (false, false) => Scale::Full,
    };
    let wanted = |it: &scenario::Scenario| scenario.is_empty() || scenario.iter().any(|name| name == it.name);
    Asked {
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
            // Nothing that can be compared is no good news.
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
