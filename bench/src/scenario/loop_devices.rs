//! A block device to a block device.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, dd, ddrescue, nbdcopy, qemu_img};
use crate::volume::Volume;

pub(super) const LOOP_DEVICES: Scenario = Scenario {
    name: "loop-devices",
    about: "A loop device full of random data to another one that holds zeros, past the page cache.",
    metric: Metric::BytesPerSecond,
    stage,
};

fn stage(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB, 128 * MIB, 4 * MIB);
    let mut room = setting.room(3 * bytes)?;
    let source = setting.file(&room, room.path("source"), bytes, std::iter::once(0..bytes))?;
    let destination = room.reserved("destination", bytes)?;
    let (source, destination) = (room.loop_device(&source)?, room.loop_device(&destination)?);
    let pairs = [room.pair(0, Volume::Device(source), Volume::Device(destination), bytes)];
    let task = setting.task(&pairs, Caching::Direct);
    let contestants = vec![
        blockhaul::engine(&task, |_| ()),
        blockhaul::command(&task, &[]),
        qemu_img::convert(&task),
        nbdcopy::copy(&task),
        dd::copy(&task),
        ddrescue::copy(&task),
    ];
    Ok(setting.stage(room, bytes, contestants).cached(2 * bytes))
}
