//! Tests `copy --dry-run`: it prints the plan, refuses what the copy would refuse, with the same message, and changes
//! nothing.

use blockhaul_testkit::scratch::{MIB, Scratch, noise, until};
use blockhaul_testkit::{Need, need};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::fs::File;
use std::process::{Command, Stdio};

#[test]
fn a_plan_counts_the_source_and_touches_nothing() {
    let scratch = Scratch::new();
    let source = scratch.file("a", &noise(MIB, 1));
    std::fs::File::options().write(true).open(source).unwrap().set_len(4 * MIB as u64).unwrap();
    let before = scratch.snapshot();
    let outcome = scratch.json(&["copy", "a", "b", "--dry-run"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(scratch.snapshot(), before, "a plan does not create the state directory");
    let plan = &outcome.lines[0];
    assert_eq!((outcome.lines.len(), &plan["event"]), (1, &"plan".into()));
    assert_eq!(plan["source_bytes"], 4 * MIB);
    let bytes = |kind: &str| plan[kind].as_u64().unwrap();
    assert_eq!(bytes("data_bytes") + bytes("zero_bytes") + bytes("hole_bytes"), 4 * MIB as u64);
    assert_eq!(plan["refusals"], serde_json::json!([]));
    assert!(plan["checkpoint"].as_str().unwrap().contains("state"), "{plan}");
    assert!(
        plan["path"].is_string() && plan["free_bytes"].as_u64() > Some(0) && plan["resumed_bytes"].is_null(),
        "{plan}"
    );

    let human = scratch.blockhaul(&["copy", "a", "b", "--dry-run", "--no-checkpoint"]).output().unwrap();
    let text = String::from_utf8(human.stdout).unwrap();
    assert!(
        text.contains("4.0 MiB") && text.contains("destination  b") && text.contains("no problems found"),
        "{text}"
    );
}

/// Runs a dry run, then the copy: both are refused with this code and the same message, and change nothing.
#[track_caller]
fn refused(scratch: &Scratch, args: &[&str], code: &str) {
    std::fs::create_dir_all(scratch.path("state")).unwrap();
    let before = scratch.snapshot();
    let planned = scratch.json(&[&["copy", "--dry-run"], args].concat());
    assert_eq!(scratch.snapshot(), before, "{args:?}: a dry run changes nothing");
    let plan = planned.lines.last().expect("a plan");
    assert_eq!((&plan["event"], plan["refusals"].as_array().unwrap().len()), (&Value::from("plan"), 1), "{planned:?}");
    let copied = scratch.json(&[&["copy"], args].concat());
    assert_eq!(scratch.snapshot(), before, "{args:?}: a refused copy changes nothing");
    assert_eq!(plan["refusals"][0], copied.report()["error"], "{args:?}");
    assert_eq!(
        (plan["refusals"][0]["code"].as_str(), planned.code),
        (Some(code), copied.code),
        "{args:?}: {planned:?}"
    );
    assert_eq!(planned.stderr, copied.stderr, "{args:?}");
}

#[test]
fn a_dry_run_refuses_what_a_copy_refuses() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    scratch.file("full", b"precious");
    scratch.file("no-directory", b"");
    std::os::unix::fs::symlink("nothing", scratch.path("dangling")).unwrap();
    for (args, code) in [
        (&["missing", "b"][..], "ENotFound"),
        (&["a", "full"], "EExists"),
        (&["a", "a"], "ESameVolume"),
        (&["a", "no/b"], "ENotFound"),
        (&["a", "dangling"], "ENotFound"),
        (&["a", "."], "EBadRequest"),
        (&["a", "/dev/null"], "EUnsupported"),
        (&["a", "b", "--state-dir", "no-directory/state"], "EPermission"),
        (&["a", "b", "--checkpoint", "full"], "ECheckpointCorrupt"),
        (&["a", "b", "--checkpoint", "full", "--restart"], "EExists"),
        (&["a", "b", "--checkpoint", "b"], "EBadRequest"),
        (&["a", "b", "--checkpoint", "a"], "EBadRequest"),
        (&["a", "b", "--receipt", "./b"], "EBadRequest"),
        (&["a", "b", "--receipt", "full"], "EExists"),
        (&["a", "b", "--path", "inline", "--direct", "yes"], "EBadRequest"),
        (&["a", "full", "--resume"], "EExists"),
    ] {
        refused(&scratch, args, code);
    }
    assert_eq!(scratch.json(&["copy", "a", "full", "--dry-run", "--overwrite"]).code, Some(0));
}

#[test]
fn a_dry_run_refuses_too_little_space() {
    let scratch = Scratch::new();
    File::create(scratch.path("huge")).unwrap().set_len(1 << 42).unwrap();
    let args = ["--dry-run", "huge", "b", "--sparse", "never"];
    let planned = scratch.json(&[&["copy"], &args[..]].concat());
    let copied = scratch.json(&[&["copy"], &args[1..]].concat());
    assert_eq!((planned.code, &planned.lines[0]["refusals"][0]["code"]), (Some(1), &"ENoSpace".into()), "{planned:?}");
    // The number of free bytes may change in between.
    let words = |text: &str| text.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit())).count();
    assert_eq!((copied.error_code(), words(&planned.stderr)), (&"ENoSpace".into(), words(&copied.stderr)));
    assert!(!scratch.path("b").exists());
}

#[test]
fn a_dry_run_refuses_a_busy_destination_and_leaves_no_lock() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    scratch.file("b", b"");
    let lock = |scratch: &Scratch| Flock::lock(File::open(scratch.path("b")).unwrap(), FlockArg::LockExclusiveNonblock);
    let held = lock(&scratch).expect("no other process holds it");
    refused(&scratch, &["a", "b", "--lock-wait", "0s"], "EBusy");
    drop(held);
    assert_eq!(scratch.json(&["copy", "a", "b", "--dry-run"]).code, Some(0));
    lock(&scratch).expect("a dry run releases the lock");
}

#[test]
fn a_dry_run_refuses_a_foreign_checkpoint_and_reports_what_its_own_resumes() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    scratch.file("other", b"precious");
    let slowly = ["--limit", "2MiB/s", "--checkpoint-every", "64KiB", "--block-size", "64KiB", "--direct", "no"];
    let mut copy = scratch.process(&[&["copy", "a", "b", "--checkpoint", "j"], &slowly[..]].concat());
    let mut child = copy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let durable = || scratch.json(&["inspect", "j"]).lines.first().and_then(|shown| shown["durable_bytes"].as_u64());
    until("the copy records something", || scratch.path("j").exists() && durable() > Some(0));
    child.kill().unwrap();
    child.wait().unwrap();
    for (args, code) in [
        (&["a", "b", "--checkpoint", "j"][..], "EExists"),
        (&["a", "new", "--checkpoint", "j", "--resume"], "ECheckpointMismatch"),
        (&["a", "other", "--checkpoint", "j", "--resume"], "ECheckpointMismatch"),
        (&["other", "b", "--checkpoint", "j", "--resume"], "ESourceChanged"),
        (&["a", "other", "--checkpoint", "j", "--restart"], "EExists"),
    ] {
        refused(&scratch, args, code);
    }
    let before = scratch.snapshot();
    let planned = scratch.json(&["copy", "a", "b", "--checkpoint", "j", "--resume", "--dry-run"]);
    assert_eq!(planned.code, Some(0), "{planned:?}");
    assert_eq!(planned.lines[0]["resumed_bytes"].as_u64(), durable(), "{planned:?}");
    assert_eq!(scratch.snapshot(), before);
    scratch.json(&["copy", "a", "b", "--checkpoint", "j", "--resume", "--receipt", "r"]).assert_done();
    refused(&scratch, &["a", "other", "--checkpoint", "r", "--resume"], "ECheckpointMismatch");
}

#[test]
fn a_dry_run_refuses_the_source_through_a_loop_device() {
    let test = "a_dry_run_refuses_the_source_through_a_loop_device";
    need!(test, &[Need::Root, Need::LoopDevices]);
    let scratch = Scratch::new();
    let image = scratch.file("image", &noise(4 * MIB, 1));
    let losetup = |args: &[&str]| {
        let output = Command::new("losetup").args(args).output().unwrap();
        assert!(output.status.success(), "losetup {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["--find", "--show", image.to_str().unwrap()]);
    // The device is detached at its last close, also if this test fails.
    let held = File::open(&device).unwrap();
    losetup(&["--detach", &device]);
    for args in [["image", &device, "--overwrite"], [&device, "image", "--overwrite"]] {
        refused(&scratch, &args, "ESameVolume");
    }
    drop(held);
}
