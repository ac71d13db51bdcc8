//! Tests the program against servers: real ones of three projects, ones that crash, stall and go away, and a scripted
//! one.
//!
//! Other clients verify what the servers hold. A test whose host lacks something (a server, root) is skipped by name.

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
