//! Runs the hooks of members, and collects their ends.
//!
//! A hook that asks for a retry (exit code 75) is run again after a while. A member keeps its place until no process of
//! its hook is left.

use super::request::BatchRequest;
use super::state::{BatchState, now_ms};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::flow::event_queue::Event;
use blockhaul_engine::flow::scheduler::TaskResult;
use blockhaul_hooks::{
    HookEvent, HookFolder, HookHandle, HookName, HookOrder, HookOutcome, HookReport, HookRequest, HookStateFolder,
    Subreaper, become_subreaper,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest wait for what hooks of a run that was killed have left behind.
const LEFTOVERS_WAIT: Duration = Duration::from_secs(30);
/// Runs of a hook that asks for a retry each time.
const RUNS_MAX: u64 = 5;
/// Wait before the second run; doubled before each further one.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Runs hooks, if a member has one.
#[derive(Debug)]
pub(super) struct HookRunner<'a> {
    setup: Option<Setup<'a>>,
    /// Number of runs of each member's hook so far.
    runs: BTreeMap<usize, u64>,
    epoch: u64,
}

#[derive(Debug)]
struct Setup<'a> {
    folder: &'a HookFolder,
    state: HookStateFolder,
    subreaper: Subreaper,
}

/// A hook that runs.
#[derive(Debug)]
pub(super) struct RunningHook {
    handle: HookHandle,
    report: Arc<Mutex<Option<HookReport>>>,
}

/// What follows from the end of a hook.
#[derive(Debug)]
pub(super) enum HookEnd {
    /// The member has ended.
    Ended(TaskResult),
    /// It was stopped.
    Stopped,
    /// It runs again after this wait.
    Again(Duration),
}

impl<'a> HookRunner<'a> {
    /// Prepares hooks: kills what those of a run that was killed have left behind.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn new(request: &'a BatchRequest, state: &BatchState) -> Result<Self> {
        // An earlier run may have had hooks that this file has no more.
        let state = (request.hooks.is_some() || state.hooks_folder().exists())
            .then(|| HookStateFolder::open(state.hooks_folder()))
            .transpose()?;
        if let Some(state) = &state {
            for leftover in state.kill_leftovers(LEFTOVERS_WAIT)? {
                tracing::warn!(?leftover, "killed what a hook had left behind");
            }
        }
        let setup = match (&request.hooks, state) {
            (Some(folder), Some(state)) => Some(Setup { folder, state, subreaper: become_subreaper()? }),
            (_, _) => None,
        };
        Ok(Self { setup, runs: BTreeMap::new(), epoch: now_ms() })
    }

    /// Starts the hook of a member. `event` completes when no process of it is left.
    ///
    /// # Errors
    /// The hook cannot be found or started.
    pub(super) fn start(
        &mut self,
        member: usize,
        (name, request): &(HookName, HookRequest),
        event: &Event,
    ) -> Result<RunningHook> {
        let setup = self.setup.as_ref().expect("a member with a hook has opened the folder");
        let attempt = self.runs.entry(member).or_default();
        *attempt += 1;
        let order = HookOrder::try_from(HookRequest { attempt: *attempt, epoch: self.epoch, ..request.clone() })?;
        let hook = setup.folder.hook(name)?;
        let report = Arc::new(Mutex::new(None));
        let (kept, event) = (Arc::clone(&report), event.clone());
        let handle = HookHandle::start(setup.subreaper, hook, order, &setup.state, move |told| match told {
            HookEvent::Ended(report) => {
                if !report.survivors.is_empty() {
                    tracing::warn!(processes = ?report.survivors, "processes of a hook survive SIGKILL: waiting for them");
                }
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
            }
            HookEvent::Gone => _ = event.complete(Ok(())),
        })?;
        Ok(RunningHook { handle, report })
    }

    /// Decides what follows from the end of a member's hook.
    pub(super) fn ended(&self, member: usize, report: &HookReport) -> HookEnd {
        match &report.outcome {
            HookOutcome::Succeeded => HookEnd::Ended(Ok(())),
            HookOutcome::Failed(error) | HookOutcome::TimedOut(error) => HookEnd::Ended(Err(error.clone())),
            HookOutcome::Stopped => HookEnd::Stopped,
            HookOutcome::Retry => match self.runs.get(&member).copied().unwrap_or_default() {
                runs @ 0..RUNS_MAX => {
                    HookEnd::Again(RETRY_WAIT * 2_u32.pow(u32::try_from(runs.max(1) - 1).unwrap_or(0)))
                }
                runs => {
                    let message =
                        format!("its hook has asked for a retry {runs} times: {}", report.output.shown_tail());
                    HookEnd::Ended(Err(Error::new(Code::Hook, Side::Engine, Operation::Start, message)))
                }
            },
        }
    }
}

impl RunningHook {
    /// Stops the hook: SIGTERM now, SIGKILL after `grace`.
    pub(super) fn stop(&self, grace: Duration) {
        self.handle.stop(grace);
    }

    /// Returns the report once no process is left.
    pub(super) fn report(&self) -> Option<HookReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
