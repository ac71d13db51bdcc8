//! Provides the support code that the tests of all packages share. Packages depend on it for their tests only.

#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "a test that cannot go on panics")]
#![allow(clippy::new_without_default, reason = "a new one has effects: folders, processes, ports")]
#![allow(clippy::must_use_candidate, reason = "tests call for the effect, too")]
#![allow(missing_docs, reason = "fields and variants are named to be read")]

pub mod authority;
pub mod test_cluster;
pub mod content;
mod full_pipe;
pub mod java;
pub mod nbd;
mod need;
pub mod order_keys;
pub mod programs;
pub mod running;
pub mod safe_dir;
pub mod schema;
pub mod scratch;
pub mod signals;
pub mod tcp_proxy;
pub mod test_dir;
pub mod zookeeper;

pub use full_pipe::full_pipe;
pub use need::{Need, Requirement, skipped, unmet};
