//! Measures the cost of a kill: a copy is killed half way and resumed, or restarted where it cannot resume.

use super::cancel::{limit, limit_flags, words};
use super::{PreparedScenario, Scenario, SetupContext};
use crate::copy_executor::{CopyExecutor, commands, process_usage, report_number};
use crate::launch::{ProcessSample, Sampler};
use crate::meter::{KernelWorkers, written_bytes};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, ddrescue, qemu_img};
use crate::target::{Invocation, OutputFormat, Target};
use crate::trial_executor::{Failure, Measurement, TrialExecutor};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const RESUME: Scenario = Scenario {
    name: "resume",
    about: "A copy is killed half way and run again until it is complete: the time of both runs, to compare with one.",
    metric: Metric::Seconds,
    prepare,
};

/// Time between two samples while waiting for the moment to kill.
const FAST_POLL_INTERVAL: Duration = Duration::from_millis(1);

fn prepare(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 256 * MIB, 16 * MIB);
    let dir = context.scenario_dir(3 * bytes)?;
    let pairs = [context.dense_pair(&dir, bytes)?];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let (flags, rescue_flags) = limit_flags(limit(context.scale));
    let flags = words(&flags);
    let resumed = blockhaul::command(&workload, &[&flags[..], &["--resume"]].concat());
    let targets = vec![
        blockhaul::command(&workload, &flags),
        blockhaul::command(&workload, &flags).with_name("blockhaul-undisturbed"),
        ddrescue::resumable(&workload, &words(&rescue_flags)),
        qemu_img::convert(&workload),
    ];
    // Commands to run after the kill, by target. Targets without an entry are not killed.
    let mut again = BTreeMap::new();
    for (name, second) in [("blockhaul", &resumed), ("ddrescue", &targets[2]), ("qemu-img", &targets[3])] {
        if let Ok((commands, _)) = commands(second) {
            again.insert(name.to_owned(), commands.to_vec());
        }
    }
    let executor = ResumeExecutor { copy: context.copy_executor(&dir), again, bytes };
    Ok(context.prepare_with(dir, Box::new(executor), bytes, targets).parameter("killed at", "half of the bytes"))
}

struct ResumeExecutor {
    copy: CopyExecutor,
    again: BTreeMap<String, Vec<Invocation>>,
    bytes: u64,
}

impl TrialExecutor for ResumeExecutor {
    fn reset(&mut self, target: &Target) -> Result<(), Failure> {
        self.copy.reset(target)
    }

    fn run(&mut self, target: &Target) -> Result<Measurement, Failure> {
        let (first, format) = commands(target)?;
        let Some(second) = self.again.get(&target.name) else {
            let (_, measured) = self.copy.measure(first, format)?;
            return Ok(Measurement { bytes: self.bytes, ..measured });
        };
        let workers = KernelWorkers::sample();
        let (before, written) = self.kill_half_way(first)?;
        let ran = self.copy.launcher().run(second, None)?;
        ran.check_success().map_err(Failure::Failed)?;
        let after = process_usage(&ran);
        let mut measured = Measurement {
            wall_seconds: before.wall_seconds + after.wall_seconds,
            user_seconds: before.user_seconds + after.user_seconds,
            system_seconds: before.system_seconds + after.system_seconds,
            kernel_worker_seconds: KernelWorkers::sample().seconds_since(&workers),
            peak_rss_bytes: before.peak_rss_bytes.max(after.peak_rss_bytes),
            bytes: self.bytes,
            ..Measurement::default()
        };
        if format == OutputFormat::BlockhaulJson
            && let Some(again) = ran.stdout.first().and_then(|output| report_number(output, &["bytes", "written"]))
        {
            #[allow(clippy::cast_precision_loss, reason = "bytes of a volume")]
            let twice = (written as f64 + again - self.bytes as f64).max(0.0);
            measured.other_metrics.insert("copied_again_bytes".to_owned(), twice);
        }
        measured.other_metrics.insert("second_run_seconds".to_owned(), after.wall_seconds);
        Ok(measured)
    }

    fn verify(&mut self, target: &Target) -> Result<(), Failure> {
        self.copy.verify(target)
    }
}

impl ResumeExecutor {
    /// Runs the commands and kills them once half of the bytes are written. Returns the measurement and the bytes
    /// written.
    fn kill_half_way(&self, commands: &[Invocation]) -> Result<(Measurement, u64), Failure> {
        let (mut written, mut killed, half) = (0, false, self.bytes / 2);
        let mut on_sample = |sample: &ProcessSample| {
            let seen: u64 = sample.running.iter().filter_map(|id| written_bytes(*id)).sum();
            written = written.max(seen);
            if written >= half {
                killed = true;
                sample.signal(Signal::SIGKILL);
            }
        };
        let ran = self
            .copy
            .launcher()
            .run(commands, Some(Sampler { interval: FAST_POLL_INTERVAL, on_sample: &mut on_sample }))?;
        if !killed && let Err(why) = ran.check_success() {
            return Err(Failure::Failed(why));
        }
        if ran.check_success().is_ok() {
            return Err(Failure::Failed("the copy ended before it could be killed".to_owned()));
        }
        Ok((process_usage(&ran), written))
    }
}
