//! Tests incremental copies since a dirty bitmap: real disk images with persistent bitmaps, served by QEMU.

use crate::support::{
    Export, Kind, MIB, Need, Outcome, Server, TestDirs, assert_same, assert_whole, content, mixed, need, noise, run,
    text,
};

const NEEDS: [Need; 5] = [
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
    Need::Program("qemu-nbd"),
    Need::Program("nbdkit"),
    Need::Program("setpriv"),
];
const SIZE: usize = 24 * MIB;
const GRANULARITY: usize = 64 << 10;

/// A qcow2 image with dirty bitmaps.
struct Disk {
    dirs: TestDirs,
    image: String,
}

impl Disk {
    fn with(bytes: &[u8]) -> Self {
        let dirs = TestDirs::new();
        let raw = dirs.file("raw", bytes);
        let image = text(&dirs.path("disk.qcow2")).to_owned();
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), &image]);
        Self { dirs, image }
    }

    /// Starts a dirty bitmap of this name.
    fn remember(&self, bitmap: &str) {
        let granularity = GRANULARITY.to_string();
        run("qemu-img", &["bitmap", "--add", "-g", &granularity, "-f", "qcow2", &self.image, bitmap]);
    }

    /// Runs these commands of `qemu-io` on the image.
    fn change(&self, commands: &[&str]) {
        let commands = commands.iter().flat_map(|&command| ["-c", command]);
        let args: Vec<&str> = ["-f", "qcow2"].into_iter().chain(commands).chain([self.image.as_str()]).collect();
        run("qemu-io", &args);
    }

    /// Serves the image with these bitmaps.
    fn serve(&self, bitmaps: &[&str]) -> Server {
        let wanted = bitmaps.iter().flat_map(|&bitmap| ["--bitmap", bitmap]);
        let args: Vec<&str> =
            ["--read-only", "--format=qcow2"].into_iter().chain(wanted).chain([self.image.as_str()]).collect();
        Server::qemu_nbd(&self.dirs, "source", &args)
    }

    fn copy(&self, source: &Server, destination: &str, flags: &[&str]) -> Outcome {
        self.dirs.blockhaul(&[&["copy", &source.uri(), destination, "--overwrite"], flags].concat())
    }
}

/// Writes data and zeros at known offsets: 192 KiB of data at 3 MiB, 64 KiB in the middle of what was data, 1 MiB of
/// zeros at 20 MiB.
const CHANGES: [&str; 3] = ["write -P 0xa5 3M 192k", "write -P 0x5a 10M 4k", "write -z 20M 1M"];
/// Dirty data of [`CHANGES`], in whole units of the bitmap.
const DIRTY_DATA: u64 = 256 << 10;

#[test]
fn only_changes_are_read_and_the_destination_is_equal() {
    need!("only_changes_are_read_and_the_destination_is_equal", &NEEDS);
    for to_file in [true, false] {
        let disk = Disk::with(&noise(SIZE, 80));
        let base = disk.serve(&[]);
        let export = Export::empty(&disk.dirs, "destination", Kind::NbdkitFile, SIZE);
        let uri = export.uri();
        let destination = if to_file { "b" } else { &uri };
        assert_whole(&disk.copy(&base, destination, &[]), SIZE, "the base");
        drop(base);

        disk.remember("since");
        disk.change(&CHANGES);
        let source = disk.serve(&["since"]);
        let copied = disk.copy(&source, destination, &["--changed-since", "since"]);
        let what = if to_file { "changes to a file" } else { "changes to an export" };
        assert_whole(&copied, SIZE, what);
        assert!(copied.bytes("read") > 0 && copied.bytes("read") <= DIRTY_DATA, "{what}: {copied:#?}");
        assert!(copied.bytes("written") <= DIRTY_DATA, "{what}: {copied:#?}");
        let found = if to_file { disk.dirs.read("b") } else { export.content() };
        assert_same(&found, &content(&source.uri()), what);
    }
}

#[test]
fn the_named_bitmap_is_used_among_several() {
    need!("the_named_bitmap_is_used_among_several", &NEEDS);
    let disk = Disk::with(&mixed(SIZE, 81));
    disk.remember("monday");
    disk.change(&["write -P 1 2M 64k"]);
    let monday_night = disk.serve(&[]);
    assert_whole(&disk.copy(&monday_night, "b", &[]), SIZE, "the base");
    drop(monday_night);
    disk.remember("tuesday");
    disk.change(&["write -P 2 6M 64k"]);
    let source = disk.serve(&["monday", "tuesday"]);

    let tuesday = disk.copy(&source, "b", &["--changed-since", "tuesday"]);
    assert_whole(&tuesday, SIZE, "since tuesday");
    assert_eq!(tuesday.bytes("read"), GRANULARITY as u64, "{tuesday:#?}");
    assert_same(&disk.dirs.read("b"), &content(&source.uri()), "since tuesday");

    let monday = disk.copy(&source, "b", &["--changed-since", "monday"]);
    assert_whole(&monday, SIZE, "since monday");
    assert_eq!(monday.bytes("read"), 2 * GRANULARITY as u64, "{monday:#?}");
    assert_same(&disk.dirs.read("b"), &content(&source.uri()), "since monday");
}

#[test]
fn a_copy_without_changes_reads_and_writes_nothing() {
    need!("a_copy_without_changes_reads_and_writes_nothing", &NEEDS);
    let disk = Disk::with(&noise(4 * MIB, 82));
    disk.remember("since");
    let source = disk.serve(&["since"]);
    // Clean ranges are read on neither side.
    let old = noise(4 * MIB, 99);
    disk.dirs.file("b", &old);
    let copied = disk.copy(&source, "b", &["--changed-since", "since"]);
    assert_whole(&copied, 4 * MIB, "nothing");
    assert_eq!((copied.bytes("read"), copied.bytes("written")), (0, 0), "{copied:#?}");
    assert_same(&disk.dirs.read("b"), &old, "nothing");
}

#[test]
fn a_changed_range_that_became_zeros_is_zeroed() {
    need!("a_changed_range_that_became_zeros_is_zeroed", &NEEDS);
    let disk = Disk::with(&noise(4 * MIB, 83));
    let base = disk.serve(&[]);
    let export = Export::empty(&disk.dirs, "destination", Kind::QemuQcow2, 4 * MIB);
    assert_whole(&disk.copy(&base, &export.uri(), &[]), 4 * MIB, "the base");
    drop(base);
    disk.remember("since");
    disk.change(&["write -z 1M 128k", "discard 2M 128k", "write -z 3M 64k"]);
    let source = disk.serve(&["since"]);
    assert_whole(&disk.copy(&source, &export.uri(), &["--changed-since", "since"]), 4 * MIB, "zeros");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source.uri(), &export.uri()]);
}

#[test]
fn an_incremental_copy_survives_a_crash_of_its_source() {
    need!("an_incremental_copy_survives_a_crash_of_its_source", &NEEDS);
    let disk = Disk::with(&noise(SIZE, 86));
    let base = disk.serve(&[]);
    assert_whole(&disk.copy(&base, "b", &[]), SIZE, "the base");
    drop(base);
    disk.remember("since");
    disk.change(&["write -P 1 1M 4M", "write -P 2 16M 4M"]);
    let mut source = disk.serve(&["since"]);
    let args = ["copy", &source.uri(), "b", "--overwrite", "--changed-since", "since", "--checkpoint-every", "512KiB"];
    let mut copying = disk.dirs.start(&[&args[..], &["--limit", "6MiB/s", "--block-size", "64KiB"]].concat());
    copying.until(crate::support::recorded);
    std::thread::sleep(std::time::Duration::from_millis(300));
    source.restart();
    let copied = copying.end();
    assert_whole(&copied, SIZE, "over a crash");
    assert!(copied.bytes("read") <= 9 * MIB as u64, "{copied:#?}");
    assert_same(&disk.dirs.read("b"), &content(&source.uri()), "over a crash");
}

#[test]
fn an_interrupted_incremental_copy_resumes_and_stays_incremental() {
    need!("an_interrupted_incremental_copy_resumes_and_stays_incremental", &NEEDS);
    let disk = Disk::with(&noise(SIZE, 87));
    let base = disk.serve(&[]);
    assert_whole(&disk.copy(&base, "b", &[]), SIZE, "the base");
    drop(base);
    disk.remember("since");
    disk.change(&["write -P 1 1M 4M", "write -P 2 16M 4M"]);
    let source = disk.serve(&["since"]);
    let slowly = ["--limit", "6MiB/s", "--block-size", "64KiB", "--checkpoint-every", "512KiB"];
    let args = ["copy", &source.uri(), "b", "--changed-since", "since"];
    let mut copying = disk.dirs.start(&[&args[..], &["--overwrite"], &slowly].concat());
    // Clean ranges count as durable at once; wait for more than that.
    copying.until(|progress| crate::support::recorded(progress) && progress["written"].as_u64() > Some(2 * MIB as u64));
    copying.crash();
    let resumed = disk.dirs.blockhaul(&[&args[..], &["--resume"]].concat());
    assert_whole(&resumed, SIZE, "resumed");
    assert!(resumed.bytes("read") <= 8 * MIB as u64, "{resumed:#?}");
    assert_same(&disk.dirs.read("b"), &content(&source.uri()), "resumed");
}

#[test]
fn a_bitmap_that_is_not_there_is_not_found() {
    need!("a_bitmap_that_is_not_there_is_not_found", &NEEDS);
    let disk = Disk::with(&noise(4 * MIB, 84));
    disk.remember("since");
    let old = noise(4 * MIB, 99);
    disk.dirs.file("b", &old);
    let other = Server::nbdkit(&disk.dirs, "other", &["memory", "4M"]);
    for source in [disk.serve(&["since"]), other] {
        let failed = disk.copy(&source, "b", &["--changed-since", "never"]);
        failed.assert_failed(1, "ENotFound");
        assert_eq!(failed.report()["error"]["side"], "source", "{failed:#?}");
        assert!(failed.stderr.contains("never"), "{failed:#?}");
        assert_same(&disk.dirs.read("b"), &old, "the refused copy writes nothing");
    }
}

#[test]
fn a_bitmap_is_accepted_for_exports_only() {
    let dirs = TestDirs::new();
    dirs.file("a", &noise(MIB, 85));
    let refused = dirs.blockhaul(&["copy", "a", "b", "--changed-since", "since"]);
    assert_ne!(refused.code, Some(0), "{refused:#?}");
    assert!(!dirs.path("b").exists(), "{refused:#?}");
}
