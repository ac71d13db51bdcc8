//! Shows the log of an attempt: `logs ID`.
//!
//! The text comes from a node, through the leader. Each of its lines is printed as one line, escaped. What the node has
//! dropped between the beginning and the end of a long log is said where it was.

use super::args::RawLogs;
use super::{CenterSession, error_of};
use crate::exit::Exit;
use crate::output::{self, print_stderr};
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::Result;
use serde::Serialize;

pub(crate) fn logs(RawLogs { id, attempt, follow, center }: RawLogs) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let request = wire::LogsRequest { id: id.clone(), attempt, follow, ..wire::LogsRequest::default() };
    let mut log = AttemptLog::default();
    let mut waits_for = String::new();
    let CenterSession { runtime, client, json } = &mut session;
    let show = |line: LogLine, event: &wire::LogsEvent| show(&id, event, &line, *json);
    let each = |event: &wire::LogsEvent| {
        log.add(event).into_iter().for_each(|line| show(line, event));
        if event.waits_for != waits_for {
            waits_for.clone_from(&event.waits_for);
            if !waits_for.is_empty() {
                print_stderr(format_args!("waiting: {waits_for}"));
            }
        }
        if event.last {
            log.rest().into_iter().for_each(|line| show(line, event));
        }
    };
    runtime.block_on(client.logs(request, each)).map_err(error_of)?;
    Ok(Exit::Done)
}

/// What is printed as one line.
#[derive(Debug, PartialEq, Eq)]
enum LogLine {
    Text(String),
    /// So many bytes of the log were dropped by its node.
    Dropped(u64),
}

/// Log as it arrives.
#[derive(Debug, Default)]
struct AttemptLog {
    /// Position after the last byte.
    end: u64,
    /// Beginning of a line whose end has not arrived.
    open_line: Vec<u8>,
}

impl AttemptLog {
    /// Returns the lines that are complete with this event.
    fn add(&mut self, event: &wire::LogsEvent) -> Vec<LogLine> {
        let mut lines = Vec::new();
        if event.text.is_empty() {
            return lines;
        }
        let dropped = event.offset.saturating_sub(self.end);
        if dropped > 0 {
            lines.extend(self.rest());
            lines.push(LogLine::Dropped(dropped));
        }
        self.end = event.offset + event.text.len() as u64;
        for piece in event.text.split_inclusive(|byte| *byte == b'\n') {
            self.open_line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                lines.extend(self.rest());
            }
        }
        lines
    }

    /// Returns the line whose end has not arrived, if there is one.
    fn rest(&mut self) -> Option<LogLine> {
        let line = std::mem::take(&mut self.open_line);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        (!line.is_empty()).then(|| LogLine::Text(String::from_utf8_lossy(text).into_owned()))
    }
}

/// A line of a log as JSON. Exactly one of `line` and `dropped_bytes` is there.
#[derive(Serialize)]
struct LogLineView<'a> {
    task: &'a str,
    attempt: u32,
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped_bytes: Option<u64>,
}

fn show(task: &str, event: &wire::LogsEvent, line: &LogLine, json: bool) {
    let wire::LogsEvent { attempt, node, .. } = event;
    let (text, dropped_bytes) = match line {
        LogLine::Text(text) => (Some(text.as_str()), None),
        LogLine::Dropped(bytes) => (None, Some(*bytes)),
    };
    if json {
        output::json_event("log", &LogLineView { task, attempt: *attempt, node, line: text, dropped_bytes });
    } else if let Some(bytes) = dropped_bytes {
        output::print_stdout(format_args!("({bytes} bytes of the log were dropped here)"));
    } else {
        output::print_stdout(text.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(offset: u64, text: &[u8]) -> wire::LogsEvent {
        wire::LogsEvent { offset, text: text.to_vec(), ..wire::LogsEvent::default() }
    }

    fn text(line: &str) -> LogLine {
        LogLine::Text(line.to_owned())
    }

    #[test]
    fn lines_are_whole_and_what_was_dropped_is_said_where_it_was() {
        let mut log = AttemptLog::default();
        assert_eq!(log.add(&event(0, b"one\ntwo\nthr")), [text("one"), text("two")]);
        assert!(log.add(&event(11, b"")).is_empty());
        assert_eq!(log.add(&event(11, b"ee\n")), [text("three")]);
        assert!(log.add(&event(14, b"torn")).is_empty());
        assert_eq!(
            log.add(&event(100, b"end\n\xff\x1b\n")),
            [text("torn"), LogLine::Dropped(82), text("end"), text("\u{fffd}\u{1b}")]
        );
        assert_eq!(log.rest(), None);
        log.add(&event(107, b"x"));
        assert_eq!(log.rest(), Some(text("x")));
    }
}
