//! Shows how a batch goes: JSON lines, bars on a terminal, or one line for each start and end of a member.
//!
//! Bars take at most [`LINES_MAX`] lines: one for each of the first members that run, and one for the batch, which
//! counts the rest.

use super::hooks::HookEnd;
use super::request::MemberJob;
use super::state::EndState;
use crate::args::RawOutput;
use crate::output::{self, print_stderr};
use crate::progress::{BAR_INTERVAL, JSON_INTERVAL, bar_target, new_bar, status_line};
use crate::summary;
use blockhaul_control::standard_streams::{self, Priority};
use blockhaul_engine::error::Error;
use blockhaul_engine::flow::scheduler::TaskResult;
use blockhaul_engine::progress::{Progress, Report, Status};
use blockhaul_engine::shown;
use blockhaul_engine::units::format_size;
use blockhaul_hooks::HookReport;
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most lines that bars take.
const LINES_MAX: usize = 10;

/// Form in which a batch is shown.
#[derive(Debug)]
pub(super) struct Display {
    is_json: bool,
    bars: Option<Arc<Mutex<Bars>>>,
    began: Instant,
}

/// A member that runs.
pub(super) struct MemberProgress<'a> {
    pub(super) id: &'a str,
    pub(super) progress: Progress,
    pub(super) path: Option<String>,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    /// One for each member that is shown, from the top.
    members: Vec<ProgressBar>,
    batch: ProgressBar,
}

/// A line of a bar.
struct Row {
    message: String,
    length: u64,
    position: u64,
}

/// An object about a member, with its event.
#[derive(Serialize)]
struct OfMember<'a, T> {
    member: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

impl Display {
    pub(super) fn choose(output: RawOutput) -> Self {
        let bars = bar_target(output).map(|target| {
            let all = MultiProgress::with_draw_target(target);
            let batch = all.add(new_bar());
            Arc::new(Mutex::new(Bars { all, members: Vec::new(), batch }))
        });
        Self { is_json: output.json, bars, began: Instant::now() }
    }

    pub(super) fn interval(&self) -> Duration {
        if self.bars.is_some() && !self.is_json { BAR_INTERVAL } else { JSON_INTERVAL }
    }

    /// Shows that a member starts.
    pub(super) fn started(&self, id: &str) {
        if self.is_json {
            #[derive(Serialize)]
            struct Nothing {}
            output::json_event("started", &OfMember { member: id, body: &Nothing {} });
        } else if self.bars.is_none() {
            output::print_summary(format_args!("{id}: started"));
        }
    }

    /// Shows the end of a job.
    pub(super) fn reported(&self, id: &str, job: &MemberJob, report: &Report) {
        if let Some(error) = &report.error {
            self.error(format!("{id}: {error}"));
        }
        if self.is_json {
            output::json_event("report", &OfMember { member: id, body: report });
            return;
        }
        let done = match job {
            MemberJob::Copy(_) => "copied",
            MemberJob::Verify(_) | MemberJob::Run(_) => "compared",
        };
        if report.status == Status::Succeeded || report.status == Status::Differs {
            self.line(format!("{id}: {}", summary::headline(done, report)));
        }
    }

    /// Shows the end of a hook.
    pub(super) fn hook_ended(&self, id: &str, report: &HookReport, end: &HookEnd) {
        #[derive(Serialize)]
        struct HookReported<'a> {
            /// `succeeded`, `failed`, `cancelled`, or `retry`.
            status: &'a str,
            error: Option<&'a Error>,
            output: HookOutputView,
        }
        #[derive(Serialize)]
        struct HookOutputView {
            first: String,
            last: String,
            dropped_bytes: u64,
        }
        let (status, error) = match end {
            HookEnd::Ended(Ok(())) => ("succeeded", None),
            HookEnd::Ended(Err(error)) => ("failed", Some(error)),
            HookEnd::Stopped => ("cancelled", None),
            HookEnd::Again(_) => ("retry", None),
        };
        if let Some(error) = error {
            self.error(format!("{id}: {error}"));
        }
        if self.is_json {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (first, last) = (text(report.output.first()), text(&report.output.last()));
            let output = HookOutputView { first, last, dropped_bytes: report.output.dropped_bytes() };
            output::json_event("report", &OfMember { member: id, body: &HookReported { status, error, output } });
            return;
        }
        match end {
            HookEnd::Ended(Ok(())) => self.line(format!("{id}: hook succeeded")),
            HookEnd::Again(wait) => self.line(format!("{id}: hook asks for a retry: it runs again in {wait:?}")),
            HookEnd::Stopped => self.line(format!("{id}: hook was stopped")),
            HookEnd::Ended(Err(_)) => {}
        }
    }

    /// Shows the end of a member that never started.
    pub(super) fn not_started(&self, id: &str, state: EndState, result: &TaskResult) {
        #[derive(Serialize)]
        struct NotStarted<'a> {
            status: &'a str,
            error: &'a Error,
        }
        let Err(error) = result else { return };
        self.error(format!("{id}: {error}"));
        if self.is_json {
            output::json_event("report", &OfMember { member: id, body: &NotStarted { status: state.as_str(), error } });
        }
    }

    /// Shows the progress of the members that run and of the batch.
    pub(super) fn show(&self, running: &[MemberProgress<'_>], ended: usize, count: usize, moved: u64) {
        if self.is_json {
            let all: Vec<_> = running.iter().map(|one| OfMember { member: one.id, body: &one.progress }).collect();
            output::json_progress_of_all(&all);
        }
        let Some(bars) = self.bars.clone() else { return };
        let rows: Vec<Row> = running.iter().take(LINES_MAX - 1).map(MemberProgress::row).collect();
        let written: u64 = running.iter().map(|member| member.progress.written).sum();
        let more = running.len() - rows.len();
        let more = if more == 0 { String::new() } else { format!(", {more} more run") };
        let rate = (moved + written) as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate in bytes fits")]
        let message = format!(
            "{ended} of {count} members, {}, {}/s{more}",
            format_size(moved + written),
            format_size(rate as u64)
        );
        let batch = Row { message, length: count as u64, position: ended as u64 };
        standard_streams::stderr().send(Priority::Progress, move || {
            lock(&bars).draw(&rows, &batch);
            Ok(())
        });
    }

    /// Removes the bars.
    pub(super) fn clear(&self) {
        let Some(bars) = self.bars.clone() else { return };
        standard_streams::stderr().send(Priority::Result, move || {
            let bars = lock(&bars);
            bars.members.iter().chain([&bars.batch]).for_each(ProgressBar::finish_and_clear);
            bars.all.clear()
        });
    }

    /// Prints a result: on stdout, or above the bars.
    fn line(&self, line: String) {
        match self.bars.clone() {
            Some(bars) => above(bars, shown::line(line)),
            None => output::print_summary(line),
        }
    }

    fn error(&self, line: String) {
        match self.bars.clone() {
            Some(bars) => above(bars, format!("blockhaul: {}", shown::line(line))),
            None => print_stderr(line),
        }
    }
}

/// Prints a line above the bars.
fn above(bars: Arc<Mutex<Bars>>, line: String) {
    standard_streams::stderr().send(Priority::Result, move || lock(&bars).all.println(line));
}

impl MemberProgress<'_> {
    fn row(&self) -> Row {
        let Self { id, progress, path } = self;
        let message = shown::line(format_args!("{id}: {}", status_line(progress, path.as_deref())));
        Row { message, length: progress.planned, position: progress.written }
    }
}

impl Bars {
    fn draw(&mut self, rows: &[Row], batch: &Row) {
        while self.members.len() > rows.len() {
            if let Some(bar) = self.members.pop() {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
        }
        while self.members.len() < rows.len() {
            let bar = self.all.insert_before(&self.batch, new_bar());
            self.members.push(bar);
        }
        for (bar, row) in self.members.iter().chain([&self.batch]).zip(rows.iter().chain([batch])) {
            bar.set_length(row.length);
            bar.set_position(row.position);
            bar.set_message(row.message.clone());
        }
    }
}

fn lock(bars: &Mutex<Bars>) -> std::sync::MutexGuard<'_, Bars> {
    bars.lock().unwrap_or_else(PoisonError::into_inner)
}
