//! Builds `qemu-img convert` targets, with 16 coroutines, out of order, and without cache on either side.

use super::{Caching, Workload};
use crate::results::Kind;
use crate::target::{Invocation, Target};
use crate::volume::VolumePair;
use std::path::Path;

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

/// Builds a target that runs the program for each line of `list`, a source and a destination file, `parallel` at a time.
pub(crate) fn several(workload: &Workload<'_>, list: &Path, parallel: usize) -> Target {
    let (list, parallel) = (list.display().to_string(), parallel.to_string());
    workload.one_command("qemu-img", Kind::Rival, &["xargs", "qemu-img"], |programs| {
        let words = [&*programs[0], "-a", &list, "-P", &parallel, "-n", "2", &*programs[1]];
        Invocation::new(words.into_iter().chain(flags(cache(workload.caching))))
    })
}

/// Returns the arguments of a copy of raw files, without the files.
fn flags(cache: &str) -> [&str; 12] {
    ["convert", "-f", "raw", "-O", "raw", "-t", cache, "-T", cache, "-W", "-m", "16"]
}

/// Returns the command line of one copy.
pub(crate) fn line(program: &str, pair: &VolumePair, caching: Caching, flags: &[&str]) -> Invocation {
    let mut words = vec![program];
    words.extend(self::flags(cache(caching)));
    words.extend(flags);
    if !pair.destination.is_created() {
        words.push("-n");
    }
    let (source, destination) = (pair.source.name(), pair.destination.name());
    Invocation::new(words.into_iter().chain([&*source, &*destination]))
}

fn cache(caching: Caching) -> &'static str {
    match caching {
        Caching::Direct | Caching::OwnChoice => "none",
        Caching::Buffered => "writeback",
    }
}
