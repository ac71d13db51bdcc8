//! Simulates the file of a journal, and the recorder that writes it as the journal thread does.
//!
//! The production appender makes the plans, which are carried out step by step: write the record, sync, write the slot.
//! A power cut loses sectors of what was not synced; a kill tears the write in flight at any byte.

use super::checks;
use super::image::SECTOR;
use super::world::{SharedWorld, World};
use crate::error::{Error, Operation, Result, Side};
use crate::extent::RangeSet;
use crate::job::recorder::Recorder;
use crate::journal::append::{Appender, FileWrite};
use crate::journal::{Content, Header, JournalReader, Run};
use crate::ring::Instant;
use fastrand::Rng;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug)]
enum Step {
    Write(FileWrite),
    Sync { end: u64 },
}

/// The file of a journal. Empty: there is none.
#[derive(Debug, Default)]
pub(crate) struct SimJournalFile {
    cached: Vec<u8>,
    stable: Vec<u8>,
    unsynced: Vec<FileWrite>,
    steps: VecDeque<Step>,
    due: Instant,
    /// Committed length in bytes.
    end: u64,
}

impl SimJournalFile {
    pub(crate) fn is_there(&self) -> bool {
        !self.cached.is_empty()
    }

    /// Returns the content that a reader sees, including unsynced writes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.cached.clone()
    }

    /// Creates the file with its header, synced.
    fn create(&mut self, start: FileWrite) {
        *self =
            Self { cached: start.bytes.clone(), end: start.bytes.len() as u64, stable: start.bytes, ..Self::default() };
    }

    /// As [`crate::journal::JournalService::reopen`]: cut to the committed length, and synced.
    fn reopen(&mut self, end: u64) {
        self.cached.truncate(end as usize);
        self.end = end;
        self.sync();
    }

    fn write(&mut self, write: FileWrite) {
        apply(&mut self.cached, &write);
        self.unsynced.push(write);
    }

    fn sync(&mut self) {
        self.stable.clone_from(&self.cached);
        self.unsynced.clear();
    }

    /// Loses power: sectors that were not synced may be lost.
    pub(crate) fn power_cut(&mut self, survives: f64, rng: &mut Rng) {
        self.begin_next();
        for FileWrite { offset, bytes } in std::mem::take(&mut self.unsynced) {
            let mut at = 0;
            while at < bytes.len() {
                let end = (at + SECTOR - (offset as usize + at) % SECTOR).min(bytes.len());
                if rng.f64() < survives {
                    apply(&mut self.stable, &FileWrite { offset: offset + at as u64, bytes: bytes[at..end].to_vec() });
                }
                at = end;
            }
            // The size may be on disk before the data is.
            if rng.f64() < survives {
                let size = self.stable.len().max(offset as usize + bytes.len());
                self.stable.resize(size, 0);
            }
        }
        self.cached.clone_from(&self.stable);
        self.steps.clear();
    }

    /// Kills the process: the write in flight is torn at any byte.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        if let Some(Step::Write(FileWrite { offset, mut bytes })) = self.steps.pop_front() {
            bytes.truncate(rng.usize(0..=bytes.len()));
            self.write(FileWrite { offset, bytes });
        }
        self.steps.clear();
    }

    /// Begins the next write, if there is one.
    fn begin_next(&mut self) {
        if let Some(Step::Write(write)) = self.steps.pop_front() {
            self.unsynced.push(write);
        }
    }

    fn plan(&mut self, commits: Vec<crate::journal::append::Commit>) {
        for commit in commits {
            self.steps.extend([Step::Write(commit.record), Step::Sync { end: commit.end }, Step::Write(commit.slot)]);
        }
    }

    /// Carries out all steps.
    fn carry_out(&mut self) {
        while let Some(step) = self.steps.pop_front() {
            self.take(step);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write(write) => self.write(write),
            Step::Sync { end } => {
                self.sync();
                self.end = end;
            }
        }
    }

    /// Carries out the steps that are due; returns the outcome after the last one.
    fn proceed(&mut self, now: Instant, broken: f64, rng: &mut Rng) -> Option<Result<()>> {
        while now >= self.due {
            let Some(step) = self.steps.pop_front() else { return Some(Ok(())) };
            if rng.f64() < broken {
                self.steps.clear();
                return Some(Err(Error::os(
                    Side::Engine,
                    Operation::Journal,
                    Errno::EIO,
                    "write the simulated journal",
                )));
            }
            self.take(step);
            self.due = now + Duration::from_micros(rng.u64(0..3_000));
        }
        None
    }
}

/// The recorder of one simulated pass.
#[derive(Debug)]
pub(crate) struct SimRecorder {
    world: SharedWorld,
    place: SimJournalLocation,
    appender: Appender,
    refused: Option<Error>,
}

#[derive(Debug)]
enum SimJournalLocation {
    /// This job's journal.
    Job(usize),
    /// The journal of a comparison, not kept.
    Scratch(Box<SimJournalFile>),
}

impl SimRecorder {
    /// Creates the journal of a job.
    pub(crate) fn create(world: &SharedWorld, job: usize, header: &Header) -> Self {
        let (appender, start) = Appender::create(header).expect("simulated headers can be recorded");
        world.lock().sites[job].journal.create(start);
        Self { world: world.clone(), place: SimJournalLocation::Job(job), appender, refused: None }
    }

    /// Reopens the journal of a job.
    pub(crate) fn resume(world: &SharedWorld, job: usize, reader: &JournalReader) -> Self {
        world.lock().sites[job].journal.reopen(reader.end());
        Self {
            world: world.clone(),
            place: SimJournalLocation::Job(job),
            appender: Appender::resume(reader),
            refused: None,
        }
    }

    /// Records claimed ranges at once.
    pub(crate) fn record_claims(&mut self, claims: &RangeSet) {
        let runs = claims.iter().map(|range| Run { range, content: Content::Undigested }).collect();
        self.append(runs);
        if let SimJournalLocation::Job(job) = self.place {
            self.world.lock().sites[job].journal.carry_out();
        }
    }

    /// Creates a journal for one comparison.
    pub(crate) fn scratch(world: &SharedWorld, header: &Header) -> Self {
        let (appender, start) = Appender::create(header).expect("simulated headers can be recorded");
        let mut journal = SimJournalFile::default();
        journal.create(start);
        Self { world: world.clone(), place: SimJournalLocation::Scratch(Box::new(journal)), appender, refused: None }
    }
}

impl Recorder for SimRecorder {
    fn append(&mut self, runs: Vec<Run>) {
        let mut world = self.world.lock();
        world.note(format_args!("{:?} records {} runs", self.place_name(), runs.len()));
        if let SimJournalLocation::Job(job) = self.place {
            checks::record(&world.sites[job], &runs, &world);
        }
        let now = world.now;
        match self.appender.append(runs) {
            Ok(commits) => {
                let journal = match &mut self.place {
                    SimJournalLocation::Job(job) => &mut world.sites[*job].journal,
                    SimJournalLocation::Scratch(journal) => journal,
                };
                journal.plan(commits);
                journal.due = now;
            }
            Err(error) => self.refused = Some(error),
        }
    }

    fn appended(&mut self) -> Option<Result<()>> {
        if let Some(error) = self.refused.take() {
            return Some(Err(error));
        }
        let mut world = self.world.lock();
        let World { now, rng, sites, .. } = &mut *world;
        match &mut self.place {
            SimJournalLocation::Scratch(journal) => journal.proceed(*now, 0.0, rng),
            SimJournalLocation::Job(job) => {
                let site = &mut sites[*job];
                let outcome = site.journal.proceed(*now, site.faults.journal, rng);
                site.audit.troubles.extend(matches!(outcome, Some(Err(_))).then_some("the journal failed"));
                outcome
            }
        }
    }

    fn reader(&self) -> Result<JournalReader> {
        let world = self.world.lock();
        let journal = match &self.place {
            SimJournalLocation::Job(job) => &world.sites[*job].journal,
            SimJournalLocation::Scratch(journal) => journal,
        };
        JournalReader::from_bytes(journal.cached[..journal.end as usize].to_vec())
    }
}

impl SimRecorder {
    fn place_name(&self) -> Option<usize> {
        match self.place {
            SimJournalLocation::Job(job) => Some(job),
            SimJournalLocation::Scratch(_) => None,
        }
    }
}

/// Applies a write to the content of a file.
fn apply(file: &mut Vec<u8>, FileWrite { offset, bytes }: &FileWrite) {
    let (start, end) = (*offset as usize, *offset as usize + bytes.len());
    file.resize(file.len().max(end), 0);
    file[start..end].copy_from_slice(bytes);
}
