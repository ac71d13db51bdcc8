//! Verifies the content of an export with another client, and that a report is that of a complete copy.

use super::real::{Outcome, run};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// All bytes of an export, as `nbdcopy` reads them: in requests that every server of these tests takes.
pub(crate) fn content(uri: &str) -> Vec<u8> {
    let output =
        Command::new("nbdcopy").args(["--request-size=65536", uri, "-"]).output().expect("its need was checked");
    assert!(output.status.success(), "nbdcopy {uri}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Writes `file` into an export, as `nbdcopy` does.
pub(crate) fn fill(file: &str, uri: &str) {
    run("nbdcopy", &["--request-size=65536", file, uri]);
}

/// A copy of `planned` bytes that is all there, through a connection to a server, and that has ended for good.
pub(crate) fn assert_whole(copied: &Outcome, planned: usize, what: &str) {
    assert_eq!(copied.report()["quiesced"], true, "{what}: {copied:#?}");
    assert_all_there(copied, planned, what);
}

/// As [`assert_whole`], where a peer may hold requests back that were given up and sent again: they can land late, and
/// only the report can say so.
pub(crate) fn assert_all_there(copied: &Outcome, planned: usize, what: &str) {
    assert_eq!(copied.code, Some(0), "{what}: {copied:#?}");
    let report = copied.report();
    assert_eq!(report["status"], "succeeded", "{what}: {copied:#?}");
    assert_eq!(copied.bytes("planned"), planned as u64, "{what}: {copied:#?}");
    assert_eq!(copied.bytes("durable"), planned as u64, "{what}: {copied:#?}");
    let path = report["path"].as_str().unwrap_or_default().to_lowercase();
    assert!(path.contains("nbd"), "{what}: the path does not say that it is one of NBD: {copied:#?}");
}

/// Bytes that the file system has given to a file.
pub(crate) fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("it is there").blocks() * 512
}
