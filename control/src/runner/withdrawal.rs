//! Returns all tasks and deregisters the runner while its node wants no runner, and registers it again afterwards,
//! within one process.
//!
//! ```text
//!  active --interrupt--> returns its tasks --> active
//!  active --leave--> returns its tasks --> registration removed --> away --come back--> active
//! ```
//! What always holds: one loop changes the phase, so that the end of one stop never undoes another. A copy that has not
//! drained in time loses its lease before the registration is removed, as at the end of a session: no later write about
//! it succeeds.

use super::context::RunnerPhase;
use super::state::RunnerState;
use super::{registration, stop_all};
use crate::stop_bounds::NOTIFY_MAX;
use blockhaul_engine::job::StopReason;
use tokio::time::timeout;

/// Serves the node's and the leader's requests to leave or to return all tasks, for as long as it is polled.
pub(super) async fn run(state: &RunnerState) {
    loop {
        tokio::select! { biased;
            () = state.context.wait_for_wanted(false) => stay_deregistered(state).await,
            () = state.context.interrupt.notified() => return_all_tasks(state).await,
        }
    }
}

/// Returns all tasks, and accepts assignments again.
async fn return_all_tasks(state: &RunnerState) {
    if !state.context.change_phase(RunnerPhase::Serving, RunnerPhase::Stopping) {
        return;
    }
    tracing::info!(node = %state.context.config.node, "asked to return all tasks");
    stop_all(state, StopReason::RunnerInterrupt).await;
    if state.context.is_wanted() {
        state.context.change_phase(RunnerPhase::Stopping, RunnerPhase::Serving);
    }
}

/// Returns all tasks and deregisters, until the node wants a runner again.
async fn stay_deregistered(state: &RunnerState) {
    tracing::warn!(node = %state.context.config.node, "deregistering: returning all tasks");
    state.context.change_phase(RunnerPhase::Serving, RunnerPhase::Stopping);
    stop_all(state, StopReason::RunnerInterrupt).await;
    let _ = timeout(NOTIFY_MAX, state.context.notifier.all_sent()).await;
    if state.context.is_ending() {
        return std::future::pending().await;
    }
    if state.context.change_phase(RunnerPhase::Stopping, RunnerPhase::Absent) {
        tokio::select! { biased;
            () = registration::deregister_until_gone(state) => tracing::info!(node = %state.context.config.node, "deregistered"),
            () = state.context.wait_for_wanted(true) => {}
        }
    }
    state.context.is_away.send_replace(true);
    state.context.wait_for_wanted(true).await;
    state.context.is_away.send_replace(false);
    if !state.context.is_ending() {
        state.context.change_phase(RunnerPhase::Absent, RunnerPhase::Serving);
    }
}
