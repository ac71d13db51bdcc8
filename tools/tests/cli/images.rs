//! Tests sources that are disk images or compressed files: refused unless the user says what is meant.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use blockhaul_testkit::{Need, need};
use std::path::Path;
use std::process::Command;

const NEEDS: [Need; 3] = [Need::Program("qemu-img"), Need::Program("qemu-nbd"), Need::Program("setpriv")];

fn qemu_img(directory: &Path, args: &[&str]) {
    let output = Command::new("qemu-img").current_dir(directory).args(args).output().expect("qemu-img starts");
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns what is in the state directory, but for journals.
fn left_behind(scratch: &Scratch) -> Vec<String> {
    let entries = std::fs::read_dir(scratch.path("state")).map(Iterator::flatten).into_iter().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".journal")).collect()
}

/// Returns the processes whose command line holds `text`.
fn processes_with(text: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(text)).collect()
}

#[test]
fn an_image_is_refused_with_the_ways_on_and_copied_as_it_is_when_asked() {
    let scratch = Scratch::new();
    for (name, head, says) in
        [("a.qcow2", &b"QFI\xfb"[..], "--format auto"), ("a.gz", b"\x1f\x8b\x08", "decompress it first")]
    {
        let data = [head, &noise(MIB, 3)].concat();
        scratch.file(name, &data);
        let before = scratch.snapshot();
        let outcome = scratch.json(&["copy", name, "out"]);
        outcome.assert_failed(2, "EBadRequest");
        assert!(outcome.stderr.contains(says) && outcome.stderr.contains("--format raw"), "{}", outcome.stderr);
        assert_eq!(scratch.snapshot(), before, "nothing was changed");
        scratch.json(&["copy", name, "out", "--format", "raw", "--overwrite"]).assert_done();
        assert_eq!(scratch.read("out"), data);
    }
    scratch.json(&["copy", "a.gz", "packed", "--format", "auto"]).assert_failed(2, "EBadRequest");
}

#[test]
fn the_disk_inside_of_an_image_is_copied_and_its_server_ends() {
    need!("the_disk_inside_of_an_image_is_copied_and_its_server_ends", &NEEDS);
    let scratch = Scratch::new();
    let disk = [noise(MIB, 5), vec![0; 2 * MIB], noise(MIB, 6)].concat();
    scratch.file("disk", &disk);
    for format in ["qcow2", "vmdk", "vhdx", "vdi"] {
        qemu_img(&scratch.path(""), &["convert", "-f", "raw", "-O", format, "disk", "image"]);
        let outcome = scratch.json(&["copy", "image", "out", "--format", "auto", "--overwrite", "--verify"]);
        outcome.assert_done();
        assert_eq!(scratch.read("out"), disk, "{format}");
        assert_eq!(left_behind(&scratch), Vec::<String>::new(), "{format}");
    }
    assert_eq!(processes_with(scratch.path("").to_str().unwrap()), Vec::<String>::new());
    scratch.json(&["copy", "disk", "out", "--format", "auto", "--overwrite"]).assert_done();
}

/// A copy that is killed takes its server with it, and is resumed from a new one.
#[test]
fn a_killed_copy_of_an_image_resumes_and_one_of_a_changed_image_does_not() {
    need!("a_killed_copy_of_an_image_resumes_and_one_of_a_changed_image_does_not", &NEEDS);
    let scratch = Scratch::new();
    let disk = noise(32 * MIB, 7);
    scratch.file("disk", &disk);
    qemu_img(&scratch.path(""), &["convert", "-f", "raw", "-O", "qcow2", "disk", "image"]);
    let words = ["copy", "image", "out", "--format", "auto", "--limit", "16MiB/s", "--checkpoint-every", "4MiB"];
    let mut copy = scratch.process(&words).spawn().unwrap();
    let has_begun = || left_behind(&scratch).len() == 1 && scratch.path("out").metadata().is_ok();
    while !has_begun() {
        assert!(copy.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    scratch.json(&["copy", "image", "out", "--format", "auto", "--resume"]).assert_failed(1, "EBusy");
    // Until something can be resumed.
    let socket = left_behind(&scratch).pop().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    copy.kill().unwrap();
    copy.wait().unwrap();
    while !processes_with(&socket).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let outcome = scratch.json(&["copy", "image", "out", "--format", "auto", "--resume"]);
    outcome.assert_done();
    assert_eq!(scratch.read("out"), disk);
    assert_eq!(left_behind(&scratch), Vec::<String>::new());
    let mut copy =
        scratch.process(&["copy", "image", "other", "--format", "auto", "--limit", "8MiB/s"]).spawn().unwrap();
    while scratch.path("other").metadata().is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    copy.kill().unwrap();
    copy.wait().unwrap();
    scratch.file("disk", &noise(32 * MIB, 8));
    qemu_img(&scratch.path(""), &["convert", "-f", "raw", "-O", "qcow2", "disk", "image"]);
    let outcome = scratch.json(&["copy", "image", "other", "--format", "auto", "--resume"]);
    assert_eq!(outcome.code, Some(1), "{outcome:#?}");
}

#[test]
fn an_image_that_names_another_file_and_the_image_as_its_own_destination_are_refused() {
    need!("an_image_that_names_another_file_and_the_image_as_its_own_destination_are_refused", &NEEDS);
    let scratch = Scratch::new();
    scratch.file("secret", &noise(MIB, 9));
    qemu_img(&scratch.path(""), &["create", "-f", "qcow2", "-b", "secret", "-F", "raw", "image"]);
    let outcome = scratch.json(&["copy", "image", "out", "--format", "auto"]);
    outcome.assert_failed(1, "EUnsupported");
    assert!(outcome.stderr.contains("'secret'") || outcome.stderr.contains("secret"), "{}", outcome.stderr);
    assert!(scratch.path("out").metadata().is_err());
    qemu_img(&scratch.path(""), &["create", "-f", "qcow2", "own", "1M"]);
    let before = scratch.read("own");
    scratch.json(&["copy", "own", "own", "--format", "auto", "--overwrite"]).assert_failed(1, "ESameVolume");
    assert_eq!(scratch.read("own"), before);
    scratch.file("broken", b"QFI\xfbnot an image at all");
    scratch.json(&["copy", "broken", "out", "--format", "auto"]).assert_failed(1, "EUnsupported");
}
