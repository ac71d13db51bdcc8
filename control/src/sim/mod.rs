//! x
pub(crate) mod process;
