//! Provides the support code that the tests of all packages share. Packages depend on it for their tests only.

#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "a test that cannot go on panics")]

pub mod authority;
mod full_pipe;
pub mod java;
mod need;
pub mod tcp_proxy;
pub mod zookeeper;

pub use full_pipe::full_pipe;
pub use need::{Need, Requirement, skipped, unmet};
