//! Keeps the log of each attempt on the node that runs it, and reads it for the leader.
//!
//! ```text
//!  event in an attempt's span -> AttemptLogLayer -> queue -> writer thread -> LogFolder -> files
//!                                                                                 |
//!  leader <- LogPart <- AttemptLogs::read <-- LogIndex: which files are there <---'
//! ```
//! What always holds:
//! - An attempt never waits for its log. What finds no room in the queue is dropped and counted. A state directory that is
//!   full, read-only or does not answer costs log lines only.
//! - The log of one attempt is bounded, and so are all of them together: the oldest are removed. Attempts that are not over
//!   keep theirs.
//! - A line is handed to the kernel when it is logged, so that it survives the process. It is not synced: a power failure
//!   may take the last ones.

mod event_text;
mod folder;
mod index;
mod layer;
mod log_file;
mod name;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use layer::ASSIGNED_FIELD;
pub use layer::AttemptLogLayer;

use crate::peers::{LogPart, LogQuery};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use index::{LogIndex, LogState};
use name::LogName;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use writer::Message;

/// Folder of the logs in the state directory.
const FOLDER: &str = "attempt-logs";
/// Bytes of all logs together, in blocks of the file system.
const TOTAL_BYTES_MAX: u64 = 1 << 30;
/// Most logs: what each costs in memory is bounded. They fill the folder when they have 64 KiB each.
const LOGS_MAX: usize = 16_384;
/// Longest line in bytes: the output of a hook fits, each of its bytes escaped.
const LINE_BYTES_MAX: usize = 60 << 10;
/// Bytes that wait for the writer; further lines are dropped.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Most attempts that log at once; far more than a node has slots.
const LIVE_MAX: usize = 1024;
/// Most bytes of one [`LogPart`]: at least one line, and well below a message.
const PART_BYTES_MAX: usize = 64 << 10;
/// Parts that are read at once: a disk that does not answer holds no more threads.
const READERS_MAX: usize = 4;
/// Longest wait for a part, and for a place to read it: both fit a call between nodes.
const READ_WAIT: Duration = Duration::from_millis(800);

const _: () = assert!(LINE_BYTES_MAX < PART_BYTES_MAX);

/// Logs of the attempts of one node. Clones are the same logs.
#[derive(Clone, Debug)]
pub struct AttemptLogs(Arc<Shared>);

/// What the layer, the writer and the readers share.
#[derive(Debug)]
struct Shared {
    index: Mutex<LogIndex>,
    /// Queue of the writer, once it has been started.
    writer: OnceLock<Sender<Message>>,
    queued_bytes: AtomicUsize,
    readers: Arc<Semaphore>,
}

impl Default for AttemptLogs {
    fn default() -> Self {
        Self(Arc::new(Shared {
            index: Mutex::default(),
            writer: OnceLock::new(),
            queued_bytes: AtomicUsize::new(0),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }))
    }
}

impl AttemptLogs {
    /// Starts to keep logs in a state directory. Never fails: a node that can keep none says so when it is asked for one.
    pub fn open(&self, state_dir: &Path) {
        writer::start(&self.0, state_dir.join(FOLDER));
    }

    /// Returns the layer that puts the events of each attempt into its log.
    #[must_use]
    pub fn layer(&self) -> AttemptLogLayer {
        AttemptLogLayer::new(Arc::clone(&self.0))
    }

    /// Reads a part of a log: whole lines, from the asked position or from the first kept one after it. Answers within
    /// two seconds.
    ///
    /// # Errors
    /// `EOverloaded` or `ETimeout` while it cannot be known what there is; errors of reading a file.
    pub(crate) async fn read(&self, query: LogQuery) -> Result<LogPart> {
        let failed = |code, why: &str| Error {
            retryable: true,
            ..Error::new(code, Side::Engine, Operation::Read, format!("its log of task {}: {why}", query.task))
        };
        let place = timeout(READ_WAIT, Arc::clone(&self.0.readers).acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(failed(Code::Overloaded, "too many logs are being read")) };
        let (shared, offset) = (Arc::clone(&self.0), query.offset);
        let name = LogName { assigned_ms: query.assigned_ms, task: query.task.clone() };
        let reading = tokio::task::spawn_blocking(move || {
            let _place = place;
            shared.read(&name, offset)
        });
        match timeout(READ_WAIT, reading).await {
            Ok(Ok(part)) => part,
            Ok(Err(error)) => Err(failed(Code::Overloaded, &error.to_string())),
            Err(_) => Err(failed(Code::Timeout, "the state directory does not answer")),
        }
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, LogIndex> {
        // Consistent between any two statements under the lock.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, name: &LogName, offset: u64) -> Result<LogPart> {
        // The writer may remove a file between the look at the index and the read: then the index says so.
        let mut tries = 0;
        loop {
            tries += 1;
            let found = self.index().find(name);
            let (folder, segments, is_live) = match found {
                LogState::Unknown => {
                    let error =
                        Error::new(Code::Overloaded, Side::Engine, Operation::Read, "the logs are being listed");
                    return Err(Error { retryable: true, ..error });
                }
                LogState::Missing { why, is_live } => {
                    return Ok(LogPart { offset, text: Vec::new(), is_live, missing: why });
                }
                LogState::Kept { folder, segments, is_live } => (folder, segments, is_live),
            };
            match log_file::read(&folder, name, &segments, offset, PART_BYTES_MAX) {
                Ok((offset, text)) => return Ok(LogPart { offset, text, is_live, missing: None }),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && tries < 3 => {}
                Err(error) => {
                    let what = format!("read the log of task {}", name.task);
                    return Err(Error::io(Side::Engine, Operation::Read, &error, what));
                }
            }
        }
    }
}
