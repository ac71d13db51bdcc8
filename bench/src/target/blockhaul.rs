//! Our own: the engine as a library, and the `blockhaul` command.

use super::{Caching, Task};
use crate::contestant::{Compared, Contestant, Invocation, Told, Work};
use crate::engine_process::{COMMAND, Order};
use crate::program::ourselves;
use crate::results::Kind;

/// The engine as a library; `change` sets what differs from its defaults.
pub(crate) fn engine(task: &Task<'_>, change: impl FnOnce(&mut Order)) -> Contestant {
    let jobs = task.pairs.iter();
    let jobs = jobs.map(|pair| (pair.source.name(), pair.destination.name(), pair.state.display().to_string()));
    let mut order = Order {
        jobs: jobs.collect(),
        block_bytes: task.block,
        direct: direct(task).map(str::to_owned),
        overwrite: task.pairs.iter().any(|pair| !pair.destination.is_created()),
        ..Order::default()
    };
    change(&mut order);
    let work = match serde_json::to_string(&order) {
        Ok(order) => {
            let command = Invocation::new([ourselves(), COMMAND.to_owned(), order]);
            Work::Commands { commands: vec![command], told: Told::Engine }
        }
        Err(error) => Work::Missing(format!("the order cannot be written: {error}")),
    };
    Contestant {
        name: "engine".to_owned(),
        kind: Kind::Engine,
        step: None,
        work,
        pairs: task.pairs.to_vec(),
        compared: Compared::Yes,
        doubts: Vec::new(),
    }
}

/// The `blockhaul` command, as a script would use it, with these flags more.
pub(crate) fn command(task: &Task<'_>, flags: &[&str]) -> Contestant {
    let mut contestant = task.contestant("blockhaul", Kind::Command, "blockhaul", |program, pair| {
        let state = pair.state.display().to_string();
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let mut words = vec![program.to_owned(), "copy".to_owned(), source, destination];
        words.extend(["--json", "--state-dir", &state].map(str::to_owned));
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        if !pair.destination.is_created() {
            words.push("--overwrite".to_owned());
        }
        if let Some(direct) = direct(task) {
            words.extend(["--direct".to_owned(), direct.to_owned()]);
        }
        if let Some(block) = task.block {
            words.extend(["--block-size".to_owned(), block.to_string()]);
        }
        Invocation::new(words)
    });
    if let Work::Commands { told, .. } = &mut contestant.work {
        *told = Told::Blockhaul;
    }
    contestant
}

/// Direct is what both choose by themselves.
fn direct(task: &Task<'_>) -> Option<&'static str> {
    match task.caching {
        Caching::Direct => None,
        Caching::Buffered => Some("no"),
    }
}
