//! The command line as a script sees it: exit codes, stdout, stderr, files. Needs no root and no server.

#![forbid(unsafe_code)]

mod copying;
mod looking;
mod planning;
mod refusing;
mod stopping;
mod support;
mod usage;
mod verifying;
