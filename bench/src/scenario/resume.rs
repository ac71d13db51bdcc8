//! What it costs to be killed: a copy is killed half way and goes on, or starts again where it cannot.

use super::cancel::{limit, limit_flags, words};
use super::{Scenario, Setting, Stage};
use crate::contestant::{Contestant, Invocation, Told};
use crate::copying::{Copying, commands, outside, report_number};
use crate::executor::{Executor, Failure, Measured};
use crate::launch::{Glimpse, Watch};
use crate::meter::{KernelWorkers, written_bytes};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, ddrescue, qemu_img};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const RESUME: Scenario = Scenario {
    name: "resume",
    about: "A copy is killed half way and run again until it is complete: the time of both runs, to compare with one.",
    metric: Metric::Seconds,
    stage,
};

/// Between two looks while the moment is awaited.
const CLOSE_LOOK: Duration = Duration::from_millis(1);

fn stage(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 256 * MIB, 16 * MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let task = setting.task(&pairs, Caching::Direct);
    let (flags, rescue_flags) = limit_flags(limit(setting.scale));
    let flags = words(&flags);
    let resumed = blockhaul::command(&task, &[&flags[..], &["--resume"]].concat());
    let contestants = vec![
        blockhaul::command(&task, &flags),
        blockhaul::command(&task, &flags).named("blockhaul-undisturbed"),
        ddrescue::resumable(&task, &words(&rescue_flags)),
        qemu_img::convert(&task),
    ];
    // By name: what runs after the kill. Who is not here is left alone.
    let mut again = BTreeMap::new();
    for (name, second) in [("blockhaul", &resumed), ("ddrescue", &contestants[2]), ("qemu-img", &contestants[3])] {
        if let Ok((commands, _)) = commands(second) {
            again.insert(name.to_owned(), commands.to_vec());
        }
    }
    let executor = Resuming { copying: setting.copying(&room), again, bytes };
    Ok(setting.stage_with(room, Box::new(executor), bytes, contestants).parameter("killed at", "half of the bytes"))
}

struct Resuming {
    copying: Copying,
    again: BTreeMap<String, Vec<Invocation>>,
    bytes: u64,
}

impl Executor for Resuming {
    fn reset(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        self.copying.reset(contestant)
    }

    fn perform(&mut self, contestant: &Contestant) -> Result<Measured, Failure> {
        let (first, told) = commands(contestant)?;
        let Some(second) = self.again.get(&contestant.name) else {
            let (_, measured) = self.copying.measure(first, told)?;
            return Ok(Measured { bytes: self.bytes, ..measured });
        };
        let workers = KernelWorkers::look();
        let (before, written) = self.kill_half_way(first)?;
        let ran = self.copying.launcher().run(second, None)?;
        ran.succeeded().map_err(Failure::Failed)?;
        let after = outside(&ran);
        let mut measured = Measured {
            wall_seconds: before.wall_seconds + after.wall_seconds,
            user_seconds: before.user_seconds + after.user_seconds,
            system_seconds: before.system_seconds + after.system_seconds,
            kernel_worker_seconds: KernelWorkers::look().seconds_since(&workers),
            peak_rss_bytes: before.peak_rss_bytes.max(after.peak_rss_bytes),
            bytes: self.bytes,
            ..Measured::default()
        };
        if told == Told::Blockhaul
            && let Some(again) = ran.outputs.first().and_then(|output| report_number(output, &["bytes", "written"]))
        {
            #[allow(clippy::cast_precision_loss, reason = "bytes of a volume")]
            let twice = (written as f64 + again - self.bytes as f64).max(0.0);
            measured.figures.insert("copied_again_bytes".to_owned(), twice);
        }
        measured.figures.insert("second_run_seconds".to_owned(), after.wall_seconds);
        Ok(measured)
    }

    fn judge(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        self.copying.judge(contestant)
    }
}

impl Resuming {
    /// Runs it until half of the bytes are written, and kills it; what that took, and the bytes written until then.
    fn kill_half_way(&self, commands: &[Invocation]) -> Result<(Measured, u64), Failure> {
        let (mut written, mut killed, half) = (0, false, self.bytes / 2);
        let mut look = |glimpse: &Glimpse| {
            let seen: u64 = glimpse.running.iter().filter_map(|id| written_bytes(*id)).sum();
            written = written.max(seen);
            if written >= half {
                killed = true;
                glimpse.signal(Signal::SIGKILL);
            }
        };
        let ran = self.copying.launcher().run(commands, Some(Watch { every: CLOSE_LOOK, look: &mut look }))?;
        if !killed && let Err(why) = ran.succeeded() {
            return Err(Failure::Failed(why));
        }
        if ran.succeeded().is_ok() {
            return Err(Failure::Failed("it was over before it could be killed".to_owned()));
        }
        Ok((outside(&ran), written))
    }
}
