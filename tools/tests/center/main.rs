//! The task center as its users run it: real `taskd` processes, a real ZooKeeper ensemble, real servers, and the
//! program `blockhaul` in front. Each test is a story of one fault or one wish; what they share is a cell of nodes that
//! can be killed, stopped, cut off and brought back. Submission and outcome are asserted, never how long something takes. What
//! a host lacks skips a test by name.

#![forbid(unsafe_code)]

mod clients;
mod disks;
mod ensembles;
mod finishing;
mod judging;
mod leaders;
mod partitions;
mod protecting;
mod replaced;
mod runners;
mod stopping;
mod support;
