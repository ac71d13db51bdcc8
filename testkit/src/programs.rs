//! Finds the programs of the build that the running test belongs to.
//!
//! Tests of a package see only the programs of that package, so the first test that needs `taskd` builds it if
//! necessary.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the folder of the programs, for which the tests were built, too: tests lie in `deps` below it.
fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("this test runs");
    test.ancestors().nth(2).expect("tests lie two folders below the target").to_owned()
}

/// Returns the path of `blockhaul`, which cargo builds for the tests of its package.
pub fn blockhaul() -> PathBuf {
    folder().join("blockhaul")
}

/// Returns the path that `taskd` has once it is built.
pub fn taskd_path() -> PathBuf {
    folder().join("taskd")
}

/// Returns a folder for files of tests, below the target folder: the usual temporary folder is often memory.
pub fn temporary_folder() -> PathBuf {
    let folder = folder().with_file_name("tmp");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Returns the path of cargo.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Environment variable that says that all programs of the workspace were built with the tests.
const IS_BUILT: &str = "BLOCKHAUL_PROGRAMS_ARE_BUILT";

/// Builds `taskd` once, unless it was built before, and returns its path.
pub fn taskd() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let beside = taskd_path();
        if std::env::var_os(IS_BUILT).is_some() && beside.is_file() {
            return beside;
        }
        let mut build = Command::new(cargo());
        build.args(["build", "--quiet", "--package", "blockhaul-control", "--bin", "taskd"]);
        if beside.parent().and_then(Path::file_name).is_some_and(|folder| folder == "release") {
            build.arg("--release");
        }
        let folder = beside.parent().and_then(Path::parent).expect("programs lie in a folder of the target");
        build.arg("--target-dir").arg(folder).current_dir(env!("CARGO_MANIFEST_DIR"));
        // Cargo's variables for this test would make build scripts run again.
        let is_told = |name: &str| ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|start| name.starts_with(start));
        for (name, _) in std::env::vars().filter(|(name, _)| is_told(name)) {
            build.env_remove(name);
        }
        let status = build.status().expect("cargo has started this test");
        assert!(status.success() && beside.is_file(), "taskd cannot be built");
        beside
    })
}
