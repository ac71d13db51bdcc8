//! Lets the owner of a `taskd` stop it, ask for its status, and change its limits while it runs.
//!
//! Everything may be asked from any thread, before the node starts, while it starts, and after its end; nothing waits.

use super::overview::Overview;
use super::shutdown::StopHandle;
use crate::attempt_log::AttemptLogs;
use crate::clock::{Clock, HostClock};
use crate::config::Limits;
use crate::model::{Incarnation, LastEnd};
use crate::runner::{begin_run, boot_id, end_run};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Handle of one node. Clones control the same one.
#[derive(Clone, Debug, Default)]
pub struct NodeHandle {
    stopper: StopHandle,
    overview: Arc<OnceLock<Overview>>,
    attempt_logs: AttemptLogs,
    /// State directory and incarnation of the run, once it has begun.
    run: Arc<OnceLock<(PathBuf, Incarnation)>>,
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

    /// Notes in the state directory that the run begins. Returns how the last one ended, if that is known.
    pub(super) fn begin_run(&self, folder: &Path, incarnation: &Incarnation) -> Option<LastEnd> {
        let _ = self.run.set((folder.to_owned(), incarnation.clone()));
        begin_run(folder, incarnation, &boot_id()).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot note that this run begins: 'blockhaul runners' does not show how it ended");
            None
        })
    }

    /// Notes how the run ends, for the next one: `how` is a word of the registration. Does nothing if it has not begun.
    pub fn end_run(&self, how: &str, detail: String) {
        let Some((folder, incarnation)) = self.run.get() else { return };
        let end = LastEnd { how: how.to_owned(), detail, at_ms: Some(HostClock.unix_ms()) };
        if let Err(error) = end_run(folder, incarnation, end) {
            tracing::warn!(%error, "cannot note how this run ends");
        }
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
