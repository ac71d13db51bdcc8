//! Lists the logs that there are, for writer and readers. Nothing in here touches a file, so nobody waits for its lock.

use super::log_file::Segment;
use super::name::LogName;
use super::{LIVE_MAX, LOGS_MAX};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;

/// Attempts of which is remembered why their log is incomplete.
const FAILURES_MAX: usize = 256;

/// List of logs.
#[derive(Debug, Default)]
pub(super) struct LogIndex {
    folder: FolderState,
    /// Files of each log, in their order; the oldest log first.
    logs: BTreeMap<LogName, Vec<Segment>>,
    /// Attempts that have not ended, or whose last lines are in the queue.
    live: HashSet<LogName>,
    failures: VecDeque<(LogName, String)>,
}

/// State of the folder.
#[derive(Debug, Default)]
enum FolderState {
    /// Its logs are not listed yet.
    #[default]
    Unlisted,
    Open(PathBuf),
    /// No logs are kept, and why.
    Unusable(String),
}

/// What is known of one log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogState {
    /// Nothing: the folder has not been listed yet.
    Unknown,
    /// There is none, and why; without a reason its first line is on its way.
    Missing { why: Option<String>, is_live: bool },
    /// It has these files in the folder.
    Kept { folder: PathBuf, segments: Vec<Segment>, is_live: bool },
}

impl LogIndex {
    /// Returns what is known of a log.
    pub(super) fn find(&self, name: &LogName) -> LogState {
        let is_live = self.live.contains(name);
        let failure = self.failures.iter().rev().find(|(of, _)| of == name).map(|(_, why)| why.clone());
        match &self.folder {
            FolderState::Unlisted => LogState::Unknown,
            FolderState::Unusable(why) => LogState::Missing { why: Some(why.clone()), is_live },
            FolderState::Open(folder) => match self.logs.get(name) {
                Some(segments) => LogState::Kept { folder: folder.clone(), segments: segments.clone(), is_live },
                None if is_live => LogState::Missing { why: failure, is_live },
                None => {
                    let gone = || String::from("it was removed as one of the oldest, or the attempt never began");
                    LogState::Missing { why: Some(failure.unwrap_or_else(gone)), is_live }
                }
            },
        }
    }

    /// Sets the folder, with the logs that are in it.
    pub(super) fn opened(&mut self, folder: PathBuf, logs: BTreeMap<LogName, Vec<Segment>>) {
        (self.folder, self.logs) = (FolderState::Open(folder), logs);
    }

    /// Sets that the folder cannot be used.
    pub(super) fn unusable(&mut self, why: String) {
        self.folder = FolderState::Unusable(why);
    }

    /// Adds an attempt that begins to log. False if there are too many.
    pub(super) fn begin(&mut self, name: &LogName) -> bool {
        let has_room = self.live.len() < LIVE_MAX;
        if has_room {
            self.live.insert(name.clone());
        }
        has_room
    }

    /// An attempt has ended, and all its lines were written or have failed.
    pub(super) fn end(&mut self, name: &LogName) {
        self.live.remove(name);
    }

    /// Sets the files of a log.
    pub(super) fn set(&mut self, name: &LogName, segments: &[Segment]) {
        match self.logs.get_mut(name) {
            Some(known) => segments.clone_into(known),
            None => _ = self.logs.insert(name.clone(), segments.to_vec()),
        }
    }

    /// Remembers why lines of a log are missing.
    pub(super) fn failed(&mut self, name: &LogName, why: String) {
        self.failures.retain(|(of, _)| of != name);
        self.failures.push_back((name.clone(), why));
        if self.failures.len() > FAILURES_MAX {
            self.failures.pop_front();
        }
    }

    /// Takes the oldest log of an attempt that is over out of the list, if the list is too long or `must`.
    pub(super) fn take_oldest(&mut self, must: bool) -> Option<(LogName, Vec<Segment>)> {
        if !must && self.logs.len() <= LOGS_MAX {
            return None;
        }
        let oldest = self.logs.keys().find(|name| !self.live.contains(*name))?.clone();
        self.logs.remove_entry(&oldest)
    }
}
