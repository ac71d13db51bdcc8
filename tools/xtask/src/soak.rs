//! Runs the soak: measures how a center of three nodes recovers from faults, many times.

use crate::step::{Tally, Verdict, cargo};
use crate::{Refused, packages};

/// Builds everything in release mode and runs the given measures.
///
/// # Errors
/// None; failures are counted.
#[allow(clippy::unnecessary_wraps, reason = "all commands have one shape")]
pub(crate) fn run(words: &[&str]) -> Result<Verdict, Refused> {
    if packages::ensure() == Verdict::Failed {
        return Ok(Verdict::Failed);
    }
    let mut tally = Tally::default();
    tally.run("taskd", &mut cargo(&["build", "--release", "--package", "blockhaul-control", "--bin", "taskd"]));
    let measure = ["bench", "--package", "blockhaul-tools", "--bench", "soak", "--"];
    tally.run("soak", &mut cargo(&[&measure[..], words].concat()));
    Ok(tally.conclude())
}
