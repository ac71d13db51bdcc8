//! Builds invented results for the tests of everything that reads results.
//!
//! They hold every kind of scenario, target, outcome, chart and warning, and their numbers are consistent.

use crate::histogram;
use crate::results::*;
use fastrand::Rng;
use std::collections::BTreeMap;

const GIB: u64 = 1 << 30;
const ROUNDS: u32 = 7;

/// Builds a run with noise from this seed: two seeds stand for two runs of one build on one machine.
pub(crate) fn results(seed: u64) -> Results {
    let mut generator = Generator { rng: Rng::with_seed(seed), seconds: 3.0 };
    let scenarios = vec![
        dense(&mut generator),
        sparse(&mut generator),
        reflink(&mut generator),
        nbd(&mut generator),
        protection(&mut generator),
        cancel(&mut generator),
        jobs(&mut generator),
    ];
    Results {
        schema: SCHEMA,
        build: Build { version: "0.1.0".into(), commit: Some("4862277".into()), profile: "release".into() },
        host: Host {
            kernel: "Linux 6.12.8 x86_64".into(),
            cpu: "AMD EPYC 7B13".into(),
            cpus: 2,
            memory_bytes: 24 * GIB,
            filesystem: "ext4".into(),
            device: "nvme0n1, 100 GiB".into(),
            facts: text([("scheduler", "none"), ("virtualisation", "kvm"), ("memlock", "8 MiB")]),
        },
        run: Run {
            started_at: "2026-11-21T10:00:00Z".into(),
            seconds: generator.seconds + 1.0,
            command: vec!["copy-generator".into(), "--out".into(), "<results>".into()],
            quick: false,
            trials: ROUNDS,
            seed: 1,
            complete: true,
        },
        programs: vec![
            program("qemu-img", Some("qemu-img version 10.0.2")),
            program("nbdcopy", Some("nbdcopy 1.22.1")),
            program("ddrescue", None),
        ],
        scenarios,
        warnings: vec![warning(
            "shared-host",
            "the machine is virtual: neighbours may have been busy",
            "repeat the run",
        )],
    }
}

/// Multiplies the values of one target by `factor`, as if the target had become slower or faster.
pub(crate) fn scale(results: &mut Results, scenario: &str, target: &str, factor: f64) {
    let scenario = results.scenarios.iter_mut().find(|found| found.name == scenario).expect("it is in the run");
    let target = scenario.targets.iter_mut().find(|found| found.name == target).expect("it is in the scenario");
    target.trials.iter_mut().for_each(|trial| trial.value *= factor);
    target.summary = Summary::of(&target.values());
}

/// Draws noise and keeps the time.
struct Generator {
    rng: Rng,
    seconds: f64,
}

/// A target to build: name, kind, and the median of its values in the unit of the metric.
type Line<'a> = (&'a str, Kind, f64);

impl Generator {
    /// Returns noise of about 2 %, roughly normal.
    fn noise(&mut self) -> f64 {
        1.0 + 0.02 * ((0..6).map(|_| self.rng.f64()).sum::<f64>() - 3.0)
    }

    /// Builds a scenario with interleaved trials of all lines.
    fn scenario(
        &mut self,
        name: &str,
        about: &str,
        metric: Metric,
        volume_bytes: u64,
        lines: &[Line],
    ) -> ScenarioResult {
        let mut targets: Vec<TargetResult> = lines.iter().map(|(name, kind, _)| idle(name, *kind)).collect();
        for round in 0..ROUNDS {
            for (at, (_, _, median)) in lines.iter().enumerate() {
                let position = round * lines.len() as u32 + at as u32;
                let value = median * self.noise();
                targets[at].trials.push(self.trial(position, metric, volume_bytes, value));
            }
        }
        for target in &mut targets {
            target.summary = Summary::of(&target.values());
        }
        ScenarioResult {
            name: name.into(),
            about: about.into(),
            metric,
            volume_bytes,
            data_bytes: volume_bytes,
            parameters: text([("block size", "1 MiB"), ("fill", "random")]),
            axis: None,
            targets,
            goals: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn trial(&mut self, position: u32, metric: Metric, bytes: u64, value: f64) -> Trial {
        let wall_seconds = match metric {
            Metric::BytesPerSecond => bytes as f64 / value,
            Metric::Seconds => value,
            _ => 1.0,
        };
        let started_seconds = self.seconds + 0.3;
        self.seconds = started_seconds + wall_seconds;
        Trial {
            position,
            started_seconds,
            wall_seconds,
            user_seconds: wall_seconds * 0.03,
            system_seconds: wall_seconds * 0.06,
            kernel_worker_seconds: wall_seconds * 0.01,
            peak_rss_bytes: Some(38 << 20),
            system_calls: Some(bytes >> 20),
            bytes,
            value,
        }
    }

    /// Builds a latency distribution around this median, in microseconds.
    fn latency(&mut self, median_us: f64) -> Latency {
        let mut histogram = histogram::empty();
        for _ in 0..20_000 {
            let stretch = (0..8).map(|_| self.rng.f64()).sum::<f64>() - 4.0;
            let tail = if self.rng.u32(..100) == 0 { 1.0 + 6.0 * self.rng.f64() } else { 1.0 };
            histogram.saturating_record((median_us * (stretch * 0.3).exp() * tail) as u64);
        }
        histogram::latency(&histogram, Some("dense-direct-read.hgrm".into())).expect("something was recorded")
    }

    /// Builds throughput samples around this rate, four per second.
    fn timeline(&mut self, rate: f64, seconds: f64) -> Vec<ThroughputPoint> {
        let points = (seconds * 4.0) as u32;
        let at = |point: u32| f64::from(point + 1) / 4.0;
        (0..points).map(|p| ThroughputPoint { seconds: at(p), bytes_per_second: rate * self.noise().powi(3) }).collect()
    }
}

fn dense(generator: &mut Generator) -> ScenarioResult {
    let rate = |gib: f64| gib * GIB as f64;
    let lines = [
        ("blockhaul", Kind::Command, rate(1.52)),
        ("engine", Kind::Engine, rate(1.54)),
        ("qemu-img", Kind::Rival, rate(1.03)),
        ("nbdcopy", Kind::Rival, rate(1.11)),
        ("dd", Kind::Rival, rate(0.84)),
        ("cp", Kind::Rival, rate(0.31)),
        ("fio", Kind::Limit, rate(1.57)),
        ("bare-ring", Kind::Limit, rate(1.55)),
        ("null", Kind::Null, rate(900.0)),
    ];
    let about = "4 GiB of random data, file to file, O_DIRECT on both sides";
    let mut scenario = generator.scenario("dense-direct", about, Metric::BytesPerSecond, 4 * GIB, &lines);
    scenario.targets.push(absent("ddrescue", Outcome::Missing("not installed: apt install gddrescue".into())));
    for (name, gib) in [("blockhaul", 1.52), ("qemu-img", 1.03), ("cp", 0.31)] {
        of(&mut scenario, name).timeline = generator.timeline(rate(gib), 3.9 / gib);
    }
    for (operation, us) in [("read", 900.0), ("write", 2_400.0), ("flush", 9_000.0)] {
        let latency = generator.latency(us);
        of(&mut scenario, "engine").latency.insert(operation.into(), latency);
    }
    of(&mut scenario, "blockhaul").other_metrics.insert("worker_system_calls".into(), 4096.0);
    let noisy = warning("noisy", "spread of 11 % of the median", "stop other work on the disk and run it again");
    of(&mut scenario, "cp").warnings.push(noisy);
    scenario.goals = vec![
        goal("dense-direct/qemu-img", "at least 1.3 times as fast as qemu-img", Some(1.48), 1.3),
        goal("dense-direct/fio", "at least 0.95 of fio's rate", Some(0.94), 0.95),
        goal("dense-direct/ddrescue", "at least 1.3 times as fast as ddrescue", None, 1.3),
    ];
    scenario
}

fn sparse(generator: &mut Generator) -> ScenarioResult {
    let rate = |gib: f64| gib * GIB as f64;
    let lines = [
        ("blockhaul", Kind::Command, rate(64.0)),
        ("qemu-img", Kind::Rival, rate(21.0)),
        ("nbdcopy", Kind::Rival, rate(0.9)),
    ];
    let about = "64 GiB with 1 GiB of data in 1,024 scattered extents";
    let mut scenario = generator.scenario("sparse", about, Metric::BytesPerSecond, 64 * GIB, &lines);
    scenario.data_bytes = GIB;
    scenario
}

fn reflink(generator: &mut Generator) -> ScenarioResult {
    let lines = [("blockhaul", Kind::Command, 0.031), ("cp", Kind::Rival, 0.027)];
    generator.scenario("reflink", "1 GiB cloned on xfs", Metric::Seconds, GIB, &lines)
}

fn nbd(generator: &mut Generator) -> ScenarioResult {
    let rate = |gib: f64| gib * GIB as f64;
    let lines =
        [("blockhaul", Kind::Command, rate(2.1)), ("nbdcopy", Kind::Rival, rate(2.08)), ("dd", Kind::Rival, rate(1.4))];
    let about = "2 GiB between two servers over unix sockets";
    let mut scenario = generator.scenario("nbd-unix", about, Metric::BytesPerSecond, 2 * GIB, &lines);
    let odd = "byte 4096 differs <from> \"source\" & more \u{1b}[31m";
    scenario.targets.push(absent("qemu-img", Outcome::WrongBytes(odd.into())));
    scenario.targets.push(absent("ddrescue", Outcome::Failed("exit code 1: no such device".into())));
    scenario.warnings = vec![warning("different-flags", "dd copies one block at a time", "read its ratio as a floor")];
    scenario
}

fn protection(generator: &mut Generator) -> ScenarioResult {
    let lines = [("protected", Kind::Engine, 610.0), ("unprotected", Kind::Engine, 4_900.0)];
    let about = "what a foreground reader feels while a copy runs beside it";
    let mut scenario = generator.scenario("protection", about, Metric::Microseconds, 4 * GIB, &lines);
    for (name, slope) in [("protected", 55.0), ("unprotected", 140.0)] {
        let latency = generator.latency(slope * 10.0);
        let window = (0..120u32).map(|at| {
            let window_bytes = u64::from(1 + (at * 7) % 32) << 20;
            let foreground_us = 180.0 + slope * (window_bytes >> 20) as f64 * generator.noise().powi(6);
            WindowPoint { seconds: f64::from(at) / 10.0, window_bytes, foreground_us }
        });
        let window = window.collect();
        let target = of(&mut scenario, name);
        target.window = window;
        target.latency.insert("foreground".into(), latency);
    }
    scenario
}

fn cancel(generator: &mut Generator) -> ScenarioResult {
    let lines = [("blockhaul", Kind::Command, 21_000.0)];
    let mut scenario = generator.scenario(
        "cancel",
        "SIGTERM to drained and exited, under load",
        Metric::Microseconds,
        4 * GIB,
        &lines,
    );
    let latency = generator.latency(21_000.0);
    of(&mut scenario, "blockhaul").latency.insert("cancel".into(), latency);
    scenario
}

fn jobs(generator: &mut Generator) -> ScenarioResult {
    let rate = |gib: f64| gib * GIB as f64;
    let steps = [(1.0, 1.4, 0.9), (4.0, 1.52, 1.1), (16.0, 1.53, 1.0), (64.0, 1.5, 0.7)];
    let names: Vec<(String, String)> =
        steps.iter().map(|(jobs, ..)| (format!("blockhaul x{jobs}"), format!("qemu-img x{jobs}"))).collect();
    let lines: Vec<Line> = steps
        .iter()
        .zip(&names)
        .flat_map(|((_, ours, theirs), (our, their))| {
            [(our.as_str(), Kind::Command, rate(*ours)), (their.as_str(), Kind::Rival, rate(*theirs))]
        })
        .collect();
    let about = "the same 4 GiB, divided among jobs at once";
    let mut scenario = generator.scenario("jobs", about, Metric::BytesPerSecond, 4 * GIB, &lines);
    scenario.axis = Some(Axis { name: "parallel jobs".into() });
    for (at, target) in scenario.targets.iter_mut().enumerate() {
        let series = if at % 2 == 0 { "blockhaul" } else { "qemu-img" };
        target.step = Some(Step { series: series.into(), at: steps[at / 2].0 });
    }
    scenario
}

fn of<'a>(scenario: &'a mut ScenarioResult, name: &str) -> &'a mut TargetResult {
    scenario.targets.iter_mut().find(|target| target.name == name).expect("it is in the scenario")
}

fn idle(name: &str, kind: Kind) -> TargetResult {
    TargetResult {
        name: name.into(),
        kind,
        step: None,
        command: format!("{name} --flags SRC DST"),
        outcome: Outcome::Ran,
        trials: Vec::new(),
        summary: None,
        latency: BTreeMap::new(),
        timeline: Vec::new(),
        window: Vec::new(),
        other_metrics: BTreeMap::default(),
        warnings: Vec::new(),
    }
}

fn absent(name: &str, outcome: Outcome) -> TargetResult {
    TargetResult { outcome, ..idle(name, Kind::Rival) }
}

fn goal(name: &str, about: &str, measured: Option<f64>, bound: f64) -> Goal {
    let met = measured.map(|measured| measured >= bound);
    Goal { name: name.into(), about: about.into(), measured, bound, sense: Sense::AtLeast, met }
}

fn warning(kind: &str, what: &str, advice: &str) -> Warning {
    Warning { kind: kind.into(), what: what.into(), advice: advice.into() }
}

fn program(name: &str, version: Option<&str>) -> Program {
    let path = version.map(|_| format!("/usr/bin/{name}"));
    Program { name: name.into(), version: version.map(str::to_owned), path }
}

fn text<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
