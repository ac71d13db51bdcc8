//! Tests volumes that changed before a copy resumes: another disk under the same device number, the same disk under
//! another number, and replaced content under the same name.

use crate::support::{MIB, Need, Outcome, TestDir, assert_same, need, noise, recorded, run, text};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SIZE: usize = 16 * MIB;
const NEEDS: [Need; 2] = [Need::Root, Need::LoopDevices];
const SLOWLY: [&str; 6] = ["--limit", "16MiB/s", "--block-size", "64KiB", "--checkpoint-every", "256KiB"];

/// Stops a copy after a part of it was recorded.
fn half_copied(dir: &TestDir, args: &[&str]) {
    let mut running = dir.start(&[&["copy"][..], args, &SLOWLY].concat());
    running.until(recorded);
    running.crash();
}

fn resumed(dir: &TestDir, args: &[&str]) -> Outcome {
    dir.blockhaul(&[&["copy", "--resume"][..], args].concat())
}

fn assert_refused(outcome: &Outcome, code: &str) {
    assert_eq!(outcome.code, Some(1), "{outcome:#?}");
    assert_eq!(outcome.report()["error"]["code"], code, "{outcome:#?}");
}

fn assert_resumed(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    assert!(outcome.bytes("resumed") > 0, "{outcome:#?}");
}

/// Attaches another file to the device.
fn swap(device: &Path, backing: &Path) {
    run("losetup", &["--detach", text(device)]);
    // Another test may use the number for a while.
    let attached = (0..1200).any(|_| {
        let losetup = Command::new("losetup").args([device, backing]).stderr(Stdio::null()).status();
        let is_attached = losetup.is_ok_and(|status| status.success());
        if !is_attached {
            std::thread::sleep(Duration::from_millis(100));
        }
        is_attached
    });
    assert!(attached, "{} stays busy", device.display());
}

#[test]
fn a_copy_does_not_resume_with_another_disk_under_the_same_number() {
    need!("a_copy_does_not_resume_with_another_disk_under_the_same_number", &NEEDS);
    let dir = TestDir::new();
    let [first, second] = [1, 2].map(|seed| noise(SIZE, seed));
    let (a, b) = (dir.file("a", &first), dir.file("b", &second));
    let (d, e) = (dir.sparse("d", SIZE as u64), dir.sparse("e", SIZE as u64));
    let (source, destination) = (dir.loop_device(&a, 512), dir.loop_device(&d, 512));
    let args = [text(&source), text(&destination)];
    half_copied(&dir, &args);
    swap(&source, &b);
    assert_refused(&resumed(&dir, &args), "ESourceChanged");
    swap(&source, &a);
    swap(&destination, &e);
    assert_refused(&resumed(&dir, &args), "ECheckpointMismatch");
    assert_same(&dir.read("e"), &vec![0; SIZE], "the other disk");
    swap(&destination, &d);
    assert_resumed(&resumed(&dir, &[&args[..], &["--verify"]].concat()));
    assert_same(&dir.read("d"), &first, "the destination");
}

#[test]
fn a_copy_resumes_with_the_same_disks_under_other_numbers() {
    need!("a_copy_resumes_with_the_same_disks_under_other_numbers", &NEEDS);
    let dir = TestDir::new();
    let data = noise(SIZE, 3);
    let (a, d) = (dir.file("a", &data), dir.sparse("d", SIZE as u64));
    let (source, destination) = (dir.loop_device(&a, 512), dir.loop_device(&d, 512));
    half_copied(&dir, &[text(&source), text(&destination), "--checkpoint", "journal"]);
    [&source, &destination].into_iter().for_each(|device| _ = run("losetup", &["--detach", text(device)]));
    let spare = dir.sparse("spare", 4096);
    // Takes a number that one of the disks had, unless another test has taken it.
    dir.loop_device(&spare, 512);
    let (source, destination) = (dir.loop_device(&a, 512), dir.loop_device(&d, 512));
    assert_resumed(&resumed(&dir, &[text(&source), text(&destination), "--checkpoint", "journal"]));
    assert_same(&dir.read("d"), &data, "the destination");
}

#[test]
fn a_copy_of_files_resumes_after_a_remount() {
    let needs = [Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Filesystem("btrfs")];
    need!("a_copy_of_files_resumes_after_a_remount", &needs);
    for filesystem in ["ext4", "btrfs"] {
        let dir = TestDir::new();
        let data = noise(SIZE, 4);
        let image = dir.image("image", filesystem, 320 << 20);
        let at = dir.mount(&image, "mounted");
        std::fs::write(at.join("a"), &data).expect("there is room");
        let args = ["mounted/a", "mounted/b", "--reflink", "never"];
        half_copied(&dir, &args);
        dir.unmount(&at);
        let spare = dir.image("spare", filesystem, 320 << 20);
        dir.mount(&spare, "elsewhere");
        dir.mount(&image, "mounted");
        assert_resumed(&resumed(&dir, &args));
        assert_same(&std::fs::read(at.join("b")).expect("it is mounted"), &data, filesystem);
    }
}

#[test]
fn a_destination_whose_content_was_replaced_is_a_mismatch() {
    for options in [&[][..], &["--digest", "none"], &["--direct", "no"]] {
        let dir = TestDir::new();
        let data = noise(SIZE, 5);
        dir.file("a", &data);
        let args = [&["a", "b", "--reflink", "never"][..], options].concat();
        half_copied(&dir, &args);
        let file = File::options().write(true).open(dir.path("b")).expect("it was copied to");
        let length = file.metadata().expect("it is open").len();
        file.set_len(0).and_then(|()| file.set_len(length)).expect("it is ours");
        assert_refused(&resumed(&dir, &args), "ECheckpointMismatch");
        assert_same(&dir.read("b"), &vec![0; length as usize], "what was refused");
        if !args.contains(&"none") {
            let restarted = dir.blockhaul(&[&["copy", "--restart"][..], &args].concat());
            assert_refused(&restarted, "EExists");
        }
        let restarted = dir.blockhaul(&[&["copy", "--restart", "--overwrite"][..], &args].concat());
        assert_eq!(restarted.code, Some(0), "{restarted:#?}");
        assert_same(&dir.read("b"), &data, "the destination");
    }
}

#[test]
fn a_copy_does_not_resume_from_a_source_device_that_was_written() {
    need!("a_copy_does_not_resume_from_a_source_device_that_was_written", &NEEDS);
    let dir = TestDir::new();
    let a = dir.file("a", &noise(SIZE, 6));
    let source = dir.loop_device(&a, 512);
    let args = [text(&source), "b"];
    half_copied(&dir, &args);
    let device = File::options().write(true).open(&source).expect("it is attached");
    device.write_all_at(&noise(SIZE, 7), 0).and_then(|()| device.sync_all()).expect("it can be written");
    assert_refused(&resumed(&dir, &args), "ESourceChanged");
}

/// Arguments of a copy whose receipt replaces its checkpoint, as after a kill before the last rename.
const FINISHED: [&str; 6] = ["a", "b", "--checkpoint", "kept", "--receipt", "kept"];

#[test]
fn a_finished_copy_is_verified_again_on_request() {
    let dir = TestDir::new();
    let data = noise(SIZE, 8);
    dir.file("a", &data);
    assert_eq!(dir.blockhaul(&[&["copy"], &FINISHED[..]].concat()).code, Some(0));
    let verified = resumed(&dir, &[&FINISHED[..], &["--verify"]].concat());
    assert_resumed(&verified);
    assert_eq!(verified.bytes("verified"), SIZE as u64, "{verified:#?}");
    assert!(verified.report()["verified_from"].is_string(), "{verified:#?}");

    // A change that the samples may miss.
    let file = File::options().write(true).open(dir.path("b")).expect("it was copied to");
    file.write_all_at(b"other", 5 * MIB as u64 + 77).expect("it is ours");
    let differs = resumed(&dir, &[&FINISHED[..], &["--verify"]].concat());
    let code = &differs.report()["error"]["code"];
    assert!(code == "EVerifyMismatch" || code == "ECheckpointMismatch", "{differs:#?}");
}

#[test]
fn a_finished_copy_is_sampled_when_it_is_resumed() {
    let dir = TestDir::new();
    dir.file("a", &noise(SIZE, 9));
    assert_eq!(dir.blockhaul(&[&["copy"], &FINISHED[..]].concat()).code, Some(0));
    assert_resumed(&resumed(&dir, &FINISHED));
    let file = File::options().write(true).open(dir.path("b")).expect("it was copied to");
    file.write_all_at(&noise(SIZE, 10), 0).expect("it is ours");
    assert_refused(&resumed(&dir, &FINISHED), "ECheckpointMismatch");
}
