//! Copies a file of random data to a new file: past the page cache, through it, and in memory.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, baselines, blockhaul, cp, dd, ddrescue, nbdcopy, qemu_img};
use crate::trial_executor::Failure;
use crate::volume::Volume;

pub(super) const DENSE_DIRECT: Scenario = Scenario {
    name: "dense-direct",
    about: "A file of random data to a new file on the same disk, past the page cache, ending on stable storage.",
    metric: Metric::BytesPerSecond,
    prepare: dense_direct,
};

pub(super) const DENSE_BUFFERED: Scenario = Scenario {
    name: "dense-buffered",
    about: "The same through the page cache.",
    metric: Metric::BytesPerSecond,
    prepare: dense_buffered,
};

pub(super) const TMPFS: Scenario = Scenario {
    name: "tmpfs",
    about: "A file of random data to a new file in memory: no device, only CPU.",
    metric: Metric::BytesPerSecond,
    prepare: tmpfs,
};

fn dense_direct(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 128 * MIB, 4 * MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let workload = context.workload(&pairs, Caching::Direct);
    let mut targets = vec![
        blockhaul::engine(&workload, |_| ()),
        blockhaul::command(&workload, &[]),
        blockhaul::engine(&workload, |request| request.path = Some("threads".to_owned())).with_name("engine-threads"),
        qemu_img::convert(&workload),
        qemu_img::convert_reserved(&workload),
        nbdcopy::copy(&workload),
        dd::copy(&workload),
        dd::copy_reserved(&workload),
        ddrescue::copy(&workload),
        cp::dense(&workload),
        baselines::bare_loop(&workload),
        baselines::null(&workload),
    ];
    let shapes: &[(u64, u32)] = context.scale.of(&[(MIB, 8), (MIB, 16)], &[(MIB, 8)], &[(MIB, 8)]);
    targets.extend(shapes.iter().map(|(block, depth)| baselines::fio(&workload, *block, *depth)));
    // Some rivals cannot bypass the page cache.
    Ok(context.prepare(dir, bytes, targets).cached(2 * bytes).counting_calls())
}

fn dense_buffered(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB, 64 * MIB, 4 * MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let workload = context.workload(&pairs, Caching::Buffered);
    let targets = vec![
        blockhaul::engine(&workload, |_| ()),
        blockhaul::command(&workload, &[]),
        qemu_img::convert(&workload),
        nbdcopy::copy(&workload),
        dd::copy(&workload),
        ddrescue::copy(&workload),
        cp::dense(&workload),
    ];
    Ok(context.prepare(dir, bytes, targets).cached(2 * bytes))
}

fn tmpfs(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 128 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(0)?;
    let memory = dir.tmpfs()?;
    let source = context.file(&dir, memory.join("source"), bytes, std::iter::once(0..bytes))?;
    let destination = Volume::File(memory.join("destination"));
    let pairs = [dir.pair(0, Volume::File(source), destination, bytes)];
    let workload = context.workload(&pairs, Caching::Buffered);
    let ours = context.workload(&pairs, Caching::OwnChoice);
    let targets = vec![
        blockhaul::engine(&ours, |_| ()),
        blockhaul::command(&ours, &[]),
        qemu_img::convert(&workload),
        nbdcopy::copy(&workload),
        dd::copy(&workload),
        cp::dense(&workload),
    ];
    Ok(context.prepare(dir, bytes, targets).cached(bytes))
}
