//! Finds the `taskd` program of the build.
//!
//! Tests of a package see only the programs of that package, so the first test that needs `taskd` builds it if
//! necessary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the path of `taskd` in the build directory.
pub(crate) fn beside() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("blockhaul").with_file_name("taskd")
}

/// Environment variable that says that all programs of the workspace were built with the tests.
const IS_BUILT: &str = "BLOCKHAUL_PROGRAMS_ARE_BUILT";

/// Builds `taskd` once, unless it was built before, and returns its path.
pub(crate) fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let beside = beside();
        if std::env::var_os(IS_BUILT).is_some() && beside.is_file() {
            return beside;
        }
        let mut build = Command::new(env!("CARGO"));
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
