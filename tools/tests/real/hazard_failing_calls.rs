//! Fails every system call that a copy depends on: the first one, the second one, and so on until the copy makes no
//! further one.
//!
//! The copy succeeds with the right bytes, or it reports the failure and the next run completes it; it never succeeds
//! with wrong bytes. A failed flush always ends the copy.

use crate::support::{MIB, Need, Outcome, TestDir, assert_same, mixed, need, write_sparse};

const SIZE: usize = MIB + 777;
const FLAGS: [&str; 13] = [
    "copy",
    "a",
    "b",
    "--block-size",
    "64KiB",
    "--depth",
    "2",
    "--checkpoint-every",
    "256KiB",
    "--reflink",
    "never",
    "--cores",
    "1",
];
/// Upper bound of calls of one kind by one thread.
const TIMES_MAX: usize = 200;

/// Permitted results of a failed call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// The copy works around the failure, or fails.
    GoOnOrEnd,
    /// The copy fails.
    End,
}

/// Fails each `call` with `errno`, in steps of `stride`.
fn fail_each(test: &str, call: &str, errno: &str, flags: &[&str], answer: Answer, stride: usize) {
    need!(test, &[Need::Program("strace")]);
    let source = mixed(SIZE, 101);
    for time in (1..TIMES_MAX).step_by(stride) {
        let dir = TestDir::new();
        write_sparse(&dir.path("a"), &source);
        let args: Vec<&str> = FLAGS.iter().chain(flags).copied().collect();
        let (outcome, was_made) = dir.injected(&format!("{call}:error={errno}:when={time}"), &args);
        if !was_made {
            assert!(time > 1, "no copy calls {call}: this test would test nothing");
            outcome.assert_done();
            return;
        }
        if outcome.stderr.contains("loading shared libraries") {
            continue;
        }
        let what = format!("{call} number {time} fails with {errno} {flags:?}");
        assert!(outcome.code == Some(1) || answer == Answer::GoOnOrEnd, "{what}: {outcome:#?}");
        assert_recovers(&dir, &outcome, &source, &args, &what);
    }
    panic!("a copy of {SIZE} bytes makes {TIMES_MAX} calls of {call}");
}

fn assert_recovers(dir: &TestDir, outcome: &Outcome, source: &[u8], args: &[&str], what: &str) {
    if outcome.code != Some(0) {
        assert_eq!(outcome.code, Some(1), "{what}: the copy reports the failure: {outcome:#?}");
        assert!(outcome.error_code().is_string(), "{what}: {outcome:#?}");
        assert!(outcome.stderr.contains("blockhaul: E"), "{what}: {outcome:#?}");
        // Without a checkpoint the failure came before the first change or after the last one.
        let again = if dir.checkpoint_path().is_some() { "--resume" } else { "--overwrite" };
        let next = dir.blockhaul(&[args, &[again]].concat());
        assert_eq!(next.code, Some(0), "{what}, then {again}: {next:#?}");
    }
    assert_same(&dir.read("b"), source, what);
}

#[test]
fn a_flush_of_data_that_fails_ends_the_copy() {
    let test = "a_flush_of_data_that_fails_ends_the_copy";
    fail_each(test, "fdatasync", "EIO", &["--path", "threads"], Answer::End, 1);
    fail_each(test, "fdatasync", "ENOSPC", &["--path", "threads", "--direct", "no"], Answer::End, 1);
}

#[test]
fn a_flush_of_the_journal_or_a_directory_that_fails_ends_the_copy() {
    fail_each("a_flush_of_the_journal_or_a_directory_that_fails_ends_the_copy", "fsync", "EIO", &[], Answer::End, 1);
}

#[test]
fn a_failed_write_never_makes_a_wrong_copy() {
    let test = "a_failed_write_never_makes_a_wrong_copy";
    fail_each(test, "pwrite64", "EIO", &["--path", "threads"], Answer::End, 3);
    fail_each(test, "pwrite64", "ENOSPC", &["--path", "inline"], Answer::End, 5);
    fail_each(test, "pwrite64", "EINTR", &["--path", "threads"], Answer::GoOnOrEnd, 5);
}

#[test]
fn a_failed_read_never_makes_a_wrong_copy() {
    let test = "a_failed_read_never_makes_a_wrong_copy";
    fail_each(test, "pread64", "EIO", &["--path", "threads"], Answer::GoOnOrEnd, 3);
    fail_each(test, "pread64", "EINTR", &["--path", "inline"], Answer::GoOnOrEnd, 5);
}

#[test]
fn a_failed_reservation_never_makes_a_wrong_copy() {
    let test = "a_failed_reservation_never_makes_a_wrong_copy";
    for errno in ["EOPNOTSUPP", "ENOSYS", "EINTR", "ENOSPC"] {
        fail_each(test, "fallocate", errno, &["--sparse", "never"], Answer::GoOnOrEnd, 1);
        fail_each(test, "fallocate", errno, &["--path", "threads"], Answer::GoOnOrEnd, 1);
    }
}

#[test]
fn a_failed_change_of_size_never_makes_a_wrong_copy() {
    fail_each("a_failed_change_of_size_never_makes_a_wrong_copy", "ftruncate", "EIO", &[], Answer::GoOnOrEnd, 1);
}

#[test]
fn a_failed_lock_never_makes_a_wrong_copy() {
    need!("a_failed_lock_never_makes_a_wrong_copy", &[Need::Program("strace")]);
    let source = mixed(SIZE, 102);
    // The locks of the destination and the journal; later calls unlock.
    for (time, errno) in [(1, "ENOLCK"), (1, "EINTR"), (2, "ENOLCK"), (2, "EOPNOTSUPP")] {
        let dir = TestDir::new();
        write_sparse(&dir.path("a"), &source);
        let (outcome, was_made) = dir.injected(&format!("flock:error={errno}:when={time}"), &FLAGS);
        let what = format!("flock number {time} fails with {errno}");
        assert!(was_made, "{what}: {outcome:#?}");
        assert_recovers(&dir, &outcome, &source, &FLAGS, &what);
    }
}

#[test]
fn a_failed_rename_never_makes_a_wrong_copy() {
    let test = "a_failed_rename_never_makes_a_wrong_copy";
    for errno in ["EINVAL", "ENOSPC", "ENOSYS"] {
        fail_each(test, "renameat2", errno, &["--receipt", "r"], Answer::GoOnOrEnd, 1);
    }
}

#[test]
fn a_failed_extent_scan_never_makes_a_wrong_copy() {
    let test = "a_failed_extent_scan_never_makes_a_wrong_copy";
    for errno in ["EINVAL", "EIO", "EOPNOTSUPP"] {
        fail_each(test, "lseek", errno, &[], Answer::GoOnOrEnd, 1);
    }
}
