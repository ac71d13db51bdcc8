//! Runs the simulations: tests that read their seeds from the environment.
//!
//! Each reads the first seed from `BLOCKHAUL_SIM_SEED` and the number of seeds from `BLOCKHAUL_SIM_SEEDS`, and prints
//! the command that replays a failed seed. The simulation of the engine (`engine/src/sim/mod.rs`) is built as a
//! release, because hashing takes most of its time. That of the task center (`control/src/sim/mod.rs`) is built with
//! the other tests of the workspace: optimising its dependencies, down to TLS, would take longer than thousands of
//! seeds.

use crate::Refused;
use crate::step::{Step, Tally, Verdict, cargo};

/// Simulated part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Copies: workers, rings and volumes.
    Engine,
    /// The task center: dispatchers, runners and their coordination service.
    Control,
}

impl Subject {
    /// Number of seeds in the test command.
    pub(crate) fn seeds(self) -> u64 {
        match self {
            Self::Engine => 10_000,
            Self::Control => 2_000,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Control => "control",
        }
    }
}

/// The seeds to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    first: u64,
    count: u64,
}

impl Seeds {
    /// Returns the seeds from zero on.
    pub(crate) fn first(count: u64) -> Self {
        Self { first: 0, count }
    }

    /// Parses `[engine|control] --seeds N [--seed S]`; `--seed S` alone replays that seed. `--first` is another name of
    /// `--seed`.
    ///
    /// # Errors
    /// A message about the invalid arguments.
    pub(crate) fn parse(words: &[&str]) -> Result<(Subject, Self), Refused> {
        match words {
            ["engine", flags @ ..] => Ok((Subject::Engine, Self::of(flags)?)),
            ["control", flags @ ..] => Ok((Subject::Control, Self::of(flags)?)),
            flags => Ok((Subject::Engine, Self::of(flags)?)),
        }
    }

    fn of(flags: &[&str]) -> Result<Self, Refused> {
        let (mut first, mut count) = (None, None);
        for pair in flags.chunks(2) {
            let (target, text) = match *pair {
                ["--seeds", text] => (&mut count, text),
                ["--seed" | "--first", text] => (&mut first, text),
                _ => {
                    return Err(format!(
                        "sim takes engine or control, --seeds N and --seed S, not '{}'",
                        flags.join(" ")
                    ));
                }
            };
            *target = Some(text.parse::<u64>().map_err(|_| format!("'{text}' is not a number of 64 bits"))?);
        }
        match (first, count) {
            (_, Some(0)) => Err("--seeds must be more than 0".to_owned()),
            (first, Some(count)) => Ok(Self { first: first.unwrap_or(0), count }),
            (Some(first), None) => Ok(Self { first, count: 1 }),
            (None, None) => Err("sim needs --seeds N, --seed S or both".to_owned()),
        }
    }
}

/// Runs the seeds as a command of its own.
///
/// # Errors
/// None; failures are counted.
#[allow(clippy::unnecessary_wraps, reason = "all commands have one shape")]
pub(crate) fn run((subject, seeds): (Subject, Seeds)) -> Result<Verdict, Refused> {
    let Step { title, mut command } = step(subject, seeds);
    let mut tally = Tally::default();
    tally.run(&title, &mut command);
    Ok(tally.conclude())
}

/// Returns the step that runs the seeds.
pub(crate) fn step(subject: Subject, seeds: Seeds) -> Step {
    let name = subject.name();
    let Seeds { first, count } = seeds;
    let test = match subject {
        Subject::Engine => ["--release", "--package=blockhaul-engine", "--lib", "sim::seeds"],
        Subject::Control => ["--workspace", "--exclude=xtask", "--lib", "sim::seeds_of_centers"],
    };
    let mut command = cargo(&[&["test"], &test[..], &["--", "--exact", "--nocapture"]].concat());
    command.env("BLOCKHAUL_SIM_SEED", first.to_string()).env("BLOCKHAUL_SIM_SEEDS", count.to_string());
    // Linking across crates takes longer than it saves in so short a run.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    Step { title: format!("simulation of the {name}, {count} seeds from {first}"), command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_count_a_start_or_both() {
        let engine = |first, count| Ok((Subject::Engine, Seeds { first, count }));
        assert_eq!(Seeds::parse(&["--seeds", "5"]), engine(0, 5));
        assert_eq!(Seeds::parse(&["engine", "--seed", "7"]), engine(7, 1));
        assert_eq!(Seeds::parse(&["--seed", "7", "--seeds", "5"]), engine(7, 5));
        let control = Ok((Subject::Control, Seeds { first: 7, count: 5 }));
        assert_eq!(Seeds::parse(&["control", "--seeds", "5", "--first", "7"]), control);
        for flags in [&[][..], &["--seeds"], &["--seeds", "0"], &["--seeds", "-1"], &["--speed", "1"], &["control"]] {
            assert!(Seeds::parse(flags).is_err(), "{flags:?}");
        }
    }
}
