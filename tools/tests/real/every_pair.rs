//! Tests every kind of volume with every other kind, every block size, and every awkward length.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, need, noise, text, write_sparse};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const NEEDS: [Need; 5] =
    [Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Filesystem("xfs"), Need::Filesystem("btrfs")];
const KINDS: [&str; 5] = ["ext4", "xfs", "btrfs", "tmpfs", "device"];
/// Flags, distributed over the pairs: each pair runs with many of them.
const FLAGS: [&[&str]; 12] = [
    &[],
    &["--verify"],
    &["--sparse", "never"],
    &["--direct", "no"],
    &["--path", "threads"],
    &["--reflink", "never", "--verify"],
    &["--path", "inline", "--verify"],
    &["--path", "ring", "--direct", "no", "--verify"],
    &["--path", "threads", "--direct", "no", "--sparse", "never"],
    &["--digest", "none", "--verify"],
    &["--block-size", "4KiB", "--cores", "1"],
    &["--sparse", "never", "--reflink", "never", "--direct", "no", "--verify"],
];
const FILE: usize = 5 * MIB + 777;
const DEVICE: usize = 6 * MIB + 512;
/// Size of a destination device: the bytes behind the copy must not change.
const LARGER: usize = 7 * MIB;

/// A test directory with a place for volumes of each kind.
struct Places {
    dir: TestDir,
}

impl Places {
    fn new() -> Self {
        let dir = TestDir::new();
        dir.memory("tmpfs");
        dir.memory("images");
        for filesystem in ["ext4", "xfs", "btrfs"] {
            let image = dir.image(&format!("images/{filesystem}"), filesystem, 320 << 20);
            dir.mount(&image, filesystem);
        }
        Self { dir }
    }

    /// Creates a source of a kind; returns its path and content.
    fn source(&self, kind: &str) -> (PathBuf, Vec<u8>) {
        let bytes = mixed(if kind == "device" { DEVICE } else { FILE }, kind.len() as u64);
        if kind == "device" {
            return (self.device("images/source", &bytes), bytes);
        }
        let path = self.dir.path(kind).join("source");
        write_sparse(&path, &bytes);
        (path, bytes)
    }

    fn device(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let backing = self.dir.file(name, bytes);
        self.dir.loop_device(&backing, 512)
    }
}

/// Copies from one kind of source to all kinds of destinations.
fn copy_to_all(test: &str, from: &str) {
    need!(test, &NEEDS);
    let places = Places::new();
    let (source, bytes) = places.source(from);
    let old = noise(LARGER, 99);
    let device = places.device("images/destination", &old);
    for (number, kind) in KINDS.iter().enumerate() {
        for round in 0..4 {
            let flags = FLAGS[(number * 4 + round + from.len()) % FLAGS.len()];
            let what = format!("{from} to {kind} with {flags:?}");
            let is_device = *kind == "device";
            let destination = if is_device { device.clone() } else { places.dir.path(kind).join(format!("b{round}")) };
            if is_device {
                overwrite(&device, &old);
            }
            let words = ["copy", text(&source), text(&destination), "--overwrite"];
            let copied = places.dir.blockhaul(&[&words, flags].concat());
            assert_eq!(copied.code, Some(0), "{what}: {copied:#?}");
            let rest: &[u8] = if is_device { &old[bytes.len()..] } else { &[] };
            let wanted = [&bytes, rest].concat();
            assert_same(&std::fs::read(&destination).expect("it was written"), &wanted, &what);
            assert_eq!(copied.bytes("durable"), bytes.len() as u64, "{what}: {copied:#?}");
        }
    }
}

fn overwrite(device: &Path, bytes: &[u8]) {
    let file = File::options().write(true).open(device).expect("it is attached");
    file.write_all_at(bytes, 0).and_then(|()| file.sync_all()).expect("its backing file has room");
}

#[test]
fn from_ext4_to_every_kind() {
    copy_to_all("from_ext4_to_every_kind", "ext4");
}

#[test]
fn from_xfs_to_every_kind() {
    copy_to_all("from_xfs_to_every_kind", "xfs");
}

#[test]
fn from_btrfs_to_every_kind() {
    copy_to_all("from_btrfs_to_every_kind", "btrfs");
}

#[test]
fn from_tmpfs_to_every_kind() {
    copy_to_all("from_tmpfs_to_every_kind", "tmpfs");
}

#[test]
fn from_a_device_to_every_kind() {
    copy_to_all("from_a_device_to_every_kind", "device");
}

#[test]
fn within_one_file_system_that_shares_extents() {
    need!("within_one_file_system_that_shares_extents", &NEEDS);
    let places = Places::new();
    for kind in ["xfs", "btrfs"] {
        let (source, bytes) = places.source(kind);
        for (number, flags) in [&["--reflink", "always"][..], &["--verify"], &["--reflink", "never"]].iter().enumerate()
        {
            let destination = places.dir.path(kind).join(format!("clone{number}"));
            let words = ["copy", text(&source), text(&destination)];
            let copied = places.dir.blockhaul(&[&words, *flags].concat());
            copied.assert_done();
            let cloned = copied.bytes("cloned");
            assert_eq!(cloned > 0, flags[1..] != ["never"], "{kind} {flags:?}: {copied:#?}");
            assert_same(&std::fs::read(&destination).expect("it was written"), &bytes, &format!("{kind} {flags:?}"));
        }
    }
}

#[test]
fn every_length_around_sectors_pages_and_blocks() {
    let dir = TestDir::new();
    let lengths = [0, 1, 511, 512, 513, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB + 511];
    for (number, length) in lengths.into_iter().enumerate() {
        let bytes = noise(length, number as u64);
        dir.file("a", &bytes);
        for flags in [&["--verify"][..], &["--direct", "no"], &["--path", "threads"], &["--path", "inline", "--verify"]]
        {
            let copied = dir.blockhaul(&[&["copy", "a", "b", "--overwrite", "--receipt", "r"], flags].concat());
            assert_eq!(copied.code, Some(0), "{length} {flags:?}: {copied:#?}");
            assert_same(&dir.read("b"), &bytes, &format!("{length} bytes {flags:?}"));
            let verified = dir.blockhaul(&["verify", "--receipt", "r", "b"]);
            assert_eq!(verified.code, Some(0), "{length} {flags:?}: {verified:#?}");
            std::fs::remove_file(dir.path("r")).expect("it was just read");
        }
    }
}

#[test]
fn every_block_size() {
    let dir = TestDir::new();
    let bytes = mixed(9 * MIB + 4097, 7);
    write_sparse(&dir.path("a"), &bytes);
    for shift in 12..=26 {
        let size = format!("{}", 1_u64 << shift);
        let words = ["copy", "a", "b", "--overwrite", "--block-size", &size, "--depth", "1", "--cores", "1"];
        let copied =
            dir.blockhaul(&[&words[..], if shift % 2 == 0 { &["--verify"] } else { &["--direct", "no"] }].concat());
        copied.assert_done();
        assert_eq!(copied.report()["block_size_bytes"], 1_u64 << shift);
        assert_same(&dir.read("b"), &bytes, &format!("blocks of {size}"));
    }
}

#[test]
fn between_devices_with_large_and_small_sectors() {
    need!("between_devices_with_large_and_small_sectors", &[Need::Root, Need::LoopDevices]);
    let dir = TestDir::new();
    dir.memory("images");
    let old = noise(LARGER, 5);
    let bytes = mixed(DEVICE / 4096 * 4096, 6);
    let unaligned = mixed(FILE, 7);
    dir.file("images/a", &bytes);
    dir.file("file", &unaligned);
    let large = dir.loop_device(&dir.path("images/a"), 4096);
    dir.file("images/b", &old);
    dir.file("images/c", &old);
    let destinations = [(dir.loop_device(&dir.path("images/b"), 4096)), (dir.loop_device(&dir.path("images/c"), 512))];
    for destination in &destinations {
        for (source, bytes) in [(text(&large), &bytes), ("file", &unaligned)] {
            for flags in [&["--verify"][..], &["--direct", "no", "--verify"], &["--path", "threads"]] {
                overwrite(destination, &old);
                let words = ["copy", source, text(destination), "--overwrite"];
                let copied = dir.blockhaul(&[&words, flags].concat());
                let what = format!("{source} to {} {flags:?}", text(destination));
                assert_eq!(copied.code, Some(0), "{what}: {copied:#?}");
                let wanted = [&bytes[..], &old[bytes.len()..]].concat();
                assert_same(&std::fs::read(destination).expect("it is attached"), &wanted, &what);
            }
        }
    }
    let copied = dir.blockhaul(&["copy", text(&large), "c", "--verify"]);
    copied.assert_done();
    assert_same(&dir.read("c"), &bytes, "a device of large sectors to a file");
}
