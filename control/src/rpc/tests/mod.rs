//! Tests the services over real sockets: what clients and nodes may rely on, and what no peer can do to them.
//!
//! `mock` answers the requests of a dispatcher, and records them. Everything else is production code.

mod access;
mod all_tasks;
mod checks;
mod ending;
mod following;
mod limits;
mod logs;
mod mock;
mod nodes;
mod orders;
mod tls;
