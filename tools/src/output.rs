//! What reaches stdout and stderr.
//!
//! With `--json`, stdout carries JSON objects, one per line, and nothing else; the last one of a job, or of a command
//! that failed, is a report. stderr is for people: one line `blockhaul: CODE: message` per failure, logs, the bar.
//! A reader that went away (a closed pipe) never ends a copy.

use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::progress::{Bytes, Latency, LatencyUs, Report, Status};
use blockhaul_engine::volume::StandardStream;
use serde::Serialize;
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Set once stdout was found to lead to a volume: nothing more is written to it.
static OUTPUT_IS_A_VOLUME: AtomicBool = AtomicBool::new(false);
/// The same of stderr.
static ERROR_IS_A_VOLUME: AtomicBool = AtomicBool::new(false);

/// Comes before the first line of a command that names these volumes and journals: neither stdout nor stderr may lead to
/// one of them. One that does stays silent from then on, the refusal itself included.
///
/// # Errors
/// `EBadRequest`.
pub(crate) fn stay_out_of<'a>(places: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut refusal = None;
    for place in places {
        for stream in StandardStream::leading_to(place) {
            match stream {
                StandardStream::Output => OUTPUT_IS_A_VOLUME.store(true, Relaxed),
                StandardStream::Error => ERROR_IS_A_VOLUME.store(true, Relaxed),
            }
            refusal.get_or_insert_with(|| stream.refusal(place));
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// An object with its event.
#[derive(Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// Whether the arguments ask for JSON, for the case that they cannot be parsed.
pub(crate) fn asks_for_json<S: AsRef<OsStr>>(arguments: &[S]) -> bool {
    arguments.iter().map(AsRef::as_ref).take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

/// One JSON object on a line of its own, written in one piece.
///
/// # Errors
/// As stdout says; a closed pipe is `BrokenPipe`.
pub(crate) fn json_line<T: Serialize>(out: &mut impl Write, body: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(body).map_err(io::Error::other)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// A line of a job, such as `{"event":"progress",...}`. A reader that went away is no reason to stop: failures to
/// write are logged only.
pub(crate) fn event<T: Serialize>(event: &'static str, body: &T) {
    if OUTPUT_IS_A_VOLUME.load(Relaxed) {
        return;
    }
    if let Err(error) = json_line(&mut io::stdout().lock(), &Event { event, body }) {
        tracing::debug!(event, %error, "write to stdout");
    }
}

/// A line for people on stdout.
pub(crate) fn say(line: impl Display) {
    if OUTPUT_IS_A_VOLUME.load(Relaxed) {
        return;
    }
    if let Err(error) = writeln!(io::stdout().lock(), "{line}") {
        tracing::debug!(%error, "write to stdout");
    }
}

/// A line for people on stderr.
pub(crate) fn tell(line: impl Display) {
    if ERROR_IS_A_VOLUME.load(Relaxed) {
        return;
    }
    // Nobody is left to hear about a stderr that cannot be written.
    let _ = writeln!(io::stderr().lock(), "blockhaul: {line}");
}

/// A request that ended before there was a job: the one line, and with `--json` a report that carries the error.
pub(crate) fn refuse(json: bool, error: &Error) {
    tell(error);
    if json {
        event("report", &refusal(error.clone()));
    } else if ERROR_IS_A_VOLUME.load(Relaxed) {
        say(format_args!("blockhaul: {error}"));
    }
}

/// The report of a job that never started.
pub(crate) fn refusal(error: Error) -> Report {
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
    fn json_is_asked_for_before_the_double_dash_only() {
        assert!(asks_for_json(&["copy", "--json", "a"]));
        assert!(!asks_for_json(&["copy", "--", "--json"]));
    }

    #[test]
    fn an_event_is_one_line_that_opens_with_its_name() {
        let mut line = Vec::new();
        json_line(&mut line, &Event { event: "report", body: &refusal(Error::bad_request("two\nlines")) }).unwrap();
        let text = String::from_utf8(line).unwrap();
        assert!(text.starts_with(r#"{"event":"report","status":"failed""#), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }
}
