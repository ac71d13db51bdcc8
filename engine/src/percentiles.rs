//! Summarises latencies as percentiles, as reports show them.

use serde::Serialize;

/// Percentiles of one kind of operation, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half were faster.
    pub p50: u64,
    /// Nine in ten were faster.
    pub p90: u64,
    /// 99 in 100 were faster.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
    /// Number of values.
    pub count: u64,
}

/// Latencies of a job's operations, from submission to completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatencyUs {
    /// Reads of a block.
    pub read: Percentiles,
    /// Writes of a run within a block.
    pub write: Percentiles,
    /// Flushes of the destination.
    pub flush: Percentiles,
}
