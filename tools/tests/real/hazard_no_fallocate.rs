//! Tests a destination and a state directory on ext2, which neither reserves space nor punches holes.

use crate::support::{MIB, Need, Room, assert_same, mixed, need, noise, recorded, write_sparse};

#[test]
fn a_file_system_without_fallocate_takes_every_copy() {
    let test = "a_file_system_without_fallocate_takes_every_copy";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext2")]);
    let room = Room::new();
    room.memory("images");
    let image = room.image("images/disk", "ext2", 96 << 20);
    room.mount(&image, "disk");
    let source = mixed(6 * MIB + 99, 121);
    write_sparse(&room.path("a"), &source);
    for flags in [
        &["--state-dir", "disk/state"][..],
        &["--sparse", "never"],
        &["--direct", "no"],
        &["--path", "threads", "--verify"],
        &["--path", "inline"],
        &["--sparse", "never", "--path", "threads", "--direct", "no", "--verify"],
    ] {
        room.file("disk/b", &noise(MIB, 1));
        let copied = room.blockhaul(&[&["copy", "a", "disk/b", "--overwrite"], flags].concat());
        assert_eq!(copied.code, Some(0), "{flags:?}: {copied:#?}");
        assert_same(&room.read("disk/b"), &source, &format!("{flags:?}"));
        if flags.contains(&"never") {
            let allocated =
                std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(room.path("disk/b")).unwrap()) * 512;
            assert!(allocated >= source.len() as u64, "{flags:?}: {allocated} bytes are allocated");
            assert_eq!(copied.bytes("skipped"), 0, "what was written was not skipped: {copied:#?}");
        }
    }
}

#[test]
fn a_file_system_without_fallocate_takes_a_resumed_copy() {
    let test = "a_file_system_without_fallocate_takes_a_resumed_copy";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext2")]);
    let room = Room::new();
    room.memory("images");
    let image = room.image("images/disk", "ext2", 96 << 20);
    room.mount(&image, "disk");
    let source = mixed(8 * MIB + 99, 122);
    write_sparse(&room.path("a"), &source);
    let words = ["copy", "a", "disk/b", "--block-size", "64KiB", "--checkpoint-every", "256KiB"];
    let mut copying = room.start(&[&words[..], &["--limit", "8MiB/s"]].concat());
    copying.until(recorded);
    copying.crash();
    let resumed = room.blockhaul(&[&words[..], &["--resume", "--verify"]].concat());
    resumed.assert_done();
    assert!(resumed.bytes("resumed") > 0, "{resumed:#?}");
    assert_same(&room.read("disk/b"), &source, "the copy");
}
