//! `copy --dry-run`: says what would happen, touches nothing.

use crate::support::{MIB, Scratch, noise};

#[test]
fn a_plan_counts_the_source_and_touches_nothing() {
    let scratch = Scratch::new();
    let source = scratch.file("a", &noise(MIB, 1));
    std::fs::File::options().write(true).open(source).unwrap().set_len(4 * MIB as u64).unwrap();
    let before = scratch.snapshot();
    let outcome = scratch.json(&["copy", "a", "b", "--dry-run"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(scratch.snapshot(), before, "not even the state directory");
    let plan = &outcome.lines[0];
    assert_eq!((outcome.lines.len(), &plan["event"]), (1, &"plan".into()));
    assert_eq!(plan["source_bytes"], 4 * MIB);
    let bytes = |kind: &str| plan[kind].as_u64().unwrap();
    assert_eq!(bytes("data_bytes") + bytes("zero_bytes") + bytes("hole_bytes"), 4 * MIB as u64);
    assert_eq!(plan["refusals"], serde_json::json!([]));
    assert!(plan["checkpoint"].as_str().unwrap().contains("state"), "{plan}");

    let human = scratch.blockhaul(&["copy", "a", "b", "--dry-run", "--no-checkpoint"]).output().unwrap();
    let text = String::from_utf8(human.stdout).unwrap();
    assert!(text.contains("4.0 MiB") && text.contains("destination  b"), "{text}");
}

#[test]
fn a_plan_names_what_would_be_refused() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    scratch.file("full", b"precious");
    let before = scratch.snapshot();
    for (source, destination, code) in
        [("missing", "b", "ENotFound"), ("a", "full", "EExists"), ("a", "a", "ESameVolume"), ("a", "no/b", "ENotFound")]
    {
        let outcome = scratch.json(&["copy", source, destination, "--dry-run"]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert_eq!(outcome.lines[0]["refusals"][0]["code"], code, "{outcome:?}");
        assert!(outcome.stderr.contains(&format!("blockhaul: {code}: ")), "{outcome:?}");
    }
    assert_eq!(scratch.json(&["copy", "a", "full", "--dry-run", "--overwrite"]).code, Some(0));
    assert_eq!(scratch.snapshot(), before);
}
