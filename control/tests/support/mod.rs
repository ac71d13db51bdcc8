//! Contains what the tests of the task center share.

pub(crate) mod ensemble;
mod java;
pub(crate) mod wire;
