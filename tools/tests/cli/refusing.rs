//! Tests the refusals of `copy`: codes, order, and an unchanged destination.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use std::os::unix::fs::symlink;

#[test]
fn a_missing_source_is_named_before_the_state_directory_and_creates_nothing() {
    let scratch = Scratch::new();
    scratch.file("no-directory", b"");
    let before = scratch.snapshot();
    for state in ["state", "no-directory/state"] {
        let outcome = scratch.json(&["copy", "missing", "b", "--state-dir", state]);
        outcome.assert_failed(1, "ENotFound");
        assert!(outcome.stderr.contains("missing"), "{outcome:?}");
        assert_eq!(outcome.report()["error"]["side"], "source");
        assert!(!outcome.stderr.contains("incomplete"), "no destination was begun: {outcome:?}");
    }
    assert_eq!(scratch.snapshot(), before);
}

#[test]
fn a_state_directory_that_cannot_be_written_names_the_flags_that_help() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    scratch.file("no-directory", b"");
    let before = scratch.snapshot();
    let outcome = scratch.json(&["copy", "a", "b", "--state-dir", "no-directory/state"]);
    outcome.assert_failed(1, "EPermission");
    for flag in ["--state-dir", "--checkpoint", "--no-checkpoint"] {
        assert!(outcome.stderr.contains(flag), "{flag}: {outcome:?}");
    }
    assert_eq!(scratch.snapshot(), before);
}

#[test]
fn without_a_home_the_flags_that_help_are_named() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    let mut command = scratch.blockhaul(&["copy", "a", "b"]);
    let output = command.env_remove("STATE_DIRECTORY").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("blockhaul: EPermission: ") && stderr.contains("--state-dir"), "{stderr}");
}

#[test]
fn a_destination_that_is_the_source_is_refused_through_links_too() {
    let scratch = Scratch::new();
    let source = scratch.file("a", &noise(MIB, 1));
    symlink(&source, scratch.path("symbolic")).unwrap();
    std::fs::hard_link(&source, scratch.path("hard")).unwrap();
    for destination in ["a", "./a", "symbolic", "hard"] {
        scratch.json(&["copy", "a", destination, "--overwrite"]).assert_failed(1, "ESameVolume");
        assert_eq!(scratch.read("a"), noise(MIB, 1), "{destination}");
    }
}

#[test]
fn a_destination_with_data_is_kept_without_overwrite() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    scratch.file("b", b"precious");
    let outcome = scratch.json(&["copy", "a", "b"]);
    outcome.assert_failed(1, "EExists");
    assert!(outcome.stderr.contains("--overwrite"), "{outcome:?}");
    assert!(!outcome.stderr.contains("incomplete"), "no destination was begun: {outcome:?}");
    assert_eq!(scratch.read("b"), b"precious");
    scratch.json(&["copy", "a", "b", "--overwrite"]).assert_done();
    assert_eq!(scratch.read("b"), noise(MIB, 1));
}

#[test]
fn a_destination_in_a_missing_directory_is_not_found() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    let outcome = scratch.json(&["copy", "a", "nowhere/b"]);
    outcome.assert_failed(1, "ENotFound");
    assert!(!scratch.path("nowhere").exists());
}

#[test]
fn a_human_refusal_is_one_line() {
    let scratch = Scratch::new();
    let output = scratch.blockhaul(&["copy", "missing", "b"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("blockhaul: ENotFound: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty(), "no summary is printed");
}

#[test]
fn a_mistyped_device_is_not_made_a_file() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    let typo = format!("/dev/blockhaul-no-such-device-{}", std::process::id());
    for args in [
        &["copy", "a", &typo][..],
        &["copy", "a", &typo, "--dry-run"],
        &["copy", "a", "b", "--receipt", &typo],
        &["copy", "a", "b", "--checkpoint", &typo],
    ] {
        let output = scratch.blockhaul(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("blockhaul: ENotFound: there is no device"), "{args:?}: {stderr}");
        assert!(!std::path::Path::new(&typo).exists(), "{args:?} created a file in /dev");
    }
}
