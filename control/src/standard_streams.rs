//! Writes to stdout and stderr from a thread of each, so that a reader that does not read delays nothing.
//!
//! What is given to one stream is written in that order. What always holds: progress and logs never wait (they are
//! dropped when the queue is full, logs with a note that says how many). A result waits for its reader as long as no
//! stop was asked for, and for [`AFTER_STOP_MAX`] once one was. Where no thread can be started, the caller writes.

use crate::attempt_log::ASSIGNED_FIELD;
use blockhaul_engine::shown::line;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{self, debug_fn};

/// Longest wait for a slow reader once a stop was asked for: from that request, or from the end of what was stopped.
pub const AFTER_STOP_MAX: Duration = Duration::from_secs(1);
/// Most entries that wait for a reader: a burst of logs fits.
const WAITING_MAX: usize = 1024;
/// Time between two checks that a stop was asked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What happens to an entry that its reader is not ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Dropped: the next one replaces it.
    Progress,
    /// Kept while there is room.
    Log,
    /// Kept; the caller waits for room.
    Result,
}

type Action = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// One of the two streams of this process.
#[derive(Debug)]
pub struct Stream {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: VecDeque<Action>,
    writer: Writer,
    dropped_logs: u64,
    /// First failure.
    failure: Option<io::Error>,
    /// When a stop was asked for.
    stop: Option<Instant>,
}

/// Writer of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// Not started yet.
    None,
    Idle,
    Writing,
    /// No thread can be started.
    Caller,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { waiting, writer, dropped_logs, failure, stop } = self;
        let mut shown = f.debug_struct("State");
        shown.field("waiting", &waiting.len()).field("writer", writer).field("dropped_logs", dropped_logs);
        shown.field("failure", failure).field("stop", stop).finish()
    }
}

static STDOUT: Stream = Stream::new();
static STDERR: Stream = Stream::new();

/// Returns the process's stdout.
#[must_use]
pub fn stdout() -> &'static Stream {
    &STDOUT
}

/// Returns the process's stderr.
#[must_use]
pub fn stderr() -> &'static Stream {
    &STDERR
}

/// Tells the streams that a stop was asked for: slow readers are waited for no longer than [`AFTER_STOP_MAX`].
pub fn stop() {
    STDOUT.stop();
    STDERR.stop();
}

/// Writes a line to stdout. The line's end is added.
pub fn to_stdout(weight: Priority, mut line: Vec<u8>) {
    line.push(b'\n');
    STDOUT.send(weight, move || write_all(io::stdout(), &line));
}

/// Writes a line to stderr. The line's end is added.
pub fn to_stderr(weight: Priority, line: impl std::fmt::Display) {
    let line = format!("{line}\n");
    STDERR.send(weight, move || write_all(io::stderr(), line.as_bytes()));
}

impl Stream {
    const fn new() -> Self {
        let state =
            State { waiting: VecDeque::new(), writer: Writer::None, dropped_logs: 0, failure: None, stop: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Queues an action that writes to the stream, and to nothing else.
    pub fn send(&'static self, weight: Priority, action: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let mut state = self.lock();
        while weight == Priority::Result && state.waiting.len() >= WAITING_MAX && state.stop.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match weight {
            Priority::Progress if !state.waiting.is_empty() => return,
            Priority::Log if state.waiting.len() >= WAITING_MAX => {
                state.dropped_logs += 1;
                return;
            }
            Priority::Progress | Priority::Log | Priority::Result => (),
        }
        if state.writer == Writer::None {
            let serve = || self.serve();
            let started = std::thread::Builder::new().name(String::from("output")).spawn(serve);
            state.writer = if started.is_ok() { Writer::Idle } else { Writer::Caller };
        }
        if state.writer == Writer::Caller {
            drop(state);
            let done = action();
            self.lock().note(done);
            return;
        }
        state.waiting.push_back(Box::new(action));
        self.changed.notify_all();
    }

    /// Waits until every entry has been written, or a stop leaves no more time. Reports a failure once.
    ///
    /// # Errors
    /// The first one of a write; `TimedOut` if nobody has read everything in time.
    pub fn settle(&self) -> io::Result<()> {
        let begun = Instant::now();
        let mut state = self.lock();
        while !state.waiting.is_empty() || state.writer == Writer::Writing {
            if state.stop.is_some_and(|stop| stop.max(begun).elapsed() >= AFTER_STOP_MAX) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "not read in time"));
            }
            state = self.changed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    /// Tells whether a write has failed that [`Stream::settle`] has not reported.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    fn stop(&self) {
        self.lock().stop.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Runs the stream's thread.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let Some(action) = state.waiting.pop_front() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.writer = Writer::Writing;
            drop(state);
            let done = action();
            state = self.lock();
            state.writer = Writer::Idle;
            state.note(done);
            let dropped = std::mem::take(&mut state.dropped_logs);
            if dropped > 0 {
                let note = format!("{dropped} lines of the log were dropped here: stderr was not read in time\n");
                state.waiting.push_back(Box::new(move || write_all(io::stderr(), note.as_bytes())));
            }
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between any two statements under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            self.failure.get_or_insert(error);
        }
    }
}

/// Writes past the buffers of the standard library, whose locks must be free while a reader does not read.
fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => (),
            // Closed, or open for reading only: there is no such stream, as the standard library has it.
            Err(Errno::EBADF) => return Ok(()),
            // Somebody who shares it wants no waiting in the kernel.
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Writes logs to stderr, each event in one piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let event = bytes.to_vec();
        STDERR.send(Priority::Log, move || write_all(io::stderr(), &event));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats the message and the fields of an event on one line, with nothing in them that a terminal would act on: they
/// contain names and text from outside.
pub fn log_fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    let shown = |writer: &mut format::Writer<'_>, field: &Field, value: &dyn Debug| match field.name() {
        "message" => writer.write_str(&line(format_args!("{value:?}"))),
        // Where in the code of a library a line comes from: its target says enough. And what names the log of an attempt,
        // beside its epoch.
        name if name.starts_with("log.") || name == ASSIGNED_FIELD => Ok(()),
        name => write!(writer, "{name}={}", line(format_args!("{value:?}"))),
    };
    debug_fn(shown).delimited(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn an_event_of_the_log_is_one_line_whatever_it_says() {
        static TEXT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        struct Kept;
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                TEXT.lock().unwrap().extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Kept).fmt_fields(log_fields()).finish();
        tracing::subscriber::with_default(log, || {
            let reason = "gone\u{1b}[2J\nforged \u{9b}\u{202e}";
            tracing::warn!(node = %reason, quoted = "a\nb", number = 7, "lost {reason}");
        });
        let text = String::from_utf8(TEXT.lock().unwrap().clone()).unwrap();
        let said = r"gone\x1b[2J\nforged \xc2\x9b\xe2\x80\xae";
        assert!(text.trim_end().ends_with(&format!("lost {said} node={said} quoted=\"a\\nb\" number=7")), "{text:?}");
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    }

    /// Creates a stream for one test; it is leaked.
    fn stream() -> &'static Stream {
        Box::leak(Box::new(Stream::new()))
    }

    #[test]
    fn everything_is_written_in_its_order_and_the_first_failure_is_said_once() {
        let (stream, (said, heard)) = (stream(), channel());
        for number in 0..100 {
            let said = said.clone();
            stream.send(Priority::Result, move || {
                said.send(number).unwrap();
                if number < 98 { Ok(()) } else { Err(io::Error::other(number.to_string())) }
            });
        }
        assert_eq!(stream.settle().unwrap_err().to_string(), "98");
        assert!(stream.settle().is_ok());
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn with_a_reader_that_does_not_read_only_results_wait_and_a_stop_ends_that() {
        let (stream, (open, gate)) = (stream(), channel::<()>());
        let (entered, is_in) = channel();
        stream.send(Priority::Result, move || {
            entered.send(()).unwrap();
            let _ = gate.recv();
            Ok(())
        });
        is_in.recv().unwrap();
        for _ in 0..3 * WAITING_MAX {
            stream.send(Priority::Progress, || Ok(()));
            stream.send(Priority::Log, || Ok(()));
        }
        let (waiting, dropped) = {
            let state = stream.lock();
            (state.waiting.len(), state.dropped_logs)
        };
        assert_eq!((waiting, dropped > 0), (WAITING_MAX, true));
        let late = std::thread::spawn(|| stream.send(Priority::Result, || Ok(())));
        stream.stop();
        late.join().unwrap();
        assert_eq!(stream.settle().unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(open);
        assert!(stream.settle().is_ok());
    }
}
