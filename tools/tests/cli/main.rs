//! Tests the command line as a script sees it: exit codes, stdout, stderr, files. Needs no root, and servers only for
//! exports.

#![forbid(unsafe_code)]

mod asking;
mod batch;
mod copying;
mod exports;
mod images;
mod limits;
mod looking;
mod names;
mod planning;
mod refusing;
mod schemas;
mod scripting;
mod signing;
mod stopping;
mod streams;
mod unread;
mod usage;
mod verifying;
