//! Builds `cp` targets.

use super::Workload;
use crate::results::Kind;
use crate::target::{Invocation, Target};

/// Builds a target that copies every byte, then flushes.
pub(crate) fn dense(workload: &Workload<'_>) -> Target {
    copy(workload, &["--reflink=never", "--sparse=never"])
}

/// Builds a target that keeps holes.
pub(crate) fn sparse(workload: &Workload<'_>) -> Target {
    copy(workload, &["--reflink=never", "--sparse=auto"])
}

/// Builds a target that shares extents.
pub(crate) fn reflink(workload: &Workload<'_>) -> Target {
    workload.target("cp", Kind::Rival, "cp", |program, pair| line(program, pair, &["--reflink=always"]))
}

fn copy(workload: &Workload<'_>, flags: &[&str]) -> Target {
    workload.cached_rival(workload.target("cp", Kind::Rival, "cp", |program, pair| line(program, pair, flags)))
}

fn line(program: &str, pair: &crate::volume::VolumePair, flags: &[&str]) -> Invocation {
    let (source, destination) = (pair.source.name(), pair.destination.name());
    let words = [program].into_iter().chain(flags.iter().copied()).chain([&*source, &*destination]);
    Invocation::new(words).then(["sync", "--data", &destination])
}
