//! Records the durable ranges of a job in its journal. The simulation records them in a file of its own.

use crate::error::Result;
use crate::journal::{JournalFile, JournalReader, Run};
use crate::pass::control::JobControl;
use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// One append at a time: [`Recorder::append`], then [`Recorder::appended`] until it answers.
pub(crate) trait Recorder {
    /// Starts recording runs, which are in ascending order.
    fn append(&mut self, runs: Vec<Run>);

    /// The outcome of the append, once it is recorded durably.
    fn appended(&mut self) -> Option<Result<()>>;

    /// Returns a reader of what was recorded so far.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    fn reader(&self) -> Result<JournalReader>;
}

/// A journal's file, with the place where its thread leaves outcomes.
#[derive(Debug)]
pub(crate) struct JournalRecorder {
    pub journal: JournalFile,
    control: Arc<JobControl>,
    outcome: Arc<Mutex<Option<Result<()>>>>,
}

impl JournalRecorder {
    pub(crate) fn new(journal: JournalFile, control: Arc<JobControl>) -> Self {
        Self { journal, control, outcome: Arc::default() }
    }
}

impl Recorder for JournalRecorder {
    fn append(&mut self, runs: Vec<Run>) {
        let (outcome, control) = (Arc::clone(&self.outcome), Arc::clone(&self.control));
        self.journal.append(runs, move |result| {
            *lock(&outcome) = Some(result);
            control.notify();
        });
    }

    fn appended(&mut self) -> Option<Result<()>> {
        lock(&self.outcome).take()
    }

    fn reader(&self) -> Result<JournalReader> {
        self.journal.reader()
    }
}
