//! What the tests of the task center stand on.

pub(crate) mod ensemble;
pub(crate) mod wire;
