//! Tests destinations that hold old data where the source has zeros: the copy zeroes it.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, need, noise, recorded, text, write_sparse};
use std::fs::File;
use std::os::unix::fs::FileExt;

const DEVICE: usize = 8 * MIB;
const FLAGS: [&[&str]; 8] = [
    &[],
    &["--verify"],
    &["--direct", "no"],
    &["--sparse", "never"],
    &["--path", "threads"],
    &["--path", "inline", "--direct", "no"],
    &["--block-size", "4KiB"],
    &["--sparse", "never", "--path", "threads", "--block-size", "16KiB"],
];

/// Returns sources with zeros at awkward offsets: length, and ranges of data.
fn sources() -> Vec<(usize, Vec<(usize, usize)>)> {
    vec![
        // One hole; a hole that ends within a sector; a hole between data.
        (4 * MIB, vec![]),
        (4 * MIB + 100, vec![]),
        (4 * MIB + 100, vec![(0, 1)]),
        (3 * MIB + 513, vec![(4095, 2), (2 * MIB - 1, 2)]),
        (2 * MIB + 4095, vec![(0, 4096), (2 * MIB + 4094, 1)]),
        (511, vec![]),
        (MIB - 1, vec![(MIB - 2, 1)]),
    ]
}

#[test]
fn old_data_under_zeros_is_overwritten_on_a_device() {
    need!("old_data_under_zeros_is_overwritten_on_a_device", &[Need::Root, Need::LoopDevices]);
    let dir = TestDir::new();
    dir.memory("images");
    let old = noise(DEVICE, 111);
    let devices = [("images/b", 512), ("images/c", 4096)].map(|(name, sector)| {
        dir.file(name, &old);
        dir.loop_device(&dir.path(name), sector)
    });
    for (number, (length, data)) in sources().into_iter().enumerate() {
        let file = File::create(dir.path("a")).expect("there is room");
        file.set_len(length as u64).expect("it is a file");
        let mut wanted = old.clone();
        wanted[..length].fill(0);
        for (at, len) in data {
            file.write_all_at(&noise(len, 7), at as u64).expect("there is room");
            wanted[at..at + len].copy_from_slice(&noise(len, 7));
        }
        for (turn, device) in devices.iter().enumerate() {
            for flags in FLAGS.iter().skip((number + turn) % 2).step_by(2) {
                let target = File::options().write(true).open(device).expect("it is attached");
                target.write_all_at(&old, 0).and_then(|()| target.sync_all()).expect("there is room");
                drop(target);
                let copied = dir.blockhaul(&[&["copy", "a", text(device), "--overwrite"], *flags].concat());
                let what = format!("source {number} to {} {flags:?}", device.display());
                assert_eq!(copied.code, Some(0), "{what}: {copied:#?}");
                assert_same(&std::fs::read(device).expect("it is attached"), &wanted, &what);
            }
        }
    }
}

#[test]
fn old_data_under_zeros_is_overwritten_when_a_file_is_resumed() {
    let dir = TestDir::new();
    let source = mixed(8 * MIB + 77, 112);
    write_sparse(&dir.path("a"), &source);
    let args = ["copy", "a", "b", "--block-size", "64KiB", "--checkpoint-every", "256KiB", "--reflink", "never"];
    for flags in [&["--direct", "auto"][..], &["--direct", "no"], &["--sparse", "never"], &["--path", "threads"]] {
        let mut copying = dir.start(&[&args[..], &["--limit", "8MiB/s"], flags].concat());
        copying.until(recorded);
        copying.crash();
        let checkpoint = dir.checkpoint().expect("it was recorded");
        // A crash may leave any data outside of the recorded ranges.
        let file = File::options().write(true).open(dir.path("b")).expect("it was created");
        let mut at = 0;
        for range in checkpoint["durable"].as_array().expect("it is a list") {
            let of = |field: &str| usize::try_from(range[field].as_u64().expect("a number")).expect("small");
            file.write_all_at(&noise(of("offset") - at, 9), at as u64).expect("there is room");
            at = of("offset") + of("length");
        }
        file.write_all_at(&noise(source.len() - at, 9), at as u64).expect("there is room");
        drop(file);
        let resumed = dir.blockhaul(&[&args[..], &["--resume", "--verify"], flags].concat());
        assert_eq!(resumed.code, Some(0), "{flags:?}: {resumed:#?}");
        assert!(resumed.bytes("resumed") > 0, "{resumed:#?}");
        assert_same(&dir.read("b"), &source, &format!("{flags:?}"));
        std::fs::remove_file(dir.path("b")).expect("it is there");
    }
}

#[test]
fn a_larger_file_is_cut_to_the_sources_size() {
    let dir = TestDir::new();
    let source = mixed(MIB + 99, 113);
    write_sparse(&dir.path("a"), &source);
    for flags in FLAGS {
        dir.file("b", &noise(3 * MIB, 1));
        dir.blockhaul(&[&["copy", "a", "b", "--overwrite"], flags].concat()).assert_done();
        assert_same(&dir.read("b"), &source, &format!("{flags:?}"));
    }
}

#[test]
fn more_zeros_than_an_interval_and_the_window_hold_do_not_stop_a_copy() {
    let dir = TestDir::new();
    let mut source = vec![0; 8 * MIB + 5];
    source[MIB..MIB + 9].fill(1);
    // Written zeros, not holes, are detected block by block.
    dir.file("a", &source);
    let tight = ["--block-size", "64KiB", "--depth", "1", "--cores", "1", "--checkpoint-every", "64KiB"];
    for flags in [&["--direct", "auto"][..], &["--direct", "no"], &["--path", "threads"], &["--sparse", "never"]] {
        dir.file("b", &noise(MIB, 3));
        let copied =
            dir.blockhaul(&[&["copy", "a", "b", "--overwrite", "--reflink", "never"], &tight[..], flags].concat());
        assert_eq!(copied.code, Some(0), "{flags:?}: {copied:#?}");
        assert_same(&dir.read("b"), &source, &format!("{flags:?}"));
    }
}
