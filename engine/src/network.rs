//! Holds the settings for volumes behind a network: retry time, request timeout and number of connections.

use crate::error::{Error, Result};
use crate::limits::{CONNECTIONS_ASKED_MAX, REQUEST_TIMEOUT, RETRY_FOR};
use crate::units::check_duration;
use std::time::Duration;

/// Settings for volumes behind a network. Local volumes ignore them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkTerms {
    /// How long to retry a lost connection before the job fails with `EUnreachable`, keeping its
    /// checkpoint. Zero: not at all. Default 60 s.
    pub retry_for: Duration,
    /// A request that is not answered for so long counts as a lost connection. Above zero. Default 30 s. Shorter ones
    /// find a stalled path earlier, and take a slow server for a dead one.
    pub request_timeout: Duration,
    /// Connections to each server at most, 1 to 256; `None`: one for each core, up to 4, if the server permits it.
    pub connections: Option<usize>,
}

impl Default for NetworkTerms {
    fn default() -> Self {
        Self { retry_for: RETRY_FOR, request_timeout: REQUEST_TIMEOUT, connections: None }
    }
}

impl NetworkTerms {
    pub(crate) fn check(&self) -> Result<()> {
        if self.request_timeout.is_zero() {
            return Err(Error::bad_request(
                "a request timeout of zero would let no server answer: name one above zero",
            ));
        }
        check_duration("retry_for", self.retry_for)?;
        check_duration("request_timeout", self.request_timeout)?;
        if self.connections.is_some_and(|connections| !(1..=CONNECTIONS_ASKED_MAX).contains(&connections)) {
            return Err(Error::bad_request(format!("name 1 to {CONNECTIONS_ASKED_MAX} connections to a server")));
        }
        Ok(())
    }
}
