//! Collects the facts of a running job and builds its report.
//!
//! It also owns the volumes of the job from their opening on, and stops them at the end, however the job ends.

use super::engine_resources::EngineResources;
use super::pass_controller::{PassController, TurnOutcome};
use super::recorder::{JournalRecorder, Recorder};
use super::{JobState, StopReason};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::limits::DRAIN_LIMIT;
use crate::pass::control::JobControl;
use crate::pass::latency::Latency;
use crate::pass::state::PassState;
use crate::progress::{Difference, Report, Status};
use crate::ring::clock;
use crate::volume::{ReadBack, Route, Volume};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::sync::Arc;
use std::time::Duration;

/// Facts of a running job that become its report.
pub(crate) struct ReportBuilder<'a> {
    resources: &'a EngineResources,
    job: &'a JobState,
    control: &'a JobControl,
    started: Duration,
    cpu: Duration,
    syscalls: u64,
    latency: Latency,
    path: String,
    pub block_bytes: u32,
    quiesced: bool,
    drained_after: Duration,
    pub digest: Option<[u8; 32]>,
    pub digest_reason: Option<String>,
    pub verified_from: Option<ReadBack>,
    pub differences: Vec<Difference>,
    pub journal: Option<String>,
    /// To be stopped at the end, whichever it is.
    volumes: Vec<Arc<dyn Volume>>,
}

impl<'a> ReportBuilder<'a> {
    pub(crate) fn open(resources: &'a EngineResources, job: &'a JobState) -> Self {
        let control = &*job.control;
        control.notify_this_thread();
        Self {
            resources,
            job,
            control,
            started: clock(),
            cpu: cpu_time(),
            syscalls: resources.syscalls(),
            latency: Latency::new(),
            path: String::new(),
            block_bytes: 0,
            quiesced: true,
            drained_after: Duration::ZERO,
            digest: None,
            digest_reason: None,
            verified_from: None,
            differences: Vec::new(),
            journal: None,
            volumes: Vec::new(),
        }
    }

    /// Adds a volume, which is stopped when the report is closed.
    pub(crate) fn add_volume(&mut self, volume: &Arc<dyn Volume>) {
        self.volumes.push(Arc::clone(volume));
    }

    /// Names the way of the bytes.
    pub(crate) fn route(&mut self, route: &Route) {
        self.name_path(route.to_string().replace("ring", self.ring()));
    }

    /// Returns the name of the ring in a path.
    pub(crate) fn ring(&self) -> &'static str {
        self.resources.ring()
    }

    pub(crate) fn name_path(&mut self, path: String) {
        let _ = self.control.path.set(path.clone());
        self.path = path;
    }

    /// Runs a pass to its end; returns its recorder, which is closed as a checkpoint if the pass did not complete.
    pub(crate) fn run_pass(
        &mut self,
        pass: &Arc<PassState>,
        mut controller: PassController<JournalRecorder>,
    ) -> Result<JournalRecorder> {
        while let TurnOutcome::Wait(limit) = controller.turn(clock()) {
            if !limit.is_zero() {
                std::thread::park_timeout(limit);
            }
            self.control.note_alive();
        }
        self.control.note_alive();
        self.latency.merge(&pass.latency());
        self.drained_after = controller.drain_time();
        if !controller.is_quiesced() {
            self.quiesced = false;
            // Its operations may still land: descriptors, and with them the lock, stay until the last one is answered.
            self.job.keep_unanswered(Arc::clone(pass));
        }
        let outcome = outcome(pass, &controller);
        let recorder = controller.into_recorder();
        let Err(error) = outcome else { return Ok(recorder) };
        self.close_as_checkpoint(recorder);
        Err(error)
    }

    /// Leaves the journal as a checkpoint. It is closed, and its lock released, when this returns, unless something is
    /// in flight for ever.
    pub(crate) fn close_as_checkpoint(&self, recorder: JournalRecorder) {
        if !self.quiesced {
            return recorder.journal.close_later();
        }
        if let Err(error) = recorder.journal.close() {
            tracing::warn!(%error, "the checkpoint may be older than the report says");
        }
    }

    /// Stops the volumes, within what is left of the drain limit. None of them is waited for if operations are in
    /// flight for ever.
    fn stop(&mut self) {
        let since = clock();
        self.control.note_alive();
        let limit = if self.quiesced { DRAIN_LIMIT.saturating_sub(self.drained_after) } else { Duration::ZERO };
        for volume in std::mem::take(&mut self.volumes) {
            if !volume.stop(limit.saturating_sub(clock() - since)) {
                tracing::warn!(volume = %volume.name(), "volume not quiet: its last requests may still take effect");
                self.job.never_quiet();
                self.quiesced = false;
            }
        }
        self.drained_after += clock() - since;
    }

    /// Builds the report. Everything of the job is over then.
    pub(crate) fn close(mut self, outcome: Result<()>) -> Report {
        let drained = self.quiesced;
        self.stop();
        let outcome = if drained && !self.quiesced { outcome.map_err(not_stopped) } else { outcome };
        let seconds = (clock() - self.started).as_secs_f64();
        let bytes = self.control.bytes();
        let (status, error) =
            final_status(outcome, self.quiesced, self.differences.is_empty(), self.control.cancelled());
        let moved = if status == Status::Succeeded { bytes.planned - bytes.resumed } else { bytes.written };
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people"
        )]
        let rate = if seconds > 0.0 { (moved as f64 / seconds) as u64 } else { 0 };
        Report {
            status,
            quiesced: self.quiesced,
            error,
            bytes,
            seconds,
            cpu_seconds: cpu_time().saturating_sub(self.cpu).as_secs_f64(),
            drain_seconds: self.drained_after.as_secs_f64(),
            rate_bytes_per_second: rate,
            path: self.path,
            cores: self.resources.workers.len(),
            block_size_bytes: self.block_bytes,
            window_bytes_max: self.control.window_max(),
            latency_us: self.latency.summary(),
            latency: self.latency,
            syscalls: self.resources.syscalls() - self.syscalls,
            digest: self.digest,
            digest_reason: self.digest_reason,
            verified_from: self.verified_from,
            differences: self.differences,
            journal: self.journal,
        }
    }
}

/// Returns the outcome of a pass that is over: its first error, a stop that was asked for, or nothing if it is
/// complete.
pub(crate) fn outcome<L: Recorder>(pass: &PassState, controller: &PassController<L>) -> Result<()> {
    if !controller.is_quiesced() {
        return Err(Error::new(
            Code::Timeout,
            Side::Engine,
            Operation::Stop,
            "a device did not answer within the drain limit: operations are still in flight and may land later; \
             do not use the destination before this process has ended",
        )
        .maybe_applied());
    }
    if controller.is_complete() {
        return Ok(());
    }
    Err(pass.failure().unwrap_or_else(|| stopped(pass.control.cancelled())))
}

/// A stop that was asked for is the reason for whatever failed after it; completion beats interruption; and a job
/// that is not quiet is never called interrupted, as no other run may take its place.
pub(crate) fn final_status(
    outcome: Result<()>,
    quiesced: bool,
    same: bool,
    cancelled: Option<StopReason>,
) -> (Status, Option<Error>) {
    let error = match outcome {
        Ok(()) if same => return (Status::Succeeded, None),
        Ok(()) => return (Status::Differs, None),
        Err(error) => error,
    };
    // What is known about the data no stop has provoked, and resuming would not heal it.
    let cancelled = cancelled.filter(|_| !matches!(error.code, Code::VerifyMismatch | Code::SourceChanged));
    match cancelled {
        Some(StopReason::UserCancel) if quiesced => (Status::Cancelled, Some(stopped(Some(StopReason::UserCancel)))),
        Some(reason) if quiesced => (Status::Interrupted, Some(stopped(Some(reason)))),
        _ => (Status::Failed, Some(error)),
    }
}

/// Replaces the error of a stop that did not stop everything: no other run may take the place of this job.
fn not_stopped(error: Error) -> Error {
    if error.operation != Operation::Stop {
        return error;
    }
    let what = "a server did not hang up within the drain limit: what was asked of it may still take effect";
    Error::new(Code::Timeout, Side::Engine, Operation::Stop, what).maybe_applied()
}

fn stopped(reason: Option<StopReason>) -> Error {
    let (code, what) = match reason {
        Some(StopReason::UserCancel) => (Code::Cancelled, "cancelled by the user"),
        Some(StopReason::RunnerInterrupt) => (Code::RunnerInterrupt, "interrupted: the runner stops"),
        Some(StopReason::LeaseLost) => (Code::LeaseLost, "interrupted: the right to write the destination was lost"),
        Some(StopReason::DeadlineExceeded) => (Code::Timeout, "interrupted: its deadline has passed"),
        None => (Code::Internal, "the job ended without covering its volume and without an error"),
    };
    Error { retryable: reason.is_some(), ..Error::new(code, Side::Caller, Operation::Stop, what) }
}

fn cpu_time() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(u64::try_from(us).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::super::simulated_server::Peer;
    use super::*;
    use crate::journal::JournalService;
    use crate::sync::lock;

    /// The report of a job over one such volume, and how long the peer was waited for.
    fn ended(
        hangs_up: bool,
        quiesced: bool,
        reason: Option<StopReason>,
        outcome: Result<()>,
    ) -> (Report, Vec<Duration>) {
        let resources = EngineResources {
            workers: Arc::new([]),
            journals: JournalService::start().unwrap(),
            block_bytes: 4096,
            window_bytes: 4096,
            threads: false,
            syscalls: Arc::new([]),
        };
        let job = JobState::new(Arc::new(JobControl::new(None)), 0);
        reason.into_iter().for_each(|reason| job.control.cancel(reason));
        let peer = Arc::new(Peer { hangs_up, ..Peer::default() });
        let volume: Arc<dyn Volume> = Arc::<Peer>::clone(&peer);
        let mut report = ReportBuilder::open(&resources, &job);
        report.add_volume(&volume);
        report.quiesced = quiesced;
        let report = report.close(outcome);
        let waited = lock(&peer.waited).clone();
        (report, waited)
    }

    #[test]
    fn every_ending_stops_its_volumes_once() {
        let failed = || Err(Error::bad_request("x"));
        for outcome in [Ok(()), failed()] {
            let (report, waited) = ended(true, true, None, outcome);
            assert!(report.quiesced && waited.len() == 1 && waited[0] > Duration::from_secs(9), "{waited:?}");
        }
        // Operations are in flight for ever: nothing is worth waiting for.
        let (report, waited) = ended(true, false, None, failed());
        assert_eq!((report.quiesced, waited), (false, vec![Duration::ZERO]));
    }

    #[test]
    fn a_job_whose_server_does_not_close_is_not_quiesced_and_never_interrupted() {
        let (report, _) = ended(false, true, None, Ok(()));
        assert_eq!((report.status, report.quiesced), (Status::Succeeded, false));
        for reason in [StopReason::UserCancel, StopReason::RunnerInterrupt, StopReason::LeaseLost] {
            let (report, _) = ended(false, true, Some(reason), Err(stopped(Some(reason))));
            let code = report.error.map(|error| error.code);
            assert_eq!((report.status, report.quiesced, code), (Status::Failed, false, Some(Code::Timeout)));
        }
        let (report, _) =
            ended(true, true, Some(StopReason::RunnerInterrupt), Err(stopped(Some(StopReason::RunnerInterrupt))));
        assert_eq!((report.status, report.quiesced), (Status::Interrupted, true));
    }
}
