//! Names what the scheduler synchronises by, so that tests can put a model checker in its place.

pub(super) use std::sync::{Arc, Mutex, MutexGuard};
pub(super) use std::thread_local;
