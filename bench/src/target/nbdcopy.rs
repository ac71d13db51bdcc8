//! `nbdcopy`: four connections, 64 requests on each.

use super::Task;
use crate::contestant::{Contestant, Invocation};
use crate::results::Kind;

/// With its defaults, which its authors have measured, and a flush at the end.
pub(crate) fn copy(task: &Task<'_>) -> Contestant {
    tuned(task, "nbdcopy", &[])
}

/// With other flags, for those who pick by hand.
pub(crate) fn tuned(task: &Task<'_>, name: &str, flags: &[&str]) -> Contestant {
    let block = task.block.map(|bytes| format!("--request-size={bytes}"));
    let contestant = task.contestant(name, Kind::Rival, "nbdcopy", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let fixed = [program, "--flush"].into_iter().chain(flags.iter().copied());
        Invocation::new(fixed.chain(block.as_deref()).chain([&*source, &*destination]))
    });
    let is_local = task.pairs.iter().any(|pair| !pair.source.is_remote() || !pair.destination.is_remote());
    if is_local { task.cached_rival(contestant) } else { contestant }
}
