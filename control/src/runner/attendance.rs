//! Whether a runner is there: it leaves the runners when its node is no use to anybody, and comes back, in one process.
//!
//! ```text
//!  there --interrupt--> gives back --> there
//!  there --leave--> gives back --> registration removed --> away --come back--> there
//! ```
//! What always holds: one loop moves the mood between these, so that giving back for one reason is never undone by the end
//! of another. A copy that has not come to rest in time loses its lease before the registration goes, as it would with its
//! session: nothing it does later is believed.

use super::context::{Hub, Mood};
use super::{registration, stop_all};
use crate::stopping::TELL_MAX;
use blockhaul_engine::job::Reason;
use tokio::time::timeout;

/// Does what it is asked to, for as long as it is polled.
pub(super) async fn attend(hub: &Hub) {
    loop {
        tokio::select! { biased;
            () = hub.wanted_is(false) => stay_away(hub).await,
            () = hub.interrupt.notified() => give_back(hub).await,
        }
    }
}

/// Gives everything back, and goes on.
async fn give_back(hub: &Hub) {
    if !hub.turn(Mood::Serving, Mood::Stopping) {
        return;
    }
    tracing::info!(node = %hub.config.node, "asked to give back everything");
    stop_all(hub, Reason::RunnerInterrupt).await;
    if hub.is_wanted() {
        hub.turn(Mood::Stopping, Mood::Serving);
    }
}

/// Gives everything back and leaves, until it is wanted again.
async fn stay_away(hub: &Hub) {
    tracing::warn!(node = %hub.config.node, "leaves the runners: gives everything back");
    hub.turn(Mood::Serving, Mood::Stopping);
    stop_all(hub, Reason::RunnerInterrupt).await;
    let _ = timeout(TELL_MAX, hub.hints.told()).await;
    if hub.is_ending() {
        return std::future::pending().await;
    }
    if hub.turn(Mood::Stopping, Mood::Absent) {
        tokio::select! { biased;
            () = registration::withdraw(hub) => tracing::info!(node = %hub.config.node, "gone from the runners"),
            () = hub.wanted_is(true) => {}
        }
    }
    hub.is_away.send_replace(true);
    hub.wanted_is(true).await;
    hub.is_away.send_replace(false);
    if !hub.is_ending() {
        hub.turn(Mood::Absent, Mood::Serving);
    }
}
