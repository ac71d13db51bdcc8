//! Names what the scheduler and the event queue synchronise by, so that tests can put a model checker in its place.

pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(super) use std::thread_local;
