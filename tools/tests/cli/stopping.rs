//! Tests copies that stop, by a signal or by SIGKILL, and how they resume.

use blockhaul_testkit::scratch::{MIB, Outcome, Scratch, noise, outcome};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

/// Flags of a copy that is slow enough to be stopped in the middle, and that moves its data.
pub(crate) const SLOWLY: [&str; 8] =
    ["--limit", "8MiB/s", "--reflink", "never", "--block-size", "64KiB", "--checkpoint-every", "256KiB"];

/// Starts a slow copy from `a` to `b`, sends `signal` as soon as a progress line satisfies `when`, and waits. The copy
/// ignores no signal from its start, even if these tests do: below `nohup` they ignore SIGHUP.
fn stop(scratch: &Scratch, flags: &[&str], signal: Signal, when: fn(&Value) -> bool) -> Outcome {
    let program = assert_cmd::cargo::cargo_bin!("blockhaul").display();
    let script = format!("exec env --default-signal '{program}' copy a b --json {}", flags.join(" "));
    let mut command = scratch.shell(&script);
    command.stderr(Stdio::piped());
    stop_by(command, signal, when)
}

/// As [`stop`], for any command that writes JSON.
pub(crate) fn stop_by(mut command: Command, signal: Signal, when: fn(&Value) -> bool) -> Outcome {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program was built");
    let id = Pid::from_raw(i32::try_from(child.id()).expect("ids are small"));
    let mut stdout = Vec::new();
    let mut sent = false;
    let mut lines = BufReader::new(child.stdout.take().expect("it was asked for"));
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).expect("the pipe is ours") == 0 {
            break;
        }
        if !sent && serde_json::from_slice::<Value>(&line).is_ok_and(|progress| when(&progress)) {
            kill(id, signal).expect("the process was not waited for");
            sent = true;
        }
        stdout.append(&mut line);
    }
    let mut stderr = Vec::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_end(&mut stderr).expect("the pipe is ours");
    }
    let status = child.wait().expect("it is our child");
    assert!(sent, "the copy ended before it could be stopped: {}", String::from_utf8_lossy(&stderr));
    outcome(&std::process::Output { status, stdout, stderr })
}

pub(crate) fn has_written(progress: &Value) -> bool {
    progress["event"] == "progress" && progress["written"].as_u64() > Some(0)
}

pub(crate) fn has_recorded(progress: &Value) -> bool {
    progress["event"] == "progress" && progress["durable"].as_u64() > Some(0)
}

/// Returns the printed command to resume, which is one line.
pub(crate) fn printed_command(stderr: &str) -> String {
    let mut commands = stderr.lines().filter(|line| line.contains(" copy --resume "));
    let command = commands.next().unwrap_or_else(|| panic!("no command to resume with: {stderr}"));
    assert!(commands.next().is_none(), "one command: {stderr}");
    command.trim().to_owned()
}

#[test]
fn a_signal_drains_records_and_prints_the_command_to_resume() {
    for (signal, status, code) in [
        (Signal::SIGTERM, "interrupted", "ERunnerInterrupt"),
        (Signal::SIGHUP, "interrupted", "ERunnerInterrupt"),
        (Signal::SIGINT, "cancelled", "ECancelled"),
    ] {
        let scratch = Scratch::new();
        let data = noise(16 * MIB, 5);
        scratch.file("a", &data);
        let stopped = stop(&scratch, &SLOWLY, signal, has_written);
        stopped.assert_failed(75, code);
        let report = stopped.report();
        assert_eq!((&report["status"], &report["quiesced"]), (&status.into(), &true.into()), "{report}");
        assert!(report["bytes"]["durable"].as_u64() > Some(0), "what was written was recorded: {report}");
        assert!(stopped.stderr.contains("incomplete"), "{stopped:?}");

        let script = printed_command(&stopped.stderr);
        let resumed = outcome(&scratch.shell(&script.replace("8MiB/s", "1GiB/s")).output().unwrap());
        resumed.assert_done();
        assert!(resumed.report()["bytes"]["resumed"].as_u64() > Some(0), "the copy was resumed: {resumed:?}");
        assert!(scratch.read("b") == data);
    }
}

#[test]
fn below_nohup_sighup_is_ignored() {
    let scratch = Scratch::new();
    let data = noise(4 * MIB, 5);
    scratch.file("a", &data);
    let program = assert_cmd::cargo::cargo_bin!("blockhaul").display();
    let script = format!("trap '' HUP; exec '{program}' copy a b --json {}", SLOWLY.join(" "));
    let mut command = scratch.shell(&script);
    command.stderr(Stdio::piped());
    stop_by(command, Signal::SIGHUP, has_written).assert_done();
    assert!(scratch.read("b") == data);
}

#[test]
fn sigusr1_prints_the_progress_and_nothing_else() {
    let scratch = Scratch::new();
    let data = noise(4 * MIB, 5);
    scratch.file("a", &data);
    let asked = stop(&scratch, &SLOWLY, Signal::SIGUSR1, has_written);
    asked.assert_done();
    let lines: Vec<_> = asked.stderr.lines().filter(|line| line.contains(" of 4.0 MiB, ")).collect();
    assert!(matches!(lines[..], [line] if line.starts_with("blockhaul: ")), "{asked:?}");
    assert!(scratch.read("b") == data);
}

#[test]
fn a_copy_stopped_while_it_waits_for_the_lock_reports_no_incomplete_destination() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 5));
    scratch.file("b", b"precious");
    let held = Flock::lock(File::open(scratch.path("b")).unwrap(), FlockArg::LockExclusive).unwrap();
    let stopped = stop(&scratch, &["--lock-wait", "60s"], Signal::SIGTERM, |line| line["event"] == "progress");
    stopped.assert_failed(75, "ERunnerInterrupt");
    assert!(!stopped.stderr.contains("incomplete") && !stopped.stderr.contains("--overwrite"), "{stopped:?}");
    drop(held);
    assert_eq!(scratch.read("b"), b"precious");
}

#[test]
fn a_killed_copy_is_refused_then_resumed() {
    let scratch = Scratch::new();
    let data = noise(16 * MIB, 6);
    scratch.file("a", &data);
    let killed = stop(&scratch, &SLOWLY, Signal::SIGKILL, has_recorded);
    assert_eq!(killed.code, None, "{killed:?}");

    let again = scratch.json(&["copy", "a", "b"]);
    again.assert_failed(1, "EExists");

    let resumed = scratch.json(&["copy", "a", "b", "--resume", "--reflink", "never", "--block-size", "64KiB"]);
    resumed.assert_done();
    let bytes = &resumed.report()["bytes"];
    assert!(bytes["resumed"].as_u64() > Some(0), "{resumed:?}");
    assert_eq!(bytes["durable"], data.len(), "{resumed:?}");
    assert!(scratch.read("b") == data);
}

#[test]
fn a_restart_copies_everything_again() {
    let scratch = Scratch::new();
    let data = noise(16 * MIB, 8);
    scratch.file("a", &data);
    stop(&scratch, &SLOWLY, Signal::SIGTERM, has_written).assert_failed(75, "ERunnerInterrupt");
    let restarted = scratch.json(&["copy", "a", "b", "--restart"]);
    restarted.assert_done();
    assert_eq!(restarted.report()["bytes"]["resumed"], 0);
    assert!(scratch.read("b") == data);
}

#[test]
fn without_a_checkpoint_the_command_starts_over() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(16 * MIB, 8));
    let flags = ["--limit", "8MiB/s", "--reflink", "never", "--no-checkpoint"];
    let stopped = stop(&scratch, &flags, Signal::SIGTERM, has_written);
    assert_eq!(stopped.code, Some(75), "{stopped:?}");
    assert!(stopped.stderr.contains(" copy --overwrite "), "{stopped:?}");
    assert!(!stopped.stderr.contains("--resume"), "{stopped:?}");
}

#[test]
fn resuming_without_a_checkpoint_follows_the_rules_of_a_new_copy() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 8));
    scratch.json(&["copy", "a", "b", "--resume"]).assert_done();
    scratch.file("full", b"precious");
    scratch.json(&["copy", "a", "full", "--resume"]).assert_failed(1, "EExists");
    assert_eq!(scratch.read("full"), b"precious");
}

#[test]
fn a_changed_source_is_not_resumed_and_can_be_restarted() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(16 * MIB, 8));
    stop(&scratch, &SLOWLY, Signal::SIGTERM, has_written).assert_failed(75, "ERunnerInterrupt");
    scratch.file("a", &noise(16 * MIB, 9));
    let outcome = scratch.json(&["copy", "a", "b", "--resume"]);
    outcome.assert_failed(1, "ESourceChanged");
    scratch.json(&["copy", "a", "b", "--restart"]).assert_done();
    assert!(scratch.read("b") == noise(16 * MIB, 9));
}

#[test]
fn a_receipt_in_place_of_the_checkpoint_does_not_verify_another_source() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 8));
    let args = ["copy", "a", "b", "--checkpoint", "kept", "--receipt", "kept", "--resume"];
    scratch.json(&args).assert_done();
    scratch.json(&args).assert_done();
    scratch.file("a", &noise(MIB, 9));
    scratch.json(&args).assert_failed(1, "ESourceChanged");
    assert!(scratch.read("b") == noise(MIB, 8));
}
