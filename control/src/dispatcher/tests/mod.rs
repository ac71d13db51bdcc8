//! Tests the dispatcher over a simulated ensemble, with runners that a test scripts.

mod changing;
mod clients;
mod depending;
mod draining;
mod excluding;
mod following;
mod golden;
mod grouping;
mod holding;
mod levels;
mod losses;
mod placing;
mod scheduled_batches;
mod scheduling;
mod settings;
mod support;
mod timing;
mod windows;
mod writing;
