//! Tests file systems that run full: the error is reported, and the copy resumes once there is space.

use crate::support::{MIB, Need, TestDir, assert_same, need, noise, run, text};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::path::Path;

const SIZE: usize = 48 * MIB;

/// Allocates all but about `left` bytes of a file system, less if other programs allocate too; see [`free_space`].
fn fill(at: &Path, left: u64) {
    let stat = nix::sys::statvfs::statvfs(at).expect("it is mounted");
    let mut want = (stat.blocks_available() * stat.fragment_size()).saturating_sub(left);
    let file = File::create(at.join("ballast")).expect("there is room for a name");
    let mut end = 0;
    while want > MIB as u64 {
        let signed = |bytes: u64| i64::try_from(bytes).expect("disks of tests are small");
        match fallocate(&file, FallocateFlags::empty(), signed(end), signed(want)) {
            Ok(()) => end += want,
            Err(_) => want /= 2,
        }
        want = want.min((stat.blocks_available() * stat.fragment_size()).saturating_sub(left + end));
    }
    file.sync_all().expect("its space is reserved");
}

/// Frees the space again; some file systems free it only when they commit.
fn free_space(at: &Path) {
    std::fs::remove_file(at.join("ballast")).expect("it is there");
    run("sync", &["--file-system", text(at)]);
}

/// Copies to a file system with too little space: the copy is refused before it writes, or fails during the copy.
fn run_full(test: &str, filesystem: &'static str) {
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem(filesystem)]);
    let dir = TestDir::new();
    dir.memory("images");
    let image = dir.image("images/disk", filesystem, 320 << 20);
    let disk = dir.mount(&image, "disk");
    let source = noise(SIZE, 62);
    dir.file("a", &source);
    fill(&disk, 30 << 20);
    let refused = dir.blockhaul(&["copy", "a", "disk/b"]);
    refused.assert_failed(1, "ENoSpace");
    // Some file systems reserve more than they have: then the copy fails later.
    let is_refused = refused.bytes("planned") == 0;
    assert_eq!(is_refused, !disk.join("b").exists(), "a refusal removes what it created: {refused:#?}");
    assert_eq!(is_refused, dir.checkpoint_path().is_none(), "a refusal leaves no checkpoint: {refused:#?}");
    free_space(&disk);
    dir.blockhaul(&["copy", "a", "disk/b", "--resume"]).assert_done();
    std::fs::remove_file(disk.join("b")).expect("it is there");
    run("sync", &["--file-system", text(&disk)]);
    fill_during_copy(&dir, &disk, &source);
}

/// The space is free at the start, and is allocated by another file during the copy.
fn fill_during_copy(dir: &TestDir, disk: &Path, source: &[u8]) {
    for (number, flags) in
        [&["--direct", "no"][..], &["--path", "threads", "--direct", "no"], &["--path", "inline", "--direct", "no"]]
            .iter()
            .enumerate()
    {
        let name = format!("disk/b{number}");
        let args = ["copy", "a", &name, "--block-size", "64KiB", "--checkpoint-every", "1MiB"];
        let mut copying = dir.start(&[&args[..], &["--limit", "64MiB/s"], *flags].concat());
        copying.until(|progress| progress["durable"].as_u64() > Some(0));
        fill(disk, 4 << 20);
        let failed = copying.end();
        failed.assert_failed(1, "ENoSpace");
        let error = &failed.report()["error"];
        assert_eq!((&error["side"], &error["errno"]), (&"destination".into(), &28.into()), "{error}");
        assert!(failed.stderr.contains("--resume"), "{failed:#?}");
        let recorded = failed.bytes("durable");
        assert!(recorded > 0 && recorded < SIZE as u64, "{failed:#?}");

        free_space(disk);
        let resumed = dir.blockhaul(&[&args[..], &["--resume", "--verify"], *flags].concat());
        resumed.assert_done();
        assert_eq!(resumed.bytes("resumed"), recorded, "{resumed:#?}");
        assert_same(&dir.read(&name), source, "the copy");
        std::fs::remove_file(dir.path(&name)).expect("it is there");
        run("sync", &["--file-system", text(disk)]);
    }
}

#[test]
fn a_copy_to_a_full_ext4_can_be_resumed() {
    run_full("a_copy_to_a_full_ext4_can_be_resumed", "ext4");
}

#[test]
fn a_copy_to_a_full_xfs_can_be_resumed() {
    run_full("a_copy_to_a_full_xfs_can_be_resumed", "xfs");
}

#[test]
fn a_copy_to_a_full_btrfs_can_be_resumed() {
    run_full("a_copy_to_a_full_btrfs_can_be_resumed", "btrfs");
}
