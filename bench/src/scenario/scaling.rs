//! Copies with more cores, and with more jobs at once.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB, Scale};
use crate::target::{Caching, blockhaul, dd, nbdcopy, qemu_img};
use crate::trial_executor::Failure;
use crate::volume::{Volume, VolumePair};

pub(super) const CORES: Scenario = Scenario {
    name: "cores",
    about: "One copy in memory with 1, 2, 4 .. cores: no device, only CPU.",
    metric: Metric::BytesPerSecond,
    prepare: cores,
};

pub(super) const JOBS: Scenario = Scenario {
    name: "jobs",
    about: "The same bytes as 1, 4, 16 and 64 copies at once, past the page cache.",
    metric: Metric::BytesPerSecond,
    prepare: jobs,
};

fn cores(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB, 128 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(0)?;
    let memory = dir.tmpfs()?;
    let source = context.file(&dir, memory.join("source"), bytes, std::iter::once(0..bytes))?;
    let pairs = [dir.pair(0, Volume::File(source), Volume::File(memory.join("destination")), bytes)];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    let mut steps: Vec<usize> =
        std::iter::successors(Some(1), |cores| Some(cores * 2)).take_while(|it| *it < here).collect();
    steps.push(here);
    let mut targets = Vec::new();
    for cores in steps {
        let flag = cores.to_string();
        targets.push(blockhaul::engine(&workload, |request| request.cores = Some(cores)).at_step(cores as u64));
        targets.push(blockhaul::command(&workload, &["--cores", &flag]).at_step(cores as u64));
    }
    Ok(context.prepare(dir, bytes, targets).axis("cores"))
}

fn jobs(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB / 2, 32 * MIB, 4 * MIB);
    // Space for the sources and destinations of all steps.
    let dir = context.scenario_dir(8 * bytes)?;
    let mut targets = Vec::new();
    for jobs in [1, 4, 16, 64] {
        let each = bytes / jobs;
        let pair = |number: u64| -> Result<VolumePair, Failure> {
            let path = |name: &str| dir.path(&format!("{name}-{number}-of-{jobs}"));
            let source = context.file(&dir, path("source"), each, std::iter::once(0..each))?;
            let (source, destination) = (Volume::File(source), Volume::File(path("destination")));
            Ok(VolumePair { source, destination, bytes: each, state: path("state") })
        };
        let pairs: Vec<VolumePair> = (0..jobs).map(pair).collect::<Result<_, _>>()?;
        let workload = context.workload(&pairs, Caching::OwnChoice);
        let all = [
            blockhaul::engine(&workload, |_| ()),
            blockhaul::command(&workload, &[]),
            qemu_img::convert(&workload),
            nbdcopy::copy(&workload),
            dd::copy(&workload),
        ];
        targets.extend(all.into_iter().map(|target| target.at_step(jobs)));
    }
    let prepared = context.prepare(dir, bytes, targets).axis("copies at once");
    // Starting 64 programs at a time takes most of a quick run.
    Ok(if context.scale == Scale::Full { prepared } else { prepared.trials(2) })
}
