//! Copies many small volumes, a few at a time: one batch against as many programs, and the memory of a long batch.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::MIB;
use crate::target::{Caching, blockhaul, qemu_img};
use crate::trial_executor::Failure;
use crate::volume::{Volume, VolumePair};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Copies that run at once.
const PARALLEL: usize = 4;

pub(super) const BATCH: Scenario = Scenario {
    name: "batch",
    about: "64 small volumes, 4 at a time: one batch, and a program for each.",
    metric: Metric::BytesPerSecond,
    prepare: batch,
};

pub(super) const MEMBERS: Scenario = Scenario {
    name: "batch-members",
    about: "A batch of 10 and of 1,000 volumes of 64 KiB, 4 at a time: memory for members that wait.",
    metric: Metric::Seconds,
    prepare: members,
};

fn batch(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let count = context.scale.of(64, 16, 4);
    let each = context.scale.of(16 * MIB, 4 * MIB, MIB);
    let bytes = each * count as u64;
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = pairs(&dir.path("volumes"), &dir.path("state"), count, |path| {
        context.file(&dir, path, each, std::iter::once(0..each))
    })?;
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let targets = vec![
        blockhaul::batch(&workload, &batch_file(&dir.path("batch.toml"), &pairs)?, &dir.path("state")),
        qemu_img::several(&workload, &list_file(&dir.path("list"), &pairs)?, PARALLEL),
    ];
    let prepared = context.prepare(dir, bytes, targets);
    Ok(prepared.parameter("volumes", count).parameter("at once", PARALLEL))
}

fn members(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let each = MIB / 16;
    let counts: [usize; 2] = context.scale.of([10, 1000], [10, 1000], [2, 4]);
    let dir = context.scenario_dir(8 * each * 1010)?;
    let mut targets = Vec::new();
    for (count, name) in counts.into_iter().zip(["few", "many"]) {
        let pairs = pairs(&dir.path(name), &dir.path("state"), count, |path| {
            context.file(&dir, path, each, std::iter::once(0..each))
        })?;
        let workload = context.workload(&pairs, Caching::OwnChoice);
        let file = batch_file(&dir.path(&format!("{name}.toml")), &pairs)?;
        targets.push(blockhaul::batch(&workload, &file, &dir.path("state")).with_name(name));
    }
    let prepared = context.prepare(dir, each * 1000, targets);
    Ok(prepared.parameter("few", counts[0]).parameter("many", counts[1]))
}

/// Creates sources, and pairs them with destination files. All share one directory for journals.
fn pairs(
    folder: &Path,
    state: &Path,
    count: usize,
    create: impl Fn(PathBuf) -> Result<PathBuf, Failure>,
) -> Result<Vec<VolumePair>, Failure> {
    std::fs::create_dir_all(folder).map_err(|error| Failure::io("create a directory for volumes", &error))?;
    let pair = |number: usize| {
        let source = create(folder.join(format!("source-{number}")))?;
        let bytes = source.metadata().map_err(|error| Failure::io("look at a volume", &error))?.len();
        let destination = folder.join(format!("destination-{number}"));
        let (source, destination) = (Volume::File(source), Volume::File(destination));
        Ok(VolumePair { source, destination, bytes, state: state.to_owned() })
    };
    (0..count).map(pair).collect()
}

/// Writes a batch file of these copies.
fn batch_file(path: &Path, pairs: &[VolumePair]) -> Result<PathBuf, Failure> {
    let mut text = format!("parallel = {PARALLEL}\n");
    for (number, pair) in pairs.iter().enumerate() {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let _ = writeln!(text, "[[copy]]\nid = 'v{number}'\nfrom = {source:?}\nto = {destination:?}");
    }
    written(path, &text)
}

/// Writes the sources and destinations of these copies, a pair a line.
fn list_file(path: &Path, pairs: &[VolumePair]) -> Result<PathBuf, Failure> {
    let line = |pair: &VolumePair| format!("{} {}\n", pair.source.name(), pair.destination.name());
    written(path, &pairs.iter().map(line).collect::<String>())
}

fn written(path: &Path, text: &str) -> Result<PathBuf, Failure> {
    std::fs::write(path, text).map_err(|error| Failure::io("write a list of volumes", &error))?;
    Ok(path.to_owned())
}
