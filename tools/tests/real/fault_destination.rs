//! Tests destinations that are removed or replaced: a copy without its destination fails.

use crate::support::{MIB, Need, TestDir, assert_same, moving, need, noise, recorded, run, text};
use nix::sys::signal::Signal;

const SIZE: usize = 12 * MIB;
const SLOWLY: [&str; 9] =
    ["copy", "a", "b", "--block-size", "64KiB", "--limit", "24MiB/s", "--checkpoint-every", "512KiB"];

#[test]
fn a_destination_deleted_during_the_copy_is_no_success() {
    for (old, flags) in [(false, "auto"), (true, "auto"), (true, "threads")] {
        let dir = TestDir::new();
        dir.file("a", &noise(SIZE, 81));
        if old {
            dir.file("b", b"");
        }
        let flags = ["--path", flags, "--reflink", "never"];
        let mut copying = dir.start(&[&SLOWLY[..], &flags].concat());
        copying.until(recorded);
        std::fs::remove_file(dir.path("b")).expect("it was created");
        let outcome = copying.end();
        outcome.assert_failed(1, "ENotFound");
        assert_eq!(outcome.report()["error"]["side"], "destination", "{outcome:#?}");
        assert!(!dir.path("b").exists(), "no new file is created");
    }
}

#[test]
fn a_destination_replaced_during_the_copy_is_no_success() {
    let dir = TestDir::new();
    dir.file("a", &noise(SIZE, 82));
    let mut copying = dir.start(&[&SLOWLY[..], &["--reflink", "never"]].concat());
    copying.until(recorded);
    dir.file("other", b"precious");
    std::fs::rename(dir.path("other"), dir.path("b")).expect("both are there");
    let outcome = copying.end();
    outcome.assert_failed(1, "ENotFound");
    assert_eq!(dir.read("b"), b"precious", "the replacement is unchanged");
    let resumed = dir.blockhaul(&[&SLOWLY[..], &["--resume"]].concat());
    resumed.assert_failed(1, "ECheckpointMismatch");
    assert_eq!(dir.read("b"), b"precious", "the replacement is unchanged by a resume");
}

#[test]
fn a_destination_deleted_between_two_runs_is_not_resumed() {
    let dir = TestDir::new();
    let source = noise(SIZE, 83);
    dir.file("a", &source);
    let mut copying = dir.start(&[&SLOWLY[..], &["--reflink", "never"]].concat());
    copying.until(recorded);
    copying.crash();
    std::fs::remove_file(dir.path("b")).expect("it was created");
    let resumed = dir.blockhaul(&["copy", "a", "b", "--resume"]);
    resumed.assert_failed(1, "ECheckpointMismatch");
    assert!(!dir.path("b").exists(), "a refusal creates nothing");
    dir.blockhaul(&["copy", "a", "b", "--restart"]).assert_done();
    assert_same(&dir.read("b"), &source, "the copy");
}

#[test]
fn a_destination_cut_short_between_two_runs_is_not_called_complete() {
    let dir = TestDir::new();
    let source = noise(SIZE, 84);
    dir.file("a", &source);
    let mut copying = dir.start(&[&SLOWLY[..], &["--reflink", "never"]].concat());
    copying.until(recorded);
    copying.crash();
    std::fs::File::options().write(true).open(dir.path("b")).and_then(|file| file.set_len(0)).expect("it was created");
    let resumed = dir.blockhaul(&["copy", "a", "b", "--resume"]);
    if resumed.code == Some(0) {
        assert_same(&dir.read("b"), &source, "the copy");
    } else {
        resumed.assert_failed(1, "ECheckpointMismatch");
    }
}

#[test]
fn a_destination_whose_device_is_read_only_is_refused() {
    let test = "a_destination_whose_device_is_read_only_is_refused";
    need!(test, &[Need::Root, Need::LoopDevices]);
    let dir = TestDir::new();
    dir.file("a", &noise(MIB, 85));
    let backing = dir.sparse("disk", SIZE as u64);
    let device = run("losetup", &["--find", "--show", "--read-only", text(&backing)]);
    dir.blockhaul(&["copy", "a", device.trim()]).assert_failed(1, "EReadOnly");
}

#[test]
fn a_file_system_that_turns_read_only_during_the_copy_ends_it() {
    let test = "a_file_system_that_turns_read_only_during_the_copy_ends_it";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Program("xfs_io")]);
    let dir = TestDir::new();
    dir.memory("images");
    let source = noise(SIZE, 86);
    dir.file("a", &source);
    let image = dir.image("images/disk", "ext4", 64 << 20);
    let disk = dir.mount(&image, "disk");
    let args = ["copy", "a", "disk/b", "--block-size", "64KiB", "--checkpoint-every", "512KiB", "--reflink", "never"];
    let mut copying = dir.start(&[&args[..], &["--limit", "24MiB/s"]].concat());
    copying.until(moving);
    // Like an error of the file system's journal: everything fails from now on.
    run("xfs_io", &["-x", "-c", "shutdown -f", text(&disk)]);
    let failed = copying.end();
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    let error = &failed.report()["error"];
    assert_eq!(error["side"], "destination", "{error}");
    assert!(error["code"] == "EIo" || error["code"] == "EReadOnly", "{error}");
    assert_eq!(failed.report()["quiesced"], true, "{failed:#?}");

    dir.unmount(&disk);
    let disk = dir.mount(&image, "disk");
    // The device number changes with the mount, so the file may count as another one. Both results are safe.
    let resumed = dir.blockhaul(&[&args[..], &["--resume"]].concat());
    if resumed.code == Some(0) {
        assert_same(&std::fs::read(disk.join("b")).expect("it is there"), &source, "the copy");
    } else {
        resumed.assert_failed(1, "ECheckpointMismatch");
    }
}

#[test]
fn a_copy_stopped_while_its_destination_is_gone_says_so() {
    let dir = TestDir::new();
    dir.file("a", &noise(SIZE, 87));
    let mut copying = dir.start(&[&SLOWLY[..], &["--reflink", "never"]].concat());
    copying.until(recorded);
    std::fs::remove_file(dir.path("b")).expect("it was created");
    copying.signal(Signal::SIGTERM);
    assert_eq!(copying.end().code, Some(75));
}
