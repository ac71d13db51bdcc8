//! Provides what the tests of all packages share. Packages depend on it for their tests only.

#![forbid(unsafe_code)]

mod need;

pub use need::{Need, Requirement, skipped, unmet};
