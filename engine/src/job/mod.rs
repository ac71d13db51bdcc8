//! Runs one copy or comparison inside the engine.
//!
//! A job has a thread of its own that opens, locks, refuses, plans, records and reports. This thread may block, and no
//! block of data passes through it. It shares with the workers one `PassState` for each pass over the volumes, and
//! one `JobControl` for all of them.

pub(crate) mod engine_resources;
pub(crate) mod resolved_supervision;
pub(crate) mod content_check;
pub(crate) mod start;
pub(crate) mod segments;
pub(crate) mod rate;
pub(crate) mod pass_controller;
pub(crate) mod recorder;
pub(crate) mod prepared_pass;
pub(crate) mod protection;
pub(crate) mod report_builder;
pub(crate) mod check;
pub(crate) mod finished;
pub(crate) mod copy;
pub(crate) mod compare;
#[cfg(test)]
pub(crate) mod simulated_server;

pub use crate::pass::stop_reason::StopReason;

use crate::error::{Code, Error, Operation, Side};
use crate::extent::RangeSet;
use crate::limits::{CALL_LIMIT, LOOK_AT_THREAD};
use crate::pass::control::JobControl;
use crate::pass::state::PassState;
use crate::progress::{Progress, Report};
use crate::ring::clock;
use crate::supervision::VolumeEvidence;
use crate::sync::lock;
pub use check::CheckReport;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A job as its handles see it.
///
/// A job ends twice: when its report is there, and when it is _quiet_, which is later if a device did not answer. The
/// job's thread does both. If it does not come back from a call after a stop was asked for, the waiting caller makes
/// the report instead, once the limit has passed; the thread makes the job quiet whenever it returns.
#[derive(Debug)]
pub(crate) struct JobState {
    pub control: Arc<JobControl>,
    cores: usize,
    ending: Mutex<JobEnd>,
    changed: Condvar,
    /// Passes that were over with operations in flight.
    unanswered: Mutex<Vec<Arc<PassState>>>,
    is_left_open: AtomicBool,
}

#[derive(Debug, Default)]
struct JobEnd {
    report: Option<Report>,
    is_quiet: bool,
    /// Called once, when the report is there.
    wakers: Vec<Waker>,
}

/// Wakes a thread that waits for the report of a job, among other things.
struct Waker(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

impl JobState {
    /// Of a job that `cores` workers serve.
    pub(crate) fn new(control: Arc<JobControl>, cores: usize) -> Self {
        Self {
            control,
            cores,
            ending: Mutex::default(),
            changed: Condvar::new(),
            unanswered: Mutex::default(),
            is_left_open: AtomicBool::new(false),
        }
    }

    /// Sets the report, unless there is one already.
    pub(crate) fn end(&self, report: Report) {
        let mut ending = lock(&self.ending);
        ending.is_quiet |= report.quiesced;
        ending.report.get_or_insert(report);
        self.changed.notify_all();
        let wakers = std::mem::take(&mut ending.wakers);
        drop(ending);
        wakers.iter().for_each(|waker| waker.0());
    }

    /// Has `waker` called when the report is there; at once if it is.
    pub(crate) fn wake_at_end(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        let mut ending = lock(&self.ending);
        if ending.report.is_none() {
            return ending.wakers.push(Waker(waker));
        }
        drop(ending);
        waker();
    }

    /// Keeps a pass that is over with operations in flight, and what they are in flight on.
    pub(crate) fn keep_unanswered(&self, pass: Arc<PassState>) {
        lock(&self.unanswered).push(pass);
    }

    /// Marks the job as never quiet: a request to a server may still take effect, and no answer will tell when.
    pub(crate) fn never_quiet(&self) {
        self.is_left_open.store(true, Relaxed);
    }

    /// Waits, on the job's thread and for however long it takes, until the last operation in flight is answered; closes
    /// what they were in flight on, and says that the job is quiet.
    pub(crate) fn wait_for_unanswered(&self) {
        for mut pass in std::mem::take(&mut *lock(&self.unanswered)) {
            // A worker drops the pass when all of its operations are answered.
            while Arc::get_mut(&mut pass).is_none() {
                std::thread::park_timeout(LOOK_AT_THREAD);
            }
        }
        if !self.is_left_open.load(Relaxed) {
            lock(&self.ending).is_quiet = true;
            self.changed.notify_all();
        }
    }

    /// Waits until the ending satisfies `done`, at most for `limit`; returns whether it does.
    fn wait_until(&self, limit: Option<Duration>, done: impl Fn(&JobEnd) -> bool) -> MutexGuard<'_, JobEnd> {
        let started = clock();
        let mut ending = lock(&self.ending);
        let mut is_suspected = false;
        loop {
            let silent = self.control.silent_after_stop(clock()).filter(|silent| *silent > CALL_LIMIT);
            if let (None, Some(silent)) = (&ending.report, silent) {
                // Not at the first look: a process that was stopped for long goes on with any of its threads.
                if std::mem::replace(&mut is_suspected, true) {
                    ending.report = Some(self.overdue_report(silent));
                }
            }
            let left =
                limit.map_or(LOOK_AT_THREAD, |limit| limit.saturating_sub(clock() - started).min(LOOK_AT_THREAD));
            if done(&ending) || left.is_zero() {
                return ending;
            }
            ending = self.changed.wait_timeout(ending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the report of a job whose thread is blocked for that long.
    fn overdue_report(&self, silent: Duration) -> Report {
        let message = "a system call for the job did not return within the drain limit: it may still take effect; do not \
                       use the destination before this process has ended";
        let error = Error::new(Code::Timeout, Side::Engine, Operation::Stop, message).maybe_applied();
        tracing::warn!(%error, "job thread did not return and is left running");
        Report {
            quiesced: false,
            bytes: self.control.bytes(),
            path: self.control.path.get().cloned().unwrap_or_default(),
            journal: self.control.journal.get().cloned(),
            drain_seconds: silent.as_secs_f64(),
            window_bytes_max: self.control.window_max(),
            ..Report::not_started(error, self.cores)
        }
    }

    /// Waits for the report.
    pub(crate) fn wait(&self) -> Report {
        let ending = self.wait_until(None, |ending| ending.report.is_some());
        ending.report.clone().expect("it was waited for")
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

    /// Returns the progress of the job.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.state.control.progress()
    }

    /// Returns how its bytes travel, as in its report; `None` until that is chosen.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        self.state.control.path.get().cloned()
    }

    /// Changes the rate limit; `None` lifts it. Holds from the next block on. 0 is treated as 1 byte per second.
    pub fn set_limit(&self, bytes_per_second: Option<u64>) {
        self.state.control.rate_limiter.set(bytes_per_second);
    }

    /// Issues no further block until [`JobHandle::resume`]. What is in flight completes.
    pub fn pause(&self) {
        self.state.control.set_paused(true);
    }

    /// Resumes after [`JobHandle::pause`].
    pub fn resume(&self) {
        self.state.control.set_paused(false);
    }

    /// Asks the job to stop at the next block. Returns at once; [`JobHandle::wait`] says when it has stopped, and
    /// whether it had succeeded before. Also stops a job that waits for a lock or is paused.
    pub fn cancel(&self, reason: StopReason) {
        self.state.control.cancel(reason);
    }

    /// Returns the durable ranges of the destination: recorded in its journal, or flushed where there is none; what the
    /// job was resumed from included. Never more than is so, and less where it would be many pieces: at most 256, the
    /// longest. Empty until the job has begun to copy, and for a job that does not flush.
    #[must_use]
    pub fn durable_ranges(&self) -> RangeSet {
        self.state.control.durable()
    }

    /// Returns what identifies the job's volumes to a run that resumes from [`JobHandle::durable_ranges`] without its
    /// journal. Ask for it before those: then it tells of nothing that they do not have. Small; says nothing before the
    /// job has begun.
    #[must_use]
    pub fn evidence(&self) -> VolumeEvidence {
        self.state.control.evidence()
    }

    /// Resets the job's connections to servers at once: what was not sent is never sent, and no new ones are made.
    /// Local volumes take no notice. For the end of the right to write, together with [`JobHandle::cancel`]; a job that
    /// is not cancelled fails with `EUnreachable`. What servers had received and not answered may still take effect,
    /// and the report says so by `quiesced: false`. Can be called at any time, and again.
    pub fn revoke_connections(&self) {
        self.state.control.revoke_connections();
    }

    /// Waits for the end: when the report is there, or ten seconds after a stop was asked for if the job does not come
    /// back from a call. Can be called from several threads, and again later.
    #[must_use]
    pub fn wait(&self) -> Report {
        self.state.wait()
    }

    /// As [`JobHandle::wait`], but returns `None` after `limit`.
    #[must_use]
    pub fn wait_for(&self, limit: Duration) -> Option<Report> {
        self.state.wait_until(Some(limit), |ending| ending.report.is_some()).report.clone()
    }

    /// Has `waker` called when [`JobHandle::wait`] returns at once; not for a job that does not come back from a call.
    pub(crate) fn wake_at_end(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        self.state.wake_at_end(waker);
    }

    /// Waits until the job is quiet, at most for `limit`, and says whether it is: nothing of it is in flight, its
    /// volumes are closed and the destination's lock is released. A job whose report says so is quiet at once. Another
    /// one is when its devices have answered; when they do not, or a server was left without an answer, it never is.
    #[must_use]
    pub fn wait_quiet_for(&self, limit: Duration) -> bool {
        self.state.wait_until(Some(limit), |ending| ending.is_quiet).is_quiet
    }

    /// Returns whether it is quiet or may still become so: `false` once a server was left without an answer.
    #[must_use]
    pub fn may_become_quiet(&self) -> bool {
        !self.state.is_left_open.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_of_time_can_be_waited() {
        let state = Arc::new(JobState::new(Arc::new(JobControl::new(None)), 1));
        let job = JobHandle::new(Arc::clone(&state));
        assert!(job.wait_for(Duration::ZERO).is_none());
        let waiting = std::thread::spawn(move || job.wait_for(Duration::MAX));
        state.end(Report::not_started(crate::error::Error::bad_request("x"), 1));
        assert!(waiting.join().expect("no panic").is_some());
    }
}
