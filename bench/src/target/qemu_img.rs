//! Builds `qemu-img convert` targets, with 16 coroutines, out of order, and without cache on either side.

use super::{Caching, Workload};
use crate::results::Kind;
use crate::target::{Invocation, Target};
use crate::volume::VolumePair;

/// Builds a target with the best known flags.
pub(crate) fn convert(workload: &Workload<'_>) -> Target {
    workload.target("qemu-img", Kind::Rival, "qemu-img", |program, pair| line(program, pair, workload.caching, &[]))
}

/// Builds a target that copies into a file with reserved space, as ours does.
pub(crate) fn convert_reserved(workload: &Workload<'_>) -> Target {
    let flags = ["-o", "preallocation=falloc"];
    workload.target("qemu-img-falloc", Kind::Rival, "qemu-img", |program, pair| {
        line(program, pair, workload.caching, &flags)
    })
}

/// Builds a target with idle I/O priority, the usual way to protect other users of a disk.
pub(crate) fn convert_idle(workload: &Workload<'_>) -> Target {
    let mut target = convert(workload).with_name("ionice-qemu-img");
    if let crate::target::TrialWork::Commands { commands, .. } = &mut target.work {
        match workload.programs.path("ionice") {
            Ok(ionice) => {
                for step in commands.iter_mut().flat_map(|command| &mut command.steps) {
                    step.splice(0..0, [ionice.clone(), "-c".to_owned(), "3".to_owned()]);
                }
            }
            Err(why) => target.work = crate::target::TrialWork::Missing(why),
        }
    }
    target
}

/// Builds a target that copies and then compares.
pub(crate) fn convert_and_compare(workload: &Workload<'_>) -> Target {
    workload.target("qemu-img+compare", Kind::Rival, "qemu-img", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let compare =
            [program, "compare", "-f", "raw", "-F", "raw", "-T", cache(workload.caching), &source, &destination];
        line(program, pair, workload.caching, &[]).then(compare)
    })
}

/// Returns the command line of one copy.
pub(crate) fn line(program: &str, pair: &VolumePair, caching: Caching, flags: &[&str]) -> Invocation {
    let cache = cache(caching);
    let mut words = vec![program, "convert", "-f", "raw", "-O", "raw", "-t", cache, "-T", cache, "-W", "-m", "16"];
    words.extend(flags);
    if !pair.destination.is_created() {
        words.push("-n");
    }
    let (source, destination) = (pair.source.name(), pair.destination.name());
    Invocation::new(words.into_iter().chain([&*source, &*destination]))
}

fn cache(caching: Caching) -> &'static str {
    match caching {
        Caching::Direct => "none",
        Caching::Buffered => "writeback",
    }
}
