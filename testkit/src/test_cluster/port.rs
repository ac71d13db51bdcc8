//! Reserves ports for processes that are started later, or restarted.

use crate::nbd::Address;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// Below the range that the kernel uses for outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Returns a port of 127.0.0.1 without a listener that this process has not returned before.
pub fn port() -> u16 {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = fastrand::u16(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && taken.insert(port) {
            return port;
        }
    }
}

/// Returns such a port as the address of a server.
pub fn address() -> Address {
    Address::Tcp(port())
}
