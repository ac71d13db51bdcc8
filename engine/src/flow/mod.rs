//! Decides the order of tasks that depend on one another.

pub mod graph;
#[cfg(test)]
mod graph_tests;
