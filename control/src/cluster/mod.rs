//! Decides which nodes are alive, which one leads, and how long a runner may write.
//!
//! Each module here is one mechanism of distributed systems, and none of them knows tasks: the `dispatcher`,
//! the [runner](crate::runner) and the [node](crate::node) build on them.

pub(crate) mod clock_skew;
pub mod election;
pub(crate) mod lease;
pub(crate) mod service_address;
pub(crate) mod storage_probe;
