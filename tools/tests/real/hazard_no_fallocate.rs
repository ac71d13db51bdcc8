//! Tests a destination and a state directory on ext2, which neither reserves space nor punches holes.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, need, noise, recorded, write_sparse};

#[test]
fn a_file_system_without_fallocate_takes_every_copy() {
    let test = "a_file_system_without_fallocate_takes_every_copy";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext2")]);
    let dir = TestDir::new();
    dir.memory("images");
    let image = dir.image("images/disk", "ext2", 96 << 20);
    dir.mount(&image, "disk");
    let source = mixed(6 * MIB + 99, 121);
    write_sparse(&dir.path("a"), &source);
    for flags in [
        &["--state-dir", "disk/state"][..],
        &["--sparse", "never"],
        &["--direct", "no"],
        &["--path", "threads", "--verify"],
        &["--path", "inline"],
        &["--sparse", "never", "--path", "threads", "--direct", "no", "--verify"],
    ] {
        dir.file("disk/b", &noise(MIB, 1));
        let copied = dir.blockhaul(&[&["copy", "a", "disk/b", "--overwrite"], flags].concat());
        assert_eq!(copied.code, Some(0), "{flags:?}: {copied:#?}");
        assert_same(&dir.read("disk/b"), &source, &format!("{flags:?}"));
        if flags.contains(&"never") {
            let allocated =
                std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(dir.path("disk/b")).unwrap()) * 512;
            assert!(allocated >= source.len() as u64, "{flags:?}: {allocated} bytes are allocated");
            assert_eq!(copied.bytes("skipped"), 0, "written zeros do not count as skipped: {copied:#?}");
        }
    }
}

#[test]
fn a_file_system_without_fallocate_takes_a_resumed_copy() {
    let test = "a_file_system_without_fallocate_takes_a_resumed_copy";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext2")]);
    let dir = TestDir::new();
    dir.memory("images");
    let image = dir.image("images/disk", "ext2", 96 << 20);
    dir.mount(&image, "disk");
    let source = mixed(8 * MIB + 99, 122);
    write_sparse(&dir.path("a"), &source);
    let args = ["copy", "a", "disk/b", "--block-size", "64KiB", "--checkpoint-every", "256KiB"];
    let mut copying = dir.start(&[&args[..], &["--limit", "8MiB/s"]].concat());
    copying.until(recorded);
    copying.crash();
    let resumed = dir.blockhaul(&[&args[..], &["--resume", "--verify"]].concat());
    resumed.assert_done();
    assert!(resumed.bytes("resumed") > 0, "{resumed:#?}");
    assert_same(&dir.read("disk/b"), &source, "the copy");
}
