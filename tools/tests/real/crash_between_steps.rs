//! Tests SIGKILL before every single step of the start, of the records and of the end of a copy.
//!
//! `strace` kills the process as it enters the n-th system call of one kind, for n = 1, 2, 3 ... until the copy
//! completes. Calls are counted per thread, so every order of start, record and end is cut between any two of its
//! steps. After each kill, a copy is killed while it resumes, then one resumes undisturbed.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, need, outcome, program, text, write_sparse};
use std::path::Path;
use std::process::Stdio;

const SIZE: usize = 2 * MIB + 777;
const FLAGS: [&str; 13] = [
    "copy",
    "a",
    "b",
    "--block-size",
    "64KiB",
    "--depth",
    "2",
    "--checkpoint-every",
    "512KiB",
    "--reflink",
    "never",
    "--receipt",
    "receipt",
];
/// Upper bound of calls of one kind by one thread in a copy of [`SIZE`].
const STEPS_MAX: u32 = 400;

/// Runs a copy that is killed before its `step`-th `call`; tells whether it completed.
fn run_until(dir: &TestDir, call: &str, step: u32, resume: bool) -> bool {
    let trace = format!("--trace={call}");
    let inject = format!("--inject={call}:signal=KILL:when={step}");
    let mut command = dir.command(Path::new("strace"), &["-f", "-qqq", "-o", "trace", &trace, &inject]);
    command.arg(program()).args(FLAGS).stdout(Stdio::null()).stderr(Stdio::null());
    if resume {
        command.arg("--resume");
    }
    command.status().expect("strace was found").success()
}

/// Kills a copy at every `call`.
fn crash_at_every(test: &str, call: &str) {
    need!(test, &[Need::Program("strace")]);
    let source = mixed(SIZE, 31);
    for step in 1..STEPS_MAX {
        let dir = TestDir::new();
        write_sparse(&dir.path("a"), &source);
        if run_until(&dir, call, step, false) {
            assert!(step > 1, "no copy calls {call}: this test would test nothing");
            return;
        }
        let what = format!("killed before {call} number {step}");
        if !run_until(&dir, call, step, true) {
            resume_undisturbed(&dir, &what);
        }
        assert_same(&dir.read("b"), &source, &what);
        assert!(dir.checkpoint_path().is_none(), "{what}: the checkpoint is gone");
        let verified = dir.blockhaul(&["verify", "--receipt", "receipt", "b"]);
        assert_eq!(verified.code, Some(0), "{what}: {verified:#?}");
    }
    panic!("a copy of {SIZE} bytes makes {STEPS_MAX} calls of {call}");
}

/// Resumes a copy without a kill, and checks the result.
fn resume_undisturbed(dir: &TestDir, what: &str) {
    let was_finished = dir.checkpoint_path().is_none() && dir.path("receipt").exists();
    let recorded = dir.checkpoint().map_or(0, |found| found["durable_bytes"].as_u64().expect("it is a number"));
    if was_finished {
        return;
    }
    let args: Vec<&str> = FLAGS.iter().copied().chain(["--resume"]).collect();
    let last = dir.blockhaul(&args);
    assert_eq!(last.code, Some(0), "{what}: {last:#?}");
    assert!(last.bytes("resumed") >= recorded, "{what}: {recorded} bytes were recorded: {last:#?}");
    assert!(last.bytes("read") <= SIZE as u64 - recorded, "{what}: nothing recorded is read again: {last:#?}");
}

#[test]
fn a_copy_killed_before_every_open_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_open_can_be_resumed", "openat");
}

#[test]
fn a_copy_killed_before_every_lock_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_lock_can_be_resumed", "flock");
}

#[test]
fn a_copy_killed_before_every_flush_of_the_job_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_flush_of_the_job_can_be_resumed", "fsync");
}

#[test]
fn a_copy_killed_before_every_change_of_size_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_change_of_size_can_be_resumed", "ftruncate");
}

#[test]
fn a_copy_killed_before_every_reservation_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_reservation_can_be_resumed", "fallocate");
}

#[test]
fn a_copy_killed_before_every_write_of_a_header_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_write_of_a_header_can_be_resumed", "pwrite64");
}

#[test]
fn a_copy_killed_before_every_rename_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_rename_can_be_resumed", "renameat2");
}

#[test]
fn a_copy_killed_before_every_turn_of_a_ring_can_be_resumed() {
    crash_at_every("a_copy_killed_before_every_turn_of_a_ring_can_be_resumed", "io_uring_enter");
}

#[test]
fn a_complete_checkpoint_is_removed_without_copying_again() {
    let test = "a_complete_checkpoint_is_removed_without_copying_again";
    need!(test, &[Need::Program("strace")]);
    let dir = TestDir::new();
    let source = mixed(SIZE, 32);
    write_sparse(&dir.path("a"), &source);
    let mut command = dir.command(
        Path::new("strace"),
        &["-f", "-qqq", "-o", "trace", "--trace=unlink,unlinkat", "--inject=unlink,unlinkat:signal=KILL:when=1"],
    );
    let killed = command.arg(program()).args(["copy", "a", "b", "--json"]).output().expect("strace was found");
    assert!(!killed.status.success(), "a copy ends with the removal of its checkpoint");
    let checkpoint = dir.checkpoint_path().expect("it was not removed");
    assert_eq!(dir.checkpoint().expect("it is there")["durable_bytes"], SIZE);
    outcome(&dir.command(&program(), &["copy", "a", "b", "--json"]).output().unwrap()).assert_failed(1, "EExists");
    let resumed = dir.blockhaul(&["copy", "a", "b", "--resume"]);
    resumed.assert_done();
    assert_eq!((resumed.bytes("read"), resumed.bytes("durable")), (0, SIZE as u64), "nothing is copied again");
    assert!(!checkpoint.exists(), "{} is left", text(&checkpoint));
    assert_same(&dir.read("b"), &source, "the copy");
}
