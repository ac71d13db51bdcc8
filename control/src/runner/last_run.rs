//! Keeps in the state directory how the last run of `taskd` has ended, for operators. No decision depends on it.
//!
//! A run is noted when it begins, and again when it ends. What always holds: a process notes the end of its own run only.
//!
//! | what the next run finds | how the last one ended |
//! | --- | --- |
//! | a run with an end | as it says |
//! | a run without an end, of this boot | `crashed`: it was killed, or has crashed |
//! | a run without an end, of another boot | `host-restarted` |

use super::node_state::replace;
use crate::model::{Incarnation, LastEnd};
use blockhaul_engine::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file in the state directory.
const FILE: &str = "run";
/// Most characters of a detail: it is part of the registration.
const DETAIL_CHARS_MAX: usize = 200;

/// A run of `taskd`.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    incarnation: Incarnation,
    boot_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<LastEnd>,
}

/// Notes that a run begins. Returns how the last one ended; `None`: there was none, or its note cannot be read.
///
/// # Errors
/// The error of writing the file.
pub(crate) fn begin_run(folder: &Path, incarnation: &Incarnation, boot_id: &str) -> Result<Option<LastEnd>> {
    let last = read(folder).map(|run| {
        run.end.unwrap_or_else(|| {
            let how = if run.boot_id == boot_id { "crashed" } else { "host-restarted" };
            LastEnd { how: how.to_owned(), detail: String::new(), at_ms: None }
        })
    });
    let run = Run { incarnation: incarnation.clone(), boot_id: boot_id.to_owned(), end: None };
    write(folder, &run).map(|()| last)
}

/// Notes how a run ends, unless another one has begun meanwhile.
///
/// # Errors
/// The error of writing the file.
pub(crate) fn end_run(folder: &Path, incarnation: &Incarnation, end: LastEnd) -> Result<()> {
    match read(folder) {
        Some(run) if run.incarnation == *incarnation => {
            let detail = end.detail.chars().take(DETAIL_CHARS_MAX).collect();
            write(folder, &Run { end: Some(LastEnd { detail, ..end }), ..run })
        }
        _ => Ok(()),
    }
}

fn read(folder: &Path) -> Option<Run> {
    serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
}

fn write(folder: &Path, run: &Run) -> Result<()> {
    let text = serde_json::to_string(run).expect("it has no keys but strings");
    replace(folder, FILE, &format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_finds_how_the_last_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let life = |number: u32| Incarnation(format!("life-{number}"));
        let begin = |number, boot| begin_run(folder.path(), &life(number), boot).unwrap();
        let how = |end: Option<LastEnd>| end.map(|end| end.how);
        assert_eq!(begin(1, "a"), None);
        assert_eq!(how(begin(2, "a")).as_deref(), Some("crashed"));
        assert_eq!(how(begin(3, "b")).as_deref(), Some("host-restarted"));
        let end = LastEnd { how: String::from("stopped"), detail: "x".repeat(1000), at_ms: Some(7) };
        end_run(folder.path(), &life(3), end.clone()).unwrap();
        let found = begin(4, "b").unwrap();
        assert_eq!((found.how.as_str(), found.detail.len(), found.at_ms), ("stopped", DETAIL_CHARS_MAX, Some(7)));
        // One that has been overtaken says nothing about the other.
        end_run(folder.path(), &life(3), end).unwrap();
        assert_eq!(how(begin(5, "b")).as_deref(), Some("crashed"));
        std::fs::write(folder.path().join(FILE), "?").unwrap();
        assert_eq!(begin(6, "b"), None);
    }
}
