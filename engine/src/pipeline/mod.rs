//! What one worker does to one block: read it, look at it, write what is not zero, or compare it.

pub(crate) mod bucket;
pub(crate) mod examine;
pub(crate) mod latency;
pub(crate) mod pace;
pub(crate) mod worker_pass;
pub(crate) mod slot;
pub(crate) mod window;
