//! Tests sources whose file system reports wrong facts: maps that hide data, maps without progress, sizes that are too
//! small. The copy contains all readable data, or it fails.

use crate::support::{MIB, Need, TestDir, assert_same, need, noise};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// `strace` injection: `SEEK_DATA` finds no data.
const ALL_HOLE: &str = "lseek:error=ENXIO:when=1+";

/// Creates a file of noise with a hole in the middle, so that it is not fully allocated.
fn partly_allocated(dir: &TestDir, name: &str) -> Vec<u8> {
    let mut bytes = noise(2 * MIB, 7);
    bytes[MIB..MIB + MIB / 2].fill(0);
    let file = File::create(dir.path(name)).expect("the directory is writable");
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
        let dir = TestDir::new();
        let bytes = noise(2 * MIB, 7);
        dir.file("a", &bytes);
        let (outcome, _) = dir.injected(ALL_HOLE, &[&["copy", "a", "b", "--reflink", "never"], flags].concat());
        assert_eq!(outcome.code, Some(0), "{flags:?}: {outcome:#?}");
        assert_same(&dir.read("b"), &bytes, &format!("{flags:?}"));
    }
}

#[test]
fn sparse_read_ignores_the_map() {
    need!("sparse_read_ignores_the_map", &[Need::Program("strace")]);
    let dir = TestDir::new();
    let bytes = partly_allocated(&dir, "a");
    let args = ["copy", "a", "b", "--reflink", "never", "--sparse", "read", "--verify"];
    let (outcome, was_made) = dir.injected(ALL_HOLE, &args);
    assert!(was_made, "the map was not read: {outcome:#?}");
    outcome.assert_done();
    assert_same(&dir.read("b"), &bytes, "the copy");
    assert_eq!(outcome.bytes("read"), bytes.len() as u64, "{outcome:#?}");
    // Zeros that were read may still become a hole.
    let allocated = fs::metadata(dir.path("b")).expect("it was copied").blocks() * 512;
    assert!(allocated < bytes.len() as u64, "{allocated} bytes are allocated");
}

#[test]
fn a_comparison_does_not_depend_on_which_side_is_named_first() {
    need!("a_comparison_does_not_depend_on_which_side_is_named_first", &[Need::Program("strace")]);
    let dir = TestDir::new();
    let bytes = partly_allocated(&dir, "wrong");
    dir.file("same", &bytes);
    dir.file("zeros", &vec![0; bytes.len()]);
    dir.sparse("hole", bytes.len() as u64);
    for (other, flags, exit) in [
        ("same", &[][..], 0),
        ("zeros", &[], 3),
        ("same", &["--sparse", "read"], 0),
        ("zeros", &["--sparse", "read"], 3),
        ("hole", &["--sparse", "read"], 3),
    ] {
        for pair in [["wrong", other], [other, "wrong"]] {
            let args = [&["verify"], &pair[..], flags].concat();
            let (outcome, was_made) = dir.injected(ALL_HOLE, &args);
            assert_eq!(outcome.code, Some(exit), "{args:?}: {outcome:#?}");
            assert!(was_made || pair[1] == "wrong", "{args:?}: the map was not read");
        }
    }
}

#[test]
fn a_map_without_progress_is_data() {
    need!("a_map_without_progress_is_data", &[Need::Program("strace")]);
    // Offset 0 is no progress at first and goes back later; offset 1 is an advance of one byte, once.
    for answer in ["lseek:retval=0:when=1+", "lseek:retval=1:when=1+"] {
        let dir = TestDir::new();
        let bytes = partly_allocated(&dir, "a");
        let (outcome, was_made) = dir.injected(answer, &["copy", "a", "b", "--reflink", "never"]);
        assert!(was_made, "{answer}: the map was not read");
        outcome.assert_done();
        assert_same(&dir.read("b"), &bytes, answer);
        let questions = fs::read_to_string(dir.path("trace")).expect("strace wrote it").lines().count();
        assert!(questions < 100, "{answer}: {questions} reads of a map that makes no progress");
    }
}

#[test]
fn a_file_with_data_behind_its_size_is_refused() {
    let dir = TestDir::new();
    dir.file("old", b"precious");
    for args in [
        &["copy", "/proc/cpuinfo", "new"][..],
        &["copy", "/proc/cpuinfo", "new", "--dry-run"],
        &["copy", "/proc/cpuinfo", "old", "--overwrite"],
        &["copy", "/proc/cpuinfo", "new", "--path", "threads", "--verify"],
    ] {
        let outcome = dir.blockhaul(args);
        assert_eq!(outcome.code, Some(1), "{args:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("blockhaul: ESourceChanged: "), "{args:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("`cat`"), "{args:?} names no remedy: {outcome:#?}");
        assert!(!dir.path("new").exists(), "{args:?}");
        assert_eq!(dir.read("old"), b"precious", "{args:?}");
    }
    dir.file("empty", b"");
    for pair in [["/proc/cpuinfo", "empty"], ["empty", "/proc/cpuinfo"], ["/proc/cpuinfo", "/proc/version"]] {
        dir.blockhaul(&["verify", pair[0], pair[1]]).assert_failed(1, "ESourceChanged");
    }
}

#[test]
fn a_file_is_copied_up_to_its_size() {
    for size in [0, 1, 511, 512, 4095, 4096, MIB + 777] {
        for flags in [&["--direct", "auto"][..], &["--direct", "no"], &["--path", "threads"]] {
            let dir = TestDir::new();
            let bytes = noise(size, 8);
            dir.file("a", &bytes);
            let args = [&["copy", "a", "b", "--reflink", "never", "--verify"], flags].concat();
            dir.blockhaul(&args).assert_done();
            assert_same(&dir.read("b"), &bytes, &format!("{size} bytes, {flags:?}"));
            dir.blockhaul(&["verify", "a", "b"]).assert_done();
        }
    }
}
