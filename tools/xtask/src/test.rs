//! Runs everything that CI checks, in the order that is most useful to developers.

use crate::step::{Tally, Verdict, cargo, root};
use crate::{Refused, fuzz, packages, sim};

/// Seconds for each fuzz target: long enough to notice one that no longer works.
const FUZZ_SECONDS: u32 = 5;

/// Checks formatting, lints and documentation, and runs every test, the simulations, and the fuzz targets where they can run.
///
/// # Errors
/// None; failures are counted.
#[allow(clippy::unnecessary_wraps, reason = "all commands have one shape")]
pub(crate) fn all() -> Result<Verdict, Refused> {
    if packages::ensure() == Verdict::Failed {
        return Ok(Verdict::Failed);
    }
    let mut tally = Tally::default();
    tally.run("format", &mut cargo(&["fmt", "--all", "--check"]));
    tally.run("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]));
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    tally.run("documents", docs.env("RUSTDOCFLAGS", "--deny warnings"));
    let mut tests = cargo(&["test", "--workspace", "--all-targets", "--no-fail-fast"]);
    // Cargo builds the programs of all packages for it: a test that runs one need not build it for its package alone.
    tally.run("tests", tests.env("BLOCKHAUL_PROGRAMS_ARE_BUILT", "1"));
    tally.run("examples in documents", &mut cargo(&["test", "--workspace", "--doc", "--no-fail-fast"]));
    for subject in [sim::Subject::Engine, sim::Subject::Control] {
        if let Err(reason) = sim::add(&mut tally, subject, sim::Seeds::first(subject.seeds())) {
            println!("\n== skipped: simulation: {reason}");
        }
    }
    if let Err(reason) = fuzz::add(&mut tally, FUZZ_SECONDS) {
        println!("\n== skipped: fuzz targets: {reason}");
    }
    Ok(tally.conclude())
}

/// Runs the tests of one package, or those whose name contains `filter`.
///
/// # Errors
/// None; failures are counted.
#[allow(clippy::unnecessary_wraps, reason = "all commands have one shape")]
pub(crate) fn only(filter: &str) -> Result<Verdict, Refused> {
    let mut tally = Tally::default();
    match package(filter) {
        Some(package) => tally.run(&package, &mut cargo(&["test", "--package", &package, "--no-fail-fast"])),
        None => tally.run(
            &format!("tests named {filter}"),
            &mut cargo(&["test", "--workspace", "--all-targets", "--no-fail-fast", "--", filter]),
        ),
    }
    Ok(tally.conclude())
}

/// Returns the package of a filter: `engine` and `blockhaul-engine` are the same one, `xtask` is itself.
fn package(filter: &str) -> Option<String> {
    let area = filter.strip_prefix("blockhaul-").unwrap_or(filter);
    match area {
        "xtask" => Some(area.to_owned()),
        "engine" | "control" | "bench" | "tools" if root().join(area).join("Cargo.toml").is_file() => {
            Some(format!("blockhaul-{area}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_a_package_and_anything_else_a_name() {
        assert_eq!(package("engine").as_deref(), Some("blockhaul-engine"));
        assert_eq!(package("blockhaul-tools").as_deref(), Some("blockhaul-tools"));
        assert_eq!(package("xtask").as_deref(), Some("xtask"));
        assert_eq!(package("journal"), None);
    }
}
