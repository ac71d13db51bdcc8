//! Formats reports for people: bytes, rates, digests and verification.

use blockhaul_engine::progress::{Bytes, Report, Status, format_digest};
use blockhaul_engine::units::format_size;

/// Summarizes a copy.
pub(crate) fn of_copy(report: &Report) -> Vec<String> {
    let mut lines = vec![headline("copied", report)];
    lines.push(format!("  {}", by_kind(&report.bytes)));
    lines.push(format!(
        "  durable {}, cpu {:.2} s, path {}",
        format_size(report.bytes.durable),
        report.cpu_seconds,
        io_path(report)
    ));
    lines.extend(digest(report));
    lines.extend(verified(report));
    lines.extend(report.journal.as_ref().map(|journal| {
        let kind = if report.status == Status::Succeeded { "receipt" } else { "checkpoint" };
        format!("  {kind} {journal}")
    }));
    lines.extend(quiesce_warning(report));
    lines
}

/// Summarizes a comparison: the first ranges that differ, then the result.
pub(crate) fn of_verify(report: &Report) -> Vec<String> {
    let mut lines: Vec<String> = report
        .differences
        .iter()
        .map(|range| format!("differs at byte {}, {} bytes", range.offset, range.length))
        .collect();
    lines.push(headline("compared", report));
    lines.push(format!(
        "  read {}, cpu {:.2} s, path {}",
        format_size(report.bytes.read),
        report.cpu_seconds,
        io_path(report)
    ));
    lines.extend(digest(report));
    lines.extend(verified(report));
    lines.extend(quiesce_warning(report));
    lines
}

/// Formats as `copied 4.0 GiB in 3.21 s, 1.2 GiB/s`, or with the status of a job that did not succeed.
pub(crate) fn headline(done: &str, report: &Report) -> String {
    let verdict = match report.status {
        Status::Succeeded if done == "compared" => "same: compared".to_owned(),
        Status::Succeeded => done.to_owned(),
        Status::Differs => format!("the volumes differ: {done}"),
        Status::Failed | Status::Interrupted | Status::Cancelled => format!("{}: planned", report.status),
    };
    format!(
        "{verdict} {} in {:.2} s, {}/s",
        format_size(report.bytes.planned),
        report.seconds,
        format_size(report.rate_bytes_per_second)
    )
}

/// Formats the bytes of each kind that has any.
fn by_kind(bytes: &Bytes) -> String {
    let Bytes { planned: _, read, written, zeroed, skipped, cloned, resumed, durable: _, verified: _ } = *bytes;
    let kinds = [
        ("read", read),
        ("written", written),
        ("zeroed", zeroed),
        ("skipped", skipped),
        ("cloned", cloned),
        ("resumed", resumed),
    ];
    let shown: Vec<String> = kinds
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(kind, bytes)| format!("{kind} {}", format_size(*bytes)))
        .collect();
    if shown.is_empty() { "no bytes moved".to_owned() } else { shown.join(", ") }
}

fn io_path(report: &Report) -> String {
    let Report { path, cores, block_size_bytes, .. } = report;
    let plural = if *cores == 1 { "" } else { "s" };
    format!("{path} ({cores} core{plural}, blocks of {})", format_size(u64::from(*block_size_bytes)))
}

fn digest(report: &Report) -> Option<String> {
    match (&report.digest, &report.digest_reason) {
        (Some(root), _) => Some(format!("  digest {}", format_digest(root))),
        (None, Some(reason)) => Some(format!("  no digest: {reason}")),
        (None, None) => None,
    }
}

fn verified(report: &Report) -> Option<String> {
    let from = serde_json::to_value(report.verified_from.as_ref()?).ok()?;
    Some(format!("  verified {} as read from {}", format_size(report.bytes.verified), from.as_str()?))
}

fn quiesce_warning(report: &Report) -> Option<String> {
    (!report.quiesced).then(|| {
        "  NOT QUIESCED: a device does not answer; writes in flight may still change the destination".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::refusal_report;
    use blockhaul_engine::error::Error;
    use blockhaul_engine::progress::Difference;
    use blockhaul_engine::volume::ReadBack;

    fn report(status: Status) -> Report {
        Report {
            status,
            error: None,
            path: "ring-direct".to_owned(),
            cores: 2,
            ..refusal_report(Error::bad_request("x"))
        }
    }

    #[test]
    fn a_summary_names_bytes_path_digest_and_where_verification_read() {
        let lines = of_copy(&Report {
            bytes: Bytes { planned: 4 << 30, read: 1 << 30, skipped: 3 << 30, verified: 4 << 30, ..Bytes::default() },
            seconds: 2.0,
            digest: Some([7; 32]),
            verified_from: Some(ReadBack::Evicted),
            ..report(Status::Succeeded)
        })
        .join("\n");
        for part in ["copied 4.0 GiB in 2.00 s", "read 1.0 GiB", "skipped 3.0 GiB", "ring-direct (2 cores"] {
            assert!(lines.contains(part), "{part}:\n{lines}");
        }
        assert!(lines.contains("digest blake3-xxh3:0707") && lines.contains("as read from evicted"), "{lines}");
        assert!(!lines.contains("cloned") && !lines.contains("QUIESCED"), "{lines}");
    }

    #[test]
    fn differing_ranges_are_listed() {
        let differences = vec![Difference { offset: 512, length: 8 }];
        let lines = of_verify(&Report { differences, quiesced: false, ..report(Status::Differs) });
        assert_eq!(lines[0], "differs at byte 512, 8 bytes");
        assert!(lines[1].starts_with("the volumes differ") && lines.iter().any(|line| line.contains("NOT QUIESCED")));
    }
}
