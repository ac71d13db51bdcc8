//! The simulation: an engine test that reads its seeds from the environment.
//!
//! The test is called `sim::seeds` and lives in the engine (`engine/src/sim/mod.rs`). It reads `BLOCKHAUL_SIM_SEED`,
//! the first seed, and `BLOCKHAUL_SIM_SEEDS`, how many, and prints the command that replays a seed that fails. It is
//! built with optimisation: without it most of the time goes into hashing the model.

use crate::Refused;
use crate::step::{Tally, Verdict, cargo, root};

/// Where the simulation lives.
const FILE: &str = "engine/src/sim/mod.rs";

/// Seeds of a simulation in the test command.
pub(crate) const SEEDS: u64 = 10_000;

/// Which seeds to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    first: u64,
    count: u64,
}

impl Seeds {
    /// From zero on.
    pub(crate) fn first(count: u64) -> Self {
        Self { first: 0, count }
    }

    /// `--seeds N [--seed S]`; `--seed S` alone replays that one.
    ///
    /// # Errors
    /// A sentence about what was typed.
    pub(crate) fn parse(flags: &[&str]) -> Result<Self, Refused> {
        let (mut first, mut count) = (None, None);
        for pair in flags.chunks(2) {
            let (target, text) = match *pair {
                ["--seeds", text] => (&mut count, text),
                ["--seed", text] => (&mut first, text),
                _ => return Err(format!("sim takes --seeds N and --seed S, not '{}'", flags.join(" "))),
            };
            *target = Some(text.parse::<u64>().map_err(|_| format!("'{text}' is not a number of 64 bits"))?);
        }
        match (first, count) {
            (_, Some(0)) => Err("--seeds 0 would prove nothing".to_owned()),
            (first, Some(count)) => Ok(Self { first: first.unwrap_or(0), count }),
            (Some(first), None) => Ok(Self { first, count: 1 }),
            (None, None) => Err("sim needs --seeds N, --seed S or both".to_owned()),
        }
    }
}

/// Runs the seeds as a command of its own.
///
/// # Errors
/// The engine has no simulation.
pub(crate) fn run(seeds: Seeds) -> Result<Verdict, Refused> {
    let mut tally = Tally::default();
    add(&mut tally, seeds)?;
    Ok(tally.conclude())
}

/// Runs the seeds as a step.
///
/// # Errors
/// The engine has no simulation.
pub(crate) fn add(tally: &mut Tally, seeds: Seeds) -> Result<(), Refused> {
    if !root().join(FILE).is_file() {
        return Err(format!("{FILE} does not exist"));
    }
    let Seeds { first, count } = seeds;
    let mut command =
        cargo(&["test", "--release", "--package", "blockhaul-engine", "--lib", "sim::seeds", "--", "--nocapture"]);
    command.env("BLOCKHAUL_SIM_SEED", first.to_string()).env("BLOCKHAUL_SIM_SEEDS", count.to_string());
    // Linking across crates takes longer than it saves in so short a run.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    tally.run(&format!("simulation, {count} seeds from {first}"), &mut command);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_count_a_start_or_both() {
        assert_eq!(Seeds::parse(&["--seeds", "5"]), Ok(Seeds { first: 0, count: 5 }));
        assert_eq!(Seeds::parse(&["--seed", "7"]), Ok(Seeds { first: 7, count: 1 }));
        assert_eq!(Seeds::parse(&["--seed", "7", "--seeds", "5"]), Ok(Seeds { first: 7, count: 5 }));
        for flags in [&[][..], &["--seeds"], &["--seeds", "0"], &["--seeds", "-1"], &["--speed", "1"]] {
            assert!(Seeds::parse(flags).is_err(), "{flags:?}");
        }
    }
}
