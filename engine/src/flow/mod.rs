//! Runs work in the order that dependencies allow: for programs that embed the engine, for batches, and for the task
//! center.
//!
//! | file | what |
//! | --- | --- |
//! | `graph` | which tasks may start, from what they depend on; pure |
//! | `scheduler` | tasks with bodies, callbacks, delays and restarts, run by whoever calls `progress` |
//! | `task_list` | several tasks treated as one |
//! | `event_queue` | the ends of jobs and tasks, delivered to pollers |
//!
//! No part has a thread of its own, and no part knows what a volume is. Memory is linear in the tasks that are kept: some
//! 420 bytes for each with its body and one condition (`cargo bench --package blockhaul-engine --bench flow`).

pub mod event_queue;
#[cfg(test)]
mod event_queue_tests;
pub mod graph;
#[cfg(test)]
mod graph_tests;
pub mod scheduler;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
mod shuttle_tests;
mod sync;
pub mod task_list;
