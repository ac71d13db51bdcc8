//! Copies files that are mostly holes.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, cp, nbdcopy, qemu_img};
use crate::trial_executor::Failure;
use crate::volume::Volume;

pub(super) const SPARSE: Scenario = Scenario {
    name: "sparse",
    about: "A large file with scattered extents of 1 MiB to a new file; holes stay holes.",
    metric: Metric::Seconds,
    prepare: sparse,
};

pub(super) const EMPTY: Scenario = Scenario {
    name: "empty",
    about: "A huge file with nothing in it to a new file.",
    metric: Metric::Seconds,
    prepare: empty,
};

fn sparse(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let (bytes, extents) = context.scale.of((64 * GIB, 1024), (4 * GIB, 64), (64 * MIB, 4));
    holes(context, bytes, extents)
}

fn empty(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    holes(context, context.scale.of(8192 * GIB, 512 * GIB, GIB), 0)
}

/// Prepares a file of `bytes` with extents of 1 MiB at even distances.
fn holes(context: &SetupContext<'_>, bytes: u64, extents: u64) -> Result<PreparedScenario, Failure> {
    let dir = context.scenario_dir(3 * extents * MIB)?;
    let distance = bytes / extents.max(1);
    let data = (0..extents).map(|number| number * distance..number * distance + MIB);
    let source = context.file(&dir, dir.path("source"), bytes, data)?;
    let destination = Volume::File(dir.path("destination"));
    let pairs = [dir.pair(0, Volume::File(source), destination, bytes)];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let targets = vec![
        blockhaul::engine(&workload, |_| ()),
        blockhaul::command(&workload, &[]),
        qemu_img::convert(&workload),
        nbdcopy::copy(&workload),
        cp::sparse(&workload),
    ];
    Ok(context.prepare(dir, bytes, targets).data(extents * MIB).cached(2 * extents * MIB).parameter("extents", extents))
}
