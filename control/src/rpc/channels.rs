//! Keeps connections to other processes, one for each address, opened on first use and again when they are lost.

use super::error::{RpcError, with_cause};
use super::limits::{CONNECT_WAIT, KEEPALIVE_EVERY, KEEPALIVE_WAIT};
use super::tls::Tls;
use crate::host_port::HostPort;
use blockhaul_engine::error::Error;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::transport::{Channel, Endpoint};

/// Most connections that are kept: every runner of a center. Above it, all are closed and opened again when they are
/// needed.
const CHANNELS_MAX: usize = 2048;

/// Pool of connections. Clones share it. After certificates were read again, calls use new connections.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    tls: Option<Tls>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    channels: BTreeMap<String, Channel>,
    /// Generation of the certificates that these were opened with.
    reading: u64,
}

impl Channels {
    /// Creates a pool without connections.
    #[must_use]
    pub fn new(tls: Option<Tls>) -> Self {
        Self { tls, open: Arc::default() }
    }

    /// Returns the connection to `address`, `HOST:PORT`. The first call over it connects.
    ///
    /// # Errors
    /// `EBadRequest` if that is no address, or the certificates are of no use.
    pub fn to(&self, address: &str) -> Result<Channel, RpcError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = self.tls.as_ref().map_or(0, Tls::reading);
        if open.reading != reading {
            *open = Open { channels: BTreeMap::new(), reading };
        }
        if let Some(channel) = open.channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.endpoint(address)?.connect_lazy();
        if open.channels.len() >= CHANNELS_MAX {
            open.channels.clear();
        }
        open.channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Tells whether peers are called through TLS.
    pub(super) fn are_secure(&self) -> bool {
        self.tls.is_some()
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, RpcError> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let peer = address.escape_debug();
        let refused = |error: tonic::transport::Error| {
            let message = format!("{peer} cannot be called: {}", with_cause(&error));
            RpcError::from(Error::bad_request(message))
        };
        let address = HostPort::parse_peer(address).map_err(|why| {
            RpcError::from(Error::bad_request(format!("invalid address '{}': {why}", address.escape_debug())))
        })?;
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(refused)?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_WAIT)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_WAIT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        match &self.tls {
            Some(tls) => endpoint.tls_config(tls.client()).map_err(refused),
            None => Ok(endpoint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_address_is_refused() {
        let channels = Channels::default();
        assert!(channels.to("127.0.0.1:1").is_ok());
        assert!(channels.to("[::1]:1").is_ok());
        for bad in ["", "host", "a b:1", "h:1\n", "h:90936", "h:0"] {
            assert!(channels.to(bad).is_err(), "{bad:?}");
        }
    }
}
