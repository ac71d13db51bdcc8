//! Writes to stdout and stderr.
//!
//! With `--json`, stdout carries JSON objects, one per line, and nothing else; the last line of a job, or of a command
//! that failed, is a report. stderr is for people: one line `blockhaul: CODE: message` per failure, logs, and the
//! progress bar.
//!
//! Every line stays one line and cannot control a terminal, whatever a server or a center sent: text passes
//! [`shown::line`], and JSON has its own escapes for what is not printable.
//!
//! Only [`finish`] waits, at the end of every command: a reader that is slow or does not read delays neither a copy nor
//! its stop. A failed write turns success into failure, except for a closed pipe.

use crate::exit::Exit;
use blockhaul_control::standard_streams::{self, Priority};
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::progress::{Bytes, Latency, LatencyUs, Report, Status};
use blockhaul_engine::shown::{self, is_printable};
use blockhaul_engine::volume::StandardStream;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Set if stdout leads to a volume; nothing is written to it then.
static STDOUT_IS_VOLUME: AtomicBool = AtomicBool::new(false);
/// Set if stderr leads to a volume; nothing is written to it then.
static STDERR_IS_VOLUME: AtomicBool = AtomicBool::new(false);

/// Refuses a stdout or stderr that leads to one of these volumes or journals. Must be called before a command prints
/// its first line. Nothing, not even the refusal, is written to such a stream.
///
/// # Errors
/// `EBadRequest`.
pub(crate) fn refuse_volume_streams<'a>(places: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut refusal = None;
    for place in places {
        for stream in StandardStream::leading_to(place) {
            match stream {
                StandardStream::Output => STDOUT_IS_VOLUME.store(true, Relaxed),
                StandardStream::Error => STDERR_IS_VOLUME.store(true, Relaxed),
            }
            refusal.get_or_insert_with(|| stream.refusal(place));
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// An object with the name of its event.
#[derive(Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// An event with the version of its schema.
#[derive(Serialize)]
struct SchemaEvent<'a, T> {
    schema: u32,
    #[serde(flatten)]
    event: Event<'a, T>,
}

/// Returns whether the arguments ask for JSON; used when they cannot be parsed.
pub(crate) fn wants_json<S: AsRef<OsStr>>(arguments: &[S]) -> bool {
    arguments.iter().map(AsRef::as_ref).take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

/// Writes one JSON object as a line, with a single write.
///
/// # Errors
/// As `out` says; a closed pipe is `BrokenPipe`.
pub(crate) fn json_line<T: Serialize>(out: &mut impl Write, body: &T) -> std::io::Result<()> {
    let mut line = json(body);
    line.push(b'\n');
    out.write_all(&line)
}

fn json<T: Serialize>(body: &T) -> Vec<u8> {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut line, EscapingFormatter);
    body.serialize(&mut serializer).expect("what is shown has text for keys, and fails nowhere");
    line
}

/// Escapes every character that is not printable; the standard requires this only for the first 32.
struct EscapingFormatter;

impl Formatter for EscapingFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> std::io::Result<()> {
        let mut rest = fragment;
        while let Some((at, char)) = rest.char_indices().find(|(_, char)| !is_printable(*char)) {
            out.write_all(&rest.as_bytes()[..at])?;
            char.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))?;
            rest = &rest[at + char.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }
}

/// Writes to stdout. Nothing else does.
fn to_stdout(priority: Priority, line: Vec<u8>) {
    if !STDOUT_IS_VOLUME.load(Relaxed) {
        standard_streams::to_stdout(priority, line);
    }
}

/// Writes to stderr. Only logs and the progress bar bypass it; they start after [`refuse_volume_streams`].
fn to_stderr(priority: Priority, line: impl Display) {
    if !STDERR_IS_VOLUME.load(Relaxed) {
        standard_streams::to_stderr(priority, line);
    }
}

/// Prints an event such as `{"event":"report",...}`.
pub(crate) fn json_event<T: Serialize>(event: &'static str, body: &T) {
    to_stdout(Priority::Result, json(&Event { event, body }));
}

/// Prints an event as it is described by version 1 of its schema: `{"schema":1,"event":"change",...}`.
pub(crate) fn json_schema_event<T: Serialize>(event: &'static str, body: &T) {
    to_stdout(Priority::Result, json(&SchemaEvent { schema: 1, event: Event { event, body } }));
}

/// Tells whether a line could not be written, as the reader of stdout is gone.
pub(crate) fn is_stdout_broken() -> bool {
    standard_streams::stdout().has_failed()
}

/// Prints the progress of a job, unless the last line has not been read yet.
pub(crate) fn json_progress<T: Serialize>(body: &T) {
    to_stdout(Priority::Progress, json(&Event { event: "progress", body }));
}

/// Prints the progress of several jobs, unless the last lines have not been read yet.
pub(crate) fn json_progress_of_all<T: Serialize>(bodies: &[T]) {
    let lines: Vec<_> = bodies.iter().map(|body| json(&Event { event: "progress", body })).collect();
    if !lines.is_empty() {
        to_stdout(Priority::Progress, lines.join(&b'\n'));
    }
}

/// Prints one JSON object on stdout.
pub(crate) fn json_object<T: Serialize>(body: &T) {
    to_stdout(Priority::Result, json(body));
}

/// Prints a line on stdout.
pub(crate) fn print_stdout(line: impl Display) {
    to_stdout(Priority::Result, shown::line(line).into_bytes());
}

/// Prints a line on stderr.
pub(crate) fn print_stderr(line: impl Display) {
    to_stderr(Priority::Result, format_args!("blockhaul: {}", shown::line(line)));
}

/// Prints a line on stderr, and below it a command that can be pasted.
pub(crate) fn print_stderr_command(line: impl Display, command: impl Display) {
    to_stderr(Priority::Result, format_args!("blockhaul: {}\n  {}", shown::line(line), shown::line(command)));
}

/// Prints a line on stderr without ever waiting.
pub(crate) fn print_stderr_nowait(line: impl Display) {
    to_stderr(Priority::Log, format_args!("blockhaul: {}", shown::line(line)));
}

/// Prints lines that explain an error.
pub(crate) fn print_stderr_hint(lines: &str) {
    let lines: Vec<String> = lines.lines().map(shown::line).collect();
    to_stderr(Priority::Result, format_args!("\n{}", lines.join("\n")));
}

/// Waits for pending output unless a stop was requested. Returns the final exit code.
pub(crate) fn finish(exit: Exit) -> Exit {
    let exit = match standard_streams::stdout().settle() {
        Ok(()) => exit,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit,
        Err(error) => {
            let error = Error::io(Side::Caller, Operation::Write, &error, "write the result to stdout");
            print_stderr(error.advise("the command ran, only its result could not be written"));
            if exit == Exit::Done { Exit::Failed } else { exit }
        }
    };
    // A failure of stderr cannot be reported.
    let _ = standard_streams::stderr().settle();
    exit
}

/// Reports an error from before a job exists: one line, and with `--json` a report.
pub(crate) fn report_refusal(json: bool, error: &Error) {
    print_stderr(error);
    if json {
        json_event("report", &refusal_report(error.clone()));
    } else if STDERR_IS_VOLUME.load(Relaxed) {
        print_stdout(format_args!("blockhaul: {error}"));
    }
}

/// Builds the report of a job that never started.
pub(crate) fn refusal_report(error: Error) -> Report {
    Report {
        status: Status::Failed,
        quiesced: true,
        error: Some(error),
        bytes: Bytes::default(),
        seconds: 0.0,
        cpu_seconds: 0.0,
        drain_seconds: 0.0,
        rate_bytes_per_second: 0,
        path: "none".to_owned(),
        cores: 0,
        block_size_bytes: 0,
        window_bytes_max: 0,
        latency_us: LatencyUs::default(),
        latency: Latency::default(),
        syscalls: 0,
        digest: None,
        digest_reason: Some("nothing was copied".to_owned()),
        verified_from: None,
        differences: Vec::new(),
        journal: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_flag_counts_before_the_double_dash_only() {
        assert!(wants_json(&["copy", "--json", "a"]));
        assert!(!wants_json(&["copy", "--", "--json"]));
    }

    #[test]
    fn json_is_escaped_for_terminals_and_parses_to_the_same_value() {
        let text = "\u{9b}31m\u{7f}\u{1b}\u{202e}\u{e0041}\u{ad}größe \\ \"q\" 🙂\n";
        let line = String::from_utf8(json(&text)).unwrap();
        assert!(line.chars().all(is_printable), "{line:?}");
        assert!(line.contains(r"\u009b31m\u007f") && line.contains("größe") && line.contains('🙂'), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn an_event_is_one_line_that_opens_with_its_name() {
        let mut line = Vec::new();
        json_line(&mut line, &Event { event: "report", body: &refusal_report(Error::bad_request("two\nlines")) })
            .unwrap();
        let text = String::from_utf8(line).unwrap();
        assert!(text.starts_with(r#"{"event":"report","status":"failed""#), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }
}
