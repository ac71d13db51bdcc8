//! Tests sources that change during a copy: never a success, and never a checkpoint that can be resumed.

use crate::support::{MIB, Outcome, TestDir, assert_same, moving, noise};
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: usize = 12 * MIB;
const PATHS: [&[&str]; 3] = [&["--path", "auto"], &["--path", "threads"], &["--path", "inline", "--direct", "no"]];

/// Changes the source in the middle of a copy.
fn disturb(flags: &[&str], change: impl Fn(&File)) -> (TestDir, Outcome) {
    let dir = TestDir::new();
    let path = dir.file("a", &noise(SIZE, 71));
    let args = ["copy", "a", "b", "--block-size", "64KiB", "--limit", "24MiB/s", "--reflink", "never"];
    let mut copying = dir.start(&[&args[..], flags].concat());
    copying.until(moving);
    change(&File::options().write(true).open(path).expect("it is there"));
    let outcome = copying.end();
    (dir, outcome)
}

fn assert_refused(dir: &TestDir, outcome: &Outcome, what: &str) {
    assert_eq!((outcome.code, outcome.error_code()), (Some(1), &"ESourceChanged".into()), "{what}: {outcome:#?}");
    assert_eq!(outcome.report()["error"]["side"], "source", "{what}: {outcome:#?}");
    assert!(outcome.stderr.contains("--restart"), "{what}: the message names --restart: {outcome:#?}");
    let again = dir.blockhaul(&["copy", "a", "b", "--resume"]);
    assert_ne!(
        again.report()["status"],
        "succeeded",
        "{what}: a resume must not mix two states of the source: {again:#?}"
    );
    let anew = dir.blockhaul(&["copy", "a", "b", "--restart"]);
    assert_eq!(anew.code, Some(0), "{what}: {anew:#?}");
    assert_same(&dir.read("b"), &dir.read("a"), what);
}

#[test]
fn a_source_that_shrinks_fails_the_copy() {
    for flags in PATHS {
        let (dir, outcome) = disturb(flags, |file| file.set_len(SIZE as u64 / 3).expect("it is a file"));
        assert_refused(&dir, &outcome, &format!("shrunk, {flags:?}"));
    }
}

#[test]
fn a_source_that_shrinks_to_a_part_of_a_sector_fails_the_copy() {
    let (dir, outcome) = disturb(&[], |file| file.set_len(SIZE as u64 - 77).expect("it is a file"));
    assert_refused(&dir, &outcome, "shrunk by 77 bytes");
}

#[test]
fn a_source_that_grows_fails_the_copy() {
    for flags in PATHS {
        let (dir, outcome) = disturb(flags, |file| file.write_all_at(b"more", SIZE as u64).expect("there is room"));
        assert_refused(&dir, &outcome, &format!("grown, {flags:?}"));
    }
}

#[test]
fn a_source_that_is_written_to_fails_the_copy() {
    for flags in PATHS {
        let (dir, outcome) = disturb(flags, |file| file.write_all_at(b"other", 4096).expect("it is a file"));
        assert_refused(&dir, &outcome, &format!("written to, {flags:?}"));
    }
}

#[test]
fn a_source_that_is_replaced_is_copied_whole_or_fails_the_copy() {
    let dir = TestDir::new();
    let old = noise(SIZE, 71);
    dir.file("a", &old);
    let mut copying = dir.start(&["copy", "a", "b", "--limit", "24MiB/s", "--reflink", "never"]);
    copying.until(moving);
    dir.file("new", b"new");
    std::fs::rename(dir.path("new"), dir.path("a")).expect("both are there");
    let outcome = copying.end();
    // Replacing changes the link count and with it the change time, so a failure is allowed; a wrong copy is not.
    if outcome.code == Some(0) {
        assert_same(&dir.read("b"), &old, "the copy");
    } else {
        outcome.assert_failed(1, "ESourceChanged");
    }
}
