//! Tests `blockhaul batch`: order, failures, stops, and what a second run does.

use crate::stopping::stop_by;
use blockhaul_testkit::safe_dir::SafeDir;
use blockhaul_testkit::scratch::{MIB, Outcome, Scratch, noise, outcome};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;

/// Describes a copy whose id is the name of its destination.
fn copy(scratch: &Scratch, from: &str, to: &str, more: &str) -> String {
    format!("[[copy]]\nid = '{to}'\nfrom = {:?}\nto = {:?}\n{more}\n", scratch.path(from), scratch.path(to))
}

fn batch(scratch: &Scratch, text: &str) {
    scratch.file("batch.toml", text.as_bytes());
}

fn run(scratch: &Scratch, flags: &[&str]) -> Outcome {
    outcome(&command(scratch, flags).output().expect("the program was built"))
}

fn command(scratch: &Scratch, flags: &[&str]) -> std::process::Command {
    scratch.process(&[&["batch", "batch.toml", "--json"], flags].concat())
}

/// Returns the report of a member.
fn report<'a>(outcome: &'a Outcome, member: &str) -> &'a Value {
    let is_report = |line: &&Value| line["event"] == "report" && line["member"] == member;
    outcome.lines.iter().find(is_report).unwrap_or_else(|| panic!("no report of {member}: {outcome:#?}"))
}

/// Returns the members that started, in this order.
fn started(outcome: &Outcome) -> Vec<&str> {
    outcome.lines.iter().filter(|line| line["event"] == "started").filter_map(|line| line["member"].as_str()).collect()
}

fn state_folder(scratch: &Scratch) -> PathBuf {
    let mut folders = std::fs::read_dir(scratch.path("state/batches")).unwrap();
    folders.next().unwrap().unwrap().path()
}

const SLOW: &str = "limit = '4MiB/s'\nreflink = 'never'";

#[test]
fn members_run_in_order_and_a_second_run_does_nothing() {
    let scratch = Scratch::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        scratch.file(name, &noise(2 * MIB, seed));
    }
    let last = copy(&scratch, "b", "second", "after = ['first']\nverify = true");
    let check = format!("[[verify]]\nid = 'check'\nfrom = {:?}\nto = {:?}\n", scratch.path("a"), scratch.path("first"));
    batch(&scratch, &format!("{last}{}{check}", copy(&scratch, "a", "first", "")));
    let first = run(&scratch, &[]);
    first.assert_done();
    assert_eq!(started(&first)[0], "first", "{first:#?}");
    assert_eq!(report(&first, "second")["bytes"]["verified"], 2 * MIB);
    assert_eq!(report(&first, "check")["status"], "succeeded");
    assert_eq!(first.report()["members"]["succeeded"], 3);
    assert_eq!((scratch.read("first"), scratch.read("second")), (scratch.read("a"), scratch.read("b")));
    let progress = first.lines.iter().filter(|line| line["event"] == "progress");
    assert!(progress.into_iter().all(|line| line["member"].is_string()), "{first:#?}");

    let changed = noise(2 * MIB, 9);
    scratch.file("first", &changed);
    let second = run(&scratch, &[]);
    second.assert_done();
    assert_eq!((second.lines.len(), second.report()["ended_ms"].is_u64()), (1, true), "{second:#?}");
    assert_eq!(scratch.read("first"), changed);
    let again = run(&scratch, &["--restart"]);
    assert_eq!((again.code, again.error_code()), (Some(1), &Value::from("EExists")), "{again:#?}");
    run(&scratch, &["--restart", "--overwrite"]).assert_done();
    assert_eq!(scratch.read("first"), scratch.read("a"));
}

#[test]
fn a_failure_stops_the_rest_except_for_clean_up() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(32 * MIB, 1));
    let text = [
        copy(&scratch, "a", "done", ""),
        copy(&scratch, "missing", "fails", "after = ['done']"),
        copy(&scratch, "a", "slow", SLOW),
        copy(&scratch, "a", "waits", "after = ['slow']"),
        copy(&scratch, "a", "needs", "after = ['fails']"),
        copy(&scratch, "a", "after-failure", "after = ['fails:failure']"),
        copy(&scratch, "a", "clean-up", "after = ['fails:end', 'slow:end']"),
    ]
    .concat();
    batch(&scratch, &text);
    let failed = run(&scratch, &["--parallel", "2"]);
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    let statuses = ["done", "fails", "slow", "waits", "needs", "after-failure", "clean-up"].map(|member| {
        (report(&failed, member)["status"].as_str().unwrap(), report(&failed, member)["error"]["code"].clone())
    });
    assert_eq!(
        statuses.clone().map(|(status, _)| status),
        ["succeeded", "failed", "cancelled", "cancelled", "skipped", "succeeded", "succeeded"]
    );
    assert_eq!((failed.error_code(), &statuses[1].1), (&Value::from("ENotFound"), &Value::from("ENotFound")));
    assert!(failed.report()["error"]["message"].as_str().unwrap().starts_with("member fails: "), "{failed:#?}");

    // Run again, it does what is left.
    scratch.file("missing", &noise(MIB, 2));
    scratch.file("batch.toml", text.as_bytes());
    let again = run(&scratch, &[]);
    again.assert_done();
    let mut members = started(&again);
    members.sort_unstable();
    assert_eq!(members, ["fails", "needs", "slow", "waits"], "{again:#?}");
    assert_eq!(scratch.read("fails"), scratch.read("missing"));
    assert_eq!(scratch.read("slow"), scratch.read("a"));
}

#[test]
fn without_stopping_only_what_depends_on_a_failure_is_skipped() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    let mut text = String::from("on-failure = 'continue'\nparallel = 1\n");
    text.push_str(&copy(&scratch, "missing", "fails", ""));
    text.push_str(&copy(&scratch, "a", "needs", "after = ['fails']"));
    text.push_str(&copy(&scratch, "a", "deeper", "after = ['needs']"));
    text.push_str(&copy(&scratch, "a", "other", ""));
    batch(&scratch, &text);
    let outcome = run(&scratch, &[]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(report(&outcome, "needs")["error"]["message"], "it was not started, as fails failed");
    assert_eq!(report(&outcome, "deeper")["error"]["message"], "it was not started, as needs was skipped");
    assert_eq!(
        (report(&outcome, "other")["status"].as_str(), &outcome.report()["members"]["skipped"]),
        (Some("succeeded"), &Value::from(2))
    );
}

#[test]
fn a_batch_that_was_stopped_goes_on_from_the_checkpoints() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let scratch = Scratch::new();
        scratch.file("a", &noise(8 * MIB, 1));
        scratch.file("b", &noise(8 * MIB, 2));
        scratch.file("c", &noise(MIB, 3));
        let text = [
            copy(&scratch, "c", "short", ""),
            copy(&scratch, "a", "one", &format!("{SLOW}\nafter=['short']")),
            copy(&scratch, "b", "two", &format!("{SLOW}\nafter=['short']")),
            copy(&scratch, "a", "last", "after = ['one', 'two']"),
        ]
        .concat();
        batch(&scratch, &text);
        let is_under_way =
            |line: &Value| line["event"] == "progress" && line["durable"].as_u64() > Some(0) && line["member"] == "two";
        let mut command = command(&scratch, &["--block-size", "256KiB"]);
        command.stderr(std::process::Stdio::piped());
        let stopped = stop_by(command, signal, is_under_way);
        if signal != Signal::SIGKILL {
            assert_eq!(stopped.code, Some(75), "{stopped:#?}");
            assert_eq!(stopped.report()["status"], "interrupted");
            assert_eq!(stopped.report()["members"]["pending"], 3);
            assert!(stopped.stderr.contains("run the same command again"), "{stopped:#?}");
        }
        let again = run(&scratch, &["--block-size", "256KiB"]);
        again.assert_done();
        let mut members = started(&again);
        members.sort_unstable();
        assert_eq!(members, ["last", "one", "two"], "{signal} {again:#?}");
        assert!(report(&again, "two")["bytes"]["resumed"].as_u64() > Some(0), "{signal} {again:#?}");
        for (from, to) in [("a", "one"), ("b", "two"), ("a", "last"), ("c", "short")] {
            assert!(scratch.read(from) == scratch.read(to), "{signal}: {to} differs");
        }
    }
}

#[test]
fn a_copy_whose_end_was_not_recorded_is_known_by_its_receipt() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    batch(&scratch, &copy(&scratch, "a", "b", ""));
    run(&scratch, &[]).assert_done();
    // As if the process had died between the end of the copy and its record.
    let state = state_folder(&scratch).join("state");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.lines().next().unwrap().to_owned() + "\n").unwrap();
    let without = run(&scratch, &[]);
    assert_eq!(without.error_code(), "EExists", "nothing tells that the copy has written what is there");
    std::fs::write(&state, text.lines().next().unwrap().to_owned() + "\n").unwrap();
    let receipt = state_folder(&scratch).join("b.receipt");
    let made = scratch.json(&["copy".as_ref(), "a".as_ref(), "c".as_ref(), "--receipt".as_ref(), receipt.as_os_str()]);
    made.assert_done();
    let with = run(&scratch, &[]);
    with.assert_done();
    assert!(started(&with).is_empty(), "{with:#?}");
    assert!(!receipt.exists());
}

#[test]
fn a_changed_file_is_refused_until_all_has_succeeded() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    batch(&scratch, &copy(&scratch, "missing", "b", ""));
    assert_eq!(run(&scratch, &[]).code, Some(1));
    batch(&scratch, &copy(&scratch, "a", "b", ""));
    let refused = run(&scratch, &[]);
    refused.assert_failed(1, "ECheckpointMismatch");
    assert!(refused.stderr.contains("--restart"), "{refused:#?}");
    run(&scratch, &["--restart"]).assert_done();
    batch(&scratch, &copy(&scratch, "a", "c", ""));
    run(&scratch, &[]).assert_done();
    assert_eq!(scratch.read("c"), scratch.read("a"));
}

#[test]
fn cancelling_an_interrupted_batch_runs_its_clean_up() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    run_refused(&scratch, &["--cancel"]);
    batch(
        &scratch,
        &[copy(&scratch, "a", "slow", SLOW), copy(&scratch, "a", "clean-up", "after = ['slow:end']")].concat(),
    );
    run_refused(&scratch, &["--cancel"]);
    let mut command = command(&scratch, &[]);
    command.stderr(std::process::Stdio::piped());
    let stopped = stop_by(command, Signal::SIGINT, |line| line["written"].as_u64() > Some(0));
    assert!(stopped.stderr.contains("--cancel"), "{stopped:#?}");
    let cancelled = run(&scratch, &["--cancel"]);
    assert_eq!((cancelled.code, started(&cancelled)), (Some(75), vec!["clean-up"]), "{cancelled:#?}");
    assert_eq!(report(&cancelled, "slow")["status"], "cancelled");
    assert_eq!(cancelled.report()["status"], "cancelled");
    assert_eq!(scratch.read("clean-up"), scratch.read("a"));
    run_refused(&scratch, &["--cancel"]);
}

/// Runs a batch that is refused as malformed; a copy is described if there is none.
fn run_refused(scratch: &Scratch, flags: &[&str]) {
    if !scratch.path("batch.toml").exists() {
        batch(scratch, &copy(scratch, "a", "b", ""));
    }
    run(scratch, flags).assert_failed(2, "EBadRequest");
}

#[test]
fn two_processes_do_not_run_one_batch() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    batch(&scratch, &copy(&scratch, "a", "b", SLOW));
    let mut first = command(&scratch, &[]).stdout(std::process::Stdio::null()).spawn().unwrap();
    blockhaul_testkit::scratch::until("the copy has begun", || scratch.path("b").exists());
    run(&scratch, &[]).assert_failed(1, "EBusy");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(first.id()).unwrap()), Signal::SIGKILL).unwrap();
    first.wait().unwrap();
    run(&scratch, &[]).assert_done();
}

#[test]
fn a_dry_run_checks_every_member_and_changes_nothing() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    scratch.file("full", b"precious");
    let check = format!("[[verify]]\nfrom = {:?}\nto = {:?}\n", scratch.path("a"), scratch.path("gone"));
    let text =
        [copy(&scratch, "a", "b", ""), copy(&scratch, "a", "full", ""), copy(&scratch, "b", "c", ""), check].concat();
    batch(&scratch, &text);
    let before = scratch.snapshot();
    let planned = run(&scratch, &["--dry-run"]);
    assert_eq!(scratch.snapshot(), before);
    assert_eq!((planned.code, planned.lines.len()), (Some(1), 4), "{planned:#?}");
    let plans: Vec<_> = planned
        .lines
        .iter()
        .map(|plan| {
            (plan["member"].as_str().unwrap(), plan["refusals"][0]["code"].as_str(), plan["unchecked"].as_str())
        })
        .collect();
    assert_eq!(
        plans,
        [
            ("b", None, None),
            ("full", Some("EExists"), None),
            ("c", None, Some("it reads what b writes")),
            ("verify-1", Some("ENotFound"), None),
        ]
    );
}

#[test]
fn what_belongs_to_another_node_is_refused() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    batch(&scratch, &copy(&scratch, "a", "b", "node = 'n1'"));
    let refused = run(&scratch, &["--node", "n2"]);
    refused.assert_failed(2, "EBadRequest");
    assert!(refused.stderr.contains("belongs to node n1, and this host is n2"), "{refused:#?}");
    run(&scratch, &["--node", "n1"]).assert_done();
}

#[test]
fn bars_take_few_lines_and_results_stay() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    let mut text = String::from("parallel = 20\n");
    for index in 0..30 {
        let _ = writeln!(text, "{}", copy(&scratch, "a", &format!("d{index}"), "limit = '2MiB/s'"));
    }
    batch(&scratch, &text);
    let shown = scratch.blockhaul(&["batch", "batch.toml", "--progress", "bar"]).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let bars = String::from_utf8_lossy(&shown.stderr);
    assert!(bars.contains("of 30 members") && bars.contains("11 more run"), "{bars}");
    assert!(bars.contains("d29: copied 1.0 MiB"), "{bars}");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.starts_with("succeeded: 30 of 30 members succeeded"), "{text}");
}

#[test]
fn a_failure_stops_the_rest_also_when_the_process_dies_meanwhile() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(16 * MIB, 1));
    let text = [
        copy(&scratch, "missing", "fails", ""),
        copy(&scratch, "a", "slow", SLOW),
        copy(&scratch, "a", "never", "after = ['slow']"),
        copy(&scratch, "a", "clean-up", "after = ['slow:end']"),
    ]
    .concat();
    batch(&scratch, &text);
    assert_eq!(run(&scratch, &["--parallel", "1"]).code, Some(1));
    // As if the process had died when it had recorded the failure, and nothing else.
    let state = state_folder(&scratch).join("state");
    let lines = std::fs::read_to_string(&state).unwrap();
    let is_kept = |line: &&str| line.contains("\"record\":\"batch\"") || line.contains("\"member\":\"fails\"");
    let kept: Vec<&str> = lines.lines().filter(is_kept).collect();
    std::fs::write(&state, kept.join("\n") + "\n").unwrap();
    std::fs::remove_file(scratch.path("clean-up")).unwrap();
    let again = run(&scratch, &[]);
    assert_eq!((again.code, started(&again)), (Some(1), vec!["clean-up"]), "{again:#?}");
    assert_eq!(again.error_code(), "ENotFound", "the first error is that of the earlier run: {again:#?}");
    assert_eq!(report(&again, "never")["status"], "cancelled");
}

#[test]
fn two_names_of_one_volume_are_one_volume() {
    let scratch = Scratch::new();
    for name in ["a", "c"] {
        scratch.file(name, &noise(MIB, 1));
    }
    scratch.file("b", b"");
    std::os::unix::fs::symlink("b", scratch.path("link")).unwrap();
    std::fs::hard_link(scratch.path("b"), scratch.path("hard")).unwrap();
    std::fs::create_dir(scratch.path("d")).unwrap();
    std::os::unix::fs::symlink("d", scratch.path("folder")).unwrap();
    for (one, other) in [("b", "link"), ("b", "hard"), ("d/new", "folder/new")] {
        let named = |id: &str, from: &str, to: &str| {
            copy(&scratch, from, to, "").replace(&format!("id = '{to}'"), &format!("id = '{id}'"))
        };
        batch(&scratch, &[named("one", "a", one), named("other", "c", other)].concat());
        let refused = run(&scratch, &["--overwrite"]);
        refused.assert_failed(2, "EBadRequest");
        assert!(refused.stderr.contains("write the same volume"), "{refused:#?}");
    }
    // What reads it under another name waits for it.
    batch(&scratch, &[copy(&scratch, "link", "e", ""), copy(&scratch, "a", "b", SLOW)].concat());
    let done = run(&scratch, &["--overwrite"]);
    done.assert_done();
    assert_eq!(started(&done), ["b", "e"]);
    assert!(scratch.read("e") == scratch.read("a"));
}

#[test]
fn a_batch_does_not_write_its_own_files() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    std::fs::create_dir(scratch.path("state")).unwrap();
    for own in ["batch.toml", "state/x"] {
        let text = copy(&scratch, "a", own, "").replace(&format!("id = '{own}'"), "id = 'own'");
        batch(&scratch, &text);
        run(&scratch, &["--overwrite"]).assert_failed(2, "EBadRequest");
        assert_eq!(scratch.read("batch.toml"), text.as_bytes());
    }
}

#[test]
fn success_is_believed_only_with_every_member_and_every_destination() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    batch(&scratch, &[copy(&scratch, "a", "b", ""), copy(&scratch, "a", "c", "")].concat());
    run(&scratch, &[]).assert_done();
    std::fs::rename(scratch.path("b"), scratch.path("moved")).unwrap();
    let gone = run(&scratch, &[]);
    gone.assert_failed(1, "ENotFound");
    assert!(gone.stderr.contains("member b"), "{gone:#?}");
    std::fs::rename(scratch.path("moved"), scratch.path("b")).unwrap();
    run(&scratch, &[]).assert_done();
    let state = state_folder(&scratch).join("state");
    let lines = std::fs::read_to_string(&state).unwrap();
    let without: Vec<&str> = lines.lines().filter(|line| !line.contains("\"member\":\"b\"")).collect();
    std::fs::write(&state, without.join("\n") + "\n").unwrap();
    run(&scratch, &[]).assert_failed(1, "ECheckpointCorrupt");
}

#[test]
fn a_copy_whose_checkpoint_is_of_no_use_starts_over_when_the_batch_runs_again() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    scratch.file("c", &noise(MIB, 2));
    let text = [
        copy(&scratch, "c", "done", ""),
        copy(&scratch, "a", "b", SLOW),
        copy(&scratch, "c", "after-end", "after = ['done:end']"),
    ]
    .concat();
    batch(&scratch, &text);
    let mut command = command(&scratch, &[]);
    command.stderr(std::process::Stdio::piped());
    let is_under_way = |line: &Value| line["durable"].as_u64() > Some(0) && line["member"] == "b";
    stop_by(command, Signal::SIGINT, is_under_way);
    std::fs::remove_file(scratch.path("b")).unwrap();
    let refused = run(&scratch, &[]);
    assert_eq!((refused.code, refused.error_code()), (Some(1), &Value::from("ECheckpointMismatch")), "{refused:#?}");
    let again = run(&scratch, &[]);
    again.assert_done();
    assert_eq!(started(&again), ["b"], "what has succeeded stays, clean-up or not: {again:#?}");
    assert!(scratch.read("b") == scratch.read("a"));
}

/// A folder of hooks that write a line into `log` each time they run.
struct Hooks {
    folder: SafeDir,
    log: PathBuf,
}

impl Hooks {
    /// `None` if this host has no folder that only this user can change.
    fn new() -> Option<Self> {
        let folder = SafeDir::new()?;
        std::fs::create_dir(folder.path("hooks")).unwrap();
        let log = folder.path("log");
        Some(Self { folder, log })
    }

    fn add(&self, name: &str, script: &str) {
        let log = self.log.display();
        let script =
            format!("#!/bin/sh\necho \"$BLOCKHAUL_TASK $BLOCKHAUL_ATTEMPT $BLOCKHAUL_ARG_VM\" >> {log}\n{script}\n");
        self.folder.executable(format!("hooks/{name}"), &script);
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn run(&self, scratch: &Scratch, flags: &[&str]) -> Outcome {
        outcome(&self.command(scratch, flags).output().expect("the program was built"))
    }

    fn command(&self, scratch: &Scratch, flags: &[&str]) -> std::process::Command {
        let folder = self.folder.path("hooks");
        command(scratch, &[&["--hooks-dir", folder.to_str().expect("it is plain")], flags].concat())
    }
}

fn hook(id: &str, more: &str) -> String {
    format!("[[run]]\nid = '{id}'\nhook = '{id}'\nargs = {{ VM = '42' }}\n{more}\n")
}

#[test]
fn hooks_run_before_and_after_copies() {
    let Some(hooks) = Hooks::new() else { return };
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    hooks.add("freeze", "");
    hooks.add("thaw", "echo thawed");
    hooks.add("alarm", "");
    let text = [
        hook("freeze", ""),
        copy(&scratch, "a", "b", "after = ['freeze']"),
        hook("thaw", "after = ['freeze', 'b:end']"),
        hook("alarm", "after = ['b:failure']"),
    ]
    .concat();
    batch(&scratch, &text);
    let before = scratch.snapshot();
    assert_eq!(hooks.run(&scratch, &["--dry-run"]).code, Some(0));
    assert_eq!((scratch.snapshot() == before, hooks.lines().len()), (true, 0));
    run(&scratch, &[]).assert_failed(2, "EBadRequest");
    let done = hooks.run(&scratch, &[]);
    done.assert_done();
    assert_eq!(hooks.lines(), ["freeze 1 42", "thaw 1 42"]);
    assert_eq!(report(&done, "thaw")["output"]["first"], "thawed\n");
    assert_eq!((report(&done, "alarm")["status"].as_str(), scratch.read("b")), (Some("skipped"), scratch.read("a")));
    assert_eq!(hooks.run(&scratch, &[]).lines.len(), 1, "nothing runs twice");
}

#[test]
fn after_a_failure_hooks_run_again_and_their_copies_start_over() {
    let Some(hooks) = Hooks::new() else { return };
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    scratch.file("c", &noise(MIB, 2));
    hooks.add("freeze", "");
    hooks.add("thaw", "");
    let text = [
        hook("freeze", ""),
        copy(&scratch, "c", "done", "after = ['freeze']"),
        copy(&scratch, "a", "slow", &format!("{SLOW}\nafter = ['freeze']")),
        copy(&scratch, "missing", "fails", "after = ['done']"),
        hook("thaw", "after = ['done:end', 'slow:end', 'fails:end']"),
    ]
    .concat();
    batch(&scratch, &text);
    let failed = hooks.run(&scratch, &[]);
    assert_eq!((failed.code, failed.error_code()), (Some(1), &Value::from("ENotFound")), "{failed:#?}");
    assert_eq!(hooks.lines(), ["freeze 1 42", "thaw 1 42"], "clean-up runs");
    assert_eq!(report(&failed, "slow")["status"], "cancelled");
    // The machine ran in between.
    scratch.file("missing", &noise(MIB, 3));
    scratch.file("a", &noise(8 * MIB, 4));
    let again = hooks.run(&scratch, &[]);
    again.assert_done();
    assert_eq!(hooks.lines()[2..], ["freeze 1 42", "thaw 1 42"]);
    assert!(!started(&again).contains(&"done"), "{again:#?}");
    assert_eq!(report(&again, "slow")["bytes"]["resumed"], 0);
    assert!(scratch.read("slow") == scratch.read("a"));
}

#[test]
fn a_hook_that_fails_is_reported_and_one_that_asks_for_a_retry_runs_again() {
    let Some(hooks) = Hooks::new() else { return };
    let scratch = Scratch::new();
    hooks.add("retries", "[ $BLOCKHAUL_ATTEMPT -ge 2 ] || exit 75");
    hooks.add("fails", "echo no room >&2; exit 3");
    hooks.add("after", "");
    batch(
        &scratch,
        &[hook("retries", ""), hook("fails", "after = ['retries']"), hook("after", "after = ['fails']")].concat(),
    );
    let failed = hooks.run(&scratch, &[]);
    assert_eq!((failed.code, failed.error_code()), (Some(1), &Value::from("EHook")), "{failed:#?}");
    assert_eq!(hooks.lines(), ["retries 1 42", "retries 2 42", "fails 1 42"]);
    assert!(failed.stderr.contains("exit code 3") && failed.stderr.contains("no room"), "{failed:#?}");
    assert_eq!(report(&failed, "after")["status"], "skipped");
}

#[test]
fn a_stop_ends_a_hook_and_what_a_killed_batch_left_is_ended_by_the_next_run() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some(hooks) = Hooks::new() else { return };
        let scratch = Scratch::new();
        scratch.file("a", &noise(16 * MIB, 1));
        let pid = scratch.path("pid");
        // A child that is not the first process: the kernel does not end it with the program.
        hooks.add("waits", &format!("[ -e {0} ] || {{ sleep 1000 & echo $! > {0}; wait; }}", pid.display()));
        batch(&scratch, &[hook("waits", ""), copy(&scratch, "a", "b", SLOW)].concat());
        let mut command = hooks.command(&scratch, &[]);
        command.stderr(std::process::Stdio::piped());
        let has_child = |line: &Value| line["event"] == "progress" && line["durable"].as_u64() > Some(4 << 20);
        let stopped = stop_by(command, signal, has_child);
        let child: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        let lives = || {
            let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            state.contains("(sleep)") && !state.contains(") Z")
        };
        if signal == Signal::SIGTERM {
            assert_eq!((stopped.code, lives()), (Some(75), false), "{stopped:#?}");
        } else {
            assert!(lives());
        }
        let again = hooks.run(&scratch, &[]);
        again.assert_done();
        assert!(!lives(), "{signal}");
        assert_eq!(hooks.lines(), ["waits 1 42", "waits 1 42"]);
    }
}

#[test]
fn cancelling_a_batch_with_hooks_is_no_success() {
    let Some(hooks) = Hooks::new() else { return };
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    hooks.add("freeze", "");
    hooks.add("thaw", "");
    let check = format!("[[verify]]\nid = 'check'\nfrom = {:?}\nto = {:?}\n", scratch.path("a"), scratch.path("root"));
    let text = [
        hook("freeze", ""),
        copy(&scratch, "a", "root", &format!("{SLOW}\nafter = ['freeze']")),
        check,
        hook("thaw", "after = ['root:end', 'check:end']"),
    ]
    .concat();
    batch(&scratch, &text);
    let mut command = hooks.command(&scratch, &[]);
    command.stderr(std::process::Stdio::piped());
    stop_by(command, Signal::SIGINT, |line| line["durable"].as_u64() > Some(0));
    assert_eq!(hooks.lines(), ["freeze 1 42"], "a signal runs no clean-up");
    let cancelled = hooks.run(&scratch, &["--cancel"]);
    assert_eq!(
        (cancelled.code, &cancelled.report()["status"]),
        (Some(75), &Value::from("cancelled")),
        "{cancelled:#?}"
    );
    for member in ["root", "check"] {
        assert_eq!(report(&cancelled, member)["status"], "cancelled", "{cancelled:#?}");
    }
    assert_eq!(hooks.lines()[1..], ["thaw 1 42"]);
    // Run again, the machine is frozen again, and the copy starts over.
    let again = hooks.run(&scratch, &[]);
    again.assert_done();
    assert_eq!(hooks.lines()[2..], ["freeze 1 42", "thaw 1 42"]);
    assert_eq!(report(&again, "root")["bytes"]["resumed"], 0);
}

#[test]
fn after_another_boot_hooks_run_again_and_their_copies_start_over() {
    let Some(hooks) = Hooks::new() else { return };
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 1));
    hooks.add("freeze", "");
    batch(&scratch, &[hook("freeze", ""), copy(&scratch, "a", "b", &format!("{SLOW}\nafter = ['freeze']"))].concat());
    let mut command = hooks.command(&scratch, &[]);
    command.stderr(std::process::Stdio::piped());
    stop_by(command, Signal::SIGKILL, |line| line["durable"].as_u64() > Some(0));
    let state = state_folder(&scratch).join("state");
    let lines = std::fs::read_to_string(&state).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(lines.contains(boot.trim()));
    std::fs::write(&state, lines.replace(boot.trim(), "another")).unwrap();
    let again = hooks.run(&scratch, &[]);
    again.assert_done();
    assert_eq!(hooks.lines(), ["freeze 1 42", "freeze 1 42"]);
    assert_eq!(report(&again, "b")["bytes"]["resumed"], 0);
    assert!(scratch.read("b") == scratch.read("a"));
}
