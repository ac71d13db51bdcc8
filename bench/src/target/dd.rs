//! `dd`: one block at a time.

use super::{Caching, Task};
use crate::contestant::{Contestant, Invocation};
use crate::results::Kind;
use crate::volume::Pair;

/// Direct or cached, 1 MiB a block unless the task says otherwise, with one flush at the end.
pub(crate) fn copy(task: &Task<'_>) -> Contestant {
    task.contestant("dd", Kind::Rival, "dd", |program, pair| line(program, pair, task))
}

/// The same into a file whose space was reserved first, as ours is.
pub(crate) fn copy_reserved(task: &Task<'_>) -> Contestant {
    task.contestant("dd-falloc", Kind::Rival, "dd", |program, pair| {
        let (bytes, destination) = (pair.bytes.to_string(), pair.destination.name());
        let reserve = Invocation::new(["fallocate", "--length", &bytes, &destination]);
        line(program, pair, task).steps.into_iter().fold(reserve, |all, mut step| {
            step.iter_mut().filter(|word| **word == "conv=fsync").for_each(|word| word.push_str(",notrunc"));
            all.then(step)
        })
    })
}

/// The same, and then a byte-by-byte comparison.
pub(crate) fn copy_and_compare(task: &Task<'_>) -> Contestant {
    let compare = task.programs.path("cmp");
    let missing = compare.clone().err();
    let contestant = task.contestant("dd+cmp", Kind::Rival, "dd", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        line(program, pair, task).then([compare.as_deref().unwrap_or("cmp"), &source, &destination])
    });
    match missing {
        Some(why) => Contestant { work: crate::contestant::Work::Missing(why), ..contestant },
        None => contestant,
    }
}

fn line(program: &str, pair: &Pair, task: &Task<'_>) -> Invocation {
    let (from, to) = (format!("if={}", pair.source.name()), format!("of={}", pair.destination.name()));
    let block = format!("bs={}", task.block_or(1 << 20));
    let keep = if pair.destination.is_created() { "conv=fsync" } else { "conv=fsync,notrunc" };
    let mut words = vec![program, &from, &to, &block, keep, "status=none"];
    if task.caching == Caching::Direct {
        words.extend(["iflag=direct", "oflag=direct"]);
    }
    Invocation::new(words)
}
