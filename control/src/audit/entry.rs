//! Formats the lines of the audit log.
//!
//! | field | what |
//! | --- | --- |
//! | `schema`, `event` | 1; `change-requested` or `change-ended` |
//! | `time` | when the line was made, in UTC |
//! | `operation` | an id that both lines of a change have, and no other |
//! | `who`, `role` | name in the certificate of the client, and its role; null without certificates or without `--roles` |
//! | `from` | its address |
//! | `what` | name of the call in the protocol |
//! | `task`, `schedule`, `node` | what it is about; none for settings |
//! | `detail` | what else was asked for, where that is short |
//! | `outcome` | of the second line: `succeeded`, the code of an error, or `unknown` |
//! | `message` | of an error |
//!
//! What always holds: one line each, whatever clients send, as JSON escapes it; a line has a bound, as have its fields.

use crate::model::OpId;
use crate::timestamp::Timestamp;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;

/// Longest name of a task, schedule or node that is written in full, in characters: longer ones are none.
const NAME_CHARS_MAX: usize = 128;
/// Longest detail and message in characters.
const TEXT_CHARS_MAX: usize = 500;

/// What a change is about, by the name that the client has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Task(String),
    Schedule(String),
    Node(String),
    Settings,
}

/// Change that a client asks for.
#[derive(Clone, Debug)]
pub(crate) struct AuditedChange {
    pub(crate) operation: OpId,
    pub(crate) who: Option<Arc<str>>,
    pub(crate) role: Option<&'static str>,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) what: &'static str,
    pub(crate) target: Target,
    pub(crate) detail: Option<String>,
}

/// Outcome of a change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    Succeeded,
    Failed {
        code: &'a str,
        message: &'a str,
    },
    /// Nobody waited for it.
    Unknown,
}

#[derive(Serialize)]
struct Entry<'a> {
    schema: u32,
    event: &'static str,
    time: Timestamp,
    operation: &'a str,
    who: Option<&'a str>,
    role: Option<&'static str>,
    from: Option<SocketAddr>,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

impl AuditedChange {
    /// Returns the line that comes before the change.
    pub(super) fn requested(&self, time: Timestamp) -> Vec<u8> {
        line(&self.entry("change-requested", time))
    }

    /// Returns the line that comes after it.
    pub(super) fn ended(&self, time: Timestamp, outcome: Outcome<'_>) -> Vec<u8> {
        let (outcome, message) = match outcome {
            Outcome::Succeeded => ("succeeded", None),
            Outcome::Failed { code, message } => (code, Some(beginning(message, TEXT_CHARS_MAX))),
            Outcome::Unknown => ("unknown", None),
        };
        line(&Entry { outcome: Some(outcome), message, ..self.entry("change-ended", time) })
    }

    /// Describes the change for the log of the process.
    pub(super) fn described(&self) -> String {
        String::from_utf8(self.requested(Timestamp(0))).unwrap_or_default().trim_end().to_owned()
    }

    fn entry(&self, event: &'static str, time: Timestamp) -> Entry<'_> {
        let (task, schedule, node) = match &self.target {
            Target::Task(name) => (Some(name), None, None),
            Target::Schedule(name) => (None, Some(name), None),
            Target::Node(name) => (None, None, Some(name)),
            Target::Settings => (None, None, None),
        };
        let [task, schedule, node] =
            [task, schedule, node].map(|name| name.map(|name| beginning(name, NAME_CHARS_MAX)));
        Entry {
            schema: 1,
            event,
            time,
            operation: &self.operation.0,
            who: self.who.as_deref(),
            role: self.role,
            from: self.from,
            what: self.what,
            task,
            schedule,
            node,
            detail: self.detail.as_deref().map(|detail| beginning(detail, TEXT_CHARS_MAX)),
            outcome: None,
            message: None,
        }
    }
}

/// Returns at most so many characters of a text.
fn beginning(text: &str, chars_max: usize) -> &str {
    text.char_indices().nth(chars_max).map_or(text, |(end, _)| &text[..end])
}

fn line(entry: &Entry<'_>) -> Vec<u8> {
    let mut line = serde_json::to_vec(entry).expect("text, numbers and addresses are JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn change(target: Target) -> AuditedChange {
        AuditedChange {
            operation: OpId(String::from("0123")),
            who: Some("ci.example".into()),
            role: Some("submit"),
            from: Some(SocketAddr::from(([10, 0, 0, 5], 4711))),
            what: "Cancel",
            target,
            detail: None,
        }
    }

    fn parsed(line: &[u8]) -> Value {
        let (last, text) = line.split_last().unwrap();
        assert!(*last == b'\n' && !text.contains(&b'\n'), "one line");
        serde_json::from_slice(text).unwrap()
    }

    #[test]
    fn both_lines_of_a_change_say_who_asked_for_what_from_where() {
        let change = change(Target::Task(String::from("nightly")));
        let first = parsed(&change.requested(Timestamp(1_700_000_000_000)));
        let expected = json!({
            "schema": 1, "event": "change-requested", "time": "2023-11-14T22:13:20.000Z", "operation": "0123",
            "who": "ci.example", "role": "submit", "from": "10.0.0.5:4711", "what": "Cancel", "task": "nightly",
        });
        assert_eq!(first, expected);
        let failed = Outcome::Failed { code: "EBusy", message: "it has ended" };
        for (outcome, name, message) in [
            (Outcome::Succeeded, "succeeded", Value::Null),
            (failed, "EBusy", json!("it has ended")),
            (Outcome::Unknown, "unknown", Value::Null),
        ] {
            let last = parsed(&change.ended(Timestamp(0), outcome));
            assert_eq!(
                (&last["event"], &last["outcome"], &last["message"]),
                (&json!("change-ended"), &json!(name), &message)
            );
            assert_eq!((&last["operation"], &last["who"]), (&first["operation"], &first["who"]));
        }
    }

    #[test]
    fn who_shows_no_certificate_is_null() {
        let entry =
            parsed(&AuditedChange { who: None, role: None, ..change(Target::Settings) }.requested(Timestamp(0)));
        assert_eq!((&entry["who"], &entry["role"]), (&Value::Null, &Value::Null));
        assert!(entry.as_object().unwrap().contains_key("who"), "it is there all the same");
        assert_eq!(parsed(&change(Target::Node(String::from("n1"))).requested(Timestamp(0)))["node"], "n1");
        assert_eq!(parsed(&change(Target::Schedule(String::from("s"))).requested(Timestamp(0)))["schedule"], "s");
    }

    #[test]
    fn what_clients_send_is_escaped_and_bounded() {
        let evil = "x\n{\"outcome\":\"succeeded\"}\u{1b}";
        let entry = parsed(&change(Target::Task(evil.to_owned())).requested(Timestamp(0)));
        assert_eq!(entry["task"], evil);
        let long = AuditedChange {
            detail: Some("ä".repeat(100_000)),
            who: Some("w".repeat(253).into()),
            ..change(Target::Task("ä".repeat(100_000)))
        };
        let message = "\u{1}".repeat(100_000);
        let line = long.ended(Timestamp(0), Outcome::Failed { code: "EBusy", message: &message });
        assert!(line.len() < 8 << 10, "{}", line.len());
        assert_eq!(parsed(&line)["task"].as_str().unwrap().chars().count(), NAME_CHARS_MAX);
    }
}
