//! What a block costs: the same copy with ever smaller requests, where calls and bookkeeping weigh most.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::MIB;
use crate::target::{Caching, Task, blockhaul, dd, ddrescue, floor, nbdcopy};

pub(super) const SMALL_BLOCKS: Scenario = Scenario {
    name: "small-blocks",
    about: "A file of random data to a new file in requests of 4, 16, 64 and 256 KiB, past the page cache.",
    metric: Metric::BytesPerSecond,
    stage,
};

const KIB: u64 = 1 << 10;

/// 64 requests in flight: what the engine has by default for blocks this small.
const DEPTH: u32 = 64;

fn stage(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(256 * MIB, 8 * MIB, MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let mut contestants = Vec::new();
    for block in [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB] {
        let task = Task { block: Some(block), ..setting.task(&pairs, Caching::Direct) };
        let all = [
            blockhaul::engine(&task, |_| ()),
            blockhaul::command(&task, &[]),
            nbdcopy::copy(&task),
            dd::copy(&task),
            ddrescue::copy(&task),
            floor::bare_loop(&task),
            floor::fio(&task, block, DEPTH).named("fio"),
        ];
        contestants.extend(all.into_iter().map(|contestant| contestant.at(block / KIB)));
    }
    Ok(setting.stage(room, bytes, contestants).cached(2 * bytes).axis("block size in KiB"))
}
