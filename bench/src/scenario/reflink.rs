//! Copies a file by sharing its extents.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, cp};
use crate::trial_executor::Failure;
use crate::volume::Volume;

pub(super) const REFLINK: Scenario = Scenario {
    name: "reflink",
    about: "A file of random data to a new file on xfs, by sharing its extents.",
    metric: Metric::Seconds,
    prepare,
};

fn prepare(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB, 128 * MIB, 4 * MIB);
    // xfs needs at least 300 MiB, and space for its log.
    let disk = bytes + 512 * MIB;
    context.programs.path("mkfs.xfs").map_err(Failure::Failed)?;
    let mut dir = context.scenario_dir(disk)?;
    let mounted = dir.xfs(disk)?;
    let source = context.file(&dir, mounted.join("source"), bytes, std::iter::once(0..bytes))?;
    let destination = Volume::File(mounted.join("destination"));
    let pairs = [dir.pair(0, Volume::File(source), destination, bytes)];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let targets = vec![
        blockhaul::engine(&workload, |request| request.reflink = Some("always".to_owned())),
        blockhaul::command(&workload, &["--reflink", "always"]),
        cp::reflink(&workload),
    ];
    Ok(context
        .prepare(dir, bytes, targets)
        .cached(2 * bytes)
        .parameter("filesystem", "xfs in a file, over a loop device"))
}
