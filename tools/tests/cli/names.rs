//! Tests names that are not UTF-8.
//!
//! Goal: volumes and journals are found by their bytes, and printed names cannot control a terminal. Method: such
//! names, next to files with the names that a lossy conversion to text gives.

use crate::asking::TestCenter;
use crate::stopping::{SLOWLY, has_recorded, printed_command, stop_by};
use blockhaul_testkit::scratch::{MIB, Scratch, noise, until};
use nix::sys::signal::Signal;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};

const BAD: &[u8] = b"bad\xff\n\x1b[2J\\";
const SHOWN: &str = r"bad\xff\n\x1b[2J\\";

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn args<'a>(args: &[&'a str], names: &[&'a [u8]]) -> Vec<&'a OsStr> {
    args.iter().map(|&word| OsStr::new(word)).chain(names.iter().map(|name| os(name))).collect()
}

/// Checks that output is lines of printable text, and returns it.
#[track_caller]
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8(bytes.to_vec()).expect("what is printed is text");
    assert!(text.chars().all(|char| char == '\n' || !char.is_control()), "{text:?}");
    text
}

/// Returns stdout and stderr, checked by [`plain`].
#[track_caller]
fn printed(output: &Output) -> String {
    plain(&output.stdout) + &plain(&output.stderr)
}

#[test]
fn a_name_that_is_not_utf8_is_copied_resumed_and_shown_escaped() {
    let scratch = Scratch::new();
    let data = noise(8 * MIB, 5);
    scratch.file("a", &data);
    // The file that a lossy conversion of the name would find.
    let sibling = os(BAD).to_string_lossy().into_owned();
    scratch.file(&sibling, b"precious");

    let plan = scratch.json(&args(&["copy", "a", "--dry-run"], &[BAD]));
    assert_eq!((plan.code, &plan.lines[0]["destination"]), (Some(0), &SHOWN.into()), "{plan:?}");
    let human = printed(&scratch.blockhaul(&args(&["copy", "a", "--dry-run"], &[BAD])).output().unwrap());
    assert!(human.contains(&format!("destination  {SHOWN}\n")), "{human}");
    assert!(!scratch.path(os(BAD)).exists());

    let copy = args(&[&["copy", "a", "--json"][..], &SLOWLY].concat(), &[BAD]);
    assert_eq!(stop_by(scratch.process(&copy), Signal::SIGKILL, has_recorded).code, None);
    let journal = only_journal(&scratch);
    let inspected = scratch.json(&[OsStr::new("inspect"), journal.as_os_str()]);
    let name = inspected.lines[0]["destination"]["name"].as_str().unwrap();
    assert!(name.ends_with(&format!("/{SHOWN}")), "{inspected:?}");
    let human = printed(&scratch.blockhaul(&[OsStr::new("inspect"), journal.as_os_str()]).output().unwrap());
    assert!(human.contains(&format!("/{SHOWN} (file,")), "{human}");

    // Another name with the same lossy text has no unfinished copy.
    scratch.json(&args(&["copy", "a"], &[b"bad\xfe\n\x1b[2J\\"])).assert_done();
    let again = scratch.json(&args(&["copy", "a"], &[BAD]));
    again.assert_failed(1, "EExists");
    plain(again.stderr.as_bytes());

    let resume = ["copy", "a", "--resume", "--reflink", "never", "--block-size", "64KiB", "--receipt"];
    let resumed = scratch.json(&args(&resume, &[b"receipt\xff", BAD]));
    resumed.assert_done();
    assert!(resumed.report()["bytes"]["resumed"].as_u64() > Some(0), "{resumed:?}");
    assert_eq!(resumed.report()["journal"], r"receipt\xff");
    assert!(scratch.read(os(BAD)) == data && scratch.read(&sibling) == b"precious");

    scratch.json(&args(&["verify", "--receipt"], &[b"receipt\xff", BAD])).assert_done();
    scratch.json(&args(&["copy"], &[BAD, b"back\xff"])).assert_done();
    assert!(scratch.read(os(b"back\xff")) == data);
    let same = scratch.json(&args(&["copy", "--overwrite"], &[BAD, BAD]));
    same.assert_failed(1, "ESameVolume");
    assert!(same.report()["error"]["message"].as_str().unwrap().contains(SHOWN), "{same:?}");
    let missing = scratch.blockhaul(&args(&["map"], &[b"gone\xff\x1b"])).output().unwrap();
    assert!(printed(&missing).contains(r"gone\xff\x1b does not exist"), "{missing:?}");
    for command in ["map", "doctor"] {
        let looked = scratch.blockhaul(&args(&[command], &[BAD])).output().unwrap();
        assert_eq!(looked.status.code(), Some(0), "{looked:?}");
        printed(&looked);
    }
}

/// Returns the path of the only checkpoint in the state directory.
fn only_journal(scratch: &Scratch) -> PathBuf {
    let found: Vec<_> = std::fs::read_dir(scratch.path("state")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(matches!(&found[..], [_]), "{found:?}");
    found[0].clone()
}

#[test]
fn the_command_that_resumes_is_quoted_for_a_shell() {
    let scratch = Scratch::new();
    let data = noise(8 * MIB, 6);
    scratch.file("a", &data);
    // A character that reverses the direction of text.
    for name in [BAD, "turned\u{202e}'".as_bytes()] {
        let copy = args(&[&["copy", "a", "--json"][..], &SLOWLY].concat(), &[name]);
        let mut command = scratch.process(&copy);
        command.stderr(Stdio::piped());
        let stopped = stop_by(command, Signal::SIGTERM, has_recorded);
        stopped.assert_failed(75, "ERunnerInterrupt");
        plain(stopped.stderr.as_bytes());
        scratch.file("again", printed_command(&stopped.stderr).replace("8MiB/s", "1GiB/s").as_bytes());
        assert!(scratch.shell("bash again").output().unwrap().status.success());
        assert!(scratch.read(os(name)) == data);
    }
}

#[test]
fn text_from_the_records_of_a_center_is_shown_escaped() {
    let scratch = Scratch::new();
    let evil = "x\u{1b}[2J\u{9b}31m\nforged RUNNING \u{202e}";
    let shown = r"x\x1b[2J\xc2\x9b31m\nforged RUNNING \xe2\x80\xae";
    let center = TestCenter::start(&scratch, &["--label", &format!("zone={evil}")]);
    let ask = |args: &[&str]| {
        let output = scratch.blockhaul(&[args, &["--center", &center.address]].concat()).output().unwrap();
        printed(&output);
        plain(&output.stdout)
    };
    until("the node is registered", || !ask(&["runners"]).is_empty());
    let line = ask(&["runners"]);
    assert!(line.contains(&format!("zone={shown}")) && line.lines().count() == 1, "{line}");
    let object = ask(&["runners", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&object).unwrap()["labels"]["zone"], evil);

    let volume = format!("{}/{evil}", scratch.path("volumes").display());
    ask(&["submit", "copy", &volume, &format!("{volume}2"), "--id", "t", "--max-attempts", "1", "--node", "n1"]);
    until("the task has failed", || ask(&["list", "--state", "FAILED"]).starts_with("t FAILED"));
    let task = ask(&["get", "t"]);
    assert!(task.contains(&format!("source       {}/{shown}\n", scratch.path("volumes").display())), "{task}");
    assert!(task.contains("error        ENotFound: ") && !task.contains("\nforged"), "{task}");
    let listed = ask(&["list"]);
    assert!(listed.contains(shown) && listed.lines().count() == 1, "{listed}");
    printed(&scratch.blockhaul(&["watch", "t", "--center", &center.address]).output().unwrap());
}

#[test]
fn a_task_refuses_volume_names_that_are_not_utf8() {
    let scratch = Scratch::new();
    let nowhere = ["submit", "copy", "--center", "127.0.0.1:1", "--node", "n1", "--json", "/a"].map(OsString::from);
    let refused = scratch.blockhaul(&[&nowhere[..], &[os(b"/bad\xff\x1b").to_owned()]].concat()).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(
        printed(&refused).contains(r"blockhaul: EBadRequest: /bad\xff\x1b: volume names of tasks must be UTF-8"),
        "{refused:?}"
    );
}
