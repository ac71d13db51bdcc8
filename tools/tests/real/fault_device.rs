//! Tests devices that fail: a loop device whose backing file cannot grow, and one whose backing file was truncated.

use crate::support::{MIB, Need, Outcome, TestDir, assert_same, need, noise, run, text, write_sparse};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SIZE: usize = 24 * MIB;
const NEEDS: [Need; 2] = [Need::Root, Need::LoopDevices];
const PATHS: [&[&str]; 4] = [&[], &["--direct", "no"], &["--path", "threads"], &["--path", "inline"]];

/// Bytes of the device that can be written.
const GOOD: usize = 16 * MIB;

/// Block of these copies and largest request of the device, in KiB.
const BLOCK_KIB: &str = "64";

/// Creates a device that can be written up to [`GOOD`]: its backing file is preallocated up to there, on a full file
/// system.
fn half_writable(dir: &TestDir) -> PathBuf {
    let full = dir.path("full");
    std::fs::create_dir(&full).expect("it is new");
    run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", text(&full)]);
    let backing = dir.sparse("full/disk", SIZE as u64);
    run("fallocate", &["--length", &GOOD.to_string(), "--keep-size", text(&backing)]);
    let device = dir.loop_device(&backing, 512);
    // The loop driver reports a short write to its backing file as a success, so no request may straddle the end of the
    // writable part, not even one that the kernel has merged during writeback.
    let name = device.file_name().expect("a device has a name");
    let largest = Path::new("/sys/block").join(name).join("queue/max_sectors_kb");
    std::fs::write(&largest, BLOCK_KIB).expect("the largest request of a loop device can be set");
    device
}

#[test]
fn a_device_that_cannot_write_ends_the_copy_and_resumes_when_it_can() {
    need!("a_device_that_cannot_write_ends_the_copy_and_resumes_when_it_can", &NEEDS);
    let block = format!("{BLOCK_KIB}KiB");
    let one_by_one = ["--block-size", &*block, "--cores", "1", "--depth", "1", "--checkpoint-every", "512KiB"];
    for flags in [&["--path", "ring"][..], &["--path", "threads"], &["--path", "inline"]] {
        let dir = TestDir::new();
        let source = noise(SIZE, 51);
        dir.file("a", &source);
        let device = half_writable(&dir);
        let args = ["copy", "a", text(&device)];
        let failed = dir.blockhaul(&[&args[..], &one_by_one, flags].concat());
        assert_named(&failed, text(&device));
        let recorded = failed.bytes("durable");
        assert!(recorded > 0 && recorded <= GOOD as u64, "{failed:#?}");
        let checkpoint = dir.checkpoint().expect("a failed copy can be resumed");
        let held = dir.read("full/disk");
        for range in checkpoint["durable"].as_array().expect("it is a list") {
            let of = |field: &str| usize::try_from(range[field].as_u64().expect("a number")).expect("small");
            let (start, end) = (of("offset"), of("offset") + of("length"));
            assert_same(&held[start..end], &source[start..end], &format!("{start}..{end} is called durable"));
        }

        run("mount", &["-o", "remount,size=64m", text(&dir.path("full"))]);
        let resume = [&args[..], &one_by_one, &["--resume", "--verify"], flags].concat();
        let mut resumed = dir.blockhaul(&resume);
        for _ in 0..3 {
            // The next flush reports cached writes that the kernel lost after the first run had ended.
            if resumed.code == Some(0) || resumed.report()["error"]["operation"] != "flush" {
                break;
            }
            resumed = dir.blockhaul(&resume);
        }
        assert_eq!(resumed.code, Some(0), "{flags:?}: {resumed:#?}");
        assert!(resumed.bytes("resumed") >= recorded, "{flags:?}");
        assert_same(&std::fs::read(&device).expect("it is attached"), &source, "the device");
    }
}

/// Checks that the copy failed at the destination, with errno and device.
fn assert_named(failed: &Outcome, device: &str) {
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    let error = &failed.report()["error"];
    let is_named = error["code"] == "EIo" || error["code"] == "ENoSpace";
    assert!(is_named && error["side"] == "destination", "{error}");
    assert!(error["errno"].is_u64() && error["message"].as_str().is_some_and(|text| text.contains(device)), "{error}");
    assert!(failed.stderr.contains("--resume"), "{failed:#?}");
}

#[test]
fn a_flush_that_fails_ends_the_copy_and_nothing_counts_as_durable() {
    need!("a_flush_that_fails_ends_the_copy_and_nothing_counts_as_durable", &NEEDS);
    for flags in [&["--path", "ring"][..], &["--path", "threads"], &["--path", "inline"]] {
        let dir = TestDir::new();
        dir.file("a", &noise(SIZE, 52));
        let device = half_writable(&dir);
        // Writes go to the page cache; only the flush reaches the device.
        let args = ["copy", "a", text(&device), "--direct", "no", "--checkpoint-every", "1GiB", "--checkpoint-every"];
        let failed = dir.blockhaul(&[&args[..], &["1h"], flags].concat());
        assert_named(&failed, text(&device));
        assert_eq!(failed.report()["error"]["operation"], "flush", "{failed:#?}");
        assert_eq!(failed.bytes("durable"), 0, "nothing since the last good flush counts: {failed:#?}");
        let resumed = dir.blockhaul(&["copy", "a", text(&device), "--resume", "--direct", "no"]);
        assert_eq!(resumed.code, Some(1), "the device still fails: {resumed:#?}");
        assert_eq!(resumed.bytes("resumed"), 0, "{resumed:#?}");
    }
}

#[test]
fn a_device_that_cannot_read_ends_the_copy() {
    need!("a_device_that_cannot_read_ends_the_copy", &NEEDS);
    for flags in PATHS {
        let dir = TestDir::new();
        let source = noise(SIZE, 53);
        let backing = dir.file("disk", &source);
        let device = dir.loop_device(&backing, 512);
        File::options()
            .write(true)
            .open(&backing)
            .and_then(|file| file.set_len(SIZE as u64 / 2))
            .expect("it is a file");
        let args = ["copy", text(&device), "b", "--block-size", "64KiB", "--checkpoint-every", "1MiB"];
        let failed = dir.blockhaul(&[&args[..], flags].concat());
        failed.assert_failed(1, "EIo");
        let error = &failed.report()["error"];
        assert_eq!((&error["side"], &error["operation"]), (&"source".into(), &"read".into()), "{flags:?}: {error}");
        assert_eq!(error["errno"], 5, "{error}");
        assert!(error["offset"].as_u64() >= Some(SIZE as u64 / 2), "the first half can be read: {error}");

        let file = File::options().write(true).open(&backing).expect("it is a file");
        file.write_all_at(&source, 0).expect("there is room");
        let resumed = dir.blockhaul(&[&args[..], &["--resume"], flags].concat());
        assert_eq!(resumed.code, Some(0), "{flags:?}: {resumed:#?}");
        assert_same(&dir.read("b"), &source, "the copy");
    }
}

#[test]
fn a_verification_fails_on_a_device_that_cannot_read() {
    need!("a_verification_fails_on_a_device_that_cannot_read", &NEEDS);
    let dir = TestDir::new();
    let source = noise(SIZE, 54);
    write_sparse(&dir.path("a"), &source);
    let backing = dir.file("disk", &source);
    let device = dir.loop_device(&backing, 512);
    File::options().write(true).open(&backing).and_then(|file| file.set_len(SIZE as u64 / 2)).expect("it is a file");
    let failed = dir.blockhaul(&["verify", "a", text(&device)]);
    failed.assert_failed(1, "EIo");
    assert_eq!(failed.report()["error"]["side"], "destination", "{failed:#?}");
}
