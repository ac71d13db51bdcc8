//! Holds what the tests of all packages share. No package depends on it but for its tests.

#![forbid(unsafe_code)]

mod need;

pub use need::{Need, Requirement, skipped, unmet};
