//! Follows a job until its report and shows its progress: as JSON lines, as a bar, or not at all.

use crate::args::{ProgressBarMode, RawOutput};
use crate::output;
use blockhaul_control::standard_streams::{self, Priority};
use blockhaul_engine::job::JobHandle;
use blockhaul_engine::progress::{Progress, Report};
use blockhaul_engine::shown;
use blockhaul_engine::units::format_size;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Time between two JSON lines: short enough for a display, long enough for a log.
pub(crate) const JSON_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two updates of the bar.
pub(crate) const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Form in which the progress of a job is shown.
#[derive(Debug)]
pub(crate) struct ProgressDisplay {
    json: bool,
    bar: Option<ProgressBar>,
}

impl ProgressDisplay {
    /// Chooses by flags: JSON lines with `--json`; a bar on request, or if stderr is a terminal and JSON is not
    /// requested.
    pub(crate) fn choose(output: RawOutput) -> Self {
        let bar = bar_target(output).map(|target| {
            let bar = new_bar();
            bar.set_draw_target(target);
            bar
        });
        Self { json: output.json, bar }
    }

    fn interval(&self) -> Duration {
        if self.bar.is_some() && !self.json { BAR_INTERVAL } else { JSON_INTERVAL }
    }

    fn show(&self, job: &JobHandle) {
        let progress = job.progress();
        if self.json {
            output::json_progress(&progress);
        }
        if let Some(bar) = self.bar.clone() {
            let line = shown::line(status(job));
            // Drawn on the thread that writes stderr, because a stopped terminal blocks.
            standard_streams::stderr().send(Priority::Progress, move || {
                bar.set_length(progress.planned);
                bar.set_position(progress.written);
                bar.set_message(line);
                Ok(())
            });
        }
    }

    /// Clears the bar and prints the last progress.
    fn finish(&self, progress: &Progress) {
        if self.json {
            output::json_event("progress", progress);
        }
        if let Some(bar) = self.bar.clone() {
            standard_streams::stderr().send(Priority::Result, move || {
                bar.finish_and_clear();
                Ok(())
            });
        }
    }
}

/// Formats the progress of a job.
pub(crate) fn status(job: &JobHandle) -> String {
    status_line(&job.progress(), job.path().as_deref())
}

/// Shows the progress of `job` until it ends. The last line is the final state, so that even the shortest job has one.
pub(crate) fn wait_with_progress(job: &JobHandle, display: ProgressDisplay) -> Report {
    loop {
        if let Some(report) = job.wait_for(display.interval()) {
            display.finish(&job.progress());
            return report;
        }
        display.show(job);
    }
}

/// Returns where bars are drawn, if they are.
pub(crate) fn bar_target(RawOutput { json, progress }: RawOutput) -> Option<ProgressDrawTarget> {
    match progress {
        _ if output::is_quiet() => None,
        ProgressBarMode::None => None,
        // Unlike the plain target, this one also draws without a terminal.
        ProgressBarMode::Bar => Some(ProgressDrawTarget::term_like(Box::new(Term::stderr()))),
        ProgressBarMode::Auto => (!json && std::io::stderr().is_terminal()).then(ProgressDrawTarget::stderr),
    }
}

/// Makes a bar that is not drawn yet.
pub(crate) fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}").expect("the template is a constant");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()).with_style(style)
}

/// Formats as `1.2 GiB of 4.0 GiB, 512.0 MiB/s, 6s left, ring-direct`; the path is missing until it is chosen.
pub(crate) fn status_line(progress: &Progress, path: Option<&str>) -> String {
    let Progress { planned, issued: _, written, durable: _, verified, rate_bytes_per_second, eta_seconds } = *progress;
    let mut parts = vec![
        format!("{} of {}", format_size(written), format_size(planned)),
        format!("{}/s", format_size(rate_bytes_per_second)),
    ];
    if verified > 0 {
        parts.push(format!("{} verified", format_size(verified)));
    }
    parts.extend(eta_seconds.map(|seconds| format!("{} left", format_seconds(seconds))));
    parts.extend(path.map(str::to_owned));
    parts.join(", ")
}

/// Formats as `6s`, `1m 05s` or `2h 03m`.
fn format_seconds(seconds: f64) -> String {
    // Saturates.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown to the second, never negative")]
    let whole = seconds.ceil() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_progress_rate_and_remaining_time() {
        let progress = Progress {
            planned: 4 << 30,
            written: 1 << 30,
            rate_bytes_per_second: 512 << 20,
            eta_seconds: Some(6.0),
            ..Progress::default()
        };
        assert_eq!(
            status_line(&progress, Some("ring-direct")),
            "1.0 GiB of 4.0 GiB, 512.0 MiB/s, 6s left, ring-direct"
        );
        let stalled = Progress { rate_bytes_per_second: 0, eta_seconds: None, ..progress };
        assert_eq!(status_line(&stalled, None), "1.0 GiB of 4.0 GiB, 0 B/s");
    }

    #[test]
    fn times_read_well() {
        assert_eq!([0.0, 59.2, 65.0, 7380.0].map(format_seconds), ["0s", "1m 00s", "1m 05s", "2h 03m"]);
    }
}
