//! Tests damaged journals: truncated, with a flipped bit, or of another copy.
//!
//! They are refused, and the destination stays unchanged. A journal that a crash may leave is resumed, and the copy is
//! equal.

use crate::support::{Dice, MIB, Outcome, Room, assert_same, iterations, mixed, recorded, write_sparse};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const SIZE: usize = 4 * MIB + 99;
const WORDS: [&str; 11] = [
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

/// Where a journal's two commit slots lie.
const SLOTS: std::ops::Range<usize> = 512..1536;

/// A copy that crashed after it had recorded something.
fn crashed(source: &[u8]) -> Room {
    let room = Room::new();
    write_sparse(&room.path("a"), source);
    let mut copying = room.start(&[&WORDS[..], &["--limit", "8MiB/s"]].concat());
    copying.until(recorded);
    copying.crash();
    room
}

/// What must not change when something is refused.
fn state(path: &Path) -> (Vec<u8>, i64, i64, u64) {
    let stat = std::fs::metadata(path).expect("it is there");
    (std::fs::read(path).expect("it is there"), stat.mtime(), stat.mtime_nsec(), stat.blocks())
}

fn is_refusal(outcome: &Outcome) -> bool {
    let is_named = outcome.error_code() == "ECheckpointCorrupt" || outcome.error_code() == "ECheckpointMismatch";
    outcome.code == Some(1) && is_named
}

/// Resumes with a damaged checkpoint. Either it is refused and nothing changed, or the copy is right.
fn judge(room: &Room, damaged: &[u8], before: &[u8], source: &[u8], what: &str) -> bool {
    room.file("c", damaged);
    room.file("b-before", before);
    let file = std::fs::File::options().write(true).open(room.path("b")).expect("it is there");
    file.set_len(before.len() as u64).and_then(|()| file.write_all_at(before, 0)).expect("there is room");
    drop(file);
    let untouched = state(&room.path("b"));
    let resumed = room.blockhaul(&[&WORDS[..], &["--resume"]].concat());
    if is_refusal(&resumed) {
        assert!(state(&room.path("b")) == untouched, "{what}: the destination was touched");
        assert_eq!(room.read("c"), damaged, "{what}: the evidence stays");
        return true;
    }
    assert_eq!(resumed.code, Some(0), "{what}: {resumed:#?}");
    assert_same(&room.read("b"), source, what);
    false
}

#[test]
fn a_checkpoint_with_a_flipped_bit_never_makes_a_wrong_copy() {
    let source = mixed(SIZE, 131);
    let room = crashed(&source);
    let (sound, before) = (room.read("c"), room.read("b"));
    let mut dice = Dice::new(131);
    let mut refusals = 0;
    for turn in 0..iterations("BLOCKHAUL_FLIPS", 60) {
        // Every other one in the part that says what the copy is about.
        let reach = if turn % 2 == 0 { sound.len() as u64 } else { 400.min(sound.len() as u64) };
        let at = usize::try_from(dice.below(reach)).expect("journals are small");
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << dice.below(8);
        refusals += u64::from(judge(&room, &damaged, &before, &source, &format!("bit turned in byte {at}")));
    }
    assert!(refusals > 0, "no damage was found at all");
}

#[test]
fn a_truncated_checkpoint_never_makes_a_wrong_copy() {
    let source = mixed(SIZE, 132);
    let room = crashed(&source);
    let (sound, before) = (room.read("c"), room.read("b"));
    let mut dice = Dice::new(132);
    let lengths =
        [0, 1, 7, 8, 64, 511, 512, 4095, 4096].into_iter().chain((0..20).map(|_| dice.below(sound.len() as u64)));
    for length in lengths.filter(|length| *length < sound.len() as u64) {
        let damaged = &sound[..usize::try_from(length).expect("journals are small")];
        judge(&room, damaged, &before, &source, &format!("cut to {length} of {} bytes", sound.len()));
    }
    let longer = [&sound[..], &[0xff; 100]].concat();
    judge(&room, &longer, &before, &source, "with bytes behind its end");
}

#[test]
fn checkpoints_of_other_copies_are_refused() {
    let source = mixed(SIZE, 133);
    let (room, other) = (crashed(&source), crashed(&mixed(SIZE, 134)));
    let untouched = state(&room.path("b"));
    let own = room.read("c");
    room.file("c", &other.read("c"));
    let swapped = room.blockhaul(&[&WORDS[..], &["--resume"]].concat());
    assert!(is_refusal(&swapped) || swapped.error_code() == "ESourceChanged", "{swapped:#?}");
    assert!(state(&room.path("b")) == untouched, "the destination was touched");
    room.file("c", b"not a journal at all, but long enough to be one if nobody looks");
    let foreign = room.blockhaul(&[&WORDS[..], &["--resume"]].concat());
    foreign.assert_failed(1, "ECheckpointCorrupt");
    assert!(state(&room.path("b")) == untouched, "the destination was touched");
    room.file("c", &own);
    room.blockhaul(&[&WORDS[..], &["--resume"]].concat()).assert_done();
    assert_same(&room.read("b"), &source, "the copy");
}

#[test]
fn a_receipt_finds_a_flipped_byte_anywhere() {
    let room = Room::new();
    let source = mixed(SIZE, 135);
    write_sparse(&room.path("a"), &source);
    for flags in [&[][..], &["--block-size", "4KiB"], &["--digest", "xxh3", "--path", "inline"]] {
        room.blockhaul(&[&["copy", "a", "b", "--overwrite", "--receipt", "r"], flags].concat()).assert_done();
        let same = room.blockhaul(&["verify", "--receipt", "r", "b"]);
        assert_eq!(same.code, Some(0), "{same:#?}");
        let zero = source.iter().position(|&byte| byte == 0).expect("some of it is zeros");
        for at in [0, 4095, zero, SIZE / 2, SIZE - 1] {
            let file = std::fs::File::options().write(true).open(room.path("b")).expect("it is there");
            file.write_all_at(&[source[at] ^ 0x10], at as u64).expect("it is there");
            let differs = room.blockhaul(&["verify", "--receipt", "r", "b"]);
            assert_eq!(differs.code, Some(3), "byte {at} {flags:?}: {differs:#?}");
            let found = &differs.report()["differences"][0];
            let (start, length) = (found["offset"].as_u64().unwrap(), found["length"].as_u64().unwrap());
            assert!((start..start + length).contains(&(at as u64)), "byte {at}: {found}");
            file.write_all_at(&source[at..=at], at as u64).expect("it is there");
        }
        std::fs::remove_file(room.path("r")).expect("it is there");
    }
}

#[test]
fn receipts_that_are_damaged_are_refused() {
    let room = Room::new();
    let source = mixed(SIZE, 136);
    write_sparse(&room.path("a"), &source);
    room.blockhaul(&["copy", "a", "b", "--receipt", "r", "--block-size", "64KiB"]).assert_done();
    let (sound, untouched) = (room.read("r"), state(&room.path("b")));
    let mut dice = Dice::new(136);
    for _ in 0..iterations("BLOCKHAUL_FLIPS", 60) / 2 {
        let at = usize::try_from(dice.below(sound.len() as u64)).expect("receipts are small");
        let mut turned = sound.clone();
        turned[at] ^= 1 << dice.below(8);
        for (what, damaged) in [(format!("cut to {at}"), &sound[..at]), (format!("turned in byte {at}"), &turned[..])] {
            room.file("damaged", damaged);
            let refused = room.blockhaul(&["verify", "--receipt", "damaged", "b"]);
            // Of its two commit slots only the newer one counts: the older may hold what a crash left.
            let in_slots = SLOTS.contains(&at) && what.starts_with("turned") && refused.code == Some(0);
            assert!(is_refusal(&refused) || in_slots, "{what} of {} bytes: {refused:#?}", sound.len());
        }
    }
    room.file("other", &mixed(SIZE, 137));
    let other = room.blockhaul(&["verify", "--receipt", "r", "other"]);
    assert_eq!(other.code, Some(3), "another volume differs: {other:#?}");
    assert!(state(&room.path("b")) == untouched, "a comparison touches nothing");
}
