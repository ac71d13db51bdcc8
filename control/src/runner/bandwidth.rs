//! Keeps the copies of this node together within the center's setting `bandwidth`: reads the setting now and then, and follows
//! its windows by the clock of this node. Without a connection, what was read last counts.

use super::context::RunnerContext;
use crate::coord::paths;
use crate::model::{RateSchedule, Record, Settings};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Time between two reads of the settings; nodes follow a change within 30 s.
const READ_EVERY: Duration = Duration::from_secs(15);
/// Longest wait for one read.
const READ_WAIT: Duration = Duration::from_secs(5);
/// Time between two looks at the clock; a window counts within a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs for as long as the runner.
pub(super) async fn follow_settings(context: &RunnerContext) {
    let mut rates = RateSchedule::default();
    let mut read_at = Duration::ZERO;
    let mut applied = None;
    loop {
        if read_at <= context.now() {
            read_at = context.now() + READ_EVERY;
            if let Some(read) = read(context).await {
                rates = read;
            }
        }
        let rate = rates.rate(context.unix_ms());
        if rate != applied {
            tracing::info!(bytes_per_second = ?rate, "the limit of all copies of this node together has changed");
            context.dependencies.executor.set_bandwidth(rate);
            applied = rate;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Reads the rates; `None` if they cannot be known now.
async fn read(context: &RunnerContext) -> Option<RateSchedule> {
    let session = context.registration.borrow().as_ref()?.session.clone();
    let node = match timeout(READ_WAIT, session.get(paths::SETTINGS)).await {
        Ok(Ok(Some(node))) => node,
        Ok(Ok(None)) => return Some(RateSchedule::default()),
        Ok(Err(_)) | Err(_) => return None,
    };
    let settings = Settings::decode(&node.data).map_err(|error| error.to_string());
    let rates = settings.and_then(|settings| settings.rates().map_err(|error| error.message));
    rates
        .inspect_err(|why| tracing::warn!(%why, "the setting of the bandwidth cannot be read: it stays as it was"))
        .ok()
}
