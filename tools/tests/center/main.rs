//! Tests the task center as users run it: real `taskd` processes, a real ZooKeeper ensemble, real servers, and the
//! `blockhaul` program.
//!
//! Each test covers one fault or one request, on a cluster of nodes that can be killed, stopped, cut off and restarted.
//! The tests assert order and outcome, never durations. A test whose host lacks something is skipped by name.

#![forbid(unsafe_code)]

mod checks;
mod clients;
mod depending;
mod disks;
mod ensembles;
mod finishing;
mod following;
mod groups;
mod hooks;
mod judging;
mod leaders;
mod logs;
mod partitions;
mod protecting;
mod replaced;
mod runners;
mod schedules;
mod stopping;
mod support;
mod upgrading;
