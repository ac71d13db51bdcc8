//! Lists the scenarios and prepares what their trials need.
//!
//! Every scenario has a fixed name, a fixed seed and a directory of its own for its volumes and servers. A scenario
//! that needs rights or programs that this machine lacks is skipped, with the reason in the results.

mod batch;
mod cancel;
mod digest;
mod files;
mod loop_devices;
mod nbd;
mod protection;
mod reflink;
mod resume;
mod scaling;
mod small_blocks;
mod sparse;

use crate::content;
use crate::copy_executor::CopyExecutor;
use crate::program::Programs;
use crate::results::{Axis, Metric, Warning};
use crate::scale::Scale;
use crate::target::Target;
use crate::target::{Caching, Workload};
use crate::trial_executor::{Failure, TrialExecutor};
use crate::volume::{Volume, VolumePair};
use crate::workdir::{RunDir, ScenarioDir};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// Seed of all content: every run fills its volumes alike.
pub(crate) const SEED: u64 = 20_260_401;

/// Definition of a scenario.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// Stable: `compare` matches scenarios by name.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    pub metric: Metric,
    prepare: fn(&SetupContext<'_>) -> Result<PreparedScenario, Failure>,
}

/// All scenarios, in the order in which they run.
pub(crate) const ALL: [Scenario; 22] = [
    files::DENSE_DIRECT,
    files::DENSE_BUFFERED,
    files::TMPFS,
    small_blocks::SMALL_BLOCKS,
    sparse::SPARSE,
    sparse::EMPTY,
    reflink::REFLINK,
    loop_devices::LOOP_DEVICES,
    nbd::UNIX,
    nbd::TCP_IN,
    nbd::TCP_OUT,
    nbd::SPARSE,
    nbd::DELAY,
    cancel::CANCEL,
    resume::RESUME,
    protection::PROTECTION,
    digest::DIGEST,
    digest::VERIFY,
    scaling::CORES,
    scaling::JOBS,
    batch::BATCH,
    batch::MEMBERS,
];

/// Returns the scenario of that name.
pub(crate) fn named(name: &str) -> Option<Scenario> {
    ALL.into_iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Creates everything that the trials need.
    ///
    /// # Errors
    /// The scenario cannot be prepared on this machine, or the run was interrupted.
    pub(crate) fn prepare(
        &self,
        programs: &Programs,
        run_dir: &RunDir,
        scale: Scale,
    ) -> Result<PreparedScenario, Failure> {
        (self.prepare)(&SetupContext { name: self.name, programs, run_dir, scale })
    }
}

/// Inputs of the preparation of a scenario.
pub(crate) struct SetupContext<'a> {
    name: &'static str,
    pub programs: &'a Programs,
    run_dir: &'a RunDir,
    pub scale: Scale,
}

/// A scenario ready to run. The directory is the last field, so that it is dropped last.
pub(crate) struct PreparedScenario {
    pub executor: Box<dyn TrialExecutor>,
    pub targets: Vec<Target>,
    pub volume_bytes: u64,
    pub data_bytes: u64,
    pub parameters: BTreeMap<String, String>,
    pub axis: Option<Axis>,
    /// Bytes that a trial may put into the page cache or the memory of a server.
    pub cached_bytes: u64,
    /// Replaces the run's number of trials.
    pub trials: Option<u32>,
    /// Whether an additional trial of each target counts system calls.
    pub count_calls: bool,
    pub warnings: Vec<Warning>,
    _room: ScenarioDir,
}

impl SetupContext<'_> {
    /// Creates a directory for the scenario, if the file system has enough free space.
    fn scenario_dir(&self, needed_bytes: u64) -> Result<ScenarioDir, Failure> {
        let say = |error| Failure::io("create the scenario directory", &error);
        let space = nix::sys::statvfs::statvfs(self.run_dir.path()).map_err(|errno| say(errno.into()))?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        if free < needed_bytes {
            let (needed, free) = (needed_bytes >> 20, free >> 20);
            return Err(Failure::Failed(format!(
                "not enough free space: {needed} MiB needed, {free} MiB free; choose another --dir"
            )));
        }
        self.run_dir.scenario_dir(&format!("{}-", self.name)).map_err(say)
    }

    /// Returns the seed of the scenario's content.
    fn seed(&self) -> u64 {
        self.name.bytes().fold(SEED, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)))
    }

    /// Creates a file of `bytes` with data in these ranges.
    fn file(
        &self,
        dir: &ScenarioDir,
        path: PathBuf,
        bytes: u64,
        data: impl IntoIterator<Item = Range<u64>>,
    ) -> Result<PathBuf, Failure> {
        let made = content::create(&path, bytes, data, self.seed(), dir.interrupt());
        dir.interrupt().check()?;
        made.map(|()| path).map_err(|error| Failure::io("create a volume", &error))
    }

    /// Creates a file full of data, and pairs it with a destination file.
    fn dense_pair(&self, dir: &ScenarioDir, bytes: u64) -> Result<VolumePair, Failure> {
        let source = self.file(dir, dir.path("source"), bytes, std::iter::once(0..bytes))?;
        Ok(dir.pair(0, Volume::File(source), Volume::File(dir.path("destination")), bytes))
    }

    /// Returns the workload that copies these pairs.
    fn workload<'t>(&'t self, pairs: &'t [VolumePair], caching: Caching) -> Workload<'t> {
        Workload { programs: self.programs, pairs, caching, block: None }
    }

    /// Returns an executor that copies and verifies.
    fn copy_executor(&self, dir: &ScenarioDir) -> CopyExecutor {
        let strace = self.programs.path("strace").ok();
        CopyExecutor { folder: dir.path("said"), interrupt: dir.interrupt().clone(), strace }
    }

    /// Returns a scenario whose targets copy.
    fn prepare(&self, dir: ScenarioDir, volume_bytes: u64, targets: Vec<Target>) -> PreparedScenario {
        let executor = self.copy_executor(&dir);
        self.prepare_with(dir, Box::new(executor), volume_bytes, targets)
    }

    fn prepare_with(
        &self,
        dir: ScenarioDir,
        executor: Box<dyn TrialExecutor>,
        volume_bytes: u64,
        targets: Vec<Target>,
    ) -> PreparedScenario {
        PreparedScenario {
            executor,
            targets,
            volume_bytes,
            data_bytes: volume_bytes,
            cached_bytes: 0,
            parameters: BTreeMap::from([("seed".to_owned(), self.seed().to_string())]),
            axis: None,
            trials: None,
            count_calls: false,
            warnings: Vec::new(),
            _room: dir,
        }
    }
}

impl PreparedScenario {
    fn parameter(mut self, name: &str, value: impl ToString) -> Self {
        self.parameters.insert(name.to_owned(), value.to_string());
        self
    }

    fn counting_calls(mut self) -> Self {
        self.count_calls = true;
        self
    }

    fn data(mut self, bytes: u64) -> Self {
        self.data_bytes = bytes;
        self
    }

    fn cached(mut self, bytes: u64) -> Self {
        self.cached_bytes = bytes;
        self
    }

    fn axis(mut self, name: &str) -> Self {
        self.axis = Some(Axis { name: name.to_owned() });
        self
    }

    fn trials(mut self, trials: u32) -> Self {
        self.trials = Some(trials);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert!(names.iter().all(|name| named(name).is_some_and(|found| found.name == *name)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(named("no-such-scenario").is_none());
    }
}
