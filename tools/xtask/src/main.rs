//! `cargo xtask`: runs what developers and CI run.
//!
//! Each command is a list of steps. A step is a program with its arguments. It is printed before it runs and timed, and
//! a failed step does not keep the following ones from running.

#![forbid(unsafe_code)]

mod dependencies;
mod fuzz;
mod package;
mod packages;
mod release;
mod sim;
mod soak;
mod step;
mod test;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  test [FILTER]              Run everything that CI checks; with FILTER (a package such as engine or tools, or part of a
                             test's name) only the tests of that package or with that name
  sim [engine|control] --seeds N [--seed S]
                             Run the simulation of the engine, or of the task center, with N seeds from S on (default 0);
                             a failure prints the seed that replays it
  soak [--trials N] [--cells N] [--tasks N] [--runners N] [NAME...]
                             Measure how fast a center of three nodes recovers from faults and how much it carries, over
                             N trials (default 100), and check the goals
  soak fleet [--runners N] [--tasks N] [--schedules N] [--trials N] [--full-trials N] [--only PART[,PART...]]
                             Measure a center with 1,000 runners, 50,000 tasks and 1,000 schedules, and check the goals of
                             docs/scale.md; parts: rest, schedules, memory, instants, ensemble, leader, assignments,
                             restart, takeover
  release                    Build the stripped programs, and their debug information beside them, into target/dist
  package [deb] [tarball] [--test]
                             Make the Debian package and the tarball of static programs, reproducibly, into target/dist;
                             with --test check the package with lintian, install it in a copy of this system, and use it
  man DIR                    Write the manual pages into DIR
  completions DIR            Write the completions of bash, zsh and fish into folders of DIR
  fuzz [SECONDS]             Run each fuzz target for this many seconds (default 10)

Without root, `test` lists the missing Debian packages instead of installing them.";

/// A message about a refused command.
type Refused = String;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => test::all(),
        ["test", filter] if !filter.starts_with('-') => test::only(filter),
        ["sim", flags @ ..] => sim::Seeds::parse(flags).and_then(sim::run),
        ["soak", words @ ..] => soak::run(words),
        ["release"] => release::run(),
        ["package", words @ ..] => package::run(words),
        ["man", folder] => package::manual(folder),
        ["completions", folder] => package::completions(folder),
        ["fuzz"] => fuzz::run("10"),
        ["fuzz", seconds] => fuzz::run(seconds),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(step::Verdict::Passed)
        }
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(step::Verdict::Passed) => ExitCode::SUCCESS,
        Ok(step::Verdict::Failed) => ExitCode::FAILURE,
        Err(refused) => {
            eprintln!("{refused}");
            ExitCode::from(2)
        }
    }
}
