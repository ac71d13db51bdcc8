//! Implements the task center: runs copies as tasks that survive the loss of any node.
//!
//! `taskd` registers in a coordination service, runs the tasks that an elected dispatcher assigns to it through one
//! [engine](blockhaul_engine), and returns a task to the queue when it must stop. Every decision is a version-checked
//! write to the coordination service; calls between nodes are hints and telemetry.
//!
//! ```text
//! rpc -> TaskRecord -> dispatcher -> claim + assignment -> runner -> engine job -> report -> TaskRecord -> rpc
//! ```
#![forbid(unsafe_code)]

mod access;
mod async_spawn;
pub mod attempt_log;
mod audit;
pub mod batch;
pub mod clock;
pub mod cluster;
pub mod config;
mod console;
pub mod coord;
mod dispatcher;
pub mod execution;
pub mod host_port;
mod liveness;
mod metrics;
pub mod model;
pub mod node;
pub mod order;
pub mod peers;
mod policy;
pub mod rpc;
pub mod runner;
pub mod standard_streams;
pub mod state_dir;
mod stop_bounds;
pub mod timestamp;
pub mod wire;

#[cfg(test)]
mod sim;
