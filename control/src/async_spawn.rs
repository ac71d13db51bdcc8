//! Starts the asynchronous work of this process: the seam by which a simulation runs several processes on one thread.
//!
//! Everything that a node does belongs to its process. A simulation can pause a process (as SIGSTOP does) or end it (as
//! SIGKILL does) together with all that it has started, because all of it is started here and not by `tokio` directly.

use std::future::Future;
use tokio::task::JoinSet;

/// Starts a task of the caller's process in a set: the task ends with the set, too.
pub(crate) fn spawn_into<F>(set: &mut JoinSet<F::Output>, future: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    #[cfg(test)]
    let future = crate::sim::process::Owned::here(future);
    set.spawn(future);
}

/// Starts a task on its own, for what only a simulation has.
#[cfg(test)]
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(crate::sim::process::Owned::here(future))
}
