//! Owns the folder of the logs: lists it at the start, writes lines, and removes the oldest logs when they are too many.

use super::index::LogIndex;
use super::log_file::{self, BoundedLog, Segment, disk_bytes};
use super::name::LogName;
use super::{Shared, TOTAL_BYTES_MAX};
use blockhaul_engine::shown::Shown;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

/// Folder of the logs; the writer's own.
#[derive(Debug)]
pub(super) struct LogFolder {
    path: PathBuf,
    shared: Arc<Shared>,
    open: HashMap<LogName, OpenLog>,
    total_bytes: u64,
    total_bytes_max: u64,
    /// Whether the last line could not be written: the log of the process says so once.
    is_failing: bool,
}

/// Log of an attempt that is not over.
#[derive(Debug)]
struct OpenLog {
    log: BoundedLog,
    /// Lines that are missing since the last one that was written, and why.
    lost_lines: u64,
    why: String,
}

impl LogFolder {
    /// Opens the folder, creates it (0700) if it is missing, and lists its logs.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn open(path: &Path, shared: &Arc<Shared>) -> Result<Self, String> {
        let failed = |verb: &str, error: io::Error| format!("cannot {verb} {}: {error}", path.shown());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| failed("create", error))?;
        let logs = list(path).map_err(|error| failed("list", error))?;
        let total_bytes = logs.values().map(|segments| disk_bytes(segments)).sum();
        shared.index().opened(path.to_owned(), logs);
        let mut folder = Self {
            path: path.to_owned(),
            shared: Arc::clone(shared),
            open: HashMap::new(),
            total_bytes,
            total_bytes_max: TOTAL_BYTES_MAX,
            is_failing: false,
        };
        folder.remove_oldest();
        Ok(folder)
    }

    /// Sets another limit for all logs together.
    #[cfg(test)]
    pub(super) fn with_total_bytes_max(self, total_bytes_max: u64) -> Self {
        Self { total_bytes_max, ..self }
    }

    #[cfg(test)]
    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Writes a line of an attempt, before which this many found no room in the queue.
    pub(super) fn append(&mut self, name: &LogName, line: &[u8], unqueued_lines: u64) {
        let Self { path, open, .. } = self;
        let open = open.entry(name.clone()).or_insert_with(|| OpenLog::new(path, name));
        open.miss_unqueued(unqueued_lines);
        let before = disk_bytes(open.log.segments());
        let written = open.say_missing().and_then(|()| open.log.append(line));
        let failure = written.err().map(|error| write_failure(path, &error));
        if let Some(why) = &failure {
            open.miss(1, why.clone());
        }
        let segments = open.log.segments();
        self.total_bytes = self.total_bytes - before + disk_bytes(segments);
        let mut index = self.shared.index();
        if segments.iter().any(|segment| segment.bytes > 0) {
            index.set(name, segments);
        }
        if let Some(why) = &failure {
            index.failed(name, why.clone());
        }
        drop(index);
        self.tell(failure.as_deref());
        self.remove_oldest();
    }

    /// Closes the log of an attempt that is over.
    pub(super) fn end(&mut self, name: &LogName, unqueued_lines: u64) {
        let unwritten = || (unqueued_lines > 0).then(|| OpenLog::new(&self.path, name));
        if let Some(mut open) = self.open.remove(name).or_else(unwritten) {
            open.miss_unqueued(unqueued_lines);
            let before = disk_bytes(open.log.segments());
            let said = open.say_missing();
            let segments = open.log.segments();
            self.total_bytes = self.total_bytes - before + disk_bytes(segments);
            let mut index = self.index();
            if disk_bytes(segments) > 0 {
                index.set(name, segments);
            }
            if let Err(error) = said {
                index.failed(name, write_failure(&self.path, &error));
            }
        }
        self.index().end(name);
        self.remove_oldest();
    }

    fn index(&self) -> MutexGuard<'_, LogIndex> {
        self.shared.index()
    }

    /// Tells the log of the process when lines begin to fail, and when they are written again.
    fn tell(&mut self, failure: Option<&str>) {
        let is_failing = failure.is_some();
        if std::mem::replace(&mut self.is_failing, is_failing) != is_failing {
            match failure {
                Some(why) => tracing::warn!(why, "logs of attempts are incomplete"),
                None => tracing::info!("logs of attempts are written again"),
            }
        }
    }

    /// Removes logs of attempts that are over until all of them fit, the oldest first.
    fn remove_oldest(&mut self) {
        loop {
            let oldest = self.index().take_oldest(self.total_bytes > self.total_bytes_max);
            let Some((name, segments)) = oldest else { return };
            self.total_bytes -= disk_bytes(&segments);
            for segment in segments {
                remove(&name.path(&self.path, segment.start));
            }
        }
    }
}

impl OpenLog {
    fn new(folder: &Path, name: &LogName) -> Self {
        let log = BoundedLog::new(folder.to_owned(), name.clone());
        Self { log, lost_lines: 0, why: String::new() }
    }

    fn miss(&mut self, lines: u64, why: String) {
        self.lost_lines += lines;
        self.why = why;
    }

    fn miss_unqueued(&mut self, lines: u64) {
        if lines > 0 {
            self.miss(lines, String::from("the state directory was too slow"));
        }
    }

    /// Writes how many lines are missing, if some are.
    fn say_missing(&mut self) -> io::Result<()> {
        if self.lost_lines > 0 {
            let note = format!("({} lines are missing here: {})\n", self.lost_lines, self.why);
            self.log.append(note.as_bytes())?;
            self.lost_lines = 0;
        }
        Ok(())
    }
}

fn write_failure(folder: &Path, error: &io::Error) -> String {
    format!("cannot write to {}: {error}", folder.shown())
}

/// Lists the logs of a folder. Removes what a process has left between the steps of a write; leaves foreign files alone.
fn list(path: &Path) -> io::Result<BTreeMap<LogName, Vec<Segment>>> {
    let mut logs: BTreeMap<LogName, Vec<Segment>> = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let Some((name, start)) = file_name.to_str().and_then(LogName::parse) else { continue };
        let metadata = entry.metadata()?;
        match metadata.len() {
            _ if !metadata.is_file() => {}
            0 => remove(&entry.path()),
            bytes => logs.entry(name).or_default().push(Segment { start, bytes }),
        }
    }
    for (name, segments) in &mut logs {
        segments.sort_by_key(|segment| segment.start);
        for old in log_file::surplus(segments) {
            remove(&name.path(path, old.start));
        }
    }
    Ok(logs)
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.shown(), %error, "log of an attempt was not removed"),
    }
}
