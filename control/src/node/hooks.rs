//! Prepares the hooks of a node at its start.
//!
//! What always holds: before the node registers, no process of a hook of an earlier `taskd` is left. Tasks cannot write a
//! hook, nor what is known of running ones: the folders of both lie apart from all allowed paths.

use super::apart::check_apart;
use crate::config::Config;
use crate::runner::NodeHooks;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use blockhaul_hooks::{HookFolder, HookStateFolder, Leftover, become_subreaper};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for processes that were killed. What is left then waits for a device.
const LEFTOVERS_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for the lock of the folder: a predecessor that was killed may still hold it.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Time between two attempts to lock it.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// Kills what earlier hooks have left, and opens the hooks folder if there is one. Blocks for up to half a minute.
///
/// # Errors
/// `EBadRequest` if the hooks folder or the state directory overlaps an allowed path; `EPermission` for a folder that
/// others can change; `EBusy` while something of an earlier hook survives SIGKILL; others of the system.
pub(super) fn open_hooks(config: &Config) -> Result<Option<NodeHooks>> {
    // The flag may have been there at an earlier start.
    let state_path = config.state_dir.join("hooks");
    if config.hooks_dir.is_none() && !state_path.exists() {
        return Ok(None);
    }
    let state = lock(&state_path)?;
    kill_leftovers(&state)?;
    let Some(hooks_path) = &config.hooks_dir else { return Ok(None) };
    for (flag, folder) in [("--hooks-dir", hooks_path), ("--state-dir", &config.state_dir)] {
        check_apart(flag, folder, &config.allow_paths, "a task could write a program that runs as taskd")?;
    }
    let folder = HookFolder::open(hooks_path)?;
    let subreaper = become_subreaper()?;
    tracing::info!(folder = %folder.path().shown(), "hooks enabled");
    Ok(Some(NodeHooks::new(config.node.clone(), folder, state, subreaper)))
}

fn lock(path: &Path) -> Result<HookStateFolder> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match HookStateFolder::open(path) {
            Err(error) if error.code == Code::Busy && Instant::now() < deadline => std::thread::sleep(LOCK_EVERY),
            opened => return opened,
        }
    }
}

fn kill_leftovers(state: &HookStateFolder) -> Result<()> {
    for Leftover { hook, task, attempt, survivors } in state.kill_leftovers(LEFTOVERS_WAIT)? {
        tracing::warn!(%hook, task, attempt, "killed what a hook had left behind");
        if !survivors.is_empty() {
            let message = format!(
                "processes {survivors:?} of hook {hook}, which an earlier taskd ran for task {task}, survive SIGKILL, as they \
                 wait for a device"
            );
            let error = Error::new(Code::Busy, Side::Engine, Operation::Start, message);
            return Err(error.advise("start taskd again when they are gone, or restart the host"));
        }
    }
    Ok(())
}
