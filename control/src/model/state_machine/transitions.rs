//! Notes each transition of a task in its record: a change of its state, or of its desired state.

use super::{FenceProof, TaskEvent};
use crate::model::transition::{Actor, Transition};
use crate::model::{TaskRecord, UnknownFields};

impl TaskEvent {
    /// Returns who asked for it.
    pub(super) fn actor(&self) -> Actor {
        match self {
            Self::CancelRequested
            | Self::PauseRequested
            | Self::ResumeRequested
            | Self::ChangesRequested(_)
            | Self::MoveRequested(_)
            | Self::CancelAllRequested
            | Self::Sealed
            | Self::RemovalRequested
            | Self::Fenced(FenceProof::Operator) => Actor::Client(None),
            Self::Started { .. }
            | Self::Checkpointed(_)
            | Self::Written(_)
            | Self::Blocked { .. }
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::GivenBack { .. } => Actor::Node,
            Self::Assigned { .. }
            | Self::Revoked { .. }
            | Self::Rejected(_)
            | Self::DependencyBroken(_)
            | Self::RunnerLost
            | Self::RunnerReturned
            | Self::Fenced(FenceProof::NodeBack | FenceProof::LeaseOver | FenceProof::Command | FenceProof::Waited)
            | Self::AttemptDrained { .. }
            | Self::FailureNotified
            | Self::DeadlinePassed
            | Self::SealMissed
            | Self::MemberFailed(_)
            | Self::MembersEnded { .. }
            | Self::GroupRequested(_)
            | Self::WindowChanged { .. } => Actor::Dispatcher,
        }
    }
}

impl TaskRecord {
    /// Notes a transition, if this record differs from the one `before` by one.
    pub(super) fn note_transition(&mut self, before: &Self, by: Actor, now_ms: u64) {
        if self.state == before.state && self.desired() == before.desired() {
            return;
        }
        let transition = Transition {
            at_ms: now_ms,
            state: self.state,
            desired_state: self.desired(),
            reason: self.reason.clone(),
            node: self.node().or(before.node()).cloned(),
            by,
            unknown: UnknownFields::default(),
        };
        self.transitions.push(transition);
    }
}
