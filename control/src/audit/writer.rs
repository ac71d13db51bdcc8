//! Writes queued lines from a thread of its own, in their order, as many at once as are there.
//!
//! What always holds: a line is answered when it is in the file, or cannot get there. A disk that does not answer holds up
//! this thread and nothing else, and the others see since when.

use super::file::AuditFile;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Most lines that are written at once.
const BATCH_MAX: usize = 256;

/// Line for the file, its end included.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) text: Vec<u8>,
    /// Receives the result; `None`: nobody waits.
    pub(super) written: Option<oneshot::Sender<Result<()>>>,
}

/// Since when the writer has waited for the disk.
#[derive(Debug, Default)]
pub(super) struct WriteProgress(Mutex<Option<Instant>>);

impl WriteProgress {
    /// Tells whether one call has lasted longer than this.
    pub(super) fn is_stuck(&self, longest: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() > longest)
    }

    /// Makes a call that the disk may hold up.
    fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        let set = |since| *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
        set(Some(Instant::now()));
        let result = call();
        set(None);
        result
    }
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    lines: Receiver<Line>,
    file: AuditFile,
    progress: Arc<WriteProgress>,
    /// Whether the last write has failed.
    is_failing: bool,
}

impl Writer {
    pub(super) fn new(lines: Receiver<Line>, file: AuditFile, progress: Arc<WriteProgress>) -> Self {
        Self { lines, file, progress, is_failing: false }
    }

    /// Writes until nobody can send lines any more.
    pub(super) fn run(mut self) {
        loop {
            let first = match self.file.sync_due() {
                None => self.lines.recv().ok(),
                Some(wait) => match self.lines.recv_timeout(wait) {
                    Ok(line) => Some(line),
                    Err(RecvTimeoutError::Timeout) => {
                        self.sync();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => None,
                },
            };
            let Some(first) = first else { return self.sync() };
            let batch: Vec<Line> = std::iter::once(first).chain(self.lines.try_iter().take(BATCH_MAX - 1)).collect();
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Vec<Line>) {
        let text: Vec<u8> = batch.iter().flat_map(|line| &line.text).copied().collect();
        let Self { file, progress, .. } = self;
        let written = progress.during(|| file.append(&text));
        let result = written.map_err(|error| self.failure(&error));
        self.tell(&result);
        for line in batch {
            if let Some(written) = line.written {
                // Who does not wait any more needs no answer.
                let _ = written.send(result.clone());
            }
        }
    }

    fn sync(&mut self) {
        let Self { file, progress, .. } = self;
        let synced = progress.during(|| file.sync());
        if let Err(error) = synced {
            let error = self.failure(&error);
            self.tell(&Err(error));
        }
    }

    fn failure(&self, error: &io::Error) -> Error {
        let what = format!("write the audit log {}", self.file.path().shown());
        let failed = Error::io(Side::Engine, Operation::Journal, error, what);
        // Other codes would seem to be about the request.
        if failed.code == Code::NoSpace { failed } else { failed.with_code(Code::Io) }
    }

    /// Logs the first failure and its end.
    fn tell(&mut self, result: &Result<()>) {
        match result {
            Ok(()) if self.is_failing => tracing::info!("audit log written again: changes are taken"),
            Err(error) if !self.is_failing => tracing::error!(%error, "audit log not written: only cancel is taken"),
            Ok(()) | Err(_) => (),
        }
        self.is_failing = result.is_err();
    }
}
