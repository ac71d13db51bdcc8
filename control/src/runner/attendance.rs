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
use crate::stopping::NOTIFY_MAX;
use blockhaul_engine::job::Reason;
use tokio::time::timeout;

/// Serves the node's and the leader's requests to leave or to return all tasks, for as long as it is polled.
pub(super) async fn attend(state: &RunnerState) {
    loop {
        tokio::select! { biased;
            () = state.context.wanted_is(false) => stay_deregistered(state).await,
            () = state.context.interrupt.notified() => return_all_tasks(state).await,
        }
    }
}

/// Returns all tasks, and accepts assignments again.
async fn return_all_tasks(state: &RunnerState) {
    if !state.context.turn(RunnerPhase::Serving, RunnerPhase::Stopping) {
        return;
    }
    tracing::info!(node = %state.context.config.node, "asked to return all tasks");
    stop_all(state, Reason::RunnerInterrupt).await;
    if state.context.is_wanted() {
        state.context.turn(RunnerPhase::Stopping, RunnerPhase::Serving);
    }
}

/// Returns all tasks and deregisters, until the node wants a runner again.
async fn stay_deregistered(state: &RunnerState) {
    tracing::warn!(node = %state.context.config.node, "deregistering: returning all tasks");
    state.context.turn(RunnerPhase::Serving, RunnerPhase::Stopping);
    stop_all(state, Reason::RunnerInterrupt).await;
    let _ = timeout(NOTIFY_MAX, state.context.notifier.all_sent()).await;
    if state.context.is_ending() {
        return std::future::pending().await;
    }
    if state.context.turn(RunnerPhase::Stopping, RunnerPhase::Absent) {
        tokio::select! { biased;
            () = registration::deregister_until_gone(state) => tracing::info!(node = %state.context.config.node, "deregistered"),
            () = state.context.wanted_is(true) => {}
        }
    }
    state.context.is_away.send_replace(true);
    state.context.wanted_is(true).await;
    state.context.is_away.send_replace(false);
    if !state.context.is_ending() {
        state.context.turn(RunnerPhase::Absent, RunnerPhase::Serving);
    }
}
