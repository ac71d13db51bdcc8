//! Tests damaged journals: truncated, with a flipped bit, or of another copy.
//!
//! They are refused, and the destination stays unchanged. A journal that a crash may leave is resumed, and the copy is
//! equal.

use crate::support::{MIB, Outcome, SeededRandom, TestDir, assert_same, iterations, mixed, recorded, write_sparse};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const SIZE: usize = 4 * MIB + 99;
const ARGS: [&str; 11] = [
    "copy",
    "a",
    "b",
    "--checkpoint",
    "c",
    "--block-size",
    "64KiB",
    "--checkpoint-every",
    "256KiB",
    "--reflink",
    "never",
];

/// Byte range of a journal's two commit slots.
const SLOTS: std::ops::Range<usize> = 512..1536;

/// Runs a copy that is killed after its first record.
fn crashed(source: &[u8]) -> TestDir {
    let dir = TestDir::new();
    write_sparse(&dir.path("a"), source);
    let mut copying = dir.start(&[&ARGS[..], &["--limit", "8MiB/s"]].concat());
    copying.until(recorded);
    copying.crash();
    dir
}

/// Returns what a refusal must not change: content, time of change and allocated blocks.
fn state(path: &Path) -> (Vec<u8>, i64, i64, u64) {
    let stat = std::fs::metadata(path).expect("it is there");
    (std::fs::read(path).expect("it is there"), stat.mtime(), stat.mtime_nsec(), stat.blocks())
}

fn is_refusal(outcome: &Outcome) -> bool {
    let is_named = outcome.error_code() == "ECheckpointCorrupt" || outcome.error_code() == "ECheckpointMismatch";
    outcome.code == Some(1) && is_named
}

/// Resumes with a damaged checkpoint, and checks that either the resume is refused and nothing changes, or the copy is
/// equal. Returns whether it was refused.
fn assert_refused_or_equal(dir: &TestDir, damaged: &[u8], before: &[u8], source: &[u8], what: &str) -> bool {
    dir.file("c", damaged);
    dir.file("b-before", before);
    let file = std::fs::File::options().write(true).open(dir.path("b")).expect("it is there");
    file.set_len(before.len() as u64).and_then(|()| file.write_all_at(before, 0)).expect("there is room");
    drop(file);
    let untouched = state(&dir.path("b"));
    let resumed = dir.blockhaul(&[&ARGS[..], &["--resume"]].concat());
    if is_refusal(&resumed) {
        assert!(state(&dir.path("b")) == untouched, "{what}: the destination was touched");
        assert_eq!(dir.read("c"), damaged, "{what}: the damaged journal is unchanged");
        return true;
    }
    assert_eq!(resumed.code, Some(0), "{what}: {resumed:#?}");
    assert_same(&dir.read("b"), source, what);
    false
}

#[test]
fn a_checkpoint_with_a_flipped_bit_never_makes_a_wrong_copy() {
    let source = mixed(SIZE, 131);
    let dir = crashed(&source);
    let (sound, before) = (dir.read("c"), dir.read("b"));
    let mut random = SeededRandom::new(131);
    let mut refusals = 0;
    for turn in 0..iterations("BLOCKHAUL_FLIPS", 60) {
        // Every second flip is in the header.
        let reach = if turn % 2 == 0 { sound.len() as u64 } else { 400.min(sound.len() as u64) };
        let at = usize::try_from(random.below(reach)).expect("journals are small");
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << random.below(8);
        refusals +=
            u64::from(assert_refused_or_equal(&dir, &damaged, &before, &source, &format!("bit flipped in byte {at}")));
    }
    assert!(refusals > 0, "no damage was detected");
}

#[test]
fn a_truncated_checkpoint_never_makes_a_wrong_copy() {
    let source = mixed(SIZE, 132);
    let dir = crashed(&source);
    let (sound, before) = (dir.read("c"), dir.read("b"));
    let mut random = SeededRandom::new(132);
    let lengths =
        [0, 1, 7, 8, 64, 511, 512, 4095, 4096].into_iter().chain((0..20).map(|_| random.below(sound.len() as u64)));
    for length in lengths.filter(|length| *length < sound.len() as u64) {
        let damaged = &sound[..usize::try_from(length).expect("journals are small")];
        assert_refused_or_equal(&dir, damaged, &before, &source, &format!("cut to {length} of {} bytes", sound.len()));
    }
    let longer = [&sound[..], &[0xff; 100]].concat();
    assert_refused_or_equal(&dir, &longer, &before, &source, "with extra bytes at the end");
}

#[test]
fn checkpoints_of_other_copies_are_refused() {
    let source = mixed(SIZE, 133);
    let (dir, other) = (crashed(&source), crashed(&mixed(SIZE, 134)));
    let untouched = state(&dir.path("b"));
    let own = dir.read("c");
    dir.file("c", &other.read("c"));
    let swapped = dir.blockhaul(&[&ARGS[..], &["--resume"]].concat());
    assert!(is_refusal(&swapped) || swapped.error_code() == "ESourceChanged", "{swapped:#?}");
    assert!(state(&dir.path("b")) == untouched, "the destination was touched");
    dir.file("c", b"not a journal at all, but long enough to be one if it is not checked");
    let foreign = dir.blockhaul(&[&ARGS[..], &["--resume"]].concat());
    foreign.assert_failed(1, "ECheckpointCorrupt");
    assert!(state(&dir.path("b")) == untouched, "the destination was touched");
    dir.file("c", &own);
    dir.blockhaul(&[&ARGS[..], &["--resume"]].concat()).assert_done();
    assert_same(&dir.read("b"), &source, "the copy");
}

#[test]
fn a_receipt_finds_a_flipped_byte_anywhere() {
    let dir = TestDir::new();
    let source = mixed(SIZE, 135);
    write_sparse(&dir.path("a"), &source);
    for flags in [&[][..], &["--block-size", "4KiB"], &["--digest", "xxh3", "--path", "inline"]] {
        dir.blockhaul(&[&["copy", "a", "b", "--overwrite", "--receipt", "r"], flags].concat()).assert_done();
        let same = dir.blockhaul(&["verify", "--receipt", "r", "b"]);
        assert_eq!(same.code, Some(0), "{same:#?}");
        let zero = source.iter().position(|&byte| byte == 0).expect("the source has zeros");
        for at in [0, 4095, zero, SIZE / 2, SIZE - 1] {
            let file = std::fs::File::options().write(true).open(dir.path("b")).expect("it is there");
            file.write_all_at(&[source[at] ^ 0x10], at as u64).expect("it is there");
            let differs = dir.blockhaul(&["verify", "--receipt", "r", "b"]);
            assert_eq!(differs.code, Some(3), "byte {at} {flags:?}: {differs:#?}");
            let found = &differs.report()["differences"][0];
            let (start, length) = (found["offset"].as_u64().unwrap(), found["length"].as_u64().unwrap());
            assert!((start..start + length).contains(&(at as u64)), "byte {at}: {found}");
            file.write_all_at(&source[at..=at], at as u64).expect("it is there");
        }
        std::fs::remove_file(dir.path("r")).expect("it is there");
    }
}

#[test]
fn receipts_that_are_damaged_are_refused() {
    let dir = TestDir::new();
    let source = mixed(SIZE, 136);
    write_sparse(&dir.path("a"), &source);
    dir.blockhaul(&["copy", "a", "b", "--receipt", "r", "--block-size", "64KiB"]).assert_done();
    let (sound, untouched) = (dir.read("r"), state(&dir.path("b")));
    let mut random = SeededRandom::new(136);
    for _ in 0..iterations("BLOCKHAUL_FLIPS", 60) / 2 {
        let at = usize::try_from(random.below(sound.len() as u64)).expect("receipts are small");
        let mut turned = sound.clone();
        turned[at] ^= 1 << random.below(8);
        for (what, damaged) in [(format!("cut to {at}"), &sound[..at]), (format!("flipped in byte {at}"), &turned[..])]
        {
            dir.file("damaged", damaged);
            let refused = dir.blockhaul(&["verify", "--receipt", "damaged", "b"]);
            // Only the newer commit slot counts; the older one may be torn by a crash.
            let in_slots = SLOTS.contains(&at) && what.starts_with("flipped") && refused.code == Some(0);
            assert!(is_refusal(&refused) || in_slots, "{what} of {} bytes: {refused:#?}", sound.len());
        }
    }
    dir.file("other", &mixed(SIZE, 137));
    let other = dir.blockhaul(&["verify", "--receipt", "r", "other"]);
    assert_eq!(other.code, Some(3), "another volume differs: {other:#?}");
    assert!(state(&dir.path("b")) == untouched, "a comparison touches nothing");
}
