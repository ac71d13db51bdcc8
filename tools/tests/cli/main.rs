//! The command line as a script sees it: exit codes, stdout, stderr, files. Needs no root, and no
//! server but for exports.

#![forbid(unsafe_code)]

mod asking;
mod copying;
mod exports;
mod looking;
mod planning;
mod refusing;
mod stopping;
mod streams;
mod support;
mod usage;
mod verifying;
