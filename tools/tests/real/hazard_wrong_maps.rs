//! Tests sources whose file system is wrong about them: maps that hide data, maps that make no progress, sizes that are too
//! small. The copy contains what can be read, or it fails.

use crate::support::{MIB, Need, Room, assert_same, need, noise};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Every question about data is answered by "there is none".
const ALL_HOLE: &str = "lseek:error=ENXIO:when=1+";

/// A file of noise but for a hole in the middle, so that less is allocated than it is long.
fn partly_allocated(room: &Room, name: &str) -> Vec<u8> {
    let mut bytes = noise(2 * MIB, 7);
    bytes[MIB..MIB + MIB / 2].fill(0);
    let file = File::create(room.path(name)).expect("the room is ours");
    file.set_len(bytes.len() as u64).expect("it is a file");
    file.write_all_at(&bytes[..MIB], 0).expect("there is room");
    file.write_all_at(&bytes[MIB + MIB / 2..], (MIB + MIB / 2) as u64).expect("there is room");
    file.sync_all().expect("it can be flushed");
    assert!(file.metadata().expect("it is open").blocks() * 512 < bytes.len() as u64, "the file has no hole");
    bytes
}

#[test]
fn a_map_that_hides_allocated_data_is_ignored() {
    need!("a_map_that_hides_allocated_data_is_ignored", &[Need::Program("strace")]);
    for flags in [&["--verify"][..], &["--path", "threads"], &["--sparse", "never"], &["--direct", "no"]] {
        let room = Room::new();
        let bytes = noise(2 * MIB, 7);
        room.file("a", &bytes);
        let (outcome, _) = room.injected(ALL_HOLE, &[&["copy", "a", "b", "--reflink", "never"], flags].concat());
        assert_eq!(outcome.code, Some(0), "{flags:?}: {outcome:#?}");
        assert_same(&room.read("b"), &bytes, &format!("{flags:?}"));
    }
}

#[test]
fn sparse_read_ignores_the_map() {
    need!("sparse_read_ignores_the_map", &[Need::Program("strace")]);
    let room = Room::new();
    let bytes = partly_allocated(&room, "a");
    let words = ["copy", "a", "b", "--reflink", "never", "--sparse", "read", "--verify"];
    let (outcome, lied) = room.injected(ALL_HOLE, &words);
    assert!(lied, "the map was not asked: {outcome:#?}");
    outcome.assert_done();
    assert_same(&room.read("b"), &bytes, "the copy");
    assert_eq!(outcome.bytes("read"), bytes.len() as u64, "{outcome:#?}");
    // What was read as zeros may still become a hole.
    let allocated = fs::metadata(room.path("b")).expect("it was copied").blocks() * 512;
    assert!(allocated < bytes.len() as u64, "{allocated} bytes are allocated");
}

#[test]
fn a_comparison_does_not_depend_on_which_side_is_named_first() {
    need!("a_comparison_does_not_depend_on_which_side_is_named_first", &[Need::Program("strace")]);
    let room = Room::new();
    let bytes = partly_allocated(&room, "wrong");
    room.file("same", &bytes);
    room.file("zeros", &vec![0; bytes.len()]);
    room.sparse("hole", bytes.len() as u64);
    for (other, flags, exit) in [
        ("same", &[][..], 0),
        ("zeros", &[], 3),
        ("same", &["--sparse", "read"], 0),
        ("zeros", &["--sparse", "read"], 3),
        ("hole", &["--sparse", "read"], 3),
    ] {
        for pair in [["wrong", other], [other, "wrong"]] {
            let words = [&["verify"], &pair[..], flags].concat();
            let (outcome, lied) = room.injected(ALL_HOLE, &words);
            assert_eq!(outcome.code, Some(exit), "{words:?}: {outcome:#?}");
            assert!(lied || pair[1] == "wrong", "{words:?}: the map was not asked");
        }
    }
}

#[test]
fn a_map_without_progress_is_data() {
    need!("a_map_without_progress_is_data", &[Need::Program("strace")]);
    // Its own offset at first, less than that later; one more at first.
    for answer in ["lseek:retval=0:when=1+", "lseek:retval=1:when=1+"] {
        let room = Room::new();
        let bytes = partly_allocated(&room, "a");
        let (outcome, lied) = room.injected(answer, &["copy", "a", "b", "--reflink", "never"]);
        assert!(lied, "{answer}: the map was not asked");
        outcome.assert_done();
        assert_same(&room.read("b"), &bytes, answer);
        let questions = fs::read_to_string(room.path("trace")).expect("strace wrote it").lines().count();
        assert!(questions < 100, "{answer}: {questions} questions to a map that makes no progress");
    }
}

#[test]
fn a_file_with_data_behind_its_size_is_refused() {
    let room = Room::new();
    room.file("old", b"precious");
    for words in [
        &["copy", "/proc/cpuinfo", "new"][..],
        &["copy", "/proc/cpuinfo", "new", "--dry-run"],
        &["copy", "/proc/cpuinfo", "old", "--overwrite"],
        &["copy", "/proc/cpuinfo", "new", "--path", "threads", "--verify"],
    ] {
        let outcome = room.blockhaul(words);
        assert_eq!(outcome.code, Some(1), "{words:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("blockhaul: ESourceChanged: "), "{words:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("`cat`"), "{words:?} names no remedy: {outcome:#?}");
        assert!(!room.path("new").exists(), "{words:?}");
        assert_eq!(room.read("old"), b"precious", "{words:?}");
    }
    room.file("empty", b"");
    for pair in [["/proc/cpuinfo", "empty"], ["empty", "/proc/cpuinfo"], ["/proc/cpuinfo", "/proc/version"]] {
        room.blockhaul(&["verify", pair[0], pair[1]]).assert_failed(1, "ESourceChanged");
    }
}

#[test]
fn a_file_is_copied_up_to_its_size() {
    for size in [0, 1, 511, 512, 4095, 4096, MIB + 777] {
        for flags in [&["--direct", "auto"][..], &["--direct", "no"], &["--path", "threads"]] {
            let room = Room::new();
            let bytes = noise(size, 8);
            room.file("a", &bytes);
            let words = [&["copy", "a", "b", "--reflink", "never", "--verify"], flags].concat();
            room.blockhaul(&words).assert_done();
            assert_same(&room.read("b"), &bytes, &format!("{size} bytes, {flags:?}"));
            room.blockhaul(&["verify", "a", "b"]).assert_done();
        }
    }
}
