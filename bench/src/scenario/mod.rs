//! The questions that a run answers, each with a fixed name and a fixed seed.
//!
//! A scenario is staged in a room of its own: volumes are made, servers started, contestants lined up. What can only be
//! staged with rights or programs that are not here says so, and is left out.

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
use crate::contestant::Contestant;
use crate::copying::Copying;
use crate::executor::{Executor, Failure};
use crate::program::Programs;
use crate::results::{Axis, Doubt, Metric};
use crate::scale::Scale;
use crate::site::{Room, Site};
use crate::target::{Caching, Task};
use crate::volume::{Pair, Volume};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// Every run fills its volumes alike.
pub(crate) const SEED: u64 = 20_260_401;

/// A question.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// Stable: comparisons of runs go by it.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    pub metric: Metric,
    stage: fn(&Setting<'_>) -> Result<Stage, Failure>,
}

/// In the order in which they run.
pub(crate) const ALL: [Scenario; 20] = [
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
];

/// The scenario of that name.
pub(crate) fn named(name: &str) -> Option<Scenario> {
    ALL.into_iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Makes everything that its trials need.
    ///
    /// # Errors
    /// It cannot be staged here, in words, or the run is being stopped.
    pub(crate) fn stage(&self, programs: &Programs, site: &Site, scale: Scale) -> Result<Stage, Failure> {
        (self.stage)(&Setting { name: self.name, programs, site, scale })
    }
}

/// What staging starts from.
pub(crate) struct Setting<'a> {
    name: &'static str,
    pub programs: &'a Programs,
    site: &'a Site,
    pub scale: Scale,
}

/// A staged scenario. The room comes last: it is dropped last.
pub(crate) struct Stage {
    pub executor: Box<dyn Executor>,
    pub contestants: Vec<Contestant>,
    pub volume_bytes: u64,
    pub data_bytes: u64,
    pub parameters: BTreeMap<String, String>,
    pub axis: Option<Axis>,
    /// What a trial may put into the page cache or the memory of a server.
    pub cached_bytes: u64,
    /// Instead of the run's own number.
    pub trials: Option<u32>,
    /// Whether one more trial of each is worth the number of its system calls.
    pub count_calls: bool,
    pub doubts: Vec<Doubt>,
    _room: Room,
}

impl Setting<'_> {
    /// An empty room, with so much free space around it.
    fn room(&self, needed_bytes: u64) -> Result<Room, Failure> {
        let say = |error| Failure::io("make a room", &error);
        let space = nix::sys::statvfs::statvfs(self.site.path()).map_err(|errno| say(errno.into()))?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        if free < needed_bytes {
            let (needed, free) = (needed_bytes >> 20, free >> 20);
            return Err(Failure::Failed(format!("it needs {needed} MiB and {free} MiB are free: name another --dir")));
        }
        self.site.room(&format!("{}-", self.name)).map_err(say)
    }

    /// The seed of its content.
    fn seed(&self) -> u64 {
        self.name.bytes().fold(SEED, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)))
    }

    /// A file of `bytes` with data in these ranges.
    fn file(
        &self,
        room: &Room,
        path: PathBuf,
        bytes: u64,
        data: impl IntoIterator<Item = Range<u64>>,
    ) -> Result<PathBuf, Failure> {
        let made = content::create(&path, bytes, data, self.seed(), room.interrupt());
        room.interrupt().check()?;
        made.map(|()| path).map_err(|error| Failure::io("make a volume", &error))
    }

    /// A file full of data, and a file that it is copied to.
    fn dense_pair(&self, room: &Room, bytes: u64) -> Result<Pair, Failure> {
        let source = self.file(room, room.path("source"), bytes, std::iter::once(0..bytes))?;
        Ok(room.pair(0, Volume::File(source), Volume::File(room.path("destination")), bytes))
    }

    /// The task of copying these.
    fn task<'t>(&'t self, pairs: &'t [Pair], caching: Caching) -> Task<'t> {
        Task { programs: self.programs, pairs, caching, block: None }
    }

    /// An executor that copies and compares.
    fn copying(&self, room: &Room) -> Copying {
        let strace = self.programs.path("strace").ok();
        Copying { folder: room.path("said"), interrupt: room.interrupt().clone(), strace }
    }

    /// A stage on which contestants copy.
    fn stage(&self, room: Room, volume_bytes: u64, contestants: Vec<Contestant>) -> Stage {
        let copying = self.copying(&room);
        self.stage_with(room, Box::new(copying), volume_bytes, contestants)
    }

    fn stage_with(
        &self,
        room: Room,
        executor: Box<dyn Executor>,
        volume_bytes: u64,
        contestants: Vec<Contestant>,
    ) -> Stage {
        Stage {
            executor,
            contestants,
            volume_bytes,
            data_bytes: volume_bytes,
            cached_bytes: 0,
            parameters: BTreeMap::from([("seed".to_owned(), self.seed().to_string())]),
            axis: None,
            trials: None,
            count_calls: false,
            doubts: Vec::new(),
            _room: room,
        }
    }
}

impl Stage {
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
