//! Decides what one worker does to one block: read it, examine it, write what is not zero, or compare it.

pub(crate) mod examine;
pub(crate) mod worker_pass;
pub(crate) mod slot_state;
