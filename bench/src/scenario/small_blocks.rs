//! Measures the cost of a block: copies with ever smaller requests, where calls and bookkeeping weigh most.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::MIB;
use crate::target::{Caching, Workload, baselines, blockhaul, dd, ddrescue, nbdcopy};
use crate::trial_executor::Failure;

pub(super) const SMALL_BLOCKS: Scenario = Scenario {
    name: "small-blocks",
    about: "A file of random data to a new file in requests of 4, 16, 64 and 256 KiB, past the page cache.",
    metric: Metric::BytesPerSecond,
    prepare,
};

const KIB: u64 = 1 << 10;

/// Requests in flight: the engine's default for blocks this small.
const DEPTH: u32 = 64;

fn prepare(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(256 * MIB, 8 * MIB, MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let mut targets = Vec::new();
    for block in [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB] {
        let workload = Workload { block: Some(block), ..context.workload(&pairs, Caching::OwnChoice) };
        let all = [
            blockhaul::engine(&workload, |_| ()),
            blockhaul::command(&workload, &[]),
            nbdcopy::copy(&workload),
            dd::copy(&workload),
            ddrescue::copy(&workload),
            baselines::bare_loop(&workload),
            baselines::fio(&workload, block, DEPTH).with_name("fio"),
        ];
        targets.extend(all.into_iter().map(|target| target.at_step(block / KIB)));
    }
    Ok(context.prepare(dir, bytes, targets).cached(2 * bytes).axis("block size in KiB"))
}
