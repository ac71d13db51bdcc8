//! Runs the fuzz targets: decoders of bytes from outside.
//!
//! They live in `fuzz/` (a package of its own, outside of the workspace) and need `cargo-fuzz` and a nightly compiler.
//! The test command runs the same decoders over mutated bytes without either.

use crate::Refused;
use crate::step::{Tally, Verdict, root};
use std::process::Command;

/// Runs every target for this many seconds as a command of its own.
///
/// # Errors
/// A message about invalid arguments, or about what to install.
pub(crate) fn run(seconds: &str) -> Result<Verdict, Refused> {
    let seconds = seconds.parse().map_err(|_| format!("'{seconds}' is not a number of seconds"))?;
    let mut tally = Tally::default();
    add(&mut tally, seconds)?;
    Ok(tally.conclude())
}

/// Runs every target as a step.
///
/// # Errors
/// Says what to install.
pub(crate) fn add(tally: &mut Tally, seconds: u32) -> Result<(), Refused> {
    for target in targets()? {
        let mut command = Command::new("cargo");
        // Chosen here and not inherited from the compiler that runs this command.
        command.args(["+nightly", "fuzz", "run", &target, "--", &format!("-max_total_time={seconds}")]);
        command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").current_dir(root());
        tally.run(&format!("fuzz {target}, {seconds} s"), &mut command);
    }
    Ok(())
}

fn targets() -> Result<Vec<String>, Refused> {
    let directory = root().join("fuzz/fuzz_targets");
    let listed = std::fs::read_dir(&directory).map_err(|error| format!("read {}: {error}", directory.display()))?;
    let available = Command::new("cargo").args(["fuzz", "--version"]).output();
    if !available.is_ok_and(|output| output.status.success()) {
        return Err("cargo-fuzz is missing: rustup toolchain install nightly && cargo install cargo-fuzz".to_owned());
    }
    let mut names: Vec<String> =
        listed.filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned)).collect();
    names.sort_unstable();
    Ok(names)
}
