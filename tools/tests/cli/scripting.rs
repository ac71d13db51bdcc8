//! Tests what helps people who type commands and write scripts: help, suggestions, quietness, and completion.

use crate::asking::TestCenter;
use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn help_of_a_command_is_its_help() {
    let scratch = Scratch::new();
    let stdout = |args: &[&str]| {
        let output = scratch.blockhaul(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(stdout(&["help", "copy"]), stdout(&["copy", "--help"]));
    assert_eq!(stdout(&["help", "submit", "copy"]), stdout(&["submit", "copy", "--help"]));
    assert!(!stdout(&["--help"]).contains("generate"), "it is for packages");
}

#[test]
fn words_of_other_programs_are_answered_with_those_of_this_one() {
    let scratch = Scratch::new();
    for (args, tip) in [
        (&["version"][..], "tip: use 'blockhaul --version'"),
        (&["copy", "--force", "a", "b"], "tip: use '--overwrite'"),
        (&["coppy"], "copy"),
    ] {
        let output = scratch.blockhaul(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(tip), "{args:?}: {stderr}");
    }
}

#[test]
fn a_quiet_copy_prints_errors_only_and_a_verbose_one_more() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    let run = |args: &[&str]| {
        let output = scratch.blockhaul(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let nothing = String::new;
    assert_eq!(run(&["copy", "-q", "a", "b", "--progress", "bar"]), (Some(0), nothing(), nothing()));
    assert_eq!(run(&["verify", "-q", "a", "b"]), (Some(0), nothing(), nothing()));
    scratch.file("c", b"else");
    let (code, stdout, stderr) = run(&["copy", "-q", "a", "c"]);
    assert_eq!((code, stdout), (Some(1), nothing()));
    assert!(stderr.starts_with("blockhaul: EExists: "), "{stderr}");
    let (code, _, stderr) = run(&["copy", "-v", "a", "d"]);
    assert!(code == Some(0) && stderr.contains("copying") && stderr.contains("copy ended"), "{stderr}");
    let last = scratch.json(&["copy", "-q", "a", "e"]);
    assert_eq!(last.report()["status"], "succeeded", "JSON is printed as ever: {last:?}");
}

/// Returns what bash would complete the last word to, without flags unless it begins as one.
fn completed(scratch: &Scratch, words: &[&str]) -> Vec<String> {
    let mut command = scratch.process(&[&["--", "blockhaul"], words].concat());
    command.env("BLOCKHAUL_COMPLETE", "bash").env("_CLAP_IFS", "\n");
    let output = command.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{words:?}");
    let is_flag = words.last().is_some_and(|word| word.starts_with('-'));
    let all = String::from_utf8(output.stdout).unwrap();
    all.lines().filter(|word| is_flag || !word.starts_with('-')).map(str::to_owned).collect()
}

#[test]
fn commands_flags_files_and_values_are_completed() {
    let scratch = Scratch::new();
    scratch.file("volume.raw", b"data");
    assert_eq!(completed(&scratch, &["sub"]), ["submit"]);
    assert_eq!(completed(&scratch, &["copy", "--spa"]), ["--sparse"]);
    assert_eq!(completed(&scratch, &["copy", "vol"]), ["volume.raw"]);
    assert_eq!(completed(&scratch, &["copy", "--sparse", "n"]), ["never"]);
}

#[test]
fn names_of_tasks_nodes_and_schedules_are_completed_by_the_center() {
    let scratch = Scratch::new();
    let center = TestCenter::start(&scratch, &[]);
    let ask = |args: &[&str]| scratch.json(&[args, &["--center", &center.address]].concat());
    assert_eq!(ask(&["submit", "noop", "--id", "nightly-1", "--wait"]).code, Some(0));
    assert_eq!(ask(&["submit", "noop", "--id", "other", "--wait"]).code, Some(0));
    assert_eq!(ask(&["schedule", "add", "weekly", "--every", "7d", "noop"]).code, Some(0));
    let at = format!("--center={}", center.address);
    assert_eq!(completed(&scratch, &["get", &at, "nig"]), ["nightly-1"]);
    assert_eq!(completed(&scratch, &["remove", &at, "other", ""]), ["nightly-1", "other"]);
    assert_eq!(completed(&scratch, &["drain", &at, ""]), ["n1"]);
    assert_eq!(completed(&scratch, &["schedule", "get", &at, "w"]), ["weekly"]);
    assert_eq!(completed(&scratch, &["list", &at, "--group", ""]), [""; 0]);
}

#[test]
fn a_center_that_is_away_or_silent_completes_to_nothing_at_once() {
    let scratch = Scratch::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let silent = silent.local_addr().expect("it is bound").to_string();
    for address in [silent.as_str(), "127.0.0.1:1", "no address"] {
        let began = Instant::now();
        assert_eq!(completed(&scratch, &["get", "--center", address, ""]), [""; 0], "{address}");
        assert!(began.elapsed() < Duration::from_secs(10), "{address}");
    }
}

#[test]
fn the_scripts_of_the_shells_are_printed() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        for program in ["blockhaul", "taskd"] {
            let output = scratch.blockhaul(&["completions", shell, program]).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{shell} {program}");
            assert!(String::from_utf8(output.stdout).unwrap().contains(program), "{shell} {program}");
        }
    }
    let checked = scratch.process(&["completions", "bash"]).output().unwrap();
    scratch.file("script", &checked.stdout);
    assert!(scratch.shell("bash -n script").status().unwrap().success(), "bash reads its script");
}
