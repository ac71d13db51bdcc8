//! Files that are mostly holes: finding what need not be copied.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, cp, nbdcopy, qemu_img};
use crate::volume::Volume;

pub(super) const SPARSE: Scenario = Scenario {
    name: "sparse",
    about: "A large file with scattered extents of 1 MiB to a new file; holes stay holes.",
    metric: Metric::Seconds,
    stage: sparse,
};

pub(super) const EMPTY: Scenario = Scenario {
    name: "empty",
    about: "A huge file with nothing in it to a new file.",
    metric: Metric::Seconds,
    stage: empty,
};

fn sparse(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let (bytes, extents) = setting.scale.of((64 * GIB, 1024), (4 * GIB, 64), (64 * MIB, 4));
    holes(setting, bytes, extents)
}

fn empty(setting: &Setting<'_>) -> Result<Stage, Failure> {
    holes(setting, setting.scale.of(8192 * GIB, 512 * GIB, GIB), 0)
}

/// A volume of that size with so many extents of 1 MiB at even distances.
fn holes(setting: &Setting<'_>, bytes: u64, extents: u64) -> Result<Stage, Failure> {
    let room = setting.room(3 * extents * MIB)?;
    let distance = bytes / extents.max(1);
    let data = (0..extents).map(|number| number * distance..number * distance + MIB);
    let source = setting.file(&room, room.path("source"), bytes, data)?;
    let destination = Volume::File(room.path("destination"));
    let pairs = [room.pair(0, Volume::File(source), destination, bytes)];
    let task = setting.task(&pairs, Caching::Direct);
    let contestants = vec![
        blockhaul::engine(&task, |_| ()),
        blockhaul::command(&task, &[]),
        qemu_img::convert(&task),
        nbdcopy::copy(&task),
        cp::sparse(&task),
    ];
    Ok(setting
        .stage(room, bytes, contestants)
        .data(extents * MIB)
        .cached(2 * extents * MIB)
        .parameter("extents", extents))
}
