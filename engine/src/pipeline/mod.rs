//! What one worker does to one block: read it, look at it, write what is not zero, or compare it.

pub(crate) mod examine;
pub(crate) mod worker_pass;
pub(crate) mod slot_state;
