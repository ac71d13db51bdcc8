//! Copies storage volumes block by block through io_uring: one thread and one ring per core.

mod buffer;
pub mod engine;
pub mod error;
pub mod extent;
pub mod job;
pub mod journal;
mod limits;
pub mod progress;
mod ring;
pub mod spec;
pub mod units;
pub mod volume;
