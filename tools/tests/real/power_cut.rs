//! Tests power cuts: only the content of the disk at one moment remains.
//!
//! The destination lies on a file system in an image, and the image on a file system that can clone a file at one point
//! in time. The clone has the content of the disk at that moment; pages that were not flushed are lost. The clone is
//! mounted after the first file system was unmounted, so that only the clone is read.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, moving, need, recorded, run, text, write_sparse};
use std::path::{Path, PathBuf};

const SIZE: usize = 20 * MIB + 4321;
/// Size of the image in bytes; xfs needs at least 300 MiB.
const DISK: u64 = 320 << 20;

/// A disk with a file system, mounted at `disk` in a test directory.
struct Disk {
    dir: TestDir,
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    fn new(filesystem: &str) -> Self {
        let dir = TestDir::new();
        dir.memory("memory");
        let shelf = dir.filesystem("memory/shelf", "xfs", 2 * DISK + (300 << 20));
        let image = dir.image("memory/shelf/disk.img", filesystem, DISK);
        let mounted = dir.mount(&image, "disk");
        assert!(image.starts_with(shelf));
        Self { dir, image, mounted }
    }

    /// Clones the disk at this moment.
    fn cut(&self) -> PathBuf {
        let left = self.image.with_extension("left");
        run("cp", &["--reflink=always", text(&self.image), text(&left)]);
        left
    }

    /// Mounts the clone `left` instead.
    fn restart(&self, left: &Path) -> PathBuf {
        self.dir.unmount(&self.mounted);
        self.dir.mount(left, "after")
    }
}

fn needs(filesystem: &'static str) -> [Need; 4] {
    [Need::Root, Need::LoopDevices, Need::Filesystem("xfs"), Need::Filesystem(filesystem)]
}

fn cut_when_copy_returns(test: &str, filesystem: &'static str) {
    need!(test, &needs(filesystem));
    let source = mixed(SIZE, 41);
    for flags in [&[][..], &["--direct", "no"], &["--path", "threads"], &["--sparse", "never"], &["--path", "inline"]] {
        let disk = Disk::new(filesystem);
        write_sparse(&disk.dir.path("a"), &source);
        let copied = disk.dir.blockhaul(&[&["copy", "a", "disk/b", "--receipt", "disk/receipt"], flags].concat());
        let left = disk.cut();
        copied.assert_done();
        let after = disk.restart(&left);
        let found = std::fs::read(after.join("b")).expect("a created file outlives a power cut");
        assert_same(&found, &source, &format!("{filesystem} {flags:?} after a power cut"));
        let verified = disk.dir.blockhaul(&["verify", "--receipt", "after/receipt", "after/b"]);
        assert_eq!(verified.code, Some(0), "{flags:?}: {verified:#?}");
    }
}

#[test]
fn a_completed_copy_survives_a_power_cut_on_ext4() {
    cut_when_copy_returns("a_completed_copy_survives_a_power_cut_on_ext4", "ext4");
}

#[test]
fn a_completed_copy_survives_a_power_cut_on_xfs() {
    cut_when_copy_returns("a_completed_copy_survives_a_power_cut_on_xfs", "xfs");
}

#[test]
fn a_completed_copy_survives_a_power_cut_on_btrfs() {
    cut_when_copy_returns("a_completed_copy_survives_a_power_cut_on_btrfs", "btrfs");
}

/// Cuts the power in the middle of a copy whose checkpoint lies on the same disk.
fn cut_in_the_middle(test: &str, filesystem: &'static str) {
    need!(test, &needs(filesystem));
    let source = mixed(SIZE, 42);
    for (step, flags) in [&[][..], &["--direct", "no"], &["--path", "threads"]].into_iter().enumerate() {
        let disk = Disk::new(filesystem);
        write_sparse(&disk.dir.path("a"), &source);
        let args = ["copy", "a", "disk/b", "--checkpoint", "disk/checkpoint", "--block-size", "64KiB"];
        let slowly = ["--limit", "24MiB/s", "--checkpoint-every", "1MiB", "--reflink", "never"];
        let mut copying = disk.dir.start(&[&args, &slowly[..], flags].concat());
        let seen = if step == 0 { copying.until(moving) } else { copying.until(recorded) };
        let left = disk.cut();
        copying.crash();
        let after = disk.restart(&left);
        let what = format!("{filesystem} {flags:?} after a power cut");
        let inspected = disk.dir.blockhaul(&["inspect", "after/checkpoint"]);
        let checkpoint = inspected.lines.first().unwrap_or_else(|| panic!("{what}: {inspected:#?}"));
        let durable = checkpoint["durable_bytes"].as_u64().expect("it is a number");
        assert!(durable >= seen["durable"].as_u64().expect("it is a number"), "{what}: recorded bytes are lost");
        let found = std::fs::read(after.join("b")).expect("it was created before the checkpoint");
        for range in checkpoint["durable"].as_array().expect("it is a list") {
            let of = |field: &str| usize::try_from(range[field].as_u64().expect("a number")).expect("small");
            let (start, end) = (of("offset"), of("offset") + of("length"));
            assert_same(&found[start..end], &source[start..end], &format!("{what}: {start}..{end} is called durable"));
        }
    }
}

#[test]
fn recorded_data_survives_a_power_cut_on_ext4() {
    cut_in_the_middle("recorded_data_survives_a_power_cut_on_ext4", "ext4");
}

#[test]
fn recorded_data_survives_a_power_cut_on_xfs() {
    cut_in_the_middle("recorded_data_survives_a_power_cut_on_xfs", "xfs");
}

#[test]
fn recorded_data_survives_a_power_cut_on_btrfs() {
    cut_in_the_middle("recorded_data_survives_a_power_cut_on_btrfs", "btrfs");
}
