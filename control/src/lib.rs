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
pub mod channel;
pub mod clock;
pub mod config;
pub mod coord;
pub mod destination;
pub mod dispatcher;
pub mod election;
pub mod layout;
pub mod lease;
pub mod metrics;
pub mod peers;
pub mod policy;
mod process;
pub mod pulse;
pub mod record;
pub mod runner;
pub mod server;
pub mod state_dir;
pub mod task_state;
pub mod vip;

#[cfg(test)]
mod sim;
