//! Tests the program against NBD servers: real servers of three projects, servers that crash, stall and disappear, and
//! a scripted one.
//!
//! Other clients verify the content of the servers. A test whose host lacks something (a server, root) is skipped by
//! name.

#![forbid(unsafe_code)]

mod bad_peers;
mod filters;
mod harness;
mod incremental;
mod leaks;
mod looking;
mod losses;
mod matrix;
mod outages;
mod stopping;
mod support;
mod tls;
