//! More cores for one copy, and more copies at once.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB, Scale};
use crate::target::{Caching, blockhaul, dd, nbdcopy, qemu_img};
use crate::volume::{Pair, Volume};

pub(super) const CORES: Scenario = Scenario {
    name: "cores",
    about: "One copy in memory with 1, 2, 4 .. cores: no device, only CPU.",
    metric: Metric::BytesPerSecond,
    stage: cores,
};

pub(super) const JOBS: Scenario = Scenario {
    name: "jobs",
    about: "The same bytes as 1, 4, 16 and 64 copies at once, past the page cache.",
    metric: Metric::BytesPerSecond,
    stage: jobs,
};

fn cores(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB, 128 * MIB, 4 * MIB);
    let mut room = setting.room(0)?;
    let memory = room.tmpfs()?;
    let source = setting.file(&room, memory.join("source"), bytes, std::iter::once(0..bytes))?;
    let pairs = [room.pair(0, Volume::File(source), Volume::File(memory.join("destination")), bytes)];
    let task = setting.task(&pairs, Caching::Direct);
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    let mut steps: Vec<usize> =
        std::iter::successors(Some(1), |cores| Some(cores * 2)).take_while(|it| *it < here).collect();
    steps.push(here);
    let mut contestants = Vec::new();
    for cores in steps {
        let flag = cores.to_string();
        contestants.push(blockhaul::engine(&task, |order| order.cores = Some(cores)).at(cores as u64));
        contestants.push(blockhaul::command(&task, &["--cores", &flag]).at(cores as u64));
    }
    Ok(setting.stage(room, bytes, contestants).axis("cores"))
}

fn jobs(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB / 2, 32 * MIB, 4 * MIB);
    // The sources and destinations of all steps.
    let room = setting.room(8 * bytes)?;
    let mut contestants = Vec::new();
    for jobs in [1, 4, 16, 64] {
        let each = bytes / jobs;
        let pair = |number: u64| -> Result<Pair, Failure> {
            let path = |name: &str| room.path(&format!("{name}-{number}-of-{jobs}"));
            let source = setting.file(&room, path("source"), each, std::iter::once(0..each))?;
            let (source, destination) = (Volume::File(source), Volume::File(path("destination")));
            Ok(Pair { source, destination, bytes: each, state: path("state") })
        };
        let pairs: Vec<Pair> = (0..jobs).map(pair).collect::<Result<_, _>>()?;
        let task = setting.task(&pairs, Caching::Direct);
        let all = [
            blockhaul::engine(&task, |_| ()),
            blockhaul::command(&task, &[]),
            qemu_img::convert(&task),
            nbdcopy::copy(&task),
            dd::copy(&task),
        ];
        contestants.extend(all.into_iter().map(|contestant| contestant.at(jobs)));
    }
    let stage = setting.stage(room, bytes, contestants).axis("copies at once");
    // Starting 64 programs at a time is most of a quick look.
    Ok(if setting.scale == Scale::Full { stage } else { stage.trials(2) })
}
