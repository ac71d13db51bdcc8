//! Keeps the audit log of the leader: one line before each change that a client asks for, and one with its outcome.
//!
//! | file | what |
//! | --- | --- |
//! | `entry` | the lines |
//! | `file` | the file: its last line is whole, and it is rotated |
//! | `writer` | the thread that writes, and how long it has been at it |
//!
//! ```text
//! begin: line 'requested' written ---> the change is made ---> end: line 'ended' queued
//!    |                                      |
//!    '-- cannot be written: refused         '-- the caller has gone: line 'ended' with the outcome 'unknown'
//! ```
//! What always holds: no change is handed on before its first line is in the file, except a cancel, which never waits for
//! the disk for longer than [`CANCEL_WAIT`]. Only the thread of the log makes calls that a disk may hold up; all others
//! wait for it with a bound. The second line is not waited for: its change has been made.

mod entry;
mod file;
mod writer;

pub(crate) use entry::{AuditedChange, Target};

use crate::clock::{Clock, HostClock};
use crate::model::NodeId;
use crate::timestamp::Timestamp;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use entry::Outcome;
use file::{AuditFile, Sizes};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use writer::{Line, WriteProgress, Writer};

/// Name of the file in the state directory.
const FILE: &str = "audit.jsonl";

/// Lines that wait for the disk; further changes are refused. More than the calls that are processed at once.
const LINES_MAX: usize = 2048;

/// Longest wait of a change for its line to be written: disks that are busy answer in less.
const WRITE_WAIT: Duration = Duration::from_secs(2);

/// Longest wait of a cancel for its line: it is carried out in any case.
const CANCEL_WAIT: Duration = Duration::from_millis(500);

/// The audit log. Clones share it.
#[derive(Clone, Debug)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeId,
    path: PathBuf,
    lines: SyncSender<Line>,
    progress: Arc<WriteProgress>,
}

/// Whether a change is made although its line could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unlogged {
    /// It is refused.
    Refused,
    /// It is made, and the log of the process tells of it.
    Made,
}

impl AuditLog {
    /// Starts the log of `node` in its state directory. Touches no file before the first change.
    ///
    /// # Errors
    /// `EOverloaded` or another code of the system if no thread can be started.
    pub(crate) fn start(state_dir: &Path, node: NodeId) -> Result<Self> {
        Self::with(state_dir.join(FILE), node, Sizes::default())
    }

    fn with(path: PathBuf, node: NodeId, sizes: Sizes) -> Result<Self> {
        let (lines, queue) = sync_channel(LINES_MAX);
        let progress = Arc::new(WriteProgress::default());
        let writer = Writer::new(queue, AuditFile::new(path.clone(), sizes), Arc::clone(&progress));
        let started = std::thread::Builder::new().name(String::from("audit")).spawn(move || writer.run());
        started
            .map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "start the thread of the audit log"))?;
        Ok(Self(Arc::new(Inner { node, path, lines, progress })))
    }

    /// Writes the line that comes before a change. The change must be [ended](PendingChange::end).
    ///
    /// # Errors
    /// `ENoSpace` or `EIo` if the line cannot be written within two seconds and `unlogged` says so: the change must not be
    /// made.
    pub(crate) async fn begin(&self, change: AuditedChange, unlogged: Unlogged) -> Result<PendingChange> {
        let wait = match unlogged {
            Unlogged::Refused => WRITE_WAIT,
            Unlogged::Made => CANCEL_WAIT,
        };
        let (written, is_queued) = self.write_first(&change, wait).await;
        let mut pending = PendingChange { log: self.clone(), change: Some(change), is_in_log: is_queued };
        match (written, unlogged) {
            (Ok(()), _) => Ok(pending),
            (Err(error), Unlogged::Made) => {
                tracing::error!(change = %pending.described(), %error, "change made that may be missing in the audit log");
                pending.is_in_log = true;
                Ok(pending)
            }
            (Err(error), Unlogged::Refused) => {
                let (code, message) = (error.code, error.message.clone());
                pending.end(Err((code, message)));
                Err(self.refusal(error))
            }
        }
    }

    /// Writes the first line of a change. Also returns whether the line is in the file or may get there later.
    async fn write_first(&self, change: &AuditedChange, wait: Duration) -> (Result<()>, bool) {
        let silent =
            |why: &str| Error::new(Code::Io, Side::Engine, Operation::Journal, format!("write {}: {why}", self.name()));
        if self.0.progress.is_stuck(WRITE_WAIT) {
            return (Err(silent("the disk does not answer")), false);
        }
        let (written, answer) = oneshot::channel();
        let line = Line { text: change.requested(Timestamp(HostClock.unix_ms())), written: Some(written) };
        if self.0.lines.try_send(line).is_err() {
            return (Err(silent("too many lines wait for the disk")), false);
        }
        match timeout(wait, answer).await {
            Ok(Ok(Ok(()))) => (Ok(()), true),
            Ok(Ok(Err(error))) => (Err(error), false),
            Ok(Err(_)) => (Err(silent("its thread has ended")), false),
            Err(_) => (Err(silent("the disk does not answer in time")), true),
        }
    }

    fn name(&self) -> String {
        format!("the audit log {}", self.0.path.shown())
    }

    fn refusal(&self, error: Error) -> Error {
        let advice = format!(
            "nothing was changed, and only cancel works until the log can be written: free space in the state directory of \
             node {0}, or repair it; or stop the taskd of {0}, so that another node leads",
            self.0.node
        );
        Error { retryable: true, ..error }.advise(advice)
    }
}

/// Change whose first line was written. Dropped without an [end](PendingChange::end), its outcome is unknown: its caller
/// has gone, and it may be made or not.
#[derive(Debug)]
pub(crate) struct PendingChange {
    log: AuditLog,
    /// `None` once its last line is queued.
    change: Option<AuditedChange>,
    /// Whether a first line is there, or may get there, that needs a second one.
    is_in_log: bool,
}

impl PendingChange {
    /// Queues the line with the outcome: success, or code and message of the error.
    pub(crate) fn end(mut self, outcome: std::result::Result<(), (Code, String)>) {
        self.finish(match &outcome {
            Ok(()) => Outcome::Succeeded,
            Err((code, message)) => Outcome::Failed { code: code.as_str(), message },
        });
    }

    fn described(&self) -> String {
        self.change.as_ref().map(AuditedChange::described).unwrap_or_default()
    }

    fn finish(&mut self, outcome: Outcome<'_>) {
        let Some(change) = self.change.take().filter(|_| self.is_in_log) else { return };
        let line = Line { text: change.ended(Timestamp(HostClock.unix_ms()), outcome), written: None };
        if self.log.0.lines.try_send(line).is_err() {
            tracing::error!(
                change = change.described(),
                "outcome missing in the audit log: too many lines wait for the disk"
            );
        }
    }
}

impl Drop for PendingChange {
    fn drop(&mut self) {
        self.finish(Outcome::Unknown);
    }
}

#[cfg(test)]
mod tests;
