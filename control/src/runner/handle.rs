//! Answers the calls of a dispatcher to this runner, from this process or over the network.
//!
//! Every call names the caller's epoch. A lower epoch than the highest one seen is refused, and a higher one is stored
//! first.

use super::assignments::AcceptResult;
use super::attempt::Attempt;
use super::context::RunnerPhase;
use super::state::RunnerState;
use crate::model::{Epoch, Incarnation, TaskId, TaskSpec};
use crate::peers::{AssignResponse, Assignment, AssignmentStatus, CallError};
use blockhaul_engine::error::{Code, Error};
use blockhaul_engine::job::StopReason;
use std::sync::Arc;

/// Calls of a runner. Clones are the same runner; it may have ended.
#[derive(Clone, Debug)]
pub struct RunnerHandle(Arc<RunnerState>);

impl RunnerHandle {
    pub(super) fn new(state: Arc<RunnerState>) -> Self {
        Self(state)
    }

    /// As [`RunnerClient::assign`](crate::peers::RunnerClient::assign).
    ///
    /// # Errors
    /// None so far: a refusal is an answer.
    pub async fn assign(&self, assignment: Assignment) -> Result<AssignResponse, CallError> {
        Ok(match self.accept(assignment) {
            Ok(()) => AssignResponse::Accepted,
            Err((code, why)) => AssignResponse::Refused { code, why },
        })
    }

    fn accept(&self, assignment: Assignment) -> Result<(), (Code, String)> {
        let Assignment { task, epoch, incarnation, leader } = assignment;
        let (state, context) = (&self.0, &self.0.context);
        let refused = |code, why: &str| Err((code, why.to_owned()));
        // Checked before the leader's epoch is stored.
        if incarnation != context.config.incarnation {
            return refused(Code::Fenced, "the assignment is for another process of this node");
        }
        context.accept_leader(leader)?;
        let attempt = Arc::new(Attempt::new(task, epoch, context.holder()));
        if state.assignments.status_of(&attempt).is_some() {
            return Ok(());
        }
        if *context.phase.borrow() != RunnerPhase::Serving {
            return refused(Code::RunnerInterrupt, "the runner is stopping");
        }
        let is_connected = context
            .registration
            .borrow()
            .as_ref()
            .is_some_and(|registration| registration.session.states().borrow().is_connected());
        if !is_connected {
            return refused(Code::Unreachable, "the runner has no connection to the coordination service");
        }
        match state.assignments.add(&attempt, context.slots() as usize) {
            AcceptResult::Added => {
                if state.starts.send(Arc::clone(&attempt)).is_err() {
                    state.assignments.remove(&attempt, AssignmentStatus::Unknown);
                    return refused(Code::RunnerInterrupt, "the runner has ended");
                }
                // The runner may have begun to stop since the first check.
                if *context.phase.borrow() != RunnerPhase::Serving {
                    attempt.stop(StopReason::RunnerInterrupt);
                }
                Ok(())
            }
            AcceptResult::Known => Ok(()),
            AcceptResult::Refused => {
                refused(Code::Fenced, "the runner was queried about this grant before and did not know it")
            }
            AcceptResult::Busy => refused(Code::Busy, "an earlier attempt of this task has not drained here"),
            AcceptResult::Full => refused(Code::Overloaded, "all slots are used"),
        }
    }

    /// As [`RunnerClient::query`](crate::peers::RunnerClient::query).
    ///
    /// # Errors
    /// `EFenced` if a higher epoch of a leader was seen before.
    pub async fn query(&self, assignment: Assignment) -> Result<AssignmentStatus, CallError> {
        if assignment.incarnation != self.0.context.config.incarnation {
            return Ok(AssignmentStatus::Unknown);
        }
        self.accept_leader(assignment.leader)?;
        Ok(self.0.assignments.status(&assignment.task, assignment.epoch))
    }

    /// As [`RunnerClient::notify`](crate::peers::RunnerClient::notify).
    ///
    /// # Errors
    /// As [`RunnerHandle::query`].
    pub async fn notify(&self, leader: Epoch, task: &TaskId) -> Result<(), CallError> {
        self.accept_leader(leader)?;
        if let Some(attempt) = self.0.assignments.find(task) {
            attempt.recheck_record();
        }
        Ok(())
    }

    /// As [`RunnerClient::resolve`](crate::peers::RunnerClient::resolve).
    ///
    /// # Errors
    /// `EPermission` outside of the node's policy, and what is wrong with the destination's name.
    pub async fn resolve(&self, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError> {
        self.accept_leader(leader)?;
        let refused = |error: Error| CallError::Refused { code: error.code, why: error.message };
        match spec.kind().destination().map_err(refused)? {
            Some(destination) => self.0.context.dependencies.executor.resolve(&destination).await.map_err(refused),
            None => Err(refused(Error::bad_request("a task of this kind has no destination"))),
        }
    }

    /// As [`RunnerClient::check`](crate::peers::RunnerClient::check).
    ///
    /// # Errors
    /// The refusal of the node.
    pub async fn check(&self, spec: &TaskSpec) -> Result<serde_json::Value, Error> {
        self.0.context.dependencies.executor.check(spec.kind().work()?).await
    }

    /// As [`RunnerClient::interrupt`](crate::peers::RunnerClient::interrupt). Returns at once. When all tasks are
    /// returned the runner accepts assignments again: the node's drain record keeps them away.
    ///
    /// # Errors
    /// As [`RunnerHandle::query`].
    pub async fn interrupt(&self, leader: Epoch) -> Result<(), CallError> {
        self.accept_leader(leader)?;
        self.0.context.interrupt.notify_one();
        Ok(())
    }

    /// Returns all tasks and deregisters, while the process continues. Returns when the registration is gone, which
    /// takes until the end of the session without a connection, or when [`RunnerHandle::come_back`] is called.
    pub async fn leave(&self) {
        self.0.context.wanted.send_replace(false);
        let mut away = self.0.context.is_away.subscribe();
        tokio::select! { biased;
            _ = away.wait_for(|&away| away) => {}
            () = self.0.context.wait_for_wanted(true) => {}
        }
    }

    /// Registers again after [`RunnerHandle::leave`]; may be called at any time.
    pub fn come_back(&self) {
        self.0.context.wanted.send_replace(true);
    }

    /// Sets the number of slots. Running tasks are not stopped.
    pub fn set_slots(&self, slots: u32) {
        self.0.context.set_slots(slots);
    }

    /// Returns the number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.0.context.slots()
    }

    /// Sets whether this node leads: a leader's lease is renewed even without copies.
    pub fn set_leading(&self, leads: bool) {
        self.0.context.set_leading(leads);
    }

    /// Returns the remembered incarnations of this node. All but the current one, which may be among them, are over.
    #[must_use]
    pub fn incarnations(&self) -> Vec<Incarnation> {
        let incarnations = self.0.context.dependencies.state.incarnations();
        incarnations
            .inspect_err(|error| tracing::error!(%error, "cannot read this node's earlier incarnations"))
            .unwrap_or_default()
    }

    /// Returns the tasks that the runner holds, in the order of their ids.
    #[must_use]
    pub fn held(&self) -> Vec<TaskId> {
        self.0.assignments.all().iter().map(|attempt| attempt.task().clone()).collect()
    }

    /// Tells whether the runner is registered and its session is connected.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.0
            .context
            .registration
            .borrow()
            .as_ref()
            .is_some_and(|registration| registration.session.states().borrow().is_connected())
    }

    /// Returns the counters of this node's attempts.
    pub(crate) fn metrics(&self) -> super::RunnerMetrics {
        self.0.context.metrics.clone()
    }

    /// Returns the time left of the lease; zero without one. For metrics.
    #[must_use]
    pub fn lease_left(&self) -> std::time::Duration {
        self.0
            .context
            .registration
            .borrow()
            .as_ref()
            .map(|registration| registration.write_lease.left(self.0.context.now()))
            .unwrap_or_default()
    }

    fn accept_leader(&self, leader: Epoch) -> Result<(), CallError> {
        self.0.context.accept_leader(leader).map_err(|(code, why)| CallError::Refused { code, why })
    }
}
