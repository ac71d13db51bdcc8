//! The engine against its rivals.
#![forbid(unsafe_code)]
fn main() {}
