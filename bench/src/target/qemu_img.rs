//! `qemu-img convert`: 16 coroutines, out of order, no cache on either side.

use super::{Caching, Task};
use crate::contestant::{Contestant, Invocation};
use crate::results::Kind;
use crate::volume::Pair;

/// The best that is known.
pub(crate) fn convert(task: &Task<'_>) -> Contestant {
    task.contestant("qemu-img", Kind::Rival, "qemu-img", |program, pair| line(program, pair, task.caching, &[]))
}

/// The same into a file whose space was reserved first, as ours is.
pub(crate) fn convert_reserved(task: &Task<'_>) -> Contestant {
    let flags = ["-o", "preallocation=falloc"];
    task.contestant("qemu-img-falloc", Kind::Rival, "qemu-img", |program, pair| {
        line(program, pair, task.caching, &flags)
    })
}

/// With the lowest priority of the disk, which is how one would spare others.
pub(crate) fn convert_idle(task: &Task<'_>) -> Contestant {
    let mut contestant = convert(task).named("ionice-qemu-img");
    if let crate::contestant::Work::Commands { commands, .. } = &mut contestant.work {
        match task.programs.path("ionice") {
            Ok(ionice) => {
                for step in commands.iter_mut().flat_map(|command| &mut command.steps) {
                    step.splice(0..0, [ionice.clone(), "-c".to_owned(), "3".to_owned()]);
                }
            }
            Err(why) => contestant.work = crate::contestant::Work::Missing(why),
        }
    }
    contestant
}

/// And the comparison afterwards that makes it as sure as a verified copy.
pub(crate) fn convert_and_compare(task: &Task<'_>) -> Contestant {
    task.contestant("qemu-img+compare", Kind::Rival, "qemu-img", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let compare = [program, "compare", "-f", "raw", "-F", "raw", "-T", cache(task.caching), &source, &destination];
        line(program, pair, task.caching, &[]).then(compare)
    })
}

/// The command line of one copy.
pub(crate) fn line(program: &str, pair: &Pair, caching: Caching, flags: &[&str]) -> Invocation {
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
