//! Tests SIGKILL at random moments: recorded data is never copied again, and little else is.
//!
//! After a kill the destination is compared with the source: bytes that are written but not in the checkpoint are
//! copied again by the next run. They are bounded by one checkpoint interval and the window. The number of kills, over
//! as many copies as it takes, is `BLOCKHAUL_KILLS` (100).

use crate::support::{
    MIB, Running, SeededRandom, TestDir, assert_same, iterations, mixed, moving, outcome, program, recorded,
    write_sparse,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::{Duration, SystemTime};

const SIZE: usize = 24 * MIB + 4321;
const BLOCK: usize = 64 << 10;
/// Checkpoint interval of [`FLAGS`], in bytes.
const EVERY: u64 = MIB as u64;
/// Bytes in flight with [`FLAGS`]: cores x depth x block.
const WINDOW: u64 = 2 * 4 * BLOCK as u64;
const FLAGS: [&str; 14] = [
    "copy",
    "a",
    "b",
    "--resume",
    "--block-size",
    "64KiB",
    "--depth",
    "4",
    "--cores",
    "2",
    "--checkpoint-every",
    "1MiB",
    "--reflink",
    "never",
];
/// Flags of a copy that is slow enough for several kills.
const SLOWLY: [&str; 2] = ["--limit", "48MiB/s"];

fn slowly() -> Vec<&'static str> {
    [&FLAGS[..], &SLOWLY].concat()
}

fn durable(dir: &TestDir) -> u64 {
    dir.checkpoint().map_or(0, |checkpoint| checkpoint["durable_bytes"].as_u64().expect("it is a number"))
}

/// Returns the bytes of non-zero blocks that are written and not in the checkpoint, which will be copied again.
fn unrecorded(dir: &TestDir, source: &[u8]) -> u64 {
    let Ok(found) = std::fs::read(dir.path("b")) else { return 0 };
    let ranges = dir.checkpoint().map_or(Vec::new(), |found| found["durable"].as_array().cloned().unwrap_or_default());
    let of = |range: &Value, field: &str| range[field].as_u64().expect("it is a number");
    let is_recorded = |at: u64| ranges.iter().any(|r| of(r, "offset") <= at && at < of(r, "offset") + of(r, "length"));
    let blocks = found.chunks(BLOCK).zip(source.chunks(BLOCK)).enumerate();
    let landed = blocks.filter(|(_, (found, source))| found == source && found.iter().any(|&byte| byte != 0));
    landed.filter(|(index, _)| !is_recorded((index * BLOCK) as u64)).map(|(_, (found, _))| found.len() as u64).sum()
}

/// Tells whether the copy is complete: its checkpoint is removed last, so a later kill comes too late.
fn is_over(dir: &TestDir, source: &[u8]) -> bool {
    dir.checkpoint_path().is_none() && std::fs::read(dir.path("b")).is_ok_and(|found| found == source)
}

/// Start of the next run after a kill.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Restart {
    /// After the killed process has ended.
    After,
    /// At once: the killed process may still hold its lock, and its writes may still take effect.
    AtOnce,
}

fn crash(restart: Restart, kills: u64) {
    let seed = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is set").subsec_nanos();
    println!("seed {seed}, {restart:?}");
    let mut random = SeededRandom::new(seed.into());
    let (mut left, mut copies) = (kills, 0);
    while left > 0 {
        copies += 1;
        left -= one_copy(&mut random, restart, left, copies);
    }
}

/// Copies one volume with at most `limit` kills; returns their number.
fn one_copy(random: &mut SeededRandom, restart: Restart, limit: u64, seed: u64) -> u64 {
    let dir = TestDir::new();
    let source = mixed(SIZE, seed);
    write_sparse(&dir.path("a"), &source);
    let (mut kills, mut before, mut carried) = (0, 0, 0);
    let mut victim: Option<Running> = None;
    while kills < limit && (victim.is_some() || !is_over(&dir, &source)) {
        let running = dir.start(&slowly());
        let is_late = victim.take().is_some_and(|victim| victim.end_with_status().1.success());
        // Between the first instructions and several checkpoints.
        std::thread::sleep(Duration::from_micros(random.below(160_000)));
        running.signal(Signal::SIGKILL);
        kills += 1;
        if restart == Restart::AtOnce && !is_late {
            victim = Some(running);
            continue;
        }
        drop(running);
        if restart == Restart::After && !is_over(&dir, &source) {
            let (now, again) = (durable(&dir), unrecorded(&dir, &source));
            assert!(now >= before, "{before} bytes were recorded, then {now}");
            // Runs may leave different blocks unrecorded, as the two workers race.
            let bound = carried + EVERY + WINDOW;
            assert!(again <= bound, "{again} bytes, over {bound}, must be copied again after kill {kills}");
            (before, carried) = (now, again);
        }
    }
    drop(victim);
    if !is_over(&dir, &source) {
        let last = dir.blockhaul(&FLAGS);
        last.assert_done();
        assert!(last.bytes("resumed") >= before, "{before} bytes were recorded: {last:?}");
        assert!(last.bytes("read") <= SIZE as u64 - last.bytes("resumed"), "nothing recorded is read again: {last:?}");
    }
    assert_same(&dir.read("b"), &source, "the copy");
    assert!(dir.checkpoint_path().is_none(), "the checkpoint is gone");
    kills
}

#[test]
fn a_copy_killed_at_random_moments_resumes_from_its_checkpoint() {
    crash(Restart::After, iterations("BLOCKHAUL_KILLS", 100));
}

#[test]
fn a_copy_killed_at_random_moments_and_restarted_at_once_is_equal() {
    crash(Restart::AtOnce, iterations("BLOCKHAUL_KILLS", 100) / 2);
}

#[test]
fn a_restart_waits_for_the_lock_of_a_stopped_process() {
    let dir = TestDir::new();
    let source = mixed(SIZE, 77);
    write_sparse(&dir.path("a"), &source);
    let mut first = dir.start(&slowly());
    first.until(recorded);
    first.signal(Signal::SIGSTOP);

    let impatient = dir.blockhaul(&[&FLAGS[..], &["--lock-wait", "0ms"]].concat());
    impatient.assert_failed(1, "EBusy");
    let before = durable(&dir);
    assert!(before > 0, "the checkpoint of the stopped copy is untouched");

    let waiting = dir.start(&[&FLAGS[..], &["--lock-wait", "60s"]].concat());
    first.crash();
    let outcome = waiting.end();
    outcome.assert_done();
    assert!(outcome.bytes("resumed") >= before, "{outcome:?}");
    assert_same(&dir.read("b"), &source, "the copy");
}

#[test]
fn a_second_copy_to_a_destination_in_use_is_refused_and_harms_nothing() {
    let dir = TestDir::new();
    let source = mixed(SIZE, 78);
    write_sparse(&dir.path("a"), &source);
    dir.file("other", b"other");
    let mut first = dir.start(&slowly());
    first.until(moving);
    let mut second = dir.command(&program(), &["copy", "other", "b", "--overwrite", "--lock-wait", "0ms", "--json"]);
    outcome(&second.arg("--checkpoint").arg("c").output().expect("it was built")).assert_failed(1, "EBusy");
    first.end().assert_done();
    assert_same(&dir.read("b"), &source, "the copy");
}
