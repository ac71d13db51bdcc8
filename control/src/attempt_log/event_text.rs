//! Formats an event for the log of its attempt: one line, below which is the output of a hook.
//!
//! What comes from outside is escaped here: nothing in a line acts on a terminal.

use super::LINE_BYTES_MAX;
use crate::timestamp::Timestamp;
use blockhaul_engine::shown::line;
use std::fmt::{Debug, Write};
use tracing::Event;
use tracing::field::{Field, Visit};

/// Before each line of a hook's output.
const INDENT: &str = "  | ";
/// At the end of a text that was cut.
const CUT: &str = " ... (cut)\n";

/// Returns the text of an event that was logged at this time, in milliseconds since 1970.
pub(super) fn text_of(event: &Event<'_>, unix_ms: u64) -> Vec<u8> {
    let mut text = EventText::default();
    event.record(&mut text);
    let EventText { message, fields, below } = text;
    let level = event.metadata().level();
    let mut text = format!("{} {level:>5} {message}{fields}\n{below}", Timestamp(unix_ms));
    if text.len() > LINE_BYTES_MAX {
        let mut end = LINE_BYTES_MAX - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text += CUT;
    }
    text.into_bytes()
}

#[derive(Default)]
struct EventText {
    message: String,
    /// Each with a space before it.
    fields: String,
    /// Lines of output.
    below: String,
}

impl EventText {
    fn add_output(&mut self, escaped: &str) {
        for output in lines_of(escaped) {
            self.below += INDENT;
            self.below += &line(output);
            self.below.push('\n');
        }
    }
}

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = line(format_args!("{value:?}")),
            // Where in the code of a library a line comes from.
            name if name.starts_with("log.") => {}
            name => _ = write!(self.fields, " {name}={}", line(format_args!("{value:?}"))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "output" | "output_end" => self.add_output(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match (field.name(), value) {
            ("dropped_bytes", 0) => {}
            ("dropped_bytes", bytes) => _ = writeln!(self.below, "  ({bytes} bytes of the output were dropped here)"),
            _ => self.record_debug(field, &value),
        }
    }
}

/// Splits an escaped text where it had newlines. A backslash of the text itself is escaped, too, so nothing else is
/// taken for one.
fn lines_of(escaped: &str) -> Vec<String> {
    let (mut lines, mut last) = (Vec::new(), String::new());
    let mut chars = escaped.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('n') => lines.push(std::mem::take(&mut last)),
                next => {
                    last.push(char);
                    last.extend(next);
                }
            },
            _ => last.push(char),
        }
    }
    if !last.is_empty() {
        lines.push(last);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::shown::Escaped;

    #[test]
    fn output_is_split_at_its_own_newlines_only() {
        let lines = |bytes: &[u8]| lines_of(&Escaped::from(bytes).to_string());
        assert_eq!(lines(b"one\ntwo\n"), ["one", "two"]);
        assert_eq!(lines(b"one\n\n\\name\\\nlast"), ["one", "", r"\\name\\", "last"]);
        assert_eq!(lines(b"\x1b[2J\xff\n"), [r"\x1b[2J\xff"]);
        assert!(lines(b"").is_empty());
    }
}
