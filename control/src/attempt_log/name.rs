//! Names logs of attempts, and their files.
//!
//! An attempt is named by its task and the time of its assignment, as the record has both from the beginning. A task that is
//! submitted again under a free name is assigned later, so its attempts have other names.

use crate::model::TaskId;
use std::path::{Path, PathBuf};

/// Between the parts of a file's name; no task has it in its own.
const SEPARATOR: char = '@';

/// Name of a log. The order is that of age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LogName {
    /// When the attempt was assigned, in milliseconds since 1970.
    pub assigned_ms: u64,
    pub task: TaskId,
}

impl LogName {
    /// Returns the path of the file that begins with this byte of the log.
    pub(super) fn path(&self, folder: &Path, start: u64) -> PathBuf {
        let Self { assigned_ms, task } = self;
        folder.join(format!("{task}{SEPARATOR}{assigned_ms}{SEPARATOR}{start}"))
    }

    /// Parses the name of a file; returns the first byte that is in it, too.
    pub(super) fn parse(file: &str) -> Option<(Self, u64)> {
        let mut parts = file.rsplitn(3, SEPARATOR);
        let start = parts.next()?.parse().ok()?;
        let assigned_ms = parts.next()?.parse().ok()?;
        let task = TaskId::new(parts.next()?).ok()?;
        Some((Self { assigned_ms, task }, start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_which_part_of_which_log_it_is() {
        for task in ["t", "nightly.20260131T020000Z", "vm~2.root", "a-b_c"] {
            let name = LogName { assigned_ms: 1_800_000_000_123, task: TaskId::new(task).unwrap() };
            let path = name.path(Path::new("/x"), 65_536);
            assert_eq!(path.parent(), Some(Path::new("/x")));
            assert_eq!(LogName::parse(path.file_name().unwrap().to_str().unwrap()), Some((name, 65_536)));
        }
        for foreign in ["", "t", "t@1", "t@x@1", "t@1@", "@1@1", "a/b@1@1", "lost+found"] {
            assert_eq!(LogName::parse(foreign), None, "{foreign}");
        }
    }
}
