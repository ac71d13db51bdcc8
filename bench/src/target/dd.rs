//! Builds `dd` targets, which copy one block at a time.

use super::{Caching, Workload};
use crate::results::Kind;
use crate::target::{Invocation, Target};
use crate::volume::VolumePair;

/// Builds a target with direct or cached I/O, blocks of 1 MiB unless the workload sets a size, and one flush at the
/// end.
pub(crate) fn copy(workload: &Workload<'_>) -> Target {
    workload.target("dd", Kind::Rival, "dd", |program, pair| line(program, pair, workload))
}

/// Builds a target that copies into a file with reserved space, as ours does.
pub(crate) fn copy_reserved(workload: &Workload<'_>) -> Target {
    workload.target("dd-falloc", Kind::Rival, "dd", |program, pair| {
        let (bytes, destination) = (pair.bytes.to_string(), pair.destination.name());
        let reserve = Invocation::new(["fallocate", "--length", &bytes, &destination]);
        line(program, pair, workload).steps.into_iter().fold(reserve, |all, mut step| {
            step.iter_mut().filter(|word| **word == "conv=fsync").for_each(|word| word.push_str(",notrunc"));
            all.then(step)
        })
    })
}

/// Builds a target that copies and then compares byte by byte.
pub(crate) fn copy_and_compare(workload: &Workload<'_>) -> Target {
    let compare = workload.programs.path("cmp");
    let missing = compare.clone().err();
    let target = workload.target("dd+cmp", Kind::Rival, "dd", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        line(program, pair, workload).then([compare.as_deref().unwrap_or("cmp"), &source, &destination])
    });
    match missing {
        Some(why) => Target { work: crate::target::TrialWork::Missing(why), ..target },
        None => target,
    }
}

fn line(program: &str, pair: &VolumePair, workload: &Workload<'_>) -> Invocation {
    let (from, to) = (format!("if={}", pair.source.name()), format!("of={}", pair.destination.name()));
    let block = format!("bs={}", workload.block_or(1 << 20));
    let keep = if pair.destination.is_created() { "conv=fsync" } else { "conv=fsync,notrunc" };
    let mut words = vec![program, &from, &to, &block, keep, "status=none"];
    if workload.caching != Caching::Buffered {
        words.extend(["iflag=direct", "oflag=direct"]);
    }
    Invocation::new(words)
}
