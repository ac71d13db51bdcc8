//! Runs everything that CI checks, in the order that is most useful to developers.

use crate::step::{Step, Tally, Verdict, cargo, root};
use crate::{Refused, dependencies, fuzz, packages, sim};

/// Seconds for each fuzz target: long enough to notice one that no longer works.
const FUZZ_SECONDS: u32 = 5;

/// Checks formatting, lints and documentation, and runs every test, the simulations, and the fuzz targets where they
/// can run.
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
    if tally.run("build of the tests", &mut tests(&["--all-targets", "--no-run"]).command) == Verdict::Passed {
        let lanes = std::thread::available_parallelism().map_or(1, usize::from);
        tally.run_beside(steps(), lanes.clamp(2, 4));
    }
    if let Err(reason) = fuzz::add(&mut tally, FUZZ_SECONDS) {
        println!("\n== skipped: fuzz targets: {reason}");
    }
    Ok(tally.conclude())
}

/// Returns the steps that run tests. They wait for servers and disks more than for processors, so that two of them side by
/// side take little longer than one. The longest begins first.
fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = suites().iter().map(|suite| tests(&["--test", suite])).collect();
    steps.push(dependencies::step());
    steps.push(tests(&["--lib", "--bins", "--benches"]));
    steps.push(tests(&["--doc"]));
    steps.extend([sim::Subject::Engine, sim::Subject::Control].map(|it| sim::step(it, sim::Seeds::first(it.seeds()))));
    steps
}

/// Returns the step that runs the tests of all packages that these arguments of `cargo test` select. All have the features of
/// the whole workspace: others would build its dependencies again.
fn tests(selection: &[&str]) -> Step {
    let mut command = cargo(&[&["test", "--workspace", "--no-fail-fast"], selection].concat());
    // Cargo builds the programs of all packages for it: a test that runs one need not build it for its package alone.
    command.env("BLOCKHAUL_PROGRAMS_ARE_BUILT", "1");
    Step { title: format!("tests: {}", selection.join(" ")), command }
}

/// Returns the names of all suites in the `tests` folders of the packages, the longest first.
fn suites() -> Vec<String> {
    let mut suites = Vec::new();
    for package in ["tools", "engine", "control", "hooks", "bench"] {
        let folder = root().join(package).join("tests");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<_> = entries
            .filter(|path| path.join("main.rs").is_file() || path.extension().is_some_and(|kind| kind == "rs"))
            .filter_map(|path| path.file_stem()?.to_str().map(str::to_owned))
            .collect();
        found.sort_unstable();
        suites.append(&mut found);
    }
    suites
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
    };
    Ok(tally.conclude())
}

/// Returns the package of a filter: `engine` and `blockhaul-engine` are the same one, `xtask` is itself.
fn package(filter: &str) -> Option<String> {
    let area = filter.strip_prefix("blockhaul-").unwrap_or(filter);
    match area {
        "xtask" => Some(area.to_owned()),
        "engine" | "hooks" | "control" | "bench" | "tools" if root().join(area).join("Cargo.toml").is_file() => {
            Some(format!("blockhaul-{area}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_found_and_the_longest_is_first() {
        let suites = suites();
        assert_eq!(suites.first().map(String::as_str), Some("center"));
        for suite in ["nbd", "tidy", "stalled", "coord", "standalone", "compare", "hooks_run"] {
            assert!(suites.iter().any(|found| found == suite), "{suite} is missing among {suites:?}");
        }
        assert!(!suites.iter().any(|found| found == "support"), "{suites:?}");
    }

    #[test]
    fn an_area_is_a_package_and_anything_else_a_name() {
        assert_eq!(package("engine").as_deref(), Some("blockhaul-engine"));
        assert_eq!(package("blockhaul-tools").as_deref(), Some("blockhaul-tools"));
        assert_eq!(package("hooks").as_deref(), Some("blockhaul-hooks"));
        assert_eq!(package("xtask").as_deref(), Some("xtask"));
        assert_eq!(package("journal"), None);
    }
}
