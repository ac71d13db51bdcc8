//! What the tests of the task center stand on.

pub(crate) mod ensemble;
mod java;
pub(crate) mod wire;
