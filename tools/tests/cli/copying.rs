//! Tests copies that succeed: the bytes, the report, and the files left behind.

use blockhaul_testkit::scratch::{MIB, Outcome, Scratch, noise};
use serde_json::Value;

/// Checks the fields of a report.
fn assert_report_is_complete(report: &Value) {
    let strings = ["status", "path"];
    let numbers = [
        "seconds",
        "cpu_seconds",
        "drain_seconds",
        "rate_bytes_per_second",
        "cores",
        "block_size_bytes",
        "window_bytes_max",
        "syscalls",
    ];
    let bytes = ["planned", "read", "written", "zeroed", "skipped", "cloned", "resumed", "durable", "verified"];
    assert!(strings.iter().all(|field| report[field].is_string()), "{report}");
    assert!(numbers.iter().all(|field| report[field].is_number()), "{report}");
    assert!(bytes.iter().all(|field| report["bytes"][field].is_u64()), "{report}");
    assert!(report["quiesced"].is_boolean());
    for operation in ["read", "write", "flush"] {
        let latency = &report["latency_us"][operation];
        assert!(["p50", "p90", "p99", "max", "count"].iter().all(|field| latency[field].is_u64()), "{report}");
    }
    for field in ["error", "digest"] {
        assert!(report.as_object().unwrap().contains_key(field), "{field} is there even if null: {report}");
    }
}

/// Checks `issued >= written >= durable`, and that none of them falls.
fn assert_progress_never_falls(outcome: &Outcome) {
    let (report, progress) = outcome.lines.split_last().unwrap();
    assert_eq!(report["event"], "report");
    assert!(!progress.is_empty(), "even a short copy prints progress");
    let mut before = [0; 3];
    for line in progress {
        assert_eq!(line["event"], "progress", "{line}");
        let now = ["issued", "written", "durable"].map(|field| line[field].as_u64().unwrap());
        assert!(now[0] >= now[1] && now[1] >= now[2], "{line}");
        assert!(now.iter().zip(before).all(|(now, before)| *now >= before), "{line} after {before:?}");
        assert!(line["planned"].is_u64() && line["verified"].is_u64() && line["rate_bytes_per_second"].is_u64());
        assert!(line["eta_seconds"].is_number() || line["eta_seconds"].is_null());
        before = now;
    }
}

#[test]
fn a_copy_is_equal_durable_and_reported() {
    let scratch = Scratch::new();
    let data = noise(5 * MIB + 1234, 7);
    scratch.file("a", &data);
    let outcome = scratch.json(&["copy", "a", "b"]);
    outcome.assert_done();
    assert_eq!(scratch.read("b"), data);
    assert_report_is_complete(outcome.report());
    assert_progress_never_falls(&outcome);
    let bytes = &outcome.report()["bytes"];
    assert_eq!((&bytes["planned"], &bytes["durable"]), (&data.len().into(), &data.len().into()));
    assert_eq!(outcome.report()["quiesced"], true);
    assert_eq!(outcome.stderr, "", "a successful copy prints nothing on stderr");
    assert_eq!(std::fs::read_dir(scratch.path("state")).unwrap().count(), 0, "the checkpoint is gone");
}

#[test]
fn empty_and_tiny_volumes_are_copied() {
    let scratch = Scratch::new();
    for (name, length) in [("none", 0), ("one", 1), ("odd", 4097)] {
        scratch.file(name, &noise(length, 3));
        let copy = format!("{name}.copy");
        scratch.json(&["copy", name, &copy]).assert_done();
        assert_eq!(scratch.read(&copy), noise(length, 3), "{name}");
    }
}

#[test]
fn a_copy_without_json_ends_with_a_summary() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(2 * MIB, 7));
    let output = scratch.blockhaul(&["copy", "a", "b", "--verify"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in ["copied 2.0 MiB", "durable 2.0 MiB", "cpu", "path", "verified 2.0 MiB"] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn every_path_and_shape_copies_the_same_bytes() {
    let scratch = Scratch::new();
    let mut data = noise(3 * MIB + 5, 11);
    data[MIB..2 * MIB].fill(0);
    scratch.file("a", &data);
    for (index, flags) in [
        &["--path", "auto"][..],
        &["--path", "inline"],
        &["--path", "threads"],
        &["--direct", "no"],
        &["--reflink", "never"],
        &["--sparse", "never"],
        &["--block-size", "64KiB", "--depth", "2", "--cores", "1"],
        &["--memory", "4MiB"],
        &["--digest", "none"],
        &["--no-checkpoint"],
        &["--checkpoint", "mine"],
        &["--checkpoint-every", "1MiB", "--checkpoint-every", "10ms"],
    ]
    .iter()
    .enumerate()
    {
        let copy = format!("copy.{index}");
        let args = ["copy", "a", &copy].iter().chain(flags.iter()).copied().collect::<Vec<_>>();
        scratch.json(&args).assert_done();
        assert!(scratch.read(&copy) == data, "{flags:?}");
    }
}

#[test]
fn flags_are_seen_in_the_report() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(2 * MIB, 7));
    let never =
        scratch.json(&["copy", "a", "b", "--no-sync", "--digest", "none", "--block-size", "64KiB", "--cores", "1"]);
    never.assert_done();
    let report = never.report();
    assert_eq!(report["bytes"]["durable"], 0);
    assert_eq!(report["digest"], Value::Null);
    assert!(report["digest_reason"].is_string(), "{report}");
    assert_eq!((&report["cores"], &report["block_size_bytes"]), (&1.into(), &65536.into()));

    let verified = scratch.json(&["copy", "a", "c", "--verify"]);
    verified.assert_done();
    let report = verified.report();
    assert_eq!(report["bytes"]["verified"], 2 * MIB);
    assert!(["device", "evicted", "memory"].map(Value::from).contains(&report["verified_from"]), "{report}");
    assert_eq!(report["digest"].as_str().unwrap().len(), "blake3-xxh3:".len() + 64, "{report}");
}

#[test]
fn the_state_directory_follows_flag_and_environment() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    scratch.json(&["copy", "a", "b", "--state-dir", "flag"]).assert_done();
    assert!(scratch.path("flag").is_dir() && !scratch.path("state").exists());

    let run = |name: &str, value: &str, destination: &str| {
        let mut command = scratch.blockhaul(&["copy", "a", destination]);
        command.env_remove("STATE_DIRECTORY").env(name, scratch.path(value)).assert().success();
    };
    run("XDG_STATE_HOME", "xdg", "c");
    assert!(scratch.path("xdg/blockhaul").is_dir());
    run("HOME", "home", "d");
    assert!(scratch.path("home/.local/state/blockhaul").is_dir());

    scratch.json(&["copy", "a", "e", "--no-checkpoint"]).assert_done();
    scratch.json(&["copy", "a", "f", "--checkpoint", "mine"]).assert_done();
    assert!(!scratch.path("state").exists(), "no state directory is created without need");
    assert!(!scratch.path("mine").exists(), "success removes the checkpoint");
}

#[test]
fn a_forced_bar_is_drawn_on_stderr_only() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(8 * MIB, 7));
    let args = ["copy", "a", "b", "--limit", "16MiB/s", "--path", "threads", "--reflink", "never"];
    let output = scratch.blockhaul(&args).args(["--progress", "bar"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains(" of 8.0 MiB"), "{output:?}");
    assert!(output.stdout.starts_with(b"copied "), "{output:?}");
}
