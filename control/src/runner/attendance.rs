//! Registers and deregisters the runner: it leaves the runners when its node is unusable, and comes back, within one
//! process.
//!
//! ```text
//!  active --interrupt--> returns its tasks --> active
//!  active --leave--> returns its tasks --> registration removed --> away --come back--> active
//! ```
//! What always holds: one loop changes the phase, so that the end of one stop never undoes another. A copy that has not
//! drained in time loses its lease before the registration is removed, as it would with its session: no later report of
//! it counts.

use super::context::{RunnerContext, RunnerPhase};
use super::{registration, stop_all};
use crate::stopping::NOTIFY_MAX;
use blockhaul_engine::job::Reason;
use tokio::time::timeout;

/// Does what the node asks, for as long as it is polled.
pub(super) async fn attend(context: &RunnerContext) {
    loop {
        tokio::select! { biased;
            () = context.wanted_is(false) => stay_deregistered(context).await,
            () = context.interrupt.notified() => return_all_tasks(context).await,
        }
    }
}

/// Returns all tasks, and continues.
async fn return_all_tasks(context: &RunnerContext) {
    if !context.turn(RunnerPhase::Serving, RunnerPhase::Stopping) {
        return;
    }
    tracing::info!(node = %context.config.node, "asked to return all tasks");
    stop_all(context, Reason::RunnerInterrupt).await;
    if context.is_wanted() {
        context.turn(RunnerPhase::Stopping, RunnerPhase::Serving);
    }
}

/// Returns all tasks and deregisters, until the node wants a runner again.
async fn stay_deregistered(context: &RunnerContext) {
    tracing::warn!(node = %context.config.node, "deregistering: returning all tasks");
    context.turn(RunnerPhase::Serving, RunnerPhase::Stopping);
    stop_all(context, Reason::RunnerInterrupt).await;
    let _ = timeout(NOTIFY_MAX, context.notifier.all_sent()).await;
    if context.is_ending() {
        return std::future::pending().await;
    }
    if context.turn(RunnerPhase::Stopping, RunnerPhase::Absent) {
        tokio::select! { biased;
            () = registration::deregister_until_gone(context) => tracing::info!(node = %context.config.node, "deregistered"),
            () = context.wanted_is(true) => {}
        }
    }
    context.is_away.send_replace(true);
    context.wanted_is(true).await;
    context.is_away.send_replace(false);
    if !context.is_ending() {
        context.turn(RunnerPhase::Absent, RunnerPhase::Serving);
    }
}
