//! Copies a block device to a block device.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, dd, ddrescue, nbdcopy, qemu_img};
use crate::trial_executor::Failure;
use crate::volume::Volume;

pub(super) const LOOP_DEVICES: Scenario = Scenario {
    name: "loop-devices",
    about: "A loop device full of random data to another one that holds zeros, past the page cache.",
    metric: Metric::BytesPerSecond,
    prepare,
};

fn prepare(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB, 128 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(3 * bytes)?;
    let source = context.file(&dir, dir.path("source"), bytes, std::iter::once(0..bytes))?;
    let destination = dir.reserved("destination", bytes)?;
    let (source, destination) = (dir.loop_device(&source)?, dir.loop_device(&destination)?);
    let pairs = [dir.pair(0, Volume::Device(source), Volume::Device(destination), bytes)];
    let workload = context.workload(&pairs, Caching::Direct);
    let targets = vec![
        blockhaul::engine(&workload, |_| ()),
        blockhaul::command(&workload, &[]),
        qemu_img::convert(&workload),
        nbdcopy::copy(&workload),
        dd::copy(&workload),
        ddrescue::copy(&workload),
    ];
    Ok(context.prepare(dir, bytes, targets).cached(2 * bytes))
}
