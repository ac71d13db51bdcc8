//! The executor of scenarios that copy: every contestant copies its pairs, at the same time if there are several.

use crate::contestant::{Compared, Contestant, Invocation, Told, Work};
use crate::engine_process::Answer;
use crate::executor::{Executor, Failure, Measured};
use crate::histogram;
use crate::interrupt::Interrupt;
use crate::launch::{Glimpse, Launcher, Ran, Watch};
use crate::meter::{KernelWorkers, written_bytes};
use crate::results::Point;
use crate::volume::Comparison;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Between two looks at what programs have written.
const EVERY: Duration = Duration::from_millis(50);

/// Copies, and compares.
#[derive(Debug)]
pub(crate) struct Copying {
    /// For what programs say.
    pub folder: PathBuf,
    pub interrupt: Interrupt,
    /// To count system calls of programs; `None` if it is not here.
    pub strace: Option<String>,
}

impl Copying {
    pub(crate) fn launcher(&self) -> Launcher<'_> {
        Launcher { folder: &self.folder, interrupt: &self.interrupt }
    }

    /// Runs them, sees how fast bytes are written, and charges what the kernel's workers did meanwhile.
    pub(crate) fn measure(&self, commands: &[Invocation], told: Told) -> Result<(Ran, Measured), Failure> {
        let mut written = Written::default();
        let workers = KernelWorkers::look();
        let mut look = |glimpse: &Glimpse| written.look(glimpse);
        let ran = self.launcher().run(commands, Some(Watch { every: EVERY, look: &mut look }))?;
        let kernel_worker_seconds = KernelWorkers::look().seconds_since(&workers);
        let mut measured = Measured { kernel_worker_seconds, timeline: written.rates(), ..outside(&ran) };
        listen(&ran, told, &mut measured)?;
        Ok((ran, measured))
    }
}

impl Executor for Copying {
    fn reset(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        self.interrupt.check()?;
        contestant.pairs.iter().try_for_each(|pair| pair.reset().map_err(Failure::Failed))
    }

    fn perform(&mut self, contestant: &Contestant) -> Result<Measured, Failure> {
        let (commands, told) = commands(contestant)?;
        let (_, measured) = self.measure(commands, told)?;
        Ok(Measured { bytes: contestant.pairs.iter().map(|pair| pair.bytes).sum(), ..measured })
    }

    fn judge(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        if contestant.compared == Compared::No {
            return Ok(());
        }
        for pair in &contestant.pairs {
            let comparison = pair.compare(&self.interrupt);
            self.interrupt.check()?;
            match comparison.map_err(Failure::Failed)? {
                Comparison::Equal | Comparison::Impossible => {}
                Comparison::Differs(how) => return Err(Failure::WrongBytes(how)),
            }
        }
        Ok(())
    }

    fn count_calls(&mut self, contestant: &Contestant) -> Result<Option<u64>, Failure> {
        let Some(strace) = &self.strace else { return Ok(None) };
        let (commands, _) = commands(contestant)?;
        let log = self.folder.join("calls");
        let mut calls = 0;
        // One after the other: they would trace each other's time, not each other's calls.
        for step in commands.iter().flat_map(|command| &command.steps) {
            let traced = [strace, "-f", "-c", "-o", &log.display().to_string()].map(str::to_owned);
            self.launcher().call(&Invocation::new(traced.into_iter().chain(step.iter().cloned())))?;
            let table = std::fs::read_to_string(&log).map_err(|error| Failure::io("read strace's table", &error))?;
            calls += total_calls(&table).ok_or_else(|| Failure::Failed("strace's table has no total".to_owned()))?;
        }
        Ok(Some(calls))
    }
}

/// What a contestant runs.
pub(crate) fn commands(contestant: &Contestant) -> Result<(&[Invocation], Told), Failure> {
    match &contestant.work {
        Work::Commands { commands, told } => Ok((commands, *told)),
        Work::Missing(why) => Err(Failure::Failed(why.clone())),
    }
}

/// What can be seen of any program.
pub(crate) fn outside(ran: &Ran) -> Measured {
    Measured {
        wall_seconds: ran.wall.as_secs_f64(),
        user_seconds: ran.user.as_secs_f64(),
        system_seconds: ran.system.as_secs_f64(),
        peak_rss_bytes: ran.peak_rss_bytes,
        ..Measured::default()
    }
}

/// Takes in what the programs said about themselves, and whether they succeeded.
fn listen(ran: &Ran, told: Told, measured: &mut Measured) -> Result<(), Failure> {
    let outputs = ran.outputs.iter();
    match told {
        Told::Engine => {
            let answer = ran.outputs.first().map_or("", String::as_str);
            match Answer::parse(answer) {
                Ok(Answer { error: Some(error), .. }) => return Err(Failure::Failed(error)),
                Ok(answer) => take_answer(&answer, measured),
                Err(why) => return Err(Failure::Failed(ran.succeeded().err().unwrap_or(why))),
            }
        }
        Told::Fio => {
            ran.succeeded().map_err(Failure::Failed)?;
            let seconds = outputs.map(|output| fio_seconds(output)).collect::<Option<Vec<f64>>>();
            let seconds = seconds.ok_or_else(|| Failure::Failed("fio's report was not understood".to_owned()))?;
            measured.wall_seconds = seconds.into_iter().fold(0.0, f64::max);
            // What was seen from outside runs by another clock.
            measured.timeline.clear();
        }
        Told::Blockhaul => {
            ran.succeeded().map_err(Failure::Failed)?;
            let calls = outputs.map(|output| report_number(output, &["syscalls"])).sum::<Option<f64>>();
            if let Some(calls) = calls {
                measured.figures.insert("worker_system_calls".to_owned(), calls);
            }
        }
        Told::Nothing => ran.succeeded().map_err(Failure::Failed)?,
    }
    Ok(())
}

/// The engine knows more of itself than can be seen.
pub(crate) fn take_answer(answer: &Answer, measured: &mut Measured) {
    measured.wall_seconds = answer.seconds;
    measured.system_calls = Some(answer.system_calls);
    measured.timeline = rates(answer.progress.iter().map(|(seconds, written, _)| (*seconds, *written)));
    measured.latency = answer.latency.iter().map(|(name, counts)| (name.clone(), of_counts(counts))).collect();
}

fn of_counts(counts: &[(u64, u64)]) -> Histogram<u64> {
    let mut all = histogram::empty();
    counts.iter().for_each(|(us, count)| all.saturating_record_n(*us, *count));
    all
}

/// A number of the report, which is the last line that `blockhaul --json` prints.
pub(crate) fn report_number(output: &str, path: &[&str]) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_str(output.lines().last()?).ok()?;
    path.iter().try_fold(&report, |value, key| value.get(key))?.as_f64()
}

/// By fio's own clock, from its first read or write to the end of its flush.
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

/// The number of calls in the line `total` of `strace -c`.
fn total_calls(table: &str) -> Option<u64> {
    let total = table.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

/// Bytes that programs have written to storage, as time goes by.
#[derive(Debug, Default)]
struct Written {
    by_process: BTreeMap<u32, u64>,
    samples: Vec<(f64, u64)>,
}

impl Written {
    fn look(&mut self, glimpse: &Glimpse) {
        for id in &glimpse.running {
            if let Some(bytes) = written_bytes(*id) {
                self.by_process.insert(*id, bytes);
            }
        }
        self.samples.push((glimpse.since_start.as_secs_f64(), self.by_process.values().sum()));
    }

    fn rates(&self) -> Vec<Point> {
        // Who writes to a socket writes nothing to storage: there is nothing to draw.
        if self.by_process.values().all(|bytes| *bytes == 0) { Vec::new() } else { rates(self.samples.iter().copied()) }
    }
}

/// Rates from counts at moments; each one belongs to the end of its span.
fn rates(samples: impl Iterator<Item = (f64, u64)>) -> Vec<Point> {
    let mut before = (0.0, 0);
    let mut points = Vec::new();
    for (seconds, bytes) in samples {
        let span = seconds - before.0;
        // Looks that are almost at the same time say more about the clock than about the copy.
        if span < 0.02 {
            continue;
        }
        #[allow(clippy::cast_precision_loss, reason = "a rate on a chart")]
        let moved = bytes.saturating_sub(before.1) as f64;
        points.push(Point { seconds, bytes_per_second: moved / span });
        before = (seconds, bytes);
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_reports_of_others_are_understood() {
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
    fn rates_belong_to_spans() {
        let points = rates([(0.5, 100), (0.51, 150), (1.0, 300)].into_iter());
        let seen: Vec<_> = points.iter().map(|point| (point.seconds, point.bytes_per_second)).collect();
        assert_eq!(seen, [(0.5, 200.0), (1.0, 400.0)]);
    }
}
