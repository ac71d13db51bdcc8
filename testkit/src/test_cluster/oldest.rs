//! Builds the oldest `taskd` that must work in one center with this one, from the history of this repository.

use crate::programs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Commit of the oldest supported version: see `docs/compatibility.md`.
const OLDEST: &str = "8a314a7e042f29cf1863a661d6b957dc8970bc82";

/// Returns the program, built by the first caller unless an earlier run has built it.
///
/// # Errors
/// A message that the history of the repository is missing, which cannot be installed.
pub fn oldest_taskd() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies one level below the root");
    let folder = programs::temporary_folder().join(format!("taskd-{}", &OLDEST[..12]));
    let (source, target) = (folder.join("source"), folder.join("target"));
    let program = target.join("debug/taskd");
    if program.is_file() {
        return Ok(program);
    }
    std::fs::create_dir_all(&source).map_err(|error| format!("create {}: {error}", source.display()))?;
    unpack(root, &source)?;
    // A fast build is worth more than a fast program here.
    let quick = ["--config", "profile.dev.package.\"*\".opt-level=0", "--config", "profile.dev.debug=false"];
    let mut cargo = Command::new(programs::cargo());
    cargo.args(["build", "--quiet", "--locked", "--package", "blockhaul-control", "--bin", "taskd"]).args(quick);
    cargo.arg("--target-dir").arg(&target).current_dir(&source);
    let is_set_by_cargo =
        |name: &str| ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_TARGET_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars().filter(|(name, _)| is_set_by_cargo(name)) {
        cargo.env_remove(name);
    }
    let status = cargo.status().map_err(|error| format!("run cargo: {error}"))?;
    assert!(status.success() && program.is_file(), "taskd of {OLDEST} does not build");
    Ok(program)
}

/// Writes the files of commit [`OLDEST`] into a folder.
fn unpack(root: &Path, into: &Path) -> Result<(), String> {
    let mut git = Command::new("git")
        .args(["archive", "--format=tar", OLDEST])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("run git: {error}"))?;
    let archive = git.stdout.take().expect("it is a pipe");
    let tar = Command::new("tar").arg("-x").arg("-C").arg(into).stdin(archive).status();
    let is_read = git.wait().is_ok_and(|status| status.success());
    let is_written = tar.map_err(|error| format!("run tar: {error}"))?.success();
    if is_read && is_written {
        Ok(())
    } else {
        Err(format!("needs the history of this repository, with commit {OLDEST}"))
    }
}
