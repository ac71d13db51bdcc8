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

pub mod api;
mod channel;
pub mod clock;
pub mod config;
pub mod coord;
mod destination;
mod dispatcher;
pub mod election;
pub mod host_port;
pub mod layout;
mod lease;
mod metrics;
pub mod peers;
mod policy;
mod process;
mod pulse;
pub mod record;
pub mod runner;
pub mod server;
pub mod state_dir;
mod stopping;
pub mod streams;
mod task_state;
mod vip;

#[cfg(test)]
mod sim;
