//! Kills what hooks of an earlier process have left running, before the first hook is started.
//!
//! The kernel kills the first process of a hook together with the process that started it, but not what the hook has
//! started itself. Those processes are found by the records in the state folder: a record names the first process by
//! number, start time and boot. They are
//!
//! - the first process, if it is still the same one, and everything in its session,
//! - every process whose environment carries the mark of the hook and that is not older than it,
//! - all descendants of these, and what is in a session with them.
//!
//! When the first process is gone, its session counts by the mark alone: the number may belong to another session by
//! now, and what runs in that one must not be harmed.

use crate::limits::{ENDING_LOOK_MAX, ENDING_LOOK_MIN, RECORD_BYTES_MAX};
use crate::mark::Marking;
use crate::name::HookName;
use crate::process::{Phase, ProcessKey, ProcessStat};
use crate::process_tree::{descendants, kill};
use crate::record::{HookRecord, Parsed};
use crate::state_folder::{HookStateFolder, RunPaths};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::unistd::getsid;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// A hook of which an earlier process has left something running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Name of the hook.
    pub hook: HookName,
    /// The task for which it ran.
    pub task: String,
    /// The attempt for which it ran.
    pub attempt: u64,
    /// Numbers of processes that were killed and are still there. Usually none; they wait for a device.
    pub survivors: Vec<i32>,
}

impl HookStateFolder {
    /// Kills all processes that earlier hooks of this folder have left, waits up to `wait_max` until they are gone, and
    /// removes what the hooks have left in the folder. Returns the hooks of which something was running.
    ///
    /// What is left of a hook with survivors stays recorded, and a later call looks for it again.
    ///
    /// # Errors
    /// `EUnsupported` for a record of another version, whose processes cannot be found; `EInternal` while hooks of
    /// this process run; others of the system.
    pub fn kill_leftovers(&self, wait_max: Duration) -> Result<Vec<Leftover>> {
        if self.active() > 0 {
            return Err(Error::internal(Operation::Start, "leftovers of hooks are killed before the first one starts"));
        }
        let failed = |error: &io::Error| {
            let what = format!("look for hooks of an earlier process in {}", self.path().shown());
            Error::io(Side::Engine, Operation::Start, error, what)
        };
        let mut suspects = Vec::new();
        for paths in self.runs().map_err(|error| failed(&error))? {
            match self.recorded(&paths)? {
                Some(record) => suspects.push(Suspect { record, paths, seen: Vec::new(), was_running: false }),
                None => paths.remove(),
            }
        }
        let deadline = Instant::now() + wait_max;
        let (mut wait, mut was_empty) = (ENDING_LOOK_MIN, false);
        loop {
            let table = ProcessStat::read_all().map_err(|error| failed(&error))?;
            suspects.iter_mut().for_each(|suspect| suspect.look(&table));
            let is_empty = suspects.iter().all(|suspect| suspect.seen.is_empty());
            // Twice in a row: what was forked while the list was read may be missing in it.
            let is_over = is_empty && was_empty;
            if is_over || suspects.is_empty() || Instant::now() >= deadline {
                return Ok(suspects.into_iter().filter_map(Suspect::conclude).collect());
            }
            was_empty = is_empty;
            suspects.iter().for_each(|suspect| kill(&suspect.seen));
            std::thread::sleep(wait);
            wait = (wait * 2).min(ENDING_LOOK_MAX);
        }
    }

    /// Returns the record of a run that may have left something in this boot.
    fn recorded(&self, paths: &RunPaths) -> Result<Option<HookRecord>> {
        let mut bytes = Vec::new();
        let read = File::open(&paths.record).and_then(|file| file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| {
                let what = format!("read {}", paths.record.shown());
                Error::io(Side::Engine, Operation::Start, &error, what)
            })?,
        };
        match HookRecord::parse(&bytes) {
            Parsed::Executed(record) => Ok(Some(record).filter(|record| record.boot_id == self.boot_id())),
            Parsed::NotExecuted => Ok(None),
            Parsed::Unknown => {
                let message = format!(
                    "{} is not a hook's record of this version: see that no process of that hook runs, and remove it",
                    paths.record.shown()
                );
                Err(Error::new(Code::Unsupported, Side::Engine, Operation::Start, message))
            }
        }
    }
}

/// A recorded hook that may have left something.
struct Suspect {
    record: HookRecord,
    paths: RunPaths,
    /// What lived at the last look.
    seen: Vec<ProcessStat>,
    was_running: bool,
}

impl Suspect {
    fn look(&mut self, table: &[ProcessStat]) {
        let mark = self.record.mark();
        let table = without_ours(table);
        let roots = roots(&table, self.record.process, |process| mark.on_process(process.key.pid));
        self.seen = descendants(&table, roots);
        self.seen.retain(|process| process.phase == Phase::Living);
        self.was_running |= !self.seen.is_empty();
    }

    /// Removes the files of a hook of which nothing is left; returns what is to be told.
    fn conclude(self) -> Option<Leftover> {
        if self.seen.is_empty() {
            self.paths.remove();
        }
        let HookRecord { hook, task, attempt, .. } = self.record;
        let survivors = self.seen.iter().map(|process| process.key.pid).collect();
        self.was_running.then_some(Leftover { hook, task, attempt, survivors })
    }
}

/// Returns the processes outside of our session, in which no hook can be.
fn without_ours(table: &[ProcessStat]) -> Vec<ProcessStat> {
    let session = getsid(None).map_or(0, nix::unistd::Pid::as_raw);
    table.iter().filter(|process| process.session != session).copied().collect()
}

/// Returns the numbers of the processes that belong to the hook by themselves.
fn roots(table: &[ProcessStat], first: ProcessKey, marking: impl Fn(&ProcessStat) -> Marking) -> BTreeSet<i32> {
    let is_first_there = table.iter().any(|process| process.key == first);
    let is_root = |process: &&ProcessStat| {
        process.key == first
            || (is_first_there && process.session == first.pid)
            || (process.key.start_ticks >= first.start_ticks && marking(process) == Marking::Ours)
    };
    table.iter().filter(is_root).map(|process| process.key.pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, start_ticks: u64, session: i32) -> ProcessStat {
        let key = ProcessKey { pid, start_ticks };
        ProcessStat { key, parent: 1, group: session, session, phase: Phase::Living }
    }

    fn found(table: &[ProcessStat], marked: &[i32]) -> Vec<i32> {
        let marking = |process: &ProcessStat| {
            if marked.contains(&process.key.pid) { Marking::Ours } else { Marking::Unknown }
        };
        roots(table, ProcessKey { pid: 200, start_ticks: 50 }, marking).into_iter().collect()
    }

    #[test]
    fn the_session_counts_while_its_first_process_is_there() {
        let session = [process(201, 60, 200), process(202, 60, 200), process(300, 60, 300)];
        let with_first = [&session[..], &[process(200, 50, 200)]].concat();
        assert_eq!(found(&with_first, &[]), [200, 201, 202]);
        assert_eq!(found(&session, &[202]), [202], "without it, the mark decides");
    }

    #[test]
    fn a_number_that_was_used_again_is_another_process() {
        let table = [process(200, 70, 200), process(201, 71, 200)];
        assert_eq!(found(&table, &[]), [] as [i32; 0]);
        assert_eq!(found(&[process(300, 49, 300)], &[300]), [] as [i32; 0], "it is older than the hook");
    }
}
