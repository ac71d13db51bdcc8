//! Makes this process the parent of orphans, and reaps those that hooks leave behind.
//!
//! A subreaper becomes the parent of every descendant whose own parent has ended. So no process that a hook starts gets
//! out of sight, and each needs to be reaped here. Which children are orphans follows from their session: a hook begins
//! a session of its own, and nothing in its tree can come back into ours, whereas children that other code starts are in
//! our session. Hence the rule for programs that use this crate: a child in a session of its own that is no hook may be
//! reaped as soon as it has ended.
//!
//! Children are reaped one by one by their number: a wait for any child would take the end of one that other code waits
//! for.

use crate::process::{Phase, ProcessKey, ProcessStat};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use nix::sys::prctl::set_child_subreaper;
use nix::unistd::getsid;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The proof that this process is a subreaper.
#[derive(Clone, Copy, Debug)]
pub struct Subreaper(());

/// Makes this process the parent of all descendants that lose theirs. Once is enough; more do no harm.
///
/// # Errors
/// `EUnsupported` where the kernel is too old to supervise hooks, and other errors of the system.
pub fn become_subreaper() -> Result<Subreaper> {
    if let Err(error) = crate::process::open_process(own_pid()) {
        let error = Error::io(Side::Engine, Operation::Start, &error, "open a descriptor of this process (pidfd)");
        let is_limit = error.code == Code::Overloaded;
        return Err(if is_limit { error } else { error.with_code(Code::Unsupported).advise(KERNEL) });
    }
    set_child_subreaper(true)
        .map_err(|errno| Error::os(Side::Engine, Operation::Start, errno, "become the parent of orphans"))?;
    Ok(Subreaper(()))
}

/// Advice where a call of the kernel is missing.
pub(crate) const KERNEL: &str = "hooks need Linux 5.11 or later, and a system call filter that lets its calls through";

/// The hooks of this process.
struct Hooks {
    /// Hooks that are about to have a process, or to fail at that.
    starting: usize,
    /// Processes that were started as hooks and are not reaped yet.
    processes: BTreeSet<i32>,
}

static HOOKS: Mutex<Hooks> = Mutex::new(Hooks { starting: 0, processes: BTreeSet::new() });

fn hooks() -> MutexGuard<'static, Hooks> {
    // Nothing panics while it is held but a test.
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hook that is being started, or whose process is not reaped yet.
#[derive(Debug)]
pub(crate) struct Presence {
    /// `None`: there may be a process that is not known yet.
    process: Option<i32>,
}

impl Presence {
    /// Announces that a process will be started. While one is, no child is taken for an orphan.
    pub(crate) fn starting() -> Self {
        hooks().starting += 1;
        Self { process: None }
    }

    /// Tells which process was started.
    pub(crate) fn set_running(&mut self, pid: i32) {
        let mut hooks = hooks();
        hooks.processes.insert(pid);
        if self.process.replace(pid).is_none() {
            hooks.starting -= 1;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut hooks = hooks();
        match self.process {
            None => hooks.starting -= 1,
            Some(pid) => {
                hooks.processes.remove(&pid);
            }
        }
    }
}

/// What is known about the children of this process, to tell orphans from others.
#[derive(Clone, Debug)]
pub(crate) struct OwnChildren {
    own: i32,
    session: i32,
    hooks: BTreeSet<i32>,
}

impl OwnChildren {
    /// Returns what is known now.
    pub(crate) fn now() -> Self {
        let hooks = hooks();
        Self { own: own_pid(), session: own_session(), hooks: hooks.processes.clone() }
    }

    /// Tells whether a hook or what it started has left this process to us.
    pub(crate) fn is_orphan(&self, process: &ProcessStat) -> bool {
        process.parent == self.own && process.session != self.session && !self.hooks.contains(&process.key.pid)
    }

    /// Tells whether a process can be taken for one of a hook at all.
    pub(crate) fn is_foreign(&self, process: &ProcessStat) -> bool {
        process.key.pid != self.own && process.session != self.session
    }

    #[cfg(test)]
    pub(crate) fn of_test(own: i32, session: i32, hooks: &[i32]) -> Self {
        Self { own, session, hooks: hooks.iter().copied().collect() }
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn own_session() -> i32 {
    getsid(None).map_or(0, nix::unistd::Pid::as_raw)
}

/// Reaps orphans that have ended: those in `tree`, and those of other hooks.
pub(crate) fn reap_orphans(table: &[ProcessStat], tree: &HashSet<ProcessKey>) {
    let own = own_pid();
    let is_ended_child = |stat: &ProcessStat| stat.parent == own && stat.phase == Phase::Ended;
    let candidates: Vec<&ProcessStat> = table.iter().filter(|stat| is_ended_child(stat)).collect();
    if candidates.is_empty() {
        return;
    }
    // Held to the end, so that no hook is started meanwhile, and no other thread reaps.
    let hooks = hooks();
    let session = own_session();
    for orphan in candidates {
        let pid = orphan.key.pid;
        let is_orphan = |stat: &ProcessStat| {
            stat.key == orphan.key
                && is_ended_child(stat)
                && stat.session != session
                && !hooks.processes.contains(&stat.key.pid)
                // The standard library waits for a hook that cannot be executed.
                && (hooks.starting == 0 || tree.contains(&stat.key))
        };
        if ProcessStat::read(pid).as_ref().is_some_and(is_orphan)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}
