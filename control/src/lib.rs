//! The task center: copies as tasks that survive the loss of any node.
//!
//! `taskd` registers in a coordination service, runs the tasks that an elected dispatcher assigns to it through one
//! [engine](blockhaul_engine), and gives a task back when it must stop. What is decided is decided by version-checked
//! writes to the coordination service; calls between nodes are hints and telemetry.
//!
//! ```text
//! api -> TaskRecord -> dispatcher -> claim + assignment -> runner -> engine job -> report -> TaskRecord -> api
//! ```
#![forbid(unsafe_code)]

pub mod clock;
pub mod cluster;
pub mod config;
pub mod coord;
mod dispatcher;
pub mod execution;
pub mod host_port;
mod liveness;
mod metrics;
pub mod model;
pub mod node;
pub mod peers;
mod policy;
mod process;
pub mod rpc;
pub mod runner;
pub mod standard_streams;
pub mod state_dir;
mod stopping;
pub mod wire;

#[cfg(test)]
mod sim;
