//! GNU `ddrescue`: the one rival that can go on after it was stopped.

use super::{Caching, Task};
use crate::contestant::{Contestant, Invocation};
use crate::results::Kind;
use crate::volume::Pair;

/// 1 MiB at a time, direct where asked, space reserved where it creates the file, flushed at the end.
pub(crate) fn copy(task: &Task<'_>) -> Contestant {
    task.contestant("ddrescue", Kind::Rival, "ddrescue", |program, pair| line(program, pair, task, &[]))
}

/// The same with these flags and a map file, by which a later run goes on.
pub(crate) fn resumable(task: &Task<'_>, flags: &[&str]) -> Contestant {
    task.contestant("ddrescue", Kind::Rival, "ddrescue", |program, pair| {
        let mut line = line(program, pair, task, flags);
        let map = pair.state.join("map").display().to_string();
        if let Some(step) = line.steps.first_mut() {
            step.push(map);
        }
        line
    })
}

fn line(program: &str, pair: &Pair, task: &Task<'_>, flags: &[&str]) -> Invocation {
    let sectors = format!("--cluster-size={}", (task.block_or(1 << 20) / 512).max(1));
    let mut words = vec![program, "--quiet", &sectors];
    if task.caching == Caching::Direct {
        words.extend(["--idirect", "--odirect"]);
    }
    words.push(if pair.destination.is_created() { "--preallocate" } else { "--force" });
    words.extend(flags);
    let (source, destination) = (pair.source.name(), pair.destination.name());
    Invocation::new(words.into_iter().chain([&*source, &*destination])).then(["sync", "--data", &destination])
}
