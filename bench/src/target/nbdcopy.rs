//! Builds `nbdcopy` targets, with four connections and 64 requests on each.

use super::Workload;
use crate::results::Kind;
use crate::target::{Invocation, Target};

/// Builds a target with the defaults, which the authors have measured, and a flush at the end.
pub(crate) fn copy(workload: &Workload<'_>) -> Target {
    tuned(workload, "nbdcopy", &[])
}

/// Builds a target with flags tuned by hand.
pub(crate) fn tuned(workload: &Workload<'_>, name: &str, flags: &[&str]) -> Target {
    let block = workload.block.map(|bytes| format!("--request-size={bytes}"));
    let target = workload.target(name, Kind::Rival, "nbdcopy", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let fixed = [program, "--flush"].into_iter().chain(flags.iter().copied());
        Invocation::new(fixed.chain(block.as_deref()).chain([&*source, &*destination]))
    });
    let is_local = workload.pairs.iter().any(|pair| !pair.source.is_remote() || !pair.destination.is_remote());
    if is_local { workload.cached_rival(target) } else { target }
}
