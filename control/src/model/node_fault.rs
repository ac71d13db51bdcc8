//! Tells failures of a task from failures of the node that tried it.
//!
//! | failure | origin |
//! | --- | --- |
//! | side `engine`; the node's own state directory; a resource limit of its system | the node |
//! | `EPermission` (its policy, or a server that does not admit it; no signature), `EUnreachable` (from there), `EOverloaded` | the node |
//! | everything else: volumes, their contents, the request itself | the task |
//!
//! A failure of the task would happen on every node. A failure of the node says nothing about the other nodes: the task
//! goes to one of them next.

use super::Failure;
use blockhaul_engine::error::{Code, Operation, Side};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Origin of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOrigin {
    /// Every node would fail.
    Task,
    /// Another node may succeed.
    Node,
}

/// What is wrong with a node that has failed a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeFault {
    /// It may pass.
    Passing,
    /// It lasts as long as that process.
    Lasting,
}

impl Failure {
    /// Returns the origin of the failure.
    #[must_use]
    pub fn origin(&self) -> FaultOrigin {
        match self.code {
            Code::Cancelled
            | Code::SourceChanged
            | Code::VerifyMismatch
            | Code::BadRequest
            | Code::Fenced
            | Code::Dependency => FaultOrigin::Task,
            // An order that is not signed as it has to be: it is not carried from node to node until one takes it.
            Code::Permission if self.side == Side::Caller.as_str() => FaultOrigin::Task,
            Code::Permission | Code::Unreachable | Code::Overloaded => FaultOrigin::Node,
            Code::RunnerInterrupt | Code::LeaseLost | Code::NotLeader => FaultOrigin::Node,
            Code::Timeout
            | Code::Io
            | Code::NoSpace
            | Code::ReadOnly
            | Code::SizeMismatch
            | Code::SameVolume
            | Code::Busy
            | Code::Exists
            | Code::NotFound
            | Code::CheckpointCorrupt
            | Code::CheckpointMismatch
            | Code::Protocol
            | Code::Unsupported
            | Code::Hook
            | Code::Internal => {
                if self.is_local() {
                    FaultOrigin::Node
                } else {
                    FaultOrigin::Task
                }
            }
        }
    }

    /// Returns what the failure says about its node; `None` if it is the task's own.
    #[must_use]
    pub fn node_fault(&self) -> Option<NodeFault> {
        let is_passing = self.retryable || self.code == Code::NoSpace || self.is_resource_limit();
        match self.origin() {
            FaultOrigin::Task => None,
            FaultOrigin::Node if is_passing => Some(NodeFault::Passing),
            FaultOrigin::Node => Some(NodeFault::Lasting),
        }
    }

    /// Tells whether the node itself is to blame, whichever task it was: its engine, its resources or its state directory.
    #[must_use]
    pub(crate) fn is_node_defect(&self) -> bool {
        let is_no_defect = matches!(
            self.code,
            Code::Permission | Code::Unreachable | Code::RunnerInterrupt | Code::LeaseLost | Code::NotLeader
        );
        self.origin() == FaultOrigin::Node && self.is_local() && !is_no_defect
    }

    /// Tells whether it is of the node's engine, resources or state directory, and of no volume.
    fn is_local(&self) -> bool {
        self.side == Side::Engine.as_str()
            || (self.side == Side::Caller.as_str() && self.operation == Operation::Journal.as_str())
            || self.is_resource_limit()
    }

    /// Tells whether its node has no space for the state of the task.
    #[must_use]
    pub fn is_node_full(&self) -> bool {
        self.code == Code::NoSpace && self.origin() == FaultOrigin::Node
    }

    /// Tells whether descriptors, memory or processes had run out, which other work of the node releases.
    fn is_resource_limit(&self) -> bool {
        let errno = self.errno.map(Errno::from_raw);
        matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN | Errno::ENOBUFS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Error;

    fn failure(code: Code, side: Side, operation: Operation) -> Failure {
        Failure::from(&Error::new(code, side, operation, "no"))
    }

    #[test]
    fn every_code_of_a_volume_is_the_tasks_fault_but_those_that_depend_on_where_it_is_tried() {
        for &code in Code::ALL {
            for side in [Side::Source, Side::Destination] {
                let expected = match code {
                    Code::Permission | Code::Unreachable | Code::Overloaded => FaultOrigin::Node,
                    Code::RunnerInterrupt | Code::LeaseLost | Code::NotLeader => FaultOrigin::Node,
                    _ => FaultOrigin::Task,
                };
                assert_eq!(failure(code, side, Operation::Open).origin(), expected, "{code}");
            }
        }
    }

    #[test]
    fn what_the_nodes_engine_and_state_directory_fail_at_is_the_nodes_fault() {
        for &code in Code::ALL {
            let is_about_task = [
                Code::Cancelled,
                Code::SourceChanged,
                Code::VerifyMismatch,
                Code::BadRequest,
                Code::Fenced,
                Code::Dependency,
            ];
            let expected = if is_about_task.contains(&code) { FaultOrigin::Task } else { FaultOrigin::Node };
            assert_eq!(failure(code, Side::Engine, Operation::Journal).origin(), expected, "{code}");
            // An order that is refused is that of the task.
            let expected = if code == Code::Permission { FaultOrigin::Task } else { expected };
            assert_eq!(failure(code, Side::Caller, Operation::Journal).origin(), expected, "{code}");
        }
        // The journal belongs to another destination than the one that is there now.
        assert_eq!(
            failure(Code::CheckpointMismatch, Side::Destination, Operation::Journal).origin(),
            FaultOrigin::Task
        );
    }

    #[test]
    fn a_node_is_to_blame_for_its_own_parts_alone() {
        let is_defect = |code, side, operation| failure(code, side, operation).is_node_defect();
        assert!(is_defect(Code::Unsupported, Side::Engine, Operation::Start));
        assert!(is_defect(Code::NoSpace, Side::Caller, Operation::Journal));
        assert!(Failure::from(&Error::os(Side::Source, Operation::Open, Errno::EMFILE, "open a")).is_node_defect());
        for (code, side) in [
            (Code::Unreachable, Side::Source),
            (Code::Permission, Side::Destination),
            (Code::Permission, Side::Engine),
            (Code::Io, Side::Destination),
            (Code::Cancelled, Side::Engine),
            (Code::BadRequest, Side::Engine),
            (Code::RunnerInterrupt, Side::Engine),
            (Code::Hook, Side::Caller),
        ] {
            assert!(!is_defect(code, side, Operation::Open), "{code} {side}");
        }
    }

    #[test]
    fn a_resource_limit_passes_and_a_policy_stays() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN] {
            let error = Error::os(Side::Source, Operation::Open, errno, "open a");
            assert_eq!(Failure::from(&error).node_fault(), Some(NodeFault::Passing), "{errno}");
        }
        let fault = |code, side, operation| failure(code, side, operation).node_fault();
        assert_eq!(fault(Code::Unreachable, Side::Source, Operation::Open), Some(NodeFault::Passing));
        assert_eq!(fault(Code::NoSpace, Side::Engine, Operation::Journal), Some(NodeFault::Passing));
        assert_eq!(fault(Code::Permission, Side::Source, Operation::Open), Some(NodeFault::Lasting));
        assert_eq!(fault(Code::Unsupported, Side::Engine, Operation::Start), Some(NodeFault::Lasting));
        assert_eq!(fault(Code::NoSpace, Side::Destination, Operation::Write), None);
        assert_eq!(fault(Code::Io, Side::Destination, Operation::Write), None);
    }
}
