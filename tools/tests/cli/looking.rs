//! Tests the commands that only read: `map`, `inspect` and `doctor`.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use serde_json::Value;

#[test]
fn a_map_covers_the_volume_with_maximal_extents() {
    let scratch = Scratch::new();
    let source = scratch.file("a", &noise(MIB, 1));
    let file = std::fs::File::options().write(true).open(source).unwrap();
    file.set_len(3 * MIB as u64).unwrap();
    let outcome = scratch.json(&["map", "a"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let mut at = 0;
    let mut before = Value::Null;
    for extent in &outcome.lines {
        assert_eq!(extent["offset"], at, "{outcome:?}");
        assert_ne!(extent["kind"], before, "neighbours of one kind are one extent: {outcome:?}");
        assert!(["data", "zero", "hole"].map(Value::from).contains(&extent["kind"]), "{extent}");
        at += extent["length"].as_u64().unwrap();
        before = extent["kind"].clone();
    }
    assert_eq!(at, 3 * MIB as u64);
    let human = String::from_utf8(scratch.blockhaul(&["map", "a"]).output().unwrap().stdout).unwrap();
    assert!(human.contains("OFFSET") && human.contains("data"), "{human}");
}

#[test]
fn a_map_of_nothing_is_empty_and_of_a_missing_volume_fails() {
    let scratch = Scratch::new();
    scratch.file("empty", b"");
    let outcome = scratch.json(&["map", "empty"]);
    assert_eq!((outcome.code, outcome.lines.len()), (Some(0), 0), "{outcome:?}");
    scratch.json(&["map", "missing"]).assert_failed(1, "ENotFound");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    let program = assert_cmd::cargo::cargo_bin!("blockhaul").display();
    let script = format!("set -o pipefail; '{program}' map a | true");
    let output = scratch.shell(&format!("exec bash -c \"{script}\"")).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn a_receipt_is_decoded() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(2 * MIB + 1, 1));
    scratch.json(&["copy", "a", "b", "--receipt", "r", "--reflink", "never"]).assert_done();
    let outcome = scratch.json(&["inspect", "r"]);
    assert_eq!((outcome.code, outcome.lines.len()), (Some(0), 1), "{outcome:?}");
    let journal = &outcome.lines[0];
    assert_eq!((&journal["state"], &journal["size_bytes"]), (&"finished".into(), &(2 * MIB + 1).into()), "{journal}");
    assert_eq!(journal["durable"], serde_json::json!([{"offset": 0, "length": 2 * MIB + 1}]));
    assert!(journal["source"]["name"].as_str().unwrap().ends_with("/a"), "{journal}");
    assert!(journal["digest"].is_string(), "{journal}");
    let human = String::from_utf8(scratch.blockhaul(&["inspect", "r"]).output().unwrap().stdout).unwrap();
    assert!(human.starts_with("receipt of a finished copy"), "{human}");
}

#[test]
fn a_file_that_is_no_journal_is_refused() {
    let scratch = Scratch::new();
    scratch.json(&["inspect", "missing"]).assert_failed(1, "ENotFound");
    for (name, bytes) in [("empty", Vec::new()), ("noise", noise(5000, 1)), ("zeros", vec![0; 5000])] {
        scratch.file(name, &bytes);
        scratch.json(&["inspect", name]).assert_failed(1, "ECheckpointCorrupt");
    }
}

#[test]
fn the_doctor_names_facts_and_remedies() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    let outcome = scratch.json(&["doctor", "."]);
    assert_eq!((outcome.code, outcome.lines.len()), (Some(0), 1), "{outcome:?}");
    assert!(outcome.lines[0]["remedies"].is_array(), "{outcome:?}");
    let human = scratch.blockhaul(&["doctor", "a", "missing"]).output().unwrap();
    assert_eq!(human.status.code(), Some(0), "missing features are no failures");
    let text = String::from_utf8(human.stdout).unwrap().to_lowercase();
    for fact in ["kernel", "uring", "memlock"] {
        assert!(text.contains(fact), "{fact}:\n{text}");
    }
}
