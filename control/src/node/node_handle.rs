//! Lets the owner of a `taskd` stop it, ask for its status, and change its limits while it runs.
//!
//! Everything may be asked from any thread, before the node starts, while it starts, and after its end; nothing waits.

use super::overview::Overview;
use super::shutdown::StopHandle;
use crate::attempt_log::AttemptLogs;
use crate::config::Limits;
use std::sync::{Arc, OnceLock};

/// Handle of one node. Clones control the same one.
#[derive(Clone, Debug, Default)]
pub struct NodeHandle {
    stopper: StopHandle,
    overview: Arc<OnceLock<Overview>>,
    attempt_logs: AttemptLogs,
}

impl NodeHandle {
    /// Returns the handle that requests stops.
    #[must_use]
    pub fn stopper(&self) -> &StopHandle {
        &self.stopper
    }

    /// Returns the logs of the node's attempts. They are kept once the node has its state directory, if their layer is part
    /// of the process's log.
    #[must_use]
    pub fn attempt_logs(&self) -> &AttemptLogs {
        &self.attempt_logs
    }

    /// Attaches the node that was initialised.
    pub(super) fn attach(&self, overview: &Overview) {
        // There is one node, and it is initialised once.
        let _ = self.overview.set(overview.clone());
    }

    /// Applies these limits from now on; running tasks are not stopped. Returns false if the node is not initialised.
    pub fn limit(&self, limits: Limits) -> bool {
        let Some(overview) = self.overview.get() else { return false };
        if overview.runner.slots() != limits.slots {
            tracing::info!(slots = limits.slots, before = overview.runner.slots(), "slots changed");
            overview.runner.set_slots(limits.slots);
        }
        true
    }

    /// Reads the certificates again, if there are some. A node that is not initialised reads them later anyway.
    pub fn read_certificates(&self) {
        if let Some(tls) = self.overview.get().and_then(|overview| overview.tls.as_ref()) {
            tls.read_again();
        }
    }

    /// Reads the file of roles again, if there is one. A node that is not initialised reads it later anyway.
    pub fn read_roles(&self) {
        if let Some(access) = self.overview.get().and_then(|overview| overview.access.as_ref()) {
            access.read_again();
        }
    }

    /// Reads the order keys again, if there are some. A node that is not initialised has just read them.
    pub fn read_order_keys(&self) {
        if let Some(keys) = self.overview.get().and_then(|overview| overview.order_keys.as_ref()) {
            keys.read_again();
        }
    }

    /// Returns the state of the node as one JSON object.
    #[must_use]
    pub fn state(&self) -> String {
        let asked = format!("{:?}", self.stopper.asked()).to_lowercase();
        let mut state = match self.overview.get() {
            Some(overview) => overview.dump(),
            None => serde_json::json!({ "role": "starting" }),
        };
        state["stop"] = asked.into();
        state.to_string()
    }
}
