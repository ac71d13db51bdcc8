//! `cp`: what everybody has.

use super::Task;
use crate::contestant::{Contestant, Invocation};
use crate::results::Kind;

/// Every byte is copied, then flushed.
pub(crate) fn dense(task: &Task<'_>) -> Contestant {
    copy(task, &["--reflink=never", "--sparse=never"])
}

/// Holes stay holes.
pub(crate) fn sparse(task: &Task<'_>) -> Contestant {
    copy(task, &["--reflink=never", "--sparse=auto"])
}

/// Extents are shared.
pub(crate) fn reflink(task: &Task<'_>) -> Contestant {
    task.contestant("cp", Kind::Rival, "cp", |program, pair| line(program, pair, &["--reflink=always"]))
}

fn copy(task: &Task<'_>, flags: &[&str]) -> Contestant {
    task.cached_rival(task.contestant("cp", Kind::Rival, "cp", |program, pair| line(program, pair, flags)))
}

fn line(program: &str, pair: &crate::volume::Pair, flags: &[&str]) -> Invocation {
    let (source, destination) = (pair.source.name(), pair.destination.name());
    let words = [program].into_iter().chain(flags.iter().copied()).chain([&*source, &*destination]);
    Invocation::new(words).then(["sync", "--data", &destination])
}
