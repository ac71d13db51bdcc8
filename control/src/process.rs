//! Where the asynchronous work of this process is started: the seam by which a simulation has several on one thread.
//!
//! Everything that a node does belongs to its process. A simulation can hold a process still (as SIGSTOP) or end it
//! (as SIGKILL), together with all that it has started, because all of it is started here and not by `tokio` directly.

use std::future::Future;
use tokio::task::JoinHandle;

/// Starts a task of this process.
#[cfg(not(test))]
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(future)
}

/// Starts a task of the process that the caller belongs to.
#[cfg(test)]
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(owned(future))
}

/// For work that is started by other means, as by a `JoinSet`: it belongs to the process of the caller.
#[cfg(test)]
pub(crate) fn owned<F: Future + Send + 'static>(future: F) -> crate::sim::process::Owned<F> {
    crate::sim::process::Owned::here(future)
}
