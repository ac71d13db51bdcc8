//! What one worker does to one block: read it, look at it, write what is not zero, or compare it.

pub(crate) mod rate_limiter;
pub(crate) mod examine;
pub(crate) mod latency;
pub(crate) mod server_window;
pub(crate) mod worker_pass;
pub(crate) mod slot_state;
pub(crate) mod protection_window;
