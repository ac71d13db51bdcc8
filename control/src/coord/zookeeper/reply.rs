//! Translates the client library's answers.

use super::super::{ConnectionState, CoordError, Done, Refusal, SessionEnd, SessionId, Stat, Znode, Zxid};
use zookeeper_client as zk;

pub(super) fn connection(state: zk::SessionState) -> ConnectionState {
    match state {
        zk::SessionState::SyncConnected => ConnectionState::Connected,
        // A read-only server has no quorum, so its data may be old. The client does not ask for such servers anyway.
        zk::SessionState::Disconnected | zk::SessionState::ConnectedReadOnly => ConnectionState::Disconnected,
        zk::SessionState::Expired => ConnectionState::Over(SessionEnd::Expired),
        zk::SessionState::Closed => ConnectionState::Over(SessionEnd::Closed),
        zk::SessionState::AuthFailed => ConnectionState::Over(SessionEnd::AuthFailed),
    }
}

/// Translates the error of a read, with the session as it is now.
pub(super) fn reading_error(error: &zk::Error, now: ConnectionState) -> CoordError {
    match (refusal(error), now) {
        (Some(why), _) => CoordError::Refused { index: 0, why },
        (None, ConnectionState::Over(ending)) => CoordError::Ended(ending),
        (None, ConnectionState::Connected | ConnectionState::Disconnected) => CoordError::NotConnected,
    }
}

/// Returns the reason of a refused operation; `None` for an error that leaves the outcome open.
fn refusal(error: &zk::Error) -> Option<Refusal> {
    match error {
        zk::Error::NoNode => Some(Refusal::NoNode),
        zk::Error::NodeExists => Some(Refusal::NodeExists),
        zk::Error::BadVersion => Some(Refusal::BadVersion),
        zk::Error::NotEmpty => Some(Refusal::NotEmpty),
        zk::Error::NoAuth => Some(Refusal::NoAuth),
        zk::Error::NoChildrenForEphemerals | zk::Error::InvalidAcl | zk::Error::BadArguments(_) => {
            Some(Refusal::Impossible)
        }
        zk::Error::QuotaExceeded => Some(Refusal::QuotaExceeded),
        _ => None,
    }
}

/// Translates the error of a multi that was handed to the library.
pub(super) fn writing_error(error: zk::MultiWriteError) -> CoordError {
    match error {
        zk::MultiWriteError::OperationFailed { index, source } => refusal(&source).map_or_else(
            || CoordError::Unknown(format!("operation {index}: {source}")),
            |why| CoordError::Refused { index, why },
        ),
        // Includes expiry: the library reports it for requests sent before it, too, which may have been carried out.
        zk::MultiWriteError::RequestFailed { source } => CoordError::Unknown(source.to_string()),
    }
}

pub(super) fn done(result: &zk::MultiWriteResult) -> Done {
    match result {
        zk::MultiWriteResult::SetData { stat: node } => Done::Set(stat(node)),
        _ => Done::Plain,
    }
}

pub(super) fn node(data: Vec<u8>, of: &zk::Stat) -> Znode {
    Znode { data, stat: stat(of) }
}

fn stat(of: &zk::Stat) -> Stat {
    let owner = (of.ephemeral_owner != 0).then_some(SessionId(of.ephemeral_owner));
    Stat { version: of.version, created: Zxid(of.czxid), modified: Zxid(of.mzxid), owner }
}

pub(super) fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_are_not_conditions_leave_the_outcome_open() {
        for source in [zk::Error::ConnectionLoss, zk::Error::SessionExpired, zk::Error::Timeout, zk::Error::Throttled] {
            let error = writing_error(zk::MultiWriteError::OperationFailed { index: 1, source: source.clone() });
            assert!(matches!(error, CoordError::Unknown(_)), "{error}");
            assert!(matches!(writing_error(source.into()), CoordError::Unknown(_)));
        }
        let refused = zk::MultiWriteError::OperationFailed { index: 1, source: zk::Error::BadVersion };
        assert_eq!(writing_error(refused), CoordError::Refused { index: 1, why: Refusal::BadVersion });
    }
}
