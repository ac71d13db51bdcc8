//! Tests `taskd --standalone` as a process: what it accepts, what it refuses, and how it ends.

#![forbid(unsafe_code)]

mod certificates;
mod console;
mod copying;
mod daemon;
mod ending;
mod metrics;
mod orders;
mod refusing;
mod roles;
