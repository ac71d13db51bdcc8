//! A file full of random data to a new file: past the page cache, through it, and in memory.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, cp, dd, ddrescue, floor, nbdcopy, qemu_img};
use crate::volume::Volume;

pub(super) const DENSE_DIRECT: Scenario = Scenario {
    name: "dense-direct",
    about: "A file of random data to a new file on the same disk, past the page cache, ending on stable storage.",
    metric: Metric::BytesPerSecond,
    stage: dense_direct,
};

pub(super) const DENSE_BUFFERED: Scenario = Scenario {
    name: "dense-buffered",
    about: "The same through the page cache.",
    metric: Metric::BytesPerSecond,
    stage: dense_buffered,
};

pub(super) const TMPFS: Scenario = Scenario {
    name: "tmpfs",
    about: "A file of random data to a new file in memory: no device, only CPU.",
    metric: Metric::BytesPerSecond,
    stage: tmpfs,
};

fn dense_direct(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 128 * MIB, 4 * MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let task = setting.task(&pairs, Caching::Direct);
    let mut contestants = vec![
        blockhaul::engine(&task, |_| ()),
        blockhaul::command(&task, &[]),
        blockhaul::engine(&task, |order| order.path = Some("threads".to_owned())).named("engine-threads"),
        qemu_img::convert(&task),
        qemu_img::convert_reserved(&task),
        nbdcopy::copy(&task),
        dd::copy(&task),
        dd::copy_reserved(&task),
        ddrescue::copy(&task),
        cp::dense(&task),
        floor::bare_loop(&task),
        floor::null(&task),
    ];
    let shapes: &[(u64, u32)] = setting.scale.of(&[(MIB, 8), (MIB, 16)], &[(MIB, 8)], &[(MIB, 8)]);
    contestants.extend(shapes.iter().map(|(block, depth)| floor::fio(&task, *block, *depth)));
    // Some cannot pass the page cache.
    Ok(setting.stage(room, bytes, contestants).cached(2 * bytes).counting_calls())
}

fn dense_buffered(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB, 64 * MIB, 4 * MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let task = setting.task(&pairs, Caching::Buffered);
    let contestants = vec![
        blockhaul::engine(&task, |_| ()),
        blockhaul::command(&task, &[]),
        qemu_img::convert(&task),
        nbdcopy::copy(&task),
        dd::copy(&task),
        ddrescue::copy(&task),
        cp::dense(&task),
    ];
    Ok(setting.stage(room, bytes, contestants).cached(2 * bytes))
}

fn tmpfs(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 128 * MIB, 4 * MIB);
    let mut room = setting.room(0)?;
    let memory = room.tmpfs()?;
    let source = setting.file(&room, memory.join("source"), bytes, std::iter::once(0..bytes))?;
    let destination = Volume::File(memory.join("destination"));
    let pairs = [room.pair(0, Volume::File(source), destination, bytes)];
    let task = setting.task(&pairs, Caching::Buffered);
    let ours = setting.task(&pairs, Caching::Direct);
    let contestants = vec![
        blockhaul::engine(&ours, |_| ()),
        blockhaul::command(&ours, &[]),
        qemu_img::convert(&task),
        nbdcopy::copy(&task),
        dd::copy(&task),
        cp::dense(&task),
    ];
    Ok(setting.stage(room, bytes, contestants).cached(bytes))
}
