//! What others on the same disk feel of a copy, and what it costs the copy to spare them.

use super::{Scenario, Setting, Stage};
use crate::contestant::{Contestant, Invocation, Told, Work};
use crate::copying::{Copying, commands};
use crate::engine_process::Answer;
use crate::executor::{Executor, Failure, Measured};
use crate::foreground::{self, Felt};
use crate::results::{Metric, WindowPoint};
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, floor, qemu_img};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) const PROTECTION: Scenario = Scenario {
    name: "protection",
    about: "The p90 of somebody who reads 4 KiB every 500 us from the disk that a copy keeps busy.",
    metric: Metric::Microseconds,
    stage,
};

/// The reader may feel this many times what it feels alone.
const ALLOWED: f64 = 3.0;
/// Seconds between the points of a chart.
const STEP_SECONDS: f64 = 0.1;

fn stage(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(4 * GIB, 256 * MIB, 8 * MIB);
    let others = setting.scale.of(GIB, 64 * MIB, 4 * MIB);
    let room = setting.room(3 * bytes + others)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let read = setting.file(&room, room.path("others"), others, std::iter::once(0..others))?;
    let alone = setting.scale.of(Duration::from_secs(3), Duration::from_millis(500), Duration::from_millis(50));
    let felt = foreground::read_for(&read, others, setting.seed(), alone);
    let idle_us = felt.map_err(|error| Failure::io("read as somebody else would", &error))?.p90();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of microseconds")]
    let protect_us = (idle_us * ALLOWED).ceil().max(1.0) as u64;
    let task = setting.task(&pairs, Caching::Direct);
    let flag = format!("{protect_us}us");
    let mut idle = floor::null(&task).named("nobody-copies");
    let sleep = Invocation::new(["sleep".to_owned(), alone.as_secs_f64().to_string()]);
    idle.work = Work::Commands { commands: vec![sleep], told: Told::Nothing };
    let contestants = vec![
        idle,
        blockhaul::engine(&task, |_| ()),
        blockhaul::engine(&task, |order| order.protect_us = Some(protect_us)).named("engine-protecting"),
        blockhaul::command(&task, &["--protect", &flag]).named("blockhaul-protecting"),
        qemu_img::convert(&task),
        qemu_img::convert_idle(&task),
    ];
    let executor = Protecting { copying: setting.copying(&room), read, others, seed: setting.seed() };
    let stage = setting.stage_with(room, Box::new(executor), bytes, contestants);
    Ok(stage.parameter("allowed", format!("{ALLOWED} times the p90 that the reader has alone")))
}

/// Copies while somebody else reads.
struct Protecting {
    copying: Copying,
    read: PathBuf,
    others: u64,
    seed: u64,
}

impl Executor for Protecting {
    fn reset(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        self.copying.reset(contestant)
    }

    fn perform(&mut self, contestant: &Contestant) -> Result<Measured, Failure> {
        let (commands, told) = commands(contestant)?;
        let stop = AtomicBool::new(false);
        let (outcome, felt) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| foreground::read(&self.read, self.others, self.seed, &stop));
            let outcome = self.copying.measure(commands, told);
            stop.store(true, Ordering::Relaxed);
            (outcome, reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked"))))
        });
        let (ran, mut measured) = outcome?;
        let felt = felt.map_err(|error| Failure::io("read as somebody else would", &error))?;
        if told == Told::Engine
            && let Ok(answer) = Answer::parse(ran.outputs.first().map_or("", String::as_str))
        {
            measured.window = window(&answer, &felt);
        }
        measured.value = Some(felt.p90());
        measured.latency.insert("foreground".to_owned(), felt.histogram());
        if told != Told::Nothing || contestant.kind == crate::results::Kind::Rival {
            measured.bytes = contestant.pairs.iter().map(|pair| pair.bytes).sum();
            #[allow(clippy::cast_precision_loss, reason = "a rate")]
            let rate = measured.bytes as f64 / measured.wall_seconds;
            measured.figures.insert("copy_bytes_per_second".to_owned(), rate);
        }
        Ok(measured)
    }

    fn judge(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        self.copying.judge(contestant)
    }
}

/// Bytes in flight against what the reader felt, step by step.
fn window(answer: &Answer, felt: &Felt) -> Vec<WindowPoint> {
    let mut points = Vec::new();
    let mut next = STEP_SECONDS;
    for (seconds, _, window_bytes) in &answer.progress {
        if *seconds < next {
            continue;
        }
        if let Some(foreground_us) = felt.p90_between(seconds - STEP_SECONDS, *seconds) {
            points.push(WindowPoint { seconds: *seconds, window_bytes: *window_bytes, foreground_us });
        }
        next = seconds + STEP_SECONDS;
    }
    points
}
