//! Tests rivals that are missing, fail, do nothing, or write wrong bytes: they are reported, and never beaten.

use crate::support::{TestDir, errors, real, scenario_of, target};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// What the scenario needs besides its rivals.
const HONEST: [&str; 7] = ["dd", "fallocate", "sync", "true", "fio", "sh", "git"];

/// Copies, and then changes one byte of the copy.
const ONE_WRONG_BYTE: &str = "dd if=\"$1\" of=\"$2\" bs=1M status=none
printf x | dd of=\"$2\" bs=1 seek=4000000 conv=notrunc status=none";

/// A folder that is the whole path: honest tools, and scripts in the places of rivals.
fn folder_of(dir: &TestDir, scripts: &[(&str, &str)]) -> std::path::PathBuf {
    let folder = dir.path("programs");
    fs::create_dir(&folder).unwrap();
    for program in HONEST {
        symlink(real(program), folder.join(program)).unwrap();
    }
    for (program, script) in scripts {
        write_script(&folder.join(program), script);
    }
    folder
}

fn write_script(path: &Path, body: &str) {
    // The last two words of every rival are its source and its destination.
    let words = "while [ $# -gt 2 ]; do shift; done";
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo fake 1.0 && exit\n{words}\n{body}\n");
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn goal<'a>(results: &'a Value, name: &str) -> &'a Value {
    let goals = scenario_of(results, "dense-direct")["goals"].as_array().unwrap();
    goals.iter().find(|goal| goal["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_rival_that_does_not_do_the_work_is_reported_and_not_beaten() {
    let dir = TestDir::new();
    let programs = folder_of(
        &dir,
        &[
            ("qemu-img", "echo no such image >&2; exit 1"),
            ("ddrescue", ONE_WRONG_BYTE),
            ("cp", "dd if=\"$1\" of=\"$2\" bs=1M count=1 status=none"),
        ],
    );
    let words = ["--trials", "1", "--check", "--scenario", "dense-direct"];
    let output = dir.command(&words).env("PATH", &programs).output().unwrap();
    let results = dir.results();
    let outcome = |name: &str| target(&results, "dense-direct", name)["outcome"].clone();
    assert_eq!((outcome("engine")["status"].as_str(), outcome("dd")["status"].as_str()), (Some("ran"), Some("ran")));
    for (name, status, why) in [
        ("nbdcopy", "missing", "install libnbd-bin"),
        ("qemu-img", "failed", "no such image"),
        ("ddrescue", "wrong_bytes", "wrong bytes near offset 3145728"),
        ("cp", "wrong_bytes", "has 1048576 bytes instead of 4194304"),
    ] {
        let found = outcome(name);
        assert_eq!(found["status"], status, "{name}: {found}");
        assert!(found["why"].as_str().unwrap().contains(why), "{name}: {found}");
        assert!(target(&results, "dense-direct", name)["summary"].is_null(), "{name} has a summary");
    }
    for name in ["dense-direct/nbdcopy", "dense-direct/qemu-img", "dense-direct/cp"] {
        assert!(goal(&results, name)["met"].is_null(), "{name} counts as won or lost");
        assert!(errors(&output).contains(&format!("not measured: {name}")), "{}", errors(&output));
    }
    assert_eq!(output.status.code(), Some(1), "a goal that was not measured is not met");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("install libnbd-bin") && table.contains("no such image"), "{table}");
}

#[test]
fn a_rival_that_writes_nothing_has_failed() {
    let dir = TestDir::new();
    let programs = folder_of(&dir, &[("ddrescue", "exit 0"), ("qemu-img", "exit 0"), ("cp", "exit 0")]);
    let words = ["--trials", "1", "--scenario", "dense-direct"];
    let output = dir.command(&words).env("PATH", &programs).output().unwrap();
    // What rivals do is no fault of ours.
    assert!(output.status.success(), "{}", errors(&output));
    let results = dir.results();
    for name in ["ddrescue", "qemu-img", "cp"] {
        assert_eq!(target(&results, "dense-direct", name)["outcome"]["status"], "failed", "{name}");
    }
}

#[test]
fn a_failure_of_our_command_fails_the_run() {
    let dir = TestDir::new();
    let folder = dir.path("elsewhere");
    fs::create_dir(&folder).unwrap();
    // Beside the program, so that it is found first.
    let program = folder.join("copy-bench");
    fs::copy(env!("CARGO_BIN_EXE_copy-bench"), &program).unwrap();
    write_script(&folder.join("blockhaul"), "echo broken >&2; exit 1");
    let mut command = std::process::Command::new(&program);
    command.env_remove("CARGO").args(["--tiny", "--trials", "1", "--scenario", "sparse", "--dir"]).arg(dir.volumes());
    let output = command.arg("--out").arg(dir.out()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("failed: sparse/blockhaul: exit code 1: broken"), "{}", errors(&output));
}
