//! Prints the result of a batch.

use super::request::BatchRequest;
use super::run::BatchResult;
use super::state::{BatchEnd, EndState, MemberEnd};
use crate::exit::Exit;
use crate::output::{self, print_stderr};
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::error::{Code, Error};
use blockhaul_engine::units::format_size;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Report of a batch, as it is printed.
#[derive(Debug, Serialize)]
struct BatchReport<'a> {
    /// `succeeded`, `failed`, `cancelled` or `interrupted`.
    status: &'a str,
    /// First error of a member.
    error: Option<&'a Error>,
    /// Whether no operation of any member is in flight.
    quiesced: bool,
    members: Counts,
    bytes: BatchBytes,
    seconds: f64,
    /// When it ended, in milliseconds since 1970, if an earlier run ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_ms: Option<u64>,
}

/// Number of members by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    total: usize,
    succeeded: usize,
    failed: usize,
    cancelled: usize,
    skipped: usize,
    /// Not ended.
    pending: usize,
}

/// Sums over the members that this run has started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct BatchBytes {
    planned: u64,
    moved: u64,
    durable: u64,
}

impl Counts {
    fn of<'a>(members: impl Iterator<Item = Option<&'a MemberEnd>>) -> Self {
        members.fold(Self::default(), |mut counts, end| {
            counts.total += 1;
            *match end.map(|end| end.state) {
                Some(EndState::Succeeded) => &mut counts.succeeded,
                Some(EndState::Failed) => &mut counts.failed,
                Some(EndState::Cancelled) => &mut counts.cancelled,
                Some(EndState::Skipped) => &mut counts.skipped,
                None => &mut counts.pending,
            } += 1;
            counts
        })
    }

    /// Formats as `62 of 64 members succeeded, 1 failed, 1 skipped`.
    fn line(self) -> String {
        let Self { total, succeeded, failed, cancelled, skipped, pending } = self;
        let rest = [("failed", failed), ("cancelled", cancelled), ("skipped", skipped), ("not ended", pending)];
        let rest = rest.iter().filter(|(_, count)| *count > 0);
        let rest: String = rest.map(|(name, count)| format!(", {count} {name}")).collect();
        format!("{succeeded} of {total} members succeeded{rest}")
    }
}

/// Prints the result; returns how the process ends.
pub(super) fn show(request: &BatchRequest, result: &BatchResult, took: Duration) -> Exit {
    let BatchResult { end, members, totals, first_error } = result;
    let counts = Counts::of(members.iter().map(Option::as_ref));
    let status = end.map_or("interrupted", EndState::as_str);
    let seconds = took.as_secs_f64();
    if request.output.json {
        let report = BatchReport {
            status,
            error: first_error.as_ref(),
            quiesced: totals.is_quiesced,
            members: counts,
            bytes: BatchBytes { planned: totals.planned, moved: totals.moved, durable: totals.durable },
            seconds,
            ended_ms: None,
        };
        output::json_event("report", &report);
    } else {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate in bytes fits")]
        let rate = format_size((totals.moved as f64 / seconds.max(0.001)) as u64);
        let moved = format_size(totals.moved);
        output::print_summary(format_args!("{status}: {}; {moved} in {seconds:.2} s, {rate}/s", counts.line()));
    }
    match end {
        None => {
            let clean_up = request.batch.clean_up().iter().zip(members).any(|(is, end)| *is && end.is_none());
            print_stderr("interrupted: run the same command again to go on");
            if clean_up {
                print_stderr("clean-up has not run; to give the batch up and run it, add --cancel");
            }
            Exit::Interrupted
        }
        Some(EndState::Succeeded) => Exit::Done,
        Some(EndState::Cancelled) => Exit::Interrupted,
        Some(EndState::Failed | EndState::Skipped) => exit_of_failure(members),
    }
}

/// 3 if all that failed is comparisons whose volumes differ, else 1.
fn exit_of_failure(members: &[Option<MemberEnd>]) -> Exit {
    let mut failed = members.iter().flatten().filter(|end| end.state == EndState::Failed);
    let differs = |end: &MemberEnd| end.code.as_deref() == Some(Code::VerifyMismatch.as_str());
    if failed.all(differs) { Exit::Differ } else { Exit::Failed }
}

/// Says that an earlier run has ended the batch, and that nothing was done.
pub(super) fn already_ended(request: &BatchRequest, end: BatchEnd, members: &BTreeMap<String, MemberEnd>) {
    let counts = Counts::of(members.values().map(Some));
    if request.output.json {
        let report = BatchReport {
            status: end.state.as_str(),
            error: None,
            quiesced: true,
            members: counts,
            bytes: BatchBytes::default(),
            seconds: 0.0,
            ended_ms: Some(end.ended_ms),
        };
        output::json_event("report", &report);
        return;
    }
    output::print_summary(format_args!(
        "nothing to do: this batch ended at {}, {}; run it from the beginning with --restart --overwrite",
        Timestamp(end.ended_ms),
        counts.line()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_name_only_what_there_is() {
        let end = |state| MemberEnd { state, bytes: 0, error: None, code: None, ended_ms: 0 };
        let ends = [Some(end(EndState::Succeeded)), Some(end(EndState::Skipped)), None];
        let counts = Counts::of(ends.iter().map(Option::as_ref));
        assert_eq!(counts.line(), "1 of 3 members succeeded, 1 skipped, 1 not ended");
    }
}
