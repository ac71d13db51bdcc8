//! Tests the JSON lines of all commands against `docs/schema`. Every line that the support code reads is checked there; here
//! each command prints some, and each schema is met at least once.

use crate::asking::TestCenter;
use blockhaul_testkit::schema;
use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use serde_json::Value;
use std::collections::BTreeSet;

/// Schemas whose events other suites print: they need servers, several nodes, or a task that is watched while others change it.
const ELSEWHERE: [&str; 7] = ["change", "export", "log", "removed", "snapshot_begin", "snapshot_end", "check"];

/// Returns a batch of a copy, and of a comparison after it.
fn batch(scratch: &Scratch) -> String {
    let (from, to) = (scratch.path("a"), scratch.path("d"));
    format!(
        "[[copy]]\nid = 'one'\nfrom = {from:?}\nto = {to:?}\n\
         [[verify]]\nid = 'two'\nfrom = {from:?}\nto = {to:?}\nafter = ['one']\n"
    )
}

/// Runs `blockhaul` with `--json`, and notes the events that it prints.
struct Events<'a> {
    scratch: &'a Scratch,
    seen: BTreeSet<String>,
}

impl Events<'_> {
    fn of(&mut self, exit: i32, args: &[&str]) -> Vec<Value> {
        let outcome = self.scratch.json(args);
        assert_eq!(outcome.code, Some(exit), "{args:?}: {outcome:?}");
        assert!(!outcome.lines.is_empty(), "{args:?}: {outcome:?}");
        self.seen.extend(outcome.lines.iter().map(|line| line["event"].as_str().unwrap().to_owned()));
        outcome.lines
    }
}

#[test]
fn every_command_prints_what_its_schema_describes() {
    let scratch = Scratch::new();
    let mut events = Events { scratch: &scratch, seen: BTreeSet::new() };
    scratch.file("a", &noise(MIB, 1));
    scratch.file("c", &noise(MIB, 2));
    scratch.file("batch.toml", batch(&scratch).as_bytes());
    for (exit, args) in [
        (0, &["copy", "a", "b", "--dry-run"][..]),
        (0, &["copy", "a", "b", "--receipt", "r", "--verify"]),
        (1, &["copy", "a", "c"]),
        (2, &["copy", "a"]),
        (1, &["verify", "a", "missing"]),
        (3, &["verify", "a", "c"]),
        (0, &["map", "a"]),
        (0, &["inspect", "r"]),
        (0, &["doctor", ".", "missing"]),
        (0, &["batch", "batch.toml", "--dry-run"]),
        (0, &["batch", "batch.toml"]),
        (0, &["batch", "batch.toml"]),
        (1, &["map", "missing"]),
        (2, &["frobnicate"]),
    ] {
        events.of(exit, args);
    }
    let center = TestCenter::start(&scratch, &[]);
    let mut ask = |exit: i32, args: &[&str]| events.of(exit, &[args, &["--center", &center.address]].concat());
    let (from, to) = (scratch.path("a"), scratch.path("volumes/b"));
    std::fs::copy(&from, scratch.path("volumes/a")).unwrap();
    let from = scratch.path("volumes/a");
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    for (exit, args) in [
        (0, &["submit", "copy", from, to, "--id", "t", "--node", "n1", "--wait"][..]),
        (1, &["submit", "copy", from, to, "--id", "u", "--node", "n1", "--wait"]),
        (0, &["get", "t"]),
        (0, &["list"]),
        (0, &["watch", "t"]),
        (0, &["events", "t"]),
        // A center that runs inside of this process keeps no logs of attempts.
        (1, &["logs", "t"]),
        (0, &["runners"]),
        (0, &["drain", "n1"]),
        (0, &["drain", "n1", "--undo"]),
        (0, &["include", "n1"]),
        (0, &["fence", "n9", "--confirm"]),
        (0, &["center"]),
        (0, &["center", "set", "placement=fill"]),
        (0, &["center", "get"]),
        (0, &["schedule", "add", "s", "--every", "1d", "noop"]),
        (0, &["schedule", "list"]),
        (0, &["schedule", "get", "s"]),
        (0, &["schedule", "remove", "s"]),
        (0, &["remove", "t"]),
        (1, &["get", "t"]),
        (2, &["list", "--state", "SLEEPING"]),
    ] {
        ask(exit, args);
    }
    let wanted: BTreeSet<String> =
        schema::all().into_keys().filter(|event| !ELSEWHERE.contains(&event.as_str())).collect();
    assert_eq!(events.seen, wanted, "print each event of docs/schema here, or name it in ELSEWHERE");
}

#[test]
fn a_failure_of_a_command_without_a_job_is_an_error_and_not_a_report() {
    let scratch = Scratch::new();
    for (args, exit) in [(&["list", "--center", ""][..], 2), (&["list", "--no-such-flag"], 2), (&["map", "missing"], 1)]
    {
        let outcome = scratch.json(args);
        assert_eq!((outcome.code, outcome.lines.len()), (Some(exit), 1), "{args:?}: {outcome:?}");
        let line = &outcome.lines[0];
        let expected = (&Value::from(1), &Value::from("error"), &Value::from("failed"));
        assert_eq!((&line["schema"], &line["event"], &line["status"]), expected, "{line}");
        assert!(line["error"]["code"].is_string() && line.get("bytes").is_none(), "{line}");
    }
}

#[test]
fn schemas_allow_fields_and_values_that_they_do_not_name() {
    fn breaches(schema: &Value, at: &str, found: &mut Vec<String>) {
        if let Value::Object(keys) = schema {
            let closes = |key: &str, value: &Value| {
                ["enum", "unevaluatedProperties", "maxProperties", "propertyNames"].contains(&key)
                    || (key == "additionalProperties" && value == false)
            };
            found.extend(keys.iter().filter(|(key, value)| closes(key, value)).map(|(key, _)| format!("{at}/{key}")));
            keys.iter().for_each(|(key, value)| breaches(value, &format!("{at}/{key}"), found));
        }
        schema.as_array().into_iter().flatten().for_each(|one| breaches(one, at, found));
    }
    let mut found = Vec::new();
    for (event, schema) in schema::all() {
        assert_eq!(
            (&schema["properties"]["event"]["const"], &schema["title"]),
            (&event.as_str().into(), &event.as_str().into())
        );
        assert_eq!(schema["properties"]["schema"]["const"], 1, "{event}");
        breaches(&schema, &event, &mut found);
    }
    assert!(found.is_empty(), "readers of today must accept the lines of later versions: {found:?}");
}
