//! Remembers which signed tasks have ended on this node, until their orders have expired.
//!
//! The record of a task can be deleted and written again by whoever writes the coordination service, with the order that was
//! signed once. So each node keeps a list of its own, in the state directory:
//!
//! ```text
//! STATE_DIR/ended_orders   one line for each: last time at which an attempt may start in ms since 1970, a space, the id
//! ```
//! What always holds: a line is durable before the slot of its task is free. A line that a crash has cut short is dropped at the
//! next start: its task had not given up its slot. The file is written anew when most of its lines have expired.

use super::refused;
use crate::model::TaskId;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Name of the file in the state directory.
const FILE: &str = "ended_orders";
/// Most tasks that are remembered at once, about 40 MiB: ten a minute for a week, and far more with orders of a day.
const ENDED_MAX: usize = 250_000;
/// Lines that have expired, beyond as many that have not, after which the file is written anew.
const EXPIRED_LINES: usize = 1024;

/// Ended tasks; see the module's head.
#[derive(Debug)]
pub(crate) struct EndedOrders {
    path: PathBuf,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    /// When the order of each ceases to hold. Some may have expired.
    ended: HashMap<TaskId, u64>,
    file: Option<File>,
    /// Lines of the file.
    lines: usize,
    /// Number of lines at which those are dropped that have expired.
    lines_max: usize,
    /// Whether the file lacks some: it is written anew.
    is_incomplete: bool,
}

impl EndedOrders {
    /// Reads the list in a state directory.
    ///
    /// # Errors
    /// `ECheckpointCorrupt` if it holds something else; errors of reading it.
    pub(crate) fn open(state_dir: &Path, now_ms: u64) -> Result<Self> {
        let path = state_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(&error, "read", &path)),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut list = List { is_incomplete: whole.len() < text.len(), ..List::default() };
        for line in whole.lines() {
            let (not_after_ms, task) = parse(line).ok_or_else(|| {
                let message = format!("{} holds a line that is no ended order", path.shown());
                let error = Error::new(Code::CheckpointCorrupt, Side::Engine, Operation::Journal, message);
                error.advise(
                    "once all orders that were signed before now have expired, in seven days at most, remove it",
                )
            })?;
            list.lines += 1;
            if not_after_ms >= now_ms {
                list.ended.insert(task, not_after_ms);
            }
        }
        list.lines_max = 2 * list.ended.len() + EXPIRED_LINES;
        Ok(Self { path, list: Mutex::new(list) })
    }

    /// Checks that a task has not ended here, and that its end could be remembered.
    ///
    /// # Errors
    /// `EPermission`.
    pub(super) fn check(&self, task: &TaskId, now_ms: u64) -> Result<()> {
        let mut list = self.list();
        if list.ended.get(task).is_some_and(|not_after_ms| *not_after_ms >= now_ms) {
            return Err(refused(format!("{task} has ended on this node already")).advise("submit it under another ID"));
        }
        if list.ended.len() >= ENDED_MAX {
            list.ended.retain(|_, not_after_ms| *not_after_ms >= now_ms);
        }
        if list.ended.len() >= ENDED_MAX {
            return Err(refused(format!("this node remembers {ENDED_MAX} ended orders, and has no room for more")));
        }
        Ok(())
    }

    /// Adds a task.
    ///
    /// # Errors
    /// The error of writing the file. The task is remembered all the same, and written with the next one.
    pub(super) fn remember(&self, task: &TaskId, not_after_ms: u64, now_ms: u64) -> Result<()> {
        let mut list = self.list();
        let known_ms = list.ended.get(task).copied();
        if known_ms.is_some_and(|known_ms| known_ms >= not_after_ms) && !list.is_incomplete {
            return Ok(());
        }
        let not_after_ms = not_after_ms.max(known_ms.unwrap_or_default());
        list.ended.insert(task.clone(), not_after_ms);
        let written = if list.is_incomplete || list.lines >= list.lines_max {
            list.ended.retain(|_, not_after_ms| *not_after_ms >= now_ms);
            self.write_anew(&mut list)
        } else {
            append(&self.path, &mut list, &line(not_after_ms, task))
        };
        list.is_incomplete = written.is_err();
        written.map_err(|error| failed(&error, "write", &self.path))
    }

    fn write_anew(&self, list: &mut List) -> std::io::Result<()> {
        list.file = None;
        let fresh = self.path.with_extension("new");
        let text: String = list.ended.iter().map(|(task, not_after_ms)| line(*not_after_ms, task)).collect();
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        sync_folder(&self.path)?;
        list.lines = list.ended.len();
        list.lines_max = 2 * list.lines + EXPIRED_LINES;
        Ok(())
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append(path: &Path, list: &mut List, line: &str) -> std::io::Result<()> {
    let mut file = match list.file.take() {
        Some(file) => file,
        None => {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            sync_folder(path)?;
            file
        }
    };
    file.write_all(line.as_bytes())?;
    file.sync_data()?;
    list.lines += 1;
    list.file = Some(file);
    Ok(())
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn line(not_after_ms: u64, task: &TaskId) -> String {
    format!("{not_after_ms} {task}\n")
}

fn parse(line: &str) -> Option<(u64, TaskId)> {
    let (not_after_ms, task) = line.split_once(' ')?;
    Some((not_after_ms.parse().ok()?, TaskId::new(task).ok()?))
}

fn failed(error: &std::io::Error, verb: &str, path: &Path) -> Error {
    let error = Error::io(Side::Caller, Operation::Journal, error, format!("{verb} {}", path.shown()));
    error.advise("taskd keeps its state in --state-dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> TaskId {
        TaskId::new(text).unwrap()
    }

    #[test]
    fn an_ended_task_is_refused_until_its_order_has_expired_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let ended = EndedOrders::open(folder.path(), 5).unwrap();
        ended.check(&id("t"), 5).unwrap();
        ended.remember(&id("t"), 90, 5).unwrap();
        ended.remember(&id("t"), 100, 5).unwrap();
        ended.remember(&id("t"), 20, 5).unwrap();
        ended.remember(&id("t~2"), 50, 5).unwrap();
        for ended in [ended, EndedOrders::open(folder.path(), 6).unwrap()] {
            let error = ended.check(&id("t"), 100).unwrap_err();
            assert!(error.code == Code::Permission && error.message.contains("t has ended"), "{error}");
            ended.check(&id("t"), 101).unwrap();
            assert!(ended.check(&id("t~2"), 50).is_err() && ended.check(&id("t~2"), 51).is_ok());
        }
    }

    #[test]
    fn a_line_that_was_cut_short_is_dropped_and_a_damaged_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, "100 a\n100 b").unwrap();
        let ended = EndedOrders::open(folder.path(), 5).unwrap();
        assert!(ended.check(&id("a"), 5).is_err() && ended.check(&id("b"), 5).is_ok());
        ended.remember(&id("c"), 100, 5).unwrap();
        ended.remember(&id("d"), 100, 5).unwrap();
        let again = EndedOrders::open(folder.path(), 5).unwrap();
        assert!(["a", "c", "d"].iter().all(|task| again.check(&id(task), 5).is_err()));
        for bad in ["x a\n", "100\n", "100 a b\n", "\n"] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(EndedOrders::open(folder.path(), 5).unwrap_err().code, Code::CheckpointCorrupt, "{bad:?}");
        }
    }

    #[test]
    fn the_file_does_not_grow_with_what_has_expired() {
        let folder = tempfile::tempdir().unwrap();
        let ended = EndedOrders::open(folder.path(), 0).unwrap();
        for number in 0..3 * EXPIRED_LINES as u64 {
            ended.remember(&id(&format!("t{number}")), number, number).unwrap();
        }
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(text.lines().count() < 2 * EXPIRED_LINES, "{} lines", text.lines().count());
    }

    #[test]
    fn what_could_not_be_written_is_remembered_and_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let ended = EndedOrders::open(&state, 0).unwrap();
        assert!(ended.remember(&id("a"), 100, 5).is_err(), "there is no such folder");
        assert!(ended.check(&id("a"), 5).is_err());
        std::fs::create_dir(&state).unwrap();
        ended.remember(&id("b"), 100, 5).unwrap();
        let again = EndedOrders::open(&state, 5).unwrap();
        assert!(["a", "b"].iter().all(|task| again.check(&id(task), 5).is_err()));
    }
}
