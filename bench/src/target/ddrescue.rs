//! Builds `ddrescue` targets, the only rival that can resume.

use super::{Caching, Workload};
use crate::results::Kind;
use crate::target::{Invocation, Target};
use crate::volume::VolumePair;

/// Builds a target with blocks of 1 MiB, direct I/O where asked, reserved space for new files, and a flush at the end.
pub(crate) fn copy(workload: &Workload<'_>) -> Target {
    workload.target("ddrescue", Kind::Rival, "ddrescue", |program, pair| line(program, pair, workload, &[]))
}

/// Builds a target with additional flags and a map file, which lets a later run resume.
pub(crate) fn resumable(workload: &Workload<'_>, flags: &[&str]) -> Target {
    workload.target("ddrescue", Kind::Rival, "ddrescue", |program, pair| {
        let mut line = line(program, pair, workload, flags);
        let map = pair.state.join("map").display().to_string();
        if let Some(step) = line.steps.first_mut() {
            step.push(map);
        }
        line
    })
}

fn line(program: &str, pair: &VolumePair, workload: &Workload<'_>, flags: &[&str]) -> Invocation {
    let sectors = format!("--cluster-size={}", (workload.block_or(1 << 20) / 512).max(1));
    let mut words = vec![program, "--quiet", &sectors];
    if workload.caching != Caching::Buffered {
        words.extend(["--idirect", "--odirect"]);
    }
    words.push(if pair.destination.is_created() { "--preallocate" } else { "--force" });
    words.extend(flags);
    let (source, destination) = (pair.source.name(), pair.destination.name());
    Invocation::new(words.into_iter().chain([&*source, &*destination])).then(["sync", "--data", &destination])
}
