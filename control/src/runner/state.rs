//! Owns the state of a runner: the context that all of its parts share, and the assignments that it holds.

use super::assignments::AssignmentTable;
use super::attempt::Attempt;
use super::context::RunnerContext;
use super::{RunnerConfig, RunnerDependencies};
use std::sync::Arc;
use tokio::sync::mpsc;

/// State of a runner. Attempts see only its context.
#[derive(Debug)]
pub(super) struct RunnerState {
    pub context: Arc<RunnerContext>,
    pub assignments: AssignmentTable,
    /// Queue of attempts that are in the table and have to be started.
    pub starts: mpsc::UnboundedSender<Arc<Attempt>>,
}

impl RunnerState {
    pub(super) fn new(
        config: RunnerConfig,
        dependencies: RunnerDependencies,
        starts: mpsc::UnboundedSender<Arc<Attempt>>,
    ) -> Self {
        Self {
            context: Arc::new(RunnerContext::new(config, dependencies)),
            assignments: AssignmentTable::new(),
            starts,
        }
    }

    /// Tells whether anything depends on the lease.
    pub(super) fn needs_lease(&self) -> bool {
        self.context.is_leading() || self.assignments.all().iter().any(|attempt| attempt.needs_lease())
    }
}
