//! Tests `copy-bench compare` as a script sees it: output and exit codes.

#![forbid(unsafe_code)]

use assert_cmd::Command;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const GIB: f64 = 1_073_741_824.0;

/// Five trials of one target at about this speed, in GiB per second.
fn target(name: &str, kind: &str, position: usize, gib_per_second: f64) -> Value {
    let seconds = [1.0, 1.01, 0.99, 1.02, 0.985].map(|noise| noise / gib_per_second);
    let trials = seconds.iter().enumerate().map(|(round, wall)| {
        json!({
            "position": round * 2 + position, "started_seconds": (round * 2 + position) as f64 * 100.0,
            "wall_seconds": wall, "user_seconds": 0.01, "system_seconds": 0.02, "kernel_worker_seconds": 0.0,
            "peak_rss_bytes": 1, "system_calls": 1, "bytes": GIB as u64, "value": GIB / wall,
        })
    });
    let rate = |wall: f64| GIB / wall;
    let spread = rate(seconds[2]) - rate(seconds[0]);
    json!({
        "name": name, "kind": kind, "command": name, "outcome": {"status": "ran"}, "trials": trials.collect::<Vec<_>>(),
        "summary": {
            "count": 5, "median": rate(seconds[0]), "spread": spread, "min": rate(seconds[3]), "max": rate(seconds[4]),
        },
        "latency": {}, "timeline": [], "window": [], "doubts": [],
    })
}

/// A folder with the results of a run in which ours and a rival had these speeds.
fn run(place: &Path, name: &str, ours: f64, rival: f64) -> PathBuf {
    let results = json!({
        "schema": 1,
        "build": {"version": "0.1.0", "commit": null, "profile": "release"},
        "host": {
            "kernel": "Linux", "cpu": "a cpu", "cpus": 2, "memory_bytes": 1, "filesystem": "ext4", "device": "a disk",
            "facts": {},
        },
        "run": {
            "started_at": "2026-01-01T00:00:00Z", "seconds": 2000.0, "command": [], "quick": false, "trials": 5, "seed": 1,
            "complete": true,
        },
        "programs": [{"name": "dd", "version": "dd 9.1", "path": "/usr/bin/dd"}],
        "scenarios": [{
            "name": "dense", "about": "", "metric": "bytes_per_second", "volume_bytes": GIB as u64,
            "data_bytes": GIB as u64, "parameters": {}, "goals": [], "doubts": [],
            "targets": [target("blockhaul", "command", 0, ours), target("dd", "rival", 1, rival)],
        }],
        "doubts": [],
    });
    let folder = place.join(name);
    fs::create_dir(&folder).expect("a folder can be made");
    fs::write(folder.join("results.json"), results.to_string()).expect("a file can be written");
    folder
}

/// Exit code, stdout and stderr.
fn compare(old: &Path, new: &Path) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_copy-bench")).arg("compare").args([old, new]).output();
    let output = output.expect("copy-bench runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn only_a_regression_ends_in_failure() {
    let place = tempfile::tempdir().expect("a folder can be made");
    let old = run(place.path(), "old", 1.5, 1.0);
    for (name, ours, rival, code, verdict) in [
        ("same", 1.5, 1.0, 0, "no difference seen"),
        ("noise", 1.49, 1.0, 0, "no difference seen"),
        ("slower", 1.2, 1.0, 1, "REGRESSION"),
        ("faster", 1.8, 1.0, 0, "improvement"),
        ("slower-rival", 1.5, 0.8, 0, "no difference seen"),
    ] {
        let (found, stdout, stderr) = compare(&old, &run(place.path(), name, ours, rival));
        assert_eq!(found, Some(code), "{name}: {stdout}{stderr}");
        assert!(stdout.contains(verdict), "{name}: {stdout}");
    }
}

#[test]
fn a_slower_machine_is_not_called_a_regression() {
    let place = tempfile::tempdir().expect("a folder can be made");
    let (old, new) = (run(place.path(), "old", 1.5, 1.0), run(place.path(), "new", 1.05, 0.7));
    let (_, stdout, _) = compare(&old, &new);
    assert!(stdout.contains("rivals changed as much: the machine changed"), "{stdout}");
    assert!(!stdout.contains("REGRESSION"), "{stdout}");
}

#[test]
fn a_file_serves_as_well_as_its_folder_and_another_thing_does_not() {
    let place = tempfile::tempdir().expect("a folder can be made");
    let old = run(place.path(), "old", 1.5, 1.0);
    assert_eq!(compare(&old, &old.join("results.json")).0, Some(0));
    let (code, stdout, stderr) = compare(&old, &place.path().join("missing"));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("missing") && stderr.contains("results.json"), "{stderr}");
}
