//! Runs targets that copy volume pairs, and verifies the copies.

use crate::engine_process::EngineReport;
use crate::histogram;
use crate::interrupt::Interrupt;
use crate::launch::{LaunchOutcome, Launcher, ProcessSample, Sampler};
use crate::meter::{KernelWorkers, written_bytes};
use crate::results::ThroughputPoint;
use crate::target::{Invocation, OutputFormat, Target, TrialWork, Verification};
use crate::trial_executor::{Failure, Measurement, TrialExecutor};
use crate::volume::VerifyOutcome;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Time between two samples of the bytes written.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Runs copies and verifies them.
#[derive(Debug)]
pub(crate) struct CopyExecutor {
    /// Directory for the output of programs.
    pub folder: PathBuf,
    pub interrupt: Interrupt,
    /// Path of strace, which counts system calls; `None` if it is not installed.
    pub strace: Option<String>,
}

impl CopyExecutor {
    pub(crate) fn launcher(&self) -> Launcher<'_> {
        Launcher { folder: &self.folder, interrupt: &self.interrupt }
    }

    /// Runs the commands, samples the bytes written, and adds the CPU time of kernel workers.
    pub(crate) fn measure(
        &self,
        commands: &[Invocation],
        format: OutputFormat,
    ) -> Result<(LaunchOutcome, Measurement), Failure> {
        let mut written = WriteSampler::default();
        let workers = KernelWorkers::sample();
        let mut on_sample = |sample: &ProcessSample| written.sample(sample);
        let ran =
            self.launcher().run(commands, Some(Sampler { interval: SAMPLE_INTERVAL, on_sample: &mut on_sample }))?;
        let kernel_worker_seconds = KernelWorkers::sample().seconds_since(&workers);
        let mut measured = Measurement { kernel_worker_seconds, timeline: written.rates(), ..process_usage(&ran) };
        read_output(&ran, format, &mut measured)?;
        Ok((ran, measured))
    }
}

impl TrialExecutor for CopyExecutor {
    fn reset(&mut self, target: &Target) -> Result<(), Failure> {
        self.interrupt.check()?;
        target.pairs.iter().try_for_each(|pair| pair.reset().map_err(Failure::Failed))
    }

    fn run(&mut self, target: &Target) -> Result<Measurement, Failure> {
        let (commands, format) = commands(target)?;
        let (_, measured) = self.measure(commands, format)?;
        Ok(Measurement { bytes: target.pairs.iter().map(|pair| pair.bytes).sum(), ..measured })
    }

    fn verify(&mut self, target: &Target) -> Result<(), Failure> {
        if target.verification == Verification::None {
            return Ok(());
        }
        for pair in &target.pairs {
            let outcome = pair.verify(&self.interrupt);
            self.interrupt.check()?;
            match outcome.map_err(Failure::Failed)? {
                VerifyOutcome::Equal | VerifyOutcome::NotReadable => {}
                VerifyOutcome::Differs(how) => return Err(Failure::WrongBytes(how)),
            }
        }
        Ok(())
    }

    fn count_calls(&mut self, target: &Target) -> Result<Option<u64>, Failure> {
        let Some(strace) = &self.strace else { return Ok(None) };
        let (commands, _) = commands(target)?;
        let log = self.folder.join("calls");
        let mut calls = 0;
        // One after another: tracing disturbs times, but not the number of calls.
        for step in commands.iter().flat_map(|command| &command.steps) {
            let traced = [strace, "-f", "-c", "-o", &log.display().to_string()].map(str::to_owned);
            self.launcher().run_one(&Invocation::new(traced.into_iter().chain(step.iter().cloned())))?;
            let table = std::fs::read_to_string(&log).map_err(|error| Failure::io("read strace's table", &error))?;
            calls += total_calls(&table).ok_or_else(|| Failure::Failed("unexpected output of strace".to_owned()))?;
        }
        Ok(Some(calls))
    }
}

/// Returns the commands of a target and the format of their output.
pub(crate) fn commands(target: &Target) -> Result<(&[Invocation], OutputFormat), Failure> {
    match &target.work {
        TrialWork::Commands { commands, format } => Ok((commands, *format)),
        TrialWork::Missing(why) => Err(Failure::Failed(why.clone())),
    }
}

/// Returns what can be measured of any program from outside.
pub(crate) fn process_usage(ran: &LaunchOutcome) -> Measurement {
    Measurement {
        wall_seconds: ran.wall.as_secs_f64(),
        user_seconds: ran.user.as_secs_f64(),
        system_seconds: ran.system.as_secs_f64(),
        peak_rss_bytes: ran.peak_rss_bytes,
        ..Measurement::default()
    }
}

/// Adds what the programs report about themselves, or returns why they failed.
fn read_output(ran: &LaunchOutcome, format: OutputFormat, measured: &mut Measurement) -> Result<(), Failure> {
    let stdout = ran.stdout.iter();
    match format {
        OutputFormat::EngineReport => {
            let report = ran.stdout.first().map_or("", String::as_str);
            match EngineReport::parse(report) {
                Ok(EngineReport { error: Some(error), .. }) => return Err(Failure::Failed(error)),
                Ok(report) => apply_engine_report(&report, measured),
                Err(why) => return Err(Failure::Failed(ran.check_success().err().unwrap_or(why))),
            }
        }
        OutputFormat::FioJson => {
            ran.check_success().map_err(Failure::Failed)?;
            let seconds = stdout.map(|output| fio_seconds(output)).collect::<Option<Vec<f64>>>();
            let seconds = seconds.ok_or_else(|| Failure::Failed("unexpected output of fio".to_owned()))?;
            measured.wall_seconds = seconds.into_iter().fold(0.0, f64::max);
            // The samples taken from outside use another clock.
            measured.timeline.clear();
        }
        OutputFormat::BlockhaulJson => {
            ran.check_success().map_err(Failure::Failed)?;
            let calls = stdout.map(|output| report_number(output, &["syscalls"])).sum::<Option<f64>>();
            if let Some(calls) = calls {
                measured.other_metrics.insert("worker_system_calls".to_owned(), calls);
            }
        }
        OutputFormat::Ignored => ran.check_success().map_err(Failure::Failed)?,
    }
    Ok(())
}

/// Replaces measurements from outside by those of the engine.
pub(crate) fn apply_engine_report(report: &EngineReport, measured: &mut Measurement) {
    measured.wall_seconds = report.seconds;
    measured.system_calls = Some(report.system_calls);
    measured.timeline = rates(report.progress.iter().map(|(seconds, written, _)| (*seconds, *written)));
    measured.latency = report.latency.iter().map(|(name, counts)| (name.clone(), of_counts(counts))).collect();
}

fn of_counts(counts: &[(u64, u64)]) -> Histogram<u64> {
    let mut all = histogram::empty();
    counts.iter().for_each(|(us, count)| all.saturating_record_n(*us, *count));
    all
}

/// Returns a number of the report, the last line that `blockhaul --json` prints.
pub(crate) fn report_number(output: &str, path: &[&str]) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_str(output.lines().last()?).ok()?;
    path.iter().try_fold(&report, |value, key| value.get(key))?.as_f64()
}

/// Returns the time by fio's own clock, from the first read or write to the end of the flush.
fn fio_seconds(output: &str) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_str(&output[output.find('{')?..]).ok()?;
    let jobs = report.get("jobs")?.as_array()?;
    let milliseconds = |job: &serde_json::Value| {
        let of = |kind: &str| job.get(kind)?.get("runtime")?.as_f64();
        Some(
            of("read")?
                .max(of("write")?)
                .max(job.get("job_runtime").and_then(serde_json::Value::as_f64).unwrap_or(0.0)),
        )
    };
    let times = jobs.iter().map(milliseconds).collect::<Option<Vec<f64>>>()?;
    let longest = times.into_iter().fold(0.0, f64::max);
    (longest > 0.0).then_some(longest / 1e3)
}

/// Returns the number of calls in the line `total` of `strace -c`.
fn total_calls(table: &str) -> Option<u64> {
    let total = table.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

/// Samples the bytes that programs have written to storage.
#[derive(Debug, Default)]
struct WriteSampler {
    by_process: BTreeMap<u32, u64>,
    samples: Vec<(f64, u64)>,
}

impl WriteSampler {
    fn sample(&mut self, sample: &ProcessSample) {
        for id in &sample.running {
            if let Some(bytes) = written_bytes(*id) {
                self.by_process.insert(*id, bytes);
            }
        }
        self.samples.push((sample.since_start.as_secs_f64(), self.by_process.values().sum()));
    }

    fn rates(&self) -> Vec<ThroughputPoint> {
        // A program that writes to a socket writes nothing to storage: there is nothing to draw.
        if self.by_process.values().all(|bytes| *bytes == 0) { Vec::new() } else { rates(self.samples.iter().copied()) }
    }
}

/// Computes rates from samples; each rate is placed at the end of its interval.
fn rates(samples: impl Iterator<Item = (f64, u64)>) -> Vec<ThroughputPoint> {
    let mut before = (0.0, 0);
    let mut points = Vec::new();
    for (seconds, bytes) in samples {
        let span = seconds - before.0;
        // Samples at almost the same time say more about the clock than about the copy.
        if span < 0.02 {
            continue;
        }
        #[allow(clippy::cast_precision_loss, reason = "a rate on a chart")]
        let moved = bytes.saturating_sub(before.1) as f64;
        points.push(ThroughputPoint { seconds, bytes_per_second: moved / span });
        before = (seconds, bytes);
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_other_programs_is_parsed() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n------\n 60.00    0.000006           6         \
            1           mmap\n100.00    0.000010           1        37         2 total\n";
        assert_eq!(total_calls(table), Some(37));
        assert_eq!(total_calls("nonsense"), None);
        let fio = "note: x\n{\"jobs\":[{\"read\":{\"runtime\":1500},\"write\":{\"runtime\":0}},\
            {\"read\":{\"runtime\":0},\"write\":{\"runtime\":2500}}]}";
        assert_eq!(fio_seconds(fio), Some(2.5));
        assert_eq!(fio_seconds("{}"), None);
        let events = "{\"event\":\"progress\"}\n{\"event\":\"report\",\"bytes\":{\"read\":5}}\n";
        assert_eq!(report_number(events, &["bytes", "read"]), Some(5.0));
        assert_eq!(report_number("", &["bytes"]), None);
    }

    #[test]
    fn rates_are_placed_at_the_end_of_intervals() {
        let points = rates([(0.5, 100), (0.51, 150), (1.0, 300)].into_iter());
        let seen: Vec<_> = points.iter().map(|point| (point.seconds, point.bytes_per_second)).collect();
        assert_eq!(seen, [(0.5, 200.0), (1.0, 400.0)]);
    }
}
