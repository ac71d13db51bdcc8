//! Reads and writes the content of exports with `nbdcopy`, and checks that a report tells of a complete copy over NBD.

use crate::scratch::Outcome;
use crate::test_dir::run;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// Returns the content of an export, read by `nbdcopy` in requests that every server of these tests accepts.
pub fn content(uri: &str) -> Vec<u8> {
    let output =
        Command::new("nbdcopy").args(["--request-size=65536", uri, "-"]).output().expect("its need was checked");
    assert!(output.status.success(), "nbdcopy {uri}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Writes `file` into an export with `nbdcopy`.
pub fn fill(file: &str, uri: &str) {
    run("nbdcopy", &["--request-size=65536", file, uri]);
}

/// Checks that a copy of `planned` bytes over NBD is complete and quiesced.
pub fn assert_whole(copied: &Outcome, planned: usize, what: &str) {
    assert_eq!(copied.report()["quiesced"], true, "{what}: {copied:#?}");
    assert_all_there(copied, planned, what);
}

/// As [`assert_whole`], but need not be quiesced: a peer may hold back requests that were abandoned and sent again.
pub fn assert_all_there(copied: &Outcome, planned: usize, what: &str) {
    assert_eq!(copied.code, Some(0), "{what}: {copied:#?}");
    let report = copied.report();
    assert_eq!(report["status"], "succeeded", "{what}: {copied:#?}");
    assert_eq!(copied.bytes("planned"), planned as u64, "{what}: {copied:#?}");
    assert_eq!(copied.bytes("durable"), planned as u64, "{what}: {copied:#?}");
    let path = report["path"].as_str().unwrap_or_default().to_lowercase();
    assert!(path.contains("nbd"), "{what}: the path does not name nbd: {copied:#?}");
}

/// Returns the bytes allocated to a file.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("it is there").blocks() * 512
}
