//! Tests output whose reader does not read, is slow, or has closed the pipe, and a stdout that cannot be written.

use crate::stopping::{SLOWLY, has_written, stop_by};
use blockhaul_testkit::full_pipe;
use blockhaul_testkit::scratch::{MIB, Scratch, noise, outcome, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};

fn ended(child: &mut Child) -> Option<i32> {
    let mut status = None;
    until("the program ends", || {
        status = child.try_wait().expect("it is our child");
        status.is_some()
    });
    status.expect("it has ended").code()
}

#[test]
fn a_stderr_without_a_reader_delays_no_stop() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(16 * MIB, 5));
    let (_reader, writer) = full_pipe();
    let args = [&["copy", "a", "b", "--json", "--progress", "bar", "--log", "trace"][..], &SLOWLY].concat();
    let mut command = scratch.process(&args);
    command.stderr(writer);
    let stopped = stop_by(command, Signal::SIGTERM, has_written);
    assert_eq!(stopped.code, Some(75), "{stopped:?}");
    assert_eq!(stopped.report()["status"], "interrupted");
}

#[test]
fn a_stdout_without_a_reader_delays_no_stop() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(16 * MIB, 5));
    let (_reader, writer) = full_pipe();
    let mut command = scratch.process(&[&["copy", "a", "b", "--json"][..], &SLOWLY].concat());
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("the program was built");
    until("something is written", || scratch.path("b").metadata().is_ok_and(|file| file.blocks() > 0));
    kill(Pid::from_raw(i32::try_from(child.id()).expect("ids are small")), Signal::SIGTERM).expect("it is our child");
    assert_eq!(ended(&mut child), Some(75));
    let mut printed = String::new();
    child.stderr.take().expect("it was asked for").read_to_string(&mut printed).expect("the pipe is ours");
    assert!(printed.contains("ERunnerInterrupt") && printed.contains("stdout"), "{printed}");
}

#[test]
fn a_slow_reader_gets_the_report() {
    let scratch = Scratch::new();
    let data = noise(MIB, 5);
    scratch.file("a", &data);
    let (mut reader, writer) = full_pipe();
    let mut command = scratch.process(&["copy", "a", "b", "--json"]);
    let mut child = command.stdout(writer).stderr(Stdio::null()).spawn().expect("the program was built");
    drop(command);
    until("the copy is done", || std::fs::read(scratch.path("b")).is_ok_and(|bytes| bytes == data));
    let mut printed = String::new();
    reader.read_to_string(&mut printed).expect("the pipe is ours");
    let report: Value = serde_json::from_str(printed.lines().last().expect("there is a report")).expect("it is JSON");
    assert_eq!((&report["event"], &report["status"]), (&"report".into(), &"succeeded".into()));
    assert_eq!(ended(&mut child), Some(0));
}

#[test]
fn output_that_cannot_be_written_exits_with_1_and_leaves_the_copy_intact() {
    let scratch = Scratch::new();
    let data = noise(MIB, 7);
    scratch.file("a", &data);
    scratch.json(&["copy", "a", "b", "--receipt", "r"]).assert_done();
    for args in [
        &["copy", "a", "c"][..],
        &["copy", "a", "d", "--json"],
        &["copy", "a", "e", "--dry-run"],
        &["copy", "a", "e", "--dry-run", "--json"],
        &["verify", "a", "b"],
        &["verify", "a", "b", "--json"],
        &["map", "a"],
        &["map", "a", "--json"],
        &["inspect", "r"],
        &["inspect", "r", "--json"],
        &["doctor"],
        &["doctor", "--json"],
    ] {
        let full = File::options().write(true).open("/dev/full").expect("every host has it");
        let output = scratch.process(args).stdout(full).output().expect("the program was built");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {printed}");
        assert!(printed.contains("stdout"), "{args:?}: {printed}");
    }
    assert!(scratch.read("c") == data && scratch.read("d") == data);
    assert!(!scratch.path("e").exists());
}

#[test]
fn a_closed_pipe_does_not_change_the_exit_code() {
    let scratch = Scratch::new();
    let data = noise(MIB, 7);
    scratch.file("a", &data);
    for (args, code) in [(&["copy", "a", "b", "--json"][..], 0), (&["doctor"], 0), (&["verify", "a", "a2"], 3)] {
        scratch.file("a2", &noise(MIB, 8));
        let (reader, writer) = std::io::pipe().expect("there are descriptors");
        drop(reader);
        let output = scratch.process(args).stdout(writer).output().expect("the program was built");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {:?}", outcome(&output));
    }
    assert!(scratch.read("b") == data);
}
