//! Tests the services over real sockets: what clients and nodes may rely on, and what no peer can do to them.
//!
//! `mock` stands in for dispatcher and runner; it records and answers. Everything else is production code.

#![forbid(unsafe_code)]

mod ending;
mod following;
mod limits;
mod mock;
mod nodes;
mod tls;
