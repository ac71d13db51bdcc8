//! Finds the processes of one hook among those of the host, and signals them.
//!
//! The tree of a hook holds its first process and
//!
//! - every descendant of a process of the tree,
//! - every process in a session of a process of the tree: only descendants get into one,
//! - orphans, which are our children now, if they were seen in the tree before or if their environment carries the
//!   hook's mark.
//!
//! An orphan without a mark that was not seen before is left alone: other programs that this process runs leave orphans,
//! too, and may rely on them.
//!
//! The first process is not reaped before the tree is gone. So its number stays taken, and with it the number of its
//! session and its group.

use crate::mark::{HookMark, Marking};
use crate::process::{Phase, ProcessKey, ProcessStat, kill_group_of, signal_process};
use crate::subreaper::{OwnChildren, reap_orphans};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;

/// The processes of one hook, as far as they were seen.
#[derive(Debug)]
pub(crate) struct ProcessTree {
    first: ProcessKey,
    mark: HookMark,
    /// Processes of the tree at the last look.
    known: HashSet<ProcessKey>,
    /// Processes that were asked to end.
    terminated: HashSet<ProcessKey>,
}

impl ProcessTree {
    pub(crate) fn new(first: ProcessKey, mark: HookMark) -> Self {
        Self { first, mark, known: HashSet::from([first]), terminated: HashSet::new() }
    }

    /// Looks for the processes of the tree that live, and reaps orphans that do not.
    ///
    /// # Errors
    /// Those of reading `/proc`: what lives is not known then.
    pub(crate) fn look(&mut self) -> io::Result<Vec<ProcessStat>> {
        let table = ProcessStat::read_all()?;
        let children = OwnChildren::now();
        let mark = &self.mark;
        let tree = self.within(&table, &children, |process| mark.on_process(process.key.pid));
        self.known = tree.iter().map(|process| process.key).collect();
        self.terminated.retain(|key| self.known.contains(key));
        reap_orphans(&table, &self.known);
        Ok(tree.into_iter().filter(|process| process.phase == Phase::Living).collect())
    }

    /// Returns the processes of the tree in `table`.
    fn within(
        &self,
        table: &[ProcessStat],
        children: &OwnChildren,
        marking: impl Fn(&ProcessStat) -> Marking,
    ) -> Vec<ProcessStat> {
        let is_ours = |process: &ProcessStat| {
            self.known.contains(&process.key)
                || process.session == self.first.pid
                || (children.is_orphan(process) && marking(process) == Marking::Ours)
        };
        let table: Vec<ProcessStat> = table.iter().filter(|process| children.is_foreign(process)).copied().collect();
        let roots = table.iter().filter(|process| is_ours(process)).map(|process| process.key.pid).collect();
        descendants(&table, roots)
    }

    /// Asks processes of the tree to end, each of them once.
    pub(crate) fn terminate(&mut self, living: &[ProcessStat]) {
        for process in living.iter().filter(|process| self.terminated.insert(process.key)) {
            signal_process(process.key, Signal::SIGTERM);
        }
    }
}

/// Kills processes of a tree, whole groups at once.
pub(crate) fn kill(living: &[ProcessStat]) {
    let groups: BTreeMap<i32, &ProcessStat> = living.iter().map(|process| (process.group, process)).collect();
    groups.into_values().for_each(kill_group_of);
}

/// Returns the processes of `table` whose number is in `tree`, their descendants, and what is in a session with them.
/// `table` must not hold processes of our session.
pub(crate) fn descendants(table: &[ProcessStat], mut tree: BTreeSet<i32>) -> Vec<ProcessStat> {
    let mut sessions: BTreeSet<i32> = BTreeSet::new();
    let (mut inside, mut outside): (Vec<ProcessStat>, Vec<ProcessStat>) = (Vec::new(), table.to_vec());
    loop {
        let is_inside = |process: &ProcessStat| {
            tree.contains(&process.key.pid) || tree.contains(&process.parent) || sessions.contains(&process.session)
        };
        let (found, rest): (Vec<_>, Vec<_>) = outside.into_iter().partition(is_inside);
        if found.is_empty() {
            return inside;
        }
        tree.extend(found.iter().map(|process| process.key.pid));
        // A session from outside of our namespace shows as 0, as does the one of the kernel's threads.
        sessions.extend(found.iter().map(|process| process.session).filter(|session| *session > 0));
        inside.extend(found);
        outside = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: i32 = 100;
    const OWN_SESSION: i32 = 90;
    const HOOK: i32 = 200;

    fn process(pid: i32, parent: i32, session: i32) -> ProcessStat {
        let key = ProcessKey { pid, start_ticks: 1 };
        ProcessStat { key, parent, group: session, session, phase: Phase::Living }
    }

    fn tree() -> ProcessTree {
        ProcessTree::new(ProcessKey { pid: HOOK, start_ticks: 1 }, HookMark::new("t", "n", 1, 1))
    }

    fn found(tree: &ProcessTree, table: &[ProcessStat], hooks: &[i32], marking: Marking) -> Vec<i32> {
        let children = OwnChildren::of_test(OWN, OWN_SESSION, hooks);
        let mut pids: Vec<i32> = tree.within(table, &children, |_| marking).iter().map(|found| found.key.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn descendants_are_found_through_every_session() {
        let table = [
            process(OWN, 1, OWN_SESSION),
            process(101, OWN, OWN_SESSION),
            process(HOOK, OWN, HOOK),
            process(201, HOOK, HOOK),
            process(202, 201, 202),
            process(203, 202, 202),
            // Its parent has ended, and was not our descendant any more.
            process(204, 1, 202),
            process(300, 1, 300),
        ];
        assert_eq!(found(&tree(), &table, &[HOOK], Marking::Unknown), [HOOK, 201, 202, 203, 204]);
    }

    #[test]
    fn orphans_are_told_apart_by_their_mark() {
        let table = [process(HOOK, OWN, HOOK), process(210, OWN, 210), process(250, OWN, 250), process(251, 250, 251)];
        let hooks = [HOOK, 210];
        assert_eq!(found(&tree(), &table, &hooks, Marking::Ours), [HOOK, 250, 251]);
        assert_eq!(found(&tree(), &table, &hooks, Marking::Unknown), [HOOK]);
        assert_eq!(found(&tree(), &table[..1], &hooks, Marking::Ours), [HOOK]);
    }

    #[test]
    fn an_orphan_that_was_seen_before_stays_known_and_its_number_alone_does_not() {
        let mut tree = tree();
        tree.known.insert(ProcessKey { pid: 250, start_ticks: 1 });
        let other = ProcessStat { key: ProcessKey { pid: 250, start_ticks: 2 }, ..process(250, 1, 250) };
        assert_eq!(found(&tree, &[process(250, OWN, 250)], &[HOOK, 210], Marking::Unknown), [250]);
        assert_eq!(found(&tree, &[other], &[HOOK, 210], Marking::Ours), [] as [i32; 0]);
    }

    #[test]
    fn our_own_session_is_never_taken() {
        let table = [process(OWN, 1, OWN_SESSION), process(101, OWN, OWN_SESSION), process(102, 101, OWN_SESSION)];
        assert_eq!(found(&tree(), &table, &[HOOK], Marking::Ours), [] as [i32; 0]);
    }
}
