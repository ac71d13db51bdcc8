//! The services over real sockets: what clients and nodes may rely on, and what no peer can do to them.
//!
//! Dispatcher and runner are stood in for by `mock`, which remembers and answers; everything else is the real thing.

#![forbid(unsafe_code)]

mod ending;
mod following;
mod limits;
mod mock;
mod nodes;
mod tls;
