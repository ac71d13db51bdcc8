//! Writes to stdout and stderr.
//!
//! With `--json`, stdout carries JSON objects, one per line, and nothing else. Each has the version of the format in
//! `schema` and its kind in `event`; `docs/schema/EVENT.json` describes it. The last line of a job is a report, that of
//! another command that failed an error. stderr is for people: one line `blockhaul: CODE: message` per failure, logs, and
//! the progress bar.
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

/// Set if only errors are printed.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out what is printed about jobs besides errors and JSON.
pub(crate) fn be_quiet() {
    IS_QUIET.store(true, Relaxed);
}

/// Tells whether only errors are printed.
pub(crate) fn is_quiet() -> bool {
    IS_QUIET.load(Relaxed)
}

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

/// Version of the format of all JSON lines. Within a version fields and events are added, never changed.
const SCHEMA: u32 = 1;

/// Commands that run jobs: they end with a report, whatever happens.
const JOBS: [&str; 3] = ["copy", "verify", "batch"];

/// An object with the version of its schema and the name of its event.
#[derive(Serialize)]
struct Event<'a, T> {
    schema: u32,
    event: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// What is printed on stdout of a command that fails before it has done anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalForm {
    /// Nothing.
    Text,
    /// The report of a job.
    Report,
    /// An error.
    Error,
}

impl RefusalForm {
    /// Returns the form that the arguments ask for, which may be malformed.
    pub(crate) fn of<S: AsRef<OsStr>>(arguments: &[S]) -> Self {
        let mut words = arguments.iter().map(AsRef::as_ref).skip(1).take_while(|argument| *argument != "--");
        let is_job = words.clone().next().is_some_and(|command| JOBS.iter().any(|job| command == *job));
        match (words.any(|word| word == "--json"), is_job) {
            (false, _) => Self::Text,
            (true, true) => Self::Report,
            (true, false) => Self::Error,
        }
    }
}

/// Writes an event as a line, with a single write.
///
/// # Errors
/// As `out` says; a closed pipe is `BrokenPipe`.
pub(crate) fn json_line<T: Serialize>(out: &mut impl Write, event: &'static str, body: &T) -> std::io::Result<()> {
    let mut line = json(event, body);
    line.push(b'\n');
    out.write_all(&line)
}

fn json<T: Serialize>(event: &'static str, body: &T) -> Vec<u8> {
    escaped(&Event { schema: SCHEMA, event, body })
}

fn escaped<T: Serialize>(body: &T) -> Vec<u8> {
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

/// Prints an event such as `{"schema":1,"event":"report",...}`.
pub(crate) fn json_event<T: Serialize>(event: &'static str, body: &T) {
    to_stdout(Priority::Result, json(event, body));
}

/// Tells whether a line could not be written, as the reader of stdout is gone.
pub(crate) fn is_stdout_broken() -> bool {
    standard_streams::stdout().has_failed()
}

/// Prints the progress of a job, unless the last line has not been read yet.
pub(crate) fn json_progress<T: Serialize>(body: &T) {
    to_stdout(Priority::Progress, json("progress", body));
}

/// Prints the progress of several jobs, unless the last lines have not been read yet.
pub(crate) fn json_progress_of_all<T: Serialize>(bodies: &[T]) {
    let lines: Vec<_> = bodies.iter().map(|body| json("progress", body)).collect();
    if !lines.is_empty() {
        to_stdout(Priority::Progress, lines.join(&b'\n'));
    }
}

/// Prints a line on stdout.
pub(crate) fn print_stdout(line: impl Display) {
    to_stdout(Priority::Result, shown::line(line).into_bytes());
}

/// Prints a line about a job on stdout, unless the user wants to hear of errors only.
pub(crate) fn print_summary(line: impl Display) {
    if !is_quiet() {
        print_stdout(line);
    }
}

/// Prints a text of this program on stdout, as it is.
pub(crate) fn print_stdout_text(mut text: Vec<u8>) {
    if text.ends_with(b"\n") {
        text.pop();
    }
    to_stdout(Priority::Result, text);
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

/// Reports an error from before a job exists, or of a command without one: one line, and with `--json` a report or an
/// error.
pub(crate) fn report_refusal(form: RefusalForm, error: &Error) {
    #[derive(Serialize)]
    struct Failed<'a> {
        status: Status,
        error: &'a Error,
    }
    print_stderr(error);
    match form {
        RefusalForm::Report => json_event("report", &refusal_report(error.clone())),
        RefusalForm::Error => json_event("error", &Failed { status: Status::Failed, error }),
        RefusalForm::Text if STDERR_IS_VOLUME.load(Relaxed) => print_stdout(format_args!("blockhaul: {error}")),
        RefusalForm::Text => {}
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
    fn a_refusal_has_the_form_of_its_command() {
        for (words, form) in [
            (&["blockhaul", "copy", "--json", "a"][..], RefusalForm::Report),
            (&["blockhaul", "list", "--json"], RefusalForm::Error),
            (&["blockhaul", "submit", "copy", "--json"], RefusalForm::Error),
            (&["blockhaul", "--json"], RefusalForm::Error),
            (&["blockhaul", "copy", "--", "--json"], RefusalForm::Text),
        ] {
            assert_eq!(RefusalForm::of(words), form, "{words:?}");
        }
    }

    #[test]
    fn json_is_escaped_for_terminals_and_parses_to_the_same_value() {
        let text = "\u{9b}31m\u{7f}\u{1b}\u{202e}\u{e0041}\u{ad}größe \\ \"q\" 🙂\n";
        let line = String::from_utf8(escaped(&text)).unwrap();
        assert!(line.chars().all(is_printable), "{line:?}");
        assert!(line.contains(r"\u009b31m\u007f") && line.contains("größe") && line.contains('🙂'), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn an_event_is_one_line_that_opens_with_its_name() {
        let mut line = Vec::new();
        json_line(&mut line, "report", &refusal_report(Error::bad_request("two\nlines"))).unwrap();
        let text = String::from_utf8(line).unwrap();
        assert!(text.starts_with(r#"{"schema":1,"event":"report","status":"failed""#), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }
}
