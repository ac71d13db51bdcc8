//! The task center.
#![forbid(unsafe_code)]
