//! One copy or comparison inside the engine.

use crate::error::named;
use crate::progress::{Progress, Report};

named! {
    /// Why a job is to stop. The first reason given holds.
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

/// The caller's end of a job. Dropping it cancels nothing.
#[derive(Clone, Debug)]
pub struct JobHandle {}

impl JobHandle {
    /// Where it stands.
    #[must_use]
    pub fn progress(&self) -> Progress {
        unimplemented!()
    }

    /// Changes the rate limit; `None` lifts it. Takes effect within 20 ms.
    pub fn set_limit(&self, _bytes_per_second: Option<u64>) {
        unimplemented!()
    }

    /// Issues no further block until [`JobHandle::resume`]. What is in flight completes.
    pub fn pause(&self) {
        unimplemented!()
    }

    /// Goes on after [`JobHandle::pause`].
    pub fn resume(&self) {
        unimplemented!()
    }

    /// Asks the job to stop at the next block. Returns at once; [`JobHandle::wait`] says when it has stopped.
    pub fn cancel(&self, _reason: Reason) {
        unimplemented!()
    }

    /// Waits for the end. Can be called from several threads and again later.
    #[must_use]
    pub fn wait(&self) -> Report {
        unimplemented!()
    }

    /// As [`JobHandle::wait`], for at most `limit`.
    #[must_use]
    pub fn wait_for(&self, _limit: std::time::Duration) -> Option<Report> {
        unimplemented!()
    }
}
