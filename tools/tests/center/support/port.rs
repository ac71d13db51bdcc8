//! Reserves ports for processes that are started later, or restarted.

use super::Address;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// Below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 that nobody listens on, and that this process has not given away before.
pub(crate) fn port() -> u16 {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = fastrand::u16(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && taken.insert(port) {
            return port;
        }
    }
}

/// The same, for a server.
pub(crate) fn address() -> Address {
    Address::Tcp(port())
}
