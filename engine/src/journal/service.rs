//! Runs the journal thread: one per engine, so that no worker and no job waits for a sync inside its loop.
//!
//! A [`JournalFile`] sends its commands to its own task on that thread, which carries them out one after the other. The
//! tasks of different jobs run side by side. Creating, opening, renaming and removing happen on the caller's thread,
//! before the task knows the file or after it has ended: callers of those wait anyway.
//!
//! The lock is shared by the [`JournalFile`] and its task. It is released when both are gone, so never while a write
//! may still take effect. The thread ends when the last service handle and the last journal are gone.

use super::append::Appender;
use super::disk::{Backend, JournalDisk, Runtime};
use super::location::{self, JournalLocation, LockedJournal};
use super::read::JournalReader;
use super::writer::{FinalWrite, JournalWriter, journal_error};
use super::{FinishRecord, Header, JournalState, Run};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// What becomes of the file of a journal whose job is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalDisposition<'a> {
    /// The journal is removed without being finished: a crash just before leaves a complete checkpoint.
    Remove,
    /// The journal becomes a receipt under its name, which it must have.
    KeepInPlace,
    /// The journal becomes a receipt at this path, replacing the file there.
    MoveTo(&'a Path),
}

impl JournalDisposition<'_> {
    fn apply(self, file: &File, path: Option<&Path>) -> Result<()> {
        match (self, path) {
            (Self::Remove, Some(path)) => location::remove(path, file),
            (Self::MoveTo(to), from) => location::publish(file, from, to),
            (Self::Remove, None) | (Self::KeepInPlace, _) => Ok(()),
        }
    }
}

/// A handle to the journal thread.
#[derive(Clone, Debug)]
pub(crate) struct JournalService {
    thread: Arc<ServiceThread>,
}

impl JournalService {
    /// Starts the thread, on io_uring where this host has it.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start() -> Result<Self> {
        match Backend::probe() {
            Backend::Ring => Self::start_on(Backend::Ring).or_else(|error| {
                tracing::info!(%error, "journals use plain I/O: io_uring is not available");
                Self::start_on(Backend::Plain)
            }),
            Backend::Plain => Self::start_on(Backend::Plain),
        }
    }

    pub(super) fn start_on(backend: Backend) -> Result<Self> {
        let failed = |error: io::Error| Error::io(Side::Engine, Operation::Start, &error, "start the journal thread");
        let (sender, tasks) = unbounded_channel();
        let (ready, is_ready) = mpsc::channel();
        let body = move || match Runtime::new(backend) {
            Ok(runtime) => {
                _ = ready.send(Ok(()));
                runtime.block_on(serve(tasks, backend));
            }
            Err(error) => _ = ready.send(Err(error)),
        };
        let join = thread::Builder::new().name("blockhaul-journal".into()).spawn(body).map_err(failed)?;
        let thread = Arc::new(ServiceThread { tasks: Some(sender), join: Some(join) });
        is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("it ended at once"))).map_err(failed)?;
        Ok(Self { thread })
    }

    /// Creates a journal, durable with its header and its name when this returns (scratch ones are never durable).
    /// Blocks.
    ///
    /// # Errors
    /// `EExists`, `EBusy` ("another copy uses this journal"), `EBadRequest` for a header that cannot be recorded, and
    /// whatever the system says.
    pub(crate) fn create(&self, place: JournalLocation<'_>, header: &Header) -> Result<JournalFile> {
        let (appender, start) = Appender::create(header)?;
        let file = location::create(place, &start.bytes)?;
        let path = match place {
            JournalLocation::File(path) | JournalLocation::Replace(path) => Some(path.to_owned()),
            JournalLocation::Scratch => None,
        };
        self.open(file, path, appender)
    }

    /// Applies the refusals of [`JournalService::create`], and changes nothing.
    ///
    /// # Errors
    /// As [`JournalService::create`], but for those of writing.
    pub(crate) fn check_create(location: JournalLocation<'_>) -> Result<()> {
        location::check(location)
    }

    /// Applies the refusals of [`JournalService::reopen`], and changes nothing.
    ///
    /// # Errors
    /// As [`JournalService::reopen`], but for those of writing.
    pub(crate) fn check_reopen(path: &Path) -> Result<JournalReader> {
        open_unfinished(path).map(|(_, reader)| reader)
    }

    /// Reopens a checkpoint. A torn end is cut off and the rest is synced again, as a killed process may have left it
    /// in memory only. Blocks.
    ///
    /// # Errors
    /// `ECheckpointMismatch` for a receipt, `EBusy` ("another copy uses this journal"), those of
    /// [`JournalReader::open`], and whatever the system says.
    pub(crate) fn reopen(&self, path: &Path) -> Result<(JournalFile, JournalReader)> {
        let name = path.shown().to_string();
        let failed = |error: io::Error| journal_error(&error, &name);
        let (file, reader) = open_unfinished(path)?;
        if file.metadata().map_err(failed)?.len() > reader.end() {
            file.set_len(reader.end()).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        let journal = self.open(file, Some(path.to_owned()), Appender::resume(&reader))?;
        Ok((journal, reader))
    }

    /// Does the rest of [`JournalFile::finish`] for a journal that was finished but not yet moved or removed when its
    /// process was killed: nothing is left to copy. Blocks.
    ///
    /// # Errors
    /// `ECheckpointMismatch` for a checkpoint, and otherwise as [`JournalService::reopen`].
    pub(crate) fn finish_again(&self, path: &Path, keep: JournalDisposition<'_>) -> Result<FinishRecord> {
        let name = path.shown().to_string();
        let file = location::open_locked(path)?;
        let copy = file.try_clone().map_err(|error| journal_error(&error, &name))?;
        let finish = JournalReader::from_store(Box::new(copy), name.clone(), None)?.finish().copied();
        let unfinished = || {
            let message = format!("the copy recorded in {name} has not finished");
            Error::new(Code::CheckpointMismatch, Side::Engine, Operation::Journal, message)
                .advise("continue it with --resume")
        };
        let finish = finish.ok_or_else(unfinished)?;
        file.sync_all().map_err(|error| journal_error(&error, &name))?;
        keep.apply(&file, Some(path)).map(|()| finish)
    }

    /// Starts the task of a locked journal.
    pub(super) fn open(&self, file: LockedJournal, path: Option<PathBuf>, appender: Appender) -> Result<JournalFile> {
        let name = path.as_ref().map_or("(temporary)".into(), |path| path.shown().to_string());
        let file = Arc::new(file);
        let written = file.try_clone().map_err(|error| journal_error(&error, &name))?;
        let (sender, commands) = unbounded_channel();
        let task = JournalTask {
            name: name.clone(),
            file: written,
            lock: Arc::clone(&file),
            appender,
            is_synced: path.is_some(),
            commands,
        };
        let tasks = self.thread.tasks.as_ref().expect("the channel of tasks closes when the last handle is gone");
        tasks.send(task).map_err(|_| thread_gone())?;
        let thread = Arc::clone(&self.thread);
        Ok(JournalFile { commands: sender, is_open: true, file, path, name, _thread: thread })
    }
}

/// Opens and locks the journal of an unfinished copy.
fn open_unfinished(path: &Path) -> Result<(LockedJournal, JournalReader)> {
    let name = path.shown().to_string();
    let file = location::open_locked(path)?;
    let copy = file.try_clone().map_err(|error| journal_error(&error, &name))?;
    let reader = JournalReader::from_store(Box::new(copy), name.clone(), None)?;
    if reader.state() == JournalState::Finished {
        let message = format!("the copy recorded in {name} has finished");
        return Err(Error::new(Code::CheckpointMismatch, Side::Engine, Operation::Journal, message)
            .advise("start over with --restart, or remove the file"));
    }
    Ok((file, reader))
}

/// The thread, joined when the last handle and the last journal are gone.
struct ServiceThread {
    tasks: Option<UnboundedSender<JournalTask>>,
    join: Option<JoinHandle<()>>,
}

impl Drop for ServiceThread {
    fn drop(&mut self) {
        drop(self.tasks.take());
        // A callback on the journal thread may hold the last handle: a thread cannot wait for itself.
        if let Some(join) = self.join.take().filter(|join| join.thread().id() != thread::current().id()) {
            _ = join.join();
        }
    }
}

impl fmt::Debug for ServiceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceThread")
    }
}

/// An open, locked, unfinished journal. Dropping it is [`JournalFile::close`]: the file is closed, and its lock
/// released, when the drop returns. What blocks here waits for the journal thread and must not be called on it.
#[derive(Debug)]
pub(crate) struct JournalFile {
    // Declared first: the channel must close, which ends the task, before the thread is joined.
    commands: UnboundedSender<JournalCommand>,
    /// Whether the task still has to be told to end.
    is_open: bool,
    file: Arc<LockedJournal>,
    path: Option<PathBuf>,
    name: String,
    _thread: Arc<ServiceThread>,
}

impl JournalFile {
    /// Records runs that are durable on the destination. Returns at once; `done` runs on the journal thread once the
    /// record is synced, must be short and must not block. Batches are recorded in order. After an error every later
    /// call fails with the same one. The caller bounds the queue: it keeps one or two batches under way.
    pub(crate) fn append(&mut self, runs: Vec<Run>, done: impl FnOnce(Result<()>) + Send + 'static) {
        let command = JournalCommand::Append(runs, AppendCallback(Some(Box::new(done))));
        // If the thread is gone, the command is dropped, and its callback reports an error.
        _ = self.commands.send(command);
    }

    /// Reads what was appended so far, once it is synced. Blocks.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    pub(crate) fn reader(&self) -> Result<JournalReader> {
        let synced_end = self.ask(JournalCommand::SyncedEnd)?;
        let file = self.file.try_clone().map_err(|error| journal_error(&error, &self.name))?;
        JournalReader::from_store(Box::new(file), self.name.clone(), Some(synced_end))
    }

    /// Ends the journal of a job that is done. Blocks until what `keep` asks for is durable.
    ///
    /// # Errors
    /// The error of an earlier append, or of the system. The file is left as it is then.
    pub(crate) fn finish(mut self, finish: FinishRecord, keep: JournalDisposition<'_>) -> Result<()> {
        let ending = match keep {
            JournalDisposition::Remove => FinalWrite::Leave,
            JournalDisposition::KeepInPlace | JournalDisposition::MoveTo(_) => FinalWrite::Finish(finish),
        };
        self.end(ending)?;
        keep.apply(&self.file, self.path.as_deref())
    }

    /// Leaves the journal as a checkpoint. Blocks until everything that was appended is synced and committed.
    ///
    /// # Errors
    /// The error of an earlier append, or of the system. Records that were synced before still count.
    pub(crate) fn close(mut self) -> Result<()> {
        self.end(FinalWrite::Commit)
    }

    /// Leaves the journal as a checkpoint without waiting for its thread.
    pub(crate) fn close_later(mut self) {
        self.is_open = false;
    }

    fn end(&mut self, ending: FinalWrite) -> Result<()> {
        self.is_open = false;
        self.ask(|reply| JournalCommand::End(ending, reply))?
    }

    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> JournalCommand) -> Result<T> {
        let (reply, answer) = mpsc::channel();
        _ = self.commands.send(command(reply));
        answer.recv().map_err(|_| thread_gone())
    }
}

impl Drop for JournalFile {
    fn drop(&mut self) {
        if self.is_open {
            // Who drops it has failed for another reason, and reports that one.
            _ = self.end(FinalWrite::Commit);
        }
    }
}

/// A command of a journal file to its task.
enum JournalCommand {
    Append(Vec<Run>, AppendCallback),
    SyncedEnd(mpsc::Sender<u64>),
    End(FinalWrite, mpsc::Sender<Result<()>>),
}

/// Callback of an append. It is called in any case, even if the command is dropped.
struct AppendCallback(Option<Box<dyn FnOnce(Result<()>) + Send>>);

impl AppendCallback {
    fn tell(mut self, result: Result<()>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for AppendCallback {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(thread_gone()));
        }
    }
}

/// One journal on the journal thread.
struct JournalTask {
    name: String,
    file: File,
    lock: Arc<LockedJournal>,
    appender: Appender,
    /// Scratch journals die with the process and are never synced.
    is_synced: bool,
    commands: UnboundedReceiver<JournalCommand>,
}

/// The thread's body: runs a task per journal until no handle is left and every journal is closed.
async fn serve(mut incoming: UnboundedReceiver<JournalTask>, backend: Backend) {
    let mut tasks = JoinSet::new();
    while let Some(task) = incoming.recv().await {
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task.run(backend));
    }
    while tasks.join_next().await.is_some() {}
}

impl JournalTask {
    async fn run(self, backend: Backend) {
        let Self { name, file, lock, appender, is_synced, mut commands } = self;
        let mut writer = JournalWriter::new(name, JournalDisk::new(file, backend), appender, is_synced);
        let mut waiting = None;
        while let Some(command) = commands.recv().await {
            match command {
                JournalCommand::Append(runs, done) => done.tell(writer.append(runs).await),
                JournalCommand::SyncedEnd(reply) => _ = reply.send(writer.synced_end()),
                JournalCommand::End(ending, reply) => {
                    waiting = Some((writer.end(ending).await, reply));
                    break;
                }
            }
        }
        if waiting.is_none() {
            _ = writer.end(FinalWrite::Commit).await;
        }
        writer.close().await;
        drop(lock);
        if let Some((result, reply)) = waiting {
            _ = reply.send(result);
        }
    }
}

fn thread_gone() -> Error {
    Error::internal(Operation::Journal, "the journal thread has ended")
}
