//! Measures the cost of digests and of verification.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, baselines, blockhaul, dd, nbdcopy, qemu_img};
use crate::trial_executor::Failure;

pub(super) const DIGEST: Scenario = Scenario {
    name: "digest",
    about: "CPU per GiB of a copy past the page cache, with and without digests.",
    metric: Metric::CpuSecondsPerGib,
    prepare: digest,
};

pub(super) const VERIFY: Scenario = Scenario {
    name: "verify",
    about: "A copy that is read back and compared, against a copy and a comparison afterwards.",
    metric: Metric::BytesPerSecond,
    prepare: verify,
};

fn digest(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 96 * MIB, 4 * MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let workload = context.workload(&pairs, Caching::Direct);
    let targets = vec![
        blockhaul::engine(&workload, |request| request.no_digest = true).with_name("engine-no-digest"),
        blockhaul::engine(&workload, |_| ()),
        blockhaul::command(&workload, &["--digest", "none"]).with_name("blockhaul-no-digest"),
        blockhaul::command(&workload, &[]),
        qemu_img::convert(&workload),
        nbdcopy::copy(&workload),
        dd::copy(&workload),
        baselines::bare_loop(&workload),
    ];
    Ok(context.prepare(dir, bytes, targets))
}

fn verify(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB, 64 * MIB, 4 * MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let workload = context.workload(&pairs, Caching::Direct);
    let targets = vec![
        blockhaul::engine(&workload, |request| request.verify = true),
        blockhaul::command(&workload, &["--verify"]),
        qemu_img::convert_and_compare(&workload),
        dd::copy_and_compare(&workload),
    ];
    Ok(context.prepare(dir, bytes, targets))
}
