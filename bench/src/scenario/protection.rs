//! Measures what a copy does to other readers of the disk, and what protecting them costs the copy.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::copy_executor::{CopyExecutor, commands};
use crate::engine_process::EngineReport;
use crate::foreground::{self, ForegroundLatency};
use crate::results::{Metric, WindowPoint};
use crate::scale::{GIB, MIB};
use crate::target::{Caching, baselines, blockhaul, qemu_img};
use crate::target::{Invocation, OutputFormat, Target, TrialWork};
use crate::trial_executor::{Failure, Measurement, TrialExecutor};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) const PROTECTION: Scenario = Scenario {
    name: "protection",
    about: "The p90 of a program that reads 4 KiB every 500 us from the disk that a copy keeps busy.",
    metric: Metric::Microseconds,
    prepare,
};

/// Allowed latency of the reader, as a multiple of its latency alone.
const ALLOWED: f64 = 3.0;
/// Time between the points of a chart.
const STEP_SECONDS: f64 = 0.1;

fn prepare(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(4 * GIB, 256 * MIB, 8 * MIB);
    let others = context.scale.of(GIB, 64 * MIB, 4 * MIB);
    let dir = context.scenario_dir(3 * bytes + others)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let read = context.file(&dir, dir.path("others"), others, std::iter::once(0..others))?;
    let alone = context.scale.of(Duration::from_secs(3), Duration::from_millis(500), Duration::from_millis(50));
    let foreground = foreground::read_for(&read, others, context.seed(), alone);
    let idle_us = foreground.map_err(|error| Failure::io("run the foreground reader", &error))?.p90();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of microseconds")]
    let protect_us = (idle_us * ALLOWED).ceil().max(1.0) as u64;
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let flag = format!("{protect_us}us");
    let mut idle = baselines::null(&workload).with_name("nobody-copies");
    let sleep = Invocation::new(["sleep".to_owned(), alone.as_secs_f64().to_string()]);
    idle.work = TrialWork::Commands { commands: vec![sleep], format: OutputFormat::Ignored };
    let targets = vec![
        idle,
        blockhaul::engine(&workload, |_| ()),
        blockhaul::engine(&workload, |request| request.protect_us = Some(protect_us)).with_name("engine-protecting"),
        blockhaul::command(&workload, &["--protect", &flag]).with_name("blockhaul-protecting"),
        qemu_img::convert(&workload),
        qemu_img::convert_idle(&workload),
    ];
    let executor = ProtectionExecutor { copy: context.copy_executor(&dir), read, others, seed: context.seed() };
    let prepared = context.prepare_with(dir, Box::new(executor), bytes, targets);
    Ok(prepared.parameter("allowed", format!("{ALLOWED} times the p90 that the reader has alone")))
}

/// Runs a target while a foreground reader reads.
struct ProtectionExecutor {
    copy: CopyExecutor,
    read: PathBuf,
    others: u64,
    seed: u64,
}

impl TrialExecutor for ProtectionExecutor {
    fn reset(&mut self, target: &Target) -> Result<(), Failure> {
        self.copy.reset(target)
    }

    fn run(&mut self, target: &Target) -> Result<Measurement, Failure> {
        let (commands, format) = commands(target)?;
        let stop = AtomicBool::new(false);
        let (outcome, foreground) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| foreground::read(&self.read, self.others, self.seed, &stop));
            let outcome = self.copy.measure(commands, format);
            stop.store(true, Ordering::Relaxed);
            (outcome, reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked"))))
        });
        let (ran, mut measured) = outcome?;
        let foreground = foreground.map_err(|error| Failure::io("run the foreground reader", &error))?;
        if format == OutputFormat::EngineReport
            && let Ok(report) = EngineReport::parse(ran.stdout.first().map_or("", String::as_str))
        {
            measured.window = window(&report, &foreground);
        }
        measured.value = Some(foreground.p90());
        measured.latency.insert("foreground".to_owned(), foreground.histogram());
        if format != OutputFormat::Ignored || target.kind == crate::results::Kind::Rival {
            measured.bytes = target.pairs.iter().map(|pair| pair.bytes).sum();
            #[allow(clippy::cast_precision_loss, reason = "a rate")]
            let rate = measured.bytes as f64 / measured.wall_seconds;
            measured.other_metrics.insert("copy_bytes_per_second".to_owned(), rate);
        }
        Ok(measured)
    }

    fn verify(&mut self, target: &Target) -> Result<(), Failure> {
        self.copy.verify(target)
    }
}

/// Returns bytes in flight against foreground latency over time.
fn window(report: &EngineReport, foreground: &ForegroundLatency) -> Vec<WindowPoint> {
    let mut points = Vec::new();
    let mut next = STEP_SECONDS;
    for (seconds, _, window_bytes) in &report.progress {
        if *seconds < next {
            continue;
        }
        if let Some(foreground_us) = foreground.p90_between(seconds - STEP_SECONDS, *seconds) {
            points.push(WindowPoint { seconds: *seconds, window_bytes: *window_bytes, foreground_us });
        }
        next = seconds + STEP_SECONDS;
    }
    points
}
