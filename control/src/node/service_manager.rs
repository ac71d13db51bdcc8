//! Tells the service manager the state of the process (`sd_notify`): ready, status, alive, stopping. Tells nothing where no
//! service manager has asked for it (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).

use super::overview::Overview;
use crate::liveness::LivenessCounters;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks at the status.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Signs of life in the time after which a watchdog acts.
const SIGNS: u32 = 3;

/// Says that the process is ready; then, for as long as it is polled, its status when it changes, and signs of life while
/// all loops go round.
pub(super) async fn attend(overview: &Overview, mut liveness: LivenessCounters) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(LOOK_EVERY, |patience| (patience / SIGNS).min(LOOK_EVERY));
    let mut said = overview.line();
    tell(&[NotifyState::Ready, NotifyState::Status(&said)]);
    loop {
        let line = overview.line();
        if line != said {
            tell(&[NotifyState::Status(&line)]);
            said = line;
        }
        if watchdog.is_some() && liveness.have_all_advanced() {
            tell(&[NotifyState::Watchdog]);
        }
        sleep(every).await;
    }
}

/// Says that it stops, and why it may take a moment.
pub(super) fn stopping(overview: &Overview) {
    let line = format!("stopping: returning {} tasks", overview.runner.held().len());
    tell(&[NotifyState::Stopping, NotifyState::Status(&line)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
