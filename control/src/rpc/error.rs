//! Carries failures over the wire: an error of the engine's vocabulary, with the leader's address beside `ENotLeader`.
//!
//! A failure of a service travels as a [`wire::RpcError`] in the details of its status. A status without one comes from
//! the transport: then the call may have taken effect, unless the status says otherwise.

use super::wire;
use crate::model::Failure;
use blockhaul_engine::error::{Code, Detail, Effect, Error, Operation, Side};
use prost::Message;
use tonic::Status;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    /// The error.
    pub error: Error,
    /// For `ENotLeader`: `HOST:PORT` of the leader, if it is known.
    pub leader: Option<String>,
    /// For a call between nodes: another process than the addressee answered, and has done nothing.
    pub is_misdirected: bool,
}

impl RpcError {
    /// Returns the error when another node leads, or none.
    #[must_use]
    pub fn not_leader(leader: Option<String>) -> Self {
        let message = match &leader {
            Some(address) => format!("this node does not lead: ask {address}"),
            None => String::from("no node leads at the moment: retry"),
        };
        let error = Error::new(Code::NotLeader, Side::Coordination, Operation::Start, message);
        Self { error: Error { retryable: true, ..error }, leader, is_misdirected: false }
    }

    /// Returns the error of a call without a reliable answer.
    #[must_use]
    pub fn no_answer(code: Code, message: impl Into<String>) -> Self {
        let error = Error::new(code, Side::Coordination, Operation::Start, message);
        Self::from(Error { retryable: true, effect: Effect::Unknown, ..error })
    }

    /// Tells whether a retry, or another node, may help: the request has not been decided.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.error.effect == Effect::Unknown
            || matches!(self.error.code, Code::NotLeader | Code::Overloaded | Code::Unreachable | Code::Timeout)
    }
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for RpcError {}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        Self { error, leader: None, is_misdirected: false }
    }
}

impl From<RpcError> for Status {
    fn from(fault: RpcError) -> Self {
        let (code, message) = (grpc_code(fault.error.code), fault.error.message.clone());
        Self::with_details(code, message, wire::RpcError::from(&fault).encode_to_vec().into())
    }
}

impl From<&RpcError> for wire::RpcError {
    fn from(RpcError { error, leader, is_misdirected }: &RpcError) -> Self {
        let Error { code, side, operation, offset, length, errno, retryable, effect: _, message, detail } = error;
        Self {
            code: code.as_str().to_owned(),
            message: message.clone(),
            retryable: *retryable,
            leader: leader.clone().unwrap_or_default(),
            side: side.as_str().to_owned(),
            operation: operation.as_str().to_owned(),
            offset: *offset,
            length: *length,
            errno: *errno,
            misdirected: *is_misdirected,
            detail: detail.map_or_else(String::new, |detail| detail.as_str().to_owned()),
        }
    }
}

impl From<wire::RpcError> for RpcError {
    /// A name of a newer peer that is not known here becomes `EInternal` with that name in its message.
    fn from(fault: wire::RpcError) -> Self {
        let wire::RpcError {
            code,
            message,
            retryable,
            leader,
            side,
            operation,
            offset,
            length,
            errno,
            misdirected,
            detail,
        } = fault;
        let (code, message) = match Failure::parse_code(&code) {
            Some(code) => (code, message),
            None => (Code::Internal, format!("{code}: {message}")),
        };
        let side = Side::ALL.iter().copied().find(|known| known.as_str() == side).unwrap_or(Side::Coordination);
        let known = Operation::ALL.iter().copied().find(|known| known.as_str() == operation);
        let error = Error::new(code, side, known.unwrap_or(Operation::Start), message);
        let detail = Detail::ALL.iter().copied().find(|known| known.as_str() == detail);
        Self {
            error: Error { offset, length, errno, retryable, detail, ..error },
            leader: (!leader.is_empty()).then_some(leader),
            is_misdirected: misdirected,
        }
    }
}

impl From<Status> for RpcError {
    fn from(status: Status) -> Self {
        match wire::RpcError::decode(status.details()) {
            Ok(fault) if !fault.code.is_empty() => Self::from(fault),
            Ok(_) | Err(_) => {
                let fault = of_transport(&status);
                match super::connect_failure::advice(&status) {
                    Some(advice) => Self { error: fault.error.advise(advice), ..fault },
                    None => fault,
                }
            }
        }
    }
}

fn of_transport(status: &Status) -> RpcError {
    use tonic::Code as Grpc;
    let message = transport_message(status);
    let refused = |code| RpcError::from(Error::new(code, Side::Caller, Operation::Start, message.clone()));
    match status.code() {
        Grpc::ResourceExhausted => refused(Code::Overloaded),
        Grpc::InvalidArgument | Grpc::OutOfRange => refused(Code::BadRequest),
        Grpc::Unimplemented => refused(Code::Unsupported),
        Grpc::PermissionDenied | Grpc::Unauthenticated => refused(Code::Permission),
        Grpc::NotFound => refused(Code::NotFound),
        Grpc::AlreadyExists => refused(Code::Exists),
        // A deadline of our own comes back as a cancellation.
        Grpc::DeadlineExceeded | Grpc::Cancelled => RpcError::no_answer(Code::Timeout, message),
        Grpc::Unavailable | Grpc::Unknown | Grpc::Aborted => RpcError::no_answer(Code::Unreachable, message),
        Grpc::Ok | Grpc::Internal | Grpc::DataLoss | Grpc::FailedPrecondition => {
            RpcError::no_answer(Code::Protocol, message)
        }
    }
}

/// Formats a failure to set the transport up, with its cause, which it does not show by itself.
pub(super) fn with_cause(error: &tonic::transport::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Formats the transport's message with all nested causes.
fn transport_message(status: &Status) -> String {
    let mut parts = vec![status.message().to_owned()];
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        cause = error.source();
    }
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() { status.code().description().to_owned() } else { parts.join(": ") }
}

fn grpc_code(code: Code) -> tonic::Code {
    use tonic::Code as Grpc;
    match code {
        Code::BadRequest => Grpc::InvalidArgument,
        Code::NotFound => Grpc::NotFound,
        Code::Exists => Grpc::AlreadyExists,
        Code::Permission => Grpc::PermissionDenied,
        Code::Overloaded => Grpc::ResourceExhausted,
        Code::Unsupported => Grpc::Unimplemented,
        Code::Unreachable | Code::RunnerInterrupt => Grpc::Unavailable,
        Code::Timeout => Grpc::DeadlineExceeded,
        Code::Internal | Code::Protocol | Code::CheckpointCorrupt => Grpc::Internal,
        Code::Busy | Code::Fenced | Code::LeaseLost | Code::Cancelled => Grpc::Aborted,
        Code::Io | Code::VerifyMismatch => Grpc::DataLoss,
        Code::NotLeader
        | Code::NoSpace
        | Code::ReadOnly
        | Code::SizeMismatch
        | Code::SameVolume
        | Code::SourceChanged
        | Code::CheckpointMismatch
        | Code::Dependency
        | Code::Hook => Grpc::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire_with_all_that_belongs_to_it() {
        for &code in Code::ALL {
            let error =
                Error { errno: Some(5), ..Error::new(code, Side::Destination, Operation::Write, "what and where") };
            let is_misdirected = code == Code::Unreachable;
            let sent = RpcError { error: error.at(4096, 512), leader: Some(String::from("b:1")), is_misdirected };
            assert_eq!(RpcError::from(Status::from(sent.clone())), sent, "{code}");
        }
    }

    #[test]
    fn what_the_transport_says_may_have_taken_effect() {
        for code in [tonic::Code::Unavailable, tonic::Code::Unknown, tonic::Code::Cancelled, tonic::Code::Internal] {
            let fault = RpcError::from(Status::new(code, "gone"));
            assert_eq!((fault.error.effect, fault.is_passing()), (Effect::Unknown, true), "{code:?}");
        }
        let shed = RpcError::from(Status::resource_exhausted("too much"));
        assert_eq!((shed.error.code, shed.error.effect), (Code::Overloaded, Effect::NotApplied));
        let large = RpcError::from(Status::out_of_range("too large"));
        assert_eq!((large.error.code, large.is_passing()), (Code::BadRequest, false));
    }

    #[test]
    fn an_unknown_code_is_named() {
        let fault = RpcError::from(wire::RpcError {
            code: "EFuture".to_owned(),
            message: "x".to_owned(),
            ..Default::default()
        });
        assert_eq!((fault.error.code, fault.error.message.as_str()), (Code::Internal, "EFuture: x"));
    }
}
