//! The program against servers: real ones of three projects, ones that crash, stall and go away, and one that does as
//! it is told. What they hold is judged by other clients than ours. What a host lacks (a server, root) skips a test by
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
