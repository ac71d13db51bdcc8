//! Converts records to messages, and back.
//!
//! Input from outside is validated here once: names, enumerations, ranges of numbers. Output is complete: a message has
//! all that a client may know of a task, and nothing of how the task is stored.

use super::error::RpcError;
use super::wire;
use crate::model::{
    Attempt, Dependency, Epoch, Incarnation, PlacementRules, Progress, SignedOrder, TaskId, TaskRecord, TaskState,
};
use crate::peers::{AssignResponse, Assignment, AssignmentStatus, CallError, StartStage};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use strum::VariantArray;

impl From<&TaskRecord> for wire::Task {
    fn from(task: &TaskRecord) -> Self {
        let order = task.order.as_ref().map(SignedOrder::to_wire).unwrap_or_default();
        Self {
            id: task.id.to_string(),
            spec: Some(wire::Spec::from(&task.spec)),
            state: task.state.as_str().to_owned(),
            desired_state: spelling(&task.desired_state),
            reason: task.reason.clone(),
            priority: task.priority.into(),
            max_attempts: task.max_attempts,
            failures: task.failures,
            node: task.shown_node().map(ToString::to_string),
            epoch: task.epoch.map(|epoch| epoch.0),
            progress: Some(task.progress.into()),
            error: task.error.as_ref().map(wire::RpcError::from),
            report_json: task.report.as_ref().map(ToString::to_string),
            created_ms: task.created_ms,
            updated_ms: task.updated_ms,
            attempts: task.attempts.iter().map(wire::Attempt::from).collect(),
            after: task.after.iter().map(wire::Dependency::from).collect(),
            group: task
                .group
                .as_ref()
                .map(|member| wire::Membership { group: member.group.to_string(), clean_up: member.clean_up }),
            members: task.members.as_ref().map(|members| wire::Members {
                states: members
                    .counts
                    .iter()
                    .map(|(state, count)| (state.as_str().to_owned(), *count as u64))
                    .collect(),
                sealed: members.sealed_ms.is_some(),
            }),
            signed_order: order.0,
            order_signature: order.1,
            existed: false,
            starts_ms: task.starts_ms(),
            ends_ms: task.ends_ms(),
            retry_of: task.retry_of.as_ref().map(ToString::to_string),
            schedule: task.schedule.as_ref().map(ToString::to_string),
            notifies: task.notifies.as_ref().map(ToString::to_string),
            windows: task.windows.clone(),
            over: task.state.is_terminal(),
            placement: (!task.placement.is_unset()).then(|| wire::Placement::from(&task.placement)),
        }
    }
}

impl From<&PlacementRules> for wire::Placement {
    fn from(rules: &PlacementRules) -> Self {
        let PlacementRules { require, prefer, apart_from } = rules.clone();
        Self {
            require: require.into_iter().collect(),
            prefer: prefer.into_iter().collect(),
            apart_from: apart_from.unwrap_or_default(),
        }
    }
}

impl From<&Dependency> for wire::Dependency {
    fn from(Dependency { task, condition, created_ms: _ }: &Dependency) -> Self {
        Self { task: task.to_string(), condition: condition.as_str().to_owned() }
    }
}

/// Returns the word of a closed set as records spell it.
pub(super) fn spelling<T: serde::Serialize>(word: &T) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl From<&Attempt> for wire::Attempt {
    fn from(attempt: &Attempt) -> Self {
        let Attempt { runner, epoch, started_ms, ended_ms, outcome, quiet: _, node_fault: _, unknown: _ } = attempt;
        Self {
            runner: runner.node.to_string(),
            epoch: epoch.map(|epoch| epoch.0),
            started_ms: *started_ms,
            ended_ms: *ended_ms,
            outcome: outcome.clone(),
        }
    }
}

impl From<&crate::model::Failure> for wire::RpcError {
    fn from(failure: &crate::model::Failure) -> Self {
        let crate::model::Failure { code, side, operation, offset, length, errno, retryable, message } = failure;
        Self {
            code: code.as_str().to_owned(),
            message: message.clone(),
            retryable: *retryable,
            leader: String::new(),
            side: side.clone(),
            operation: operation.clone(),
            offset: *offset,
            length: *length,
            errno: *errno,
            misdirected: false,
            detail: String::new(),
        }
    }
}

impl From<Progress> for wire::Progress {
    fn from(progress: Progress) -> Self {
        let Progress { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds } = progress;
        Self { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds }
    }
}

impl From<wire::Progress> for Progress {
    fn from(progress: wire::Progress) -> Self {
        let wire::Progress { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds } =
            progress;
        // JSON has no other numbers; and a time to go is never negative.
        let eta_seconds = eta_seconds.filter(|eta| eta.is_finite() && *eta >= 0.0);
        Self { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds }
    }
}

/// Parses the name of a state.
///
/// # Errors
/// `EBadRequest`.
pub(super) fn state_of(text: &str) -> Result<TaskState> {
    text.parse().map_err(|_| {
        let all: Vec<_> = TaskState::VARIANTS.iter().map(|state| state.as_str()).collect();
        let all = all.join(", ");
        Error::bad_request(format!("invalid state '{}': use one of {all}", text.escape_debug()))
    })
}

/// Tells whether a task has ended. A leader of an earlier version says so by the state alone.
pub(super) fn is_over(task: &wire::Task) -> bool {
    task.over || state_of(&task.state).is_ok_and(TaskState::is_terminal)
}

impl From<&Assignment> for wire::Assignment {
    fn from(assignment: &Assignment) -> Self {
        let Assignment { task, epoch, incarnation, leader } = assignment;
        Self { task: task.to_string(), epoch: epoch.0, incarnation: incarnation.0.clone(), leader: leader.0 }
    }
}

impl TryFrom<wire::Assignment> for Assignment {
    type Error = Error;

    fn try_from(assignment: wire::Assignment) -> Result<Self> {
        let wire::Assignment { task, epoch, incarnation, leader } = assignment;
        Ok(Self {
            task: TaskId::new(task)?,
            epoch: Epoch(epoch),
            incarnation: Incarnation(incarnation),
            leader: Epoch(leader),
        })
    }
}

impl From<AssignResponse> for wire::AssignReply {
    fn from(answer: AssignResponse) -> Self {
        let refused = match answer {
            AssignResponse::Accepted => None,
            AssignResponse::Refused { code, why } => Some(wire::RpcError::from(&refusal(code, why))),
        };
        Self { refused }
    }
}

/// Converts a node's refusal to a failure.
pub(super) fn refusal(code: Code, why: String) -> RpcError {
    RpcError::from(Error::new(code, Side::Engine, Operation::Start, why))
}

impl From<wire::AssignReply> for AssignResponse {
    fn from(reply: wire::AssignReply) -> Self {
        reply.refused.map_or(Self::Accepted, |fault| {
            let Error { code, message, .. } = RpcError::from(fault).error;
            Self::Refused { code, why: message }
        })
    }
}

impl From<AssignmentStatus> for wire::AskReply {
    fn from(status: AssignmentStatus) -> Self {
        use wire::ask_reply::{AssignmentStatus as Wired, StartStage as Next};
        let (status, step) = match status {
            AssignmentStatus::Unknown => (Wired::Unknown, Next::None),
            AssignmentStatus::Held => (Wired::Held, Next::None),
            AssignmentStatus::Waits(StartStage::Reading) => (Wired::Held, Next::Reading),
            AssignmentStatus::Waits(StartStage::Leasing) => (Wired::Held, Next::Leasing),
            AssignmentStatus::Waits(StartStage::Opening) => (Wired::Held, Next::Opening),
            AssignmentStatus::Waits(StartStage::Storing) => (Wired::Held, Next::Storing),
            AssignmentStatus::Ended => (Wired::Ended, Next::None),
        };
        Self { status: status.into(), step: step.into() }
    }
}

impl TryFrom<wire::AskReply> for AssignmentStatus {
    type Error = CallError;

    /// An unknown status is no answer: treating it as `Unknown` would assign the task to another node.
    fn try_from(reply: wire::AskReply) -> Result<Self, CallError> {
        match wire::ask_reply::AssignmentStatus::try_from(reply.status) {
            Ok(wire::ask_reply::AssignmentStatus::Unknown) => Ok(Self::Unknown),
            Ok(wire::ask_reply::AssignmentStatus::Held) => Ok(match reply.step() {
                // Or one that is not known here: they are for people only.
                wire::ask_reply::StartStage::None => Self::Held,
                wire::ask_reply::StartStage::Reading => Self::Waits(StartStage::Reading),
                wire::ask_reply::StartStage::Leasing => Self::Waits(StartStage::Leasing),
                wire::ask_reply::StartStage::Opening => Self::Waits(StartStage::Opening),
                wire::ask_reply::StartStage::Storing => Self::Waits(StartStage::Storing),
            }),
            Ok(wire::ask_reply::AssignmentStatus::Ended) => Ok(Self::Ended),
            Err(error) => Err(CallError::NoAnswer(format!("unknown answer of the runner: {error}"))),
        }
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        let fault = |code, why| Self::from(Error::new(code, Side::Coordination, Operation::Start, why));
        match error {
            CallError::NoAnswer(why) => Self::no_answer(Code::Unreachable, why),
            CallError::Refused { code, why } => fault(code, why),
            CallError::Misdirected(why) => Self { is_misdirected: true, ..fault(Code::Unreachable, why) },
        }
    }
}

impl From<RpcError> for CallError {
    fn from(fault: RpcError) -> Self {
        let Error { code, side, effect, message, .. } = fault.error;
        if fault.is_misdirected {
            return Self::Misdirected(message);
        }
        if code == Code::Permission && side == Side::Caller {
            // That node does not take this one for a node: its rules are to blame, and no task.
            return Self::NoAnswer(message);
        }
        match effect {
            blockhaul_engine::error::Effect::Unknown => Self::NoAnswer(message),
            blockhaul_engine::error::Effect::NotApplied => Self::Refused { code, why: message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_say_to_each_other_survives_the_wire() {
        let assignment = Assignment {
            task: TaskId::new("t").unwrap(),
            epoch: Epoch(7),
            incarnation: Incarnation("i".to_owned()),
            leader: Epoch(3),
        };
        assert_eq!(Assignment::try_from(wire::Assignment::from(&assignment)).unwrap(), assignment);
        assert!(Assignment::try_from(wire::Assignment { task: "../x".to_owned(), ..Default::default() }).is_err());
        for answer in [AssignResponse::Accepted, AssignResponse::Refused { code: Code::Fenced, why: "old".to_owned() }]
        {
            assert_eq!(AssignResponse::from(wire::AssignReply::from(answer.clone())), answer);
        }
        let steps = [StartStage::Reading, StartStage::Leasing, StartStage::Opening, StartStage::Storing]
            .map(AssignmentStatus::Waits);
        for status in
            [AssignmentStatus::Unknown, AssignmentStatus::Held, AssignmentStatus::Ended].into_iter().chain(steps)
        {
            assert_eq!(AssignmentStatus::try_from(wire::AskReply::from(status)).unwrap(), status);
        }
        let unheard = wire::AskReply { status: 9, step: 0 };
        assert!(matches!(AssignmentStatus::try_from(unheard), Err(CallError::NoAnswer(_))));
        let later = wire::AskReply { step: 9, ..wire::AskReply::from(AssignmentStatus::Held) };
        assert_eq!(AssignmentStatus::try_from(later).unwrap(), AssignmentStatus::Held);
    }

    #[test]
    fn words_that_are_not_known_are_named() {
        assert_eq!(state_of("running").unwrap(), TaskState::Running);
        assert!(state_of("asleep").unwrap_err().message.contains("PENDING"));
    }
}
