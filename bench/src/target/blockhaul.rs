//! Builds the targets of this project: the engine as a library, and the `blockhaul` command.

use super::{Caching, Workload};
use crate::engine_process::{COMMAND, EngineRequest};
use crate::program::own_path;
use crate::results::Kind;
use crate::target::{Invocation, OutputFormat, Target, TrialWork};
use std::path::Path;

/// Builds a target for the engine as a library; `change` sets what differs from the defaults.
pub(crate) fn engine(workload: &Workload<'_>, change: impl FnOnce(&mut EngineRequest)) -> Target {
    let jobs = workload.pairs.iter();
    let jobs = jobs.map(|pair| (pair.source.name(), pair.destination.name(), pair.state.display().to_string()));
    let mut request = EngineRequest {
        jobs: jobs.collect(),
        block_bytes: workload.block,
        direct: direct(workload).map(str::to_owned),
        overwrite: workload.pairs.iter().any(|pair| !pair.destination.is_created()),
        ..EngineRequest::default()
    };
    change(&mut request);
    let work = match serde_json::to_string(&request) {
        Ok(request) => {
            let command = Invocation::new([own_path(), COMMAND.to_owned(), request]);
            TrialWork::Commands { commands: vec![command], format: OutputFormat::EngineReport }
        }
        Err(error) => TrialWork::Missing(format!("the request cannot be written: {error}")),
    };
    Target::new("engine", Kind::Engine, work, workload.pairs)
}

/// Builds a target for the `blockhaul` command with additional flags.
pub(crate) fn command(workload: &Workload<'_>, flags: &[&str]) -> Target {
    let target = workload.target("blockhaul", Kind::Command, "blockhaul", |program, pair| {
        let state = pair.state.display().to_string();
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let mut words = vec![program.to_owned(), "copy".to_owned(), source, destination];
        words.extend(["--json", "--state-dir", &state].map(str::to_owned));
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        if !pair.destination.is_created() {
            words.push("--overwrite".to_owned());
        }
        if let Some(direct) = direct(workload) {
            words.extend(["--direct".to_owned(), direct.to_owned()]);
        }
        if let Some(block) = workload.block {
            words.extend(["--block-size".to_owned(), block.to_string()]);
        }
        Invocation::new(words)
    });
    target.with_output(OutputFormat::BlockhaulJson)
}

/// Builds a target for one `blockhaul batch` of all pairs, as `file` describes them.
pub(crate) fn batch(workload: &Workload<'_>, file: &Path, state: &Path) -> Target {
    let (file, state) = (file.display().to_string(), state.display().to_string());
    let target = workload.one_command("blockhaul", Kind::Command, &["blockhaul"], |programs| {
        Invocation::new([&*programs[0], "batch", &file, "--json", "--state-dir", &state])
    });
    target.with_output(OutputFormat::BlockhaulJson)
}

/// Returns the value of `--direct`; `None` for the default.
fn direct(workload: &Workload<'_>) -> Option<&'static str> {
    match workload.caching {
        Caching::Direct => Some("yes"),
        Caching::OwnChoice => None,
        Caching::Buffered => Some("no"),
    }
}
