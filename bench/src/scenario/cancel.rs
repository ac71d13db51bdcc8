//! Measures the time from a request to stop until the copy has drained, recorded and ended.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::copy_executor::{CopyExecutor, apply_engine_report, commands, process_usage};
use crate::engine_process::{EngineReport, EngineRequest};
use crate::histogram;
use crate::launch::{ProcessSample, Sampler};
use crate::meter::written_bytes;
use crate::results::Metric;
use crate::scale::{GIB, MIB, Scale};
use crate::target::{Caching, blockhaul, ddrescue};
use crate::target::{Invocation, OutputFormat, Target};
use crate::trial_executor::{Failure, Measurement, TrialExecutor};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

pub(super) const CANCEL: Scenario = Scenario {
    name: "cancel",
    about: "A copy at full speed is format to stop at a random moment: the time until it has drained, recorded and ended.",
    metric: Metric::Microseconds,
    prepare,
};

/// Time between two samples while waiting for the moment to stop.
const FAST_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Attempts per trial, because a copy may end before the signal arrives.
const TRIES: u32 = 5;
/// Exit code of `blockhaul` if the copy can be resumed.
const INTERRUPTED: i32 = 75;

fn prepare(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 256 * MIB, 16 * MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let limit = limit(context.scale);
    let (flags, rescue_flags) = limit_flags(limit);
    let targets = vec![
        blockhaul::engine(&workload, |request| request.limit_bytes_per_second = limit).unverified(),
        blockhaul::command(&workload, &words(&flags)).unverified(),
        ddrescue::resumable(&workload, &words(&rescue_flags)).unverified(),
    ];
    let executor =
        CancelExecutor { copy: context.copy_executor(&dir), random: fastrand::Rng::with_seed(context.seed()), bytes };
    let trials = context.scale.of(50, 5, 2);
    Ok(context.prepare_with(dir, Box::new(executor), bytes, targets).trials(trials))
}

/// Returns the rate limit for tests: without it, a few MiB would be copied before they could be stopped.
pub(super) fn limit(scale: Scale) -> Option<u64> {
    scale.of(None, None, Some(16 * MIB))
}

/// Returns the flags of the rate limit for `blockhaul` and for `ddrescue`.
pub(super) fn limit_flags(limit: Option<u64>) -> (Vec<String>, Vec<String>) {
    match limit {
        None => (Vec::new(), Vec::new()),
        Some(limit) => {
            (vec!["--limit".to_owned(), format!("{}MiB/s", limit / MIB)], vec![format!("--max-read-rate={limit}")])
        }
    }
}

pub(super) fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

struct CancelExecutor {
    copy: CopyExecutor,
    random: fastrand::Rng,
    bytes: u64,
}

impl TrialExecutor for CancelExecutor {
    fn reset(&mut self, target: &Target) -> Result<(), Failure> {
        self.copy.reset(target)
    }

    fn run(&mut self, target: &Target) -> Result<Measurement, Failure> {
        let (commands, format) = commands(target)?;
        for _ in 0..TRIES {
            // Neither before the copy runs at full speed, nor shortly before its end.
            let moment = self.bytes / 10 + self.random.u64(..self.bytes / 2);
            let stopped = match format {
                OutputFormat::EngineReport => self.cancel_engine(commands, moment)?,
                _ => self.cancel_program(commands, moment, format)?,
            };
            if let Some(measured) = stopped {
                return Ok(measured);
            }
            self.copy.reset(target)?;
        }
        Err(Failure::Failed(format!("the copy ended before it could be stopped, {TRIES} times")))
    }

    fn verify(&mut self, _target: &Target) -> Result<(), Failure> {
        Ok(())
    }
}

impl CancelExecutor {
    /// Has the engine process cancel its jobs at `moment`; `None` if they ended before.
    fn cancel_engine(&self, commands: &[Invocation], moment: u64) -> Result<Option<Measurement>, Failure> {
        let commands = commands.iter().map(|command| with_cancel_at(command, moment)).collect::<Result<Vec<_>, _>>()?;
        let ran = self.copy.launcher().run(&commands, None)?;
        let report = EngineReport::parse(ran.stdout.first().map_or("", String::as_str)).map_err(Failure::Failed)?;
        if let Some(error) = report.error {
            return Err(Failure::Failed(error));
        }
        if report.cancel_us.is_some() && !report.quiesced {
            return Err(Failure::Failed("it ended with operations still in flight".to_owned()));
        }
        // A copy that completes before it stops has succeeded.
        let Some(us) = report.cancel_us.filter(|_| report.status == "interrupted") else { return Ok(None) };
        let mut measured = process_usage(&ran);
        apply_engine_report(&report, &mut measured);
        Ok(Some(timed(measured, us)))
    }

    /// Sends SIGTERM to a program at `moment`; `None` if it ended before.
    fn cancel_program(
        &self,
        commands: &[Invocation],
        moment: u64,
        format: OutputFormat,
    ) -> Result<Option<Measurement>, Failure> {
        let mut sent = None;
        let mut on_sample = |sample: &ProcessSample| {
            let written = sample.running.iter().filter_map(|id| written_bytes(*id)).sum::<u64>();
            if sent.is_none() && written >= moment {
                sent = Some(Instant::now());
                sample.signal(Signal::SIGTERM);
            }
        };
        let ran = self
            .copy
            .launcher()
            .run(commands, Some(Sampler { interval: FAST_POLL_INTERVAL, on_sample: &mut on_sample }))?;
        let ended = ran.ended.first().copied().flatten();
        let status = ran.statuses.first().copied().unwrap_or_default();
        match (sent, ended) {
            (Some(sent), Some(ended))
                if format == OutputFormat::BlockhaulJson && status.code() == Some(INTERRUPTED) =>
            {
                Ok(Some(timed(process_usage(&ran), micros(ended - sent))))
            }
            // The copy had succeeded before it could stop.
            _ if status.success() && format == OutputFormat::BlockhaulJson => Ok(None),
            (Some(sent), Some(ended)) if format != OutputFormat::BlockhaulJson => {
                Ok(Some(timed(process_usage(&ran), micros(ended - sent))))
            }
            (None, _) if status.success() => Ok(None),
            _ => Err(Failure::Failed(ran.failure_message(0))),
        }
    }
}

/// Returns the same request with a cancel at `moment`.
fn with_cancel_at(command: &Invocation, moment: u64) -> Result<Invocation, Failure> {
    let unclear = |error: serde_json::Error| Failure::Failed(format!("the request cannot be changed: {error}"));
    let mut command = command.clone();
    if let Some(request) = command.steps.first_mut().and_then(|step| step.last_mut()) {
        let changed =
            EngineRequest { cancel_at_bytes: Some(moment), ..serde_json::from_str(request).map_err(unclear)? };
        *request = serde_json::to_string(&changed).map_err(unclear)?;
    }
    Ok(command)
}

fn timed(measured: Measurement, us: u64) -> Measurement {
    let mut cancel = histogram::empty();
    cancel.saturating_record(us);
    let mut latency = measured.latency;
    latency.insert("cancel".to_owned(), cancel);
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a latency")]
    let value = Some(us as f64);
    Measurement { value, latency, ..measured }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_changed_in_one_field() {
        let request = serde_json::to_string(&EngineRequest { cores: Some(3), ..EngineRequest::default() }).unwrap();
        let changed = with_cancel_at(&Invocation::new(["copy-bench", "engine-process", &request]), 77).unwrap();
        let request: EngineRequest = serde_json::from_str(&changed.steps[0][2]).unwrap();
        assert_eq!((request.cores, request.cancel_at_bytes), (Some(3), Some(77)));
    }
}
