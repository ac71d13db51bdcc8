//! What being sure costs: digests while the data passes, and reading the copy back.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, dd, floor, nbdcopy, qemu_img};

pub(super) const DIGEST: Scenario = Scenario {
    name: "digest",
    about: "CPU per GiB of a copy past the page cache, with and without digests.",
    metric: Metric::CpuSecondsPerGib,
    stage: digest,
};

pub(super) const VERIFY: Scenario = Scenario {
    name: "verify",
    about: "A copy that is read back and compared, against a copy and a comparison afterwards.",
    metric: Metric::BytesPerSecond,
    stage: verify,
};

fn digest(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 96 * MIB, 4 * MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let task = setting.task(&pairs, Caching::Direct);
    let contestants = vec![
        blockhaul::engine(&task, |order| order.no_digest = true).named("engine-no-digest"),
        blockhaul::engine(&task, |_| ()),
        blockhaul::command(&task, &["--digest", "none"]).named("blockhaul-no-digest"),
        blockhaul::command(&task, &[]),
        qemu_img::convert(&task),
        nbdcopy::copy(&task),
        dd::copy(&task),
        floor::bare_loop(&task),
    ];
    Ok(setting.stage(room, bytes, contestants))
}

fn verify(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB, 64 * MIB, 4 * MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let task = setting.task(&pairs, Caching::Direct);
    let contestants = vec![
        blockhaul::engine(&task, |order| order.verify = true),
        blockhaul::command(&task, &["--verify"]),
        qemu_img::convert_and_compare(&task),
        dd::copy_and_compare(&task),
    ];
    Ok(setting.stage(room, bytes, contestants))
}
