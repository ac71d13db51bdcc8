//! One copy or comparison inside the engine.
//!
//! A job has a thread of its own that opens, locks, refuses, plans, records and reports; it may block, and no block of
//! data passes through it. What it shares with the workers is a `Round` for each pass over the volumes, and
//! one `Control` for all of them.

pub(crate) mod facilities;
pub(crate) mod control;
pub(crate) mod oversight;
pub(crate) mod evidence;
pub(crate) mod start;
pub(crate) mod supply;
pub(crate) mod round;
pub(crate) mod batch;
pub(crate) mod rate;
pub(crate) mod conductor;
pub(crate) mod ledger;
pub(crate) mod pass;
pub(crate) mod protection;
pub(crate) mod account;
pub(crate) mod copy;
pub(crate) mod compare;
#[cfg(test)]
pub(crate) mod peer;

use crate::error::named;
use crate::extent::RangeSet;
use crate::progress::{Progress, Report};
use control::Control;
use round::lock;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

named! {
    /// Why a job is to stop. The first reason given holds, and wins over errors that the stop itself provokes.
    Reason {
        /// The user asked.
        UserCancel => "ECancelled",
        /// The runner gives the task back.
        RunnerInterrupt => "ERunnerInterrupt",
        /// The right to write was lost.
        LeaseLost => "ELeaseLost",
        /// Its time is up.
        DeadlineExceeded => "ETimeout",
    }
}

/// A job as its handles see it.
#[derive(Debug)]
pub(crate) struct JobState {
    pub control: Arc<Control>,
    report: Mutex<Option<Report>>,
    ended: Condvar,
}

impl JobState {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { control, report: Mutex::default(), ended: Condvar::new() }
    }

    pub(crate) fn end(&self, report: Report) {
        *lock(&self.report) = Some(report);
        self.ended.notify_all();
    }
}

/// The caller's end of a job. Clones are the same job. Dropping it cancels nothing.
#[derive(Clone, Debug)]
pub struct JobHandle {
    state: Arc<JobState>,
}

impl JobHandle {
    pub(crate) fn new(state: Arc<JobState>) -> Self {
        Self { state }
    }

    /// Where it stands.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.state.control.progress()
    }

    /// How its bytes travel, as in its report; `None` until that is chosen.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        self.state.control.path.get().cloned()
    }

    /// Changes the rate limit; `None` lifts it. Holds from the next block on. 0 is treated as 1 byte per second.
    pub fn set_limit(&self, bytes_per_second: Option<u64>) {
        self.state.control.bucket.set(bytes_per_second);
    }

    /// Issues no further block until [`JobHandle::resume`]. What is in flight completes.
    pub fn pause(&self) {
        self.state.control.set_paused(true);
    }

    /// Goes on after [`JobHandle::pause`].
    pub fn resume(&self) {
        self.state.control.set_paused(false);
    }

    /// Asks the job to stop at the next block. Returns at once; [`JobHandle::wait`] says when it has stopped, and
    /// whether it had succeeded before. Also stops a job that waits for a lock or is paused.
    pub fn cancel(&self, reason: Reason) {
        self.state.control.cancel(reason);
    }

    /// What is durable on the destination: recorded in its journal, or flushed where there is none; what the job was
    /// resumed from included. Never more than is so, and less where it would be many pieces: at most 256, the longest.
    /// Empty until the job has begun to copy, and for a job that does not flush.
    #[must_use]
    pub fn durable_ranges(&self) -> RangeSet {
        self.state.control.durable()
    }

    /// Resets the job's connections to servers at once: what was not sent is never sent, and no new ones are made. Local
    /// volumes take no notice. For the end of the right to write, together with [`JobHandle::cancel`]; a job that is
    /// not cancelled fails with `EUnreachable`. What servers had received and not answered may still take effect, and
    /// the report says so by `quiesced: false`. Can be called at any time, and again.
    pub fn cut(&self) {
        self.state.control.cut();
    }

    /// Waits for the end. Can be called from several threads, and again later.
    #[must_use]
    pub fn wait(&self) -> Report {
        let mut report = lock(&self.state.report);
        loop {
            if let Some(report) = &*report {
                return report.clone();
            }
            report = self.state.ended.wait(report).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`JobHandle::wait`], but gives up after `limit` with `None`.
    #[must_use]
    pub fn wait_for(&self, limit: Duration) -> Option<Report> {
        let report = lock(&self.state.report);
        let waited = self.state.ended.wait_timeout_while(report, limit, |report| report.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_of_time_can_be_waited() {
        let state = Arc::new(JobState::new(Arc::new(Control::new(None))));
        let job = JobHandle::new(Arc::clone(&state));
        assert!(job.wait_for(Duration::ZERO).is_none());
        let waiting = std::thread::spawn(move || job.wait_for(Duration::MAX));
        state.end(Report::not_started(crate::error::Error::bad_request("x"), 1));
        assert!(waiting.join().expect("no panic").is_some());
    }
}
