//! Tests servers that lack a feature, fail, or are slow: nbdkit with filters.

use crate::support::{
    Address, Export, Kind, MIB, Need, Outcome, Server, TestDirs, assert_same, assert_whole, content, mixed, need,
    noise, text,
};
use std::path::PathBuf;

const NEEDS: [Need; 3] = [Need::Program("nbdkit"), Need::Program("nbdcopy"), Need::Program("setpriv")];
const SIZE: usize = 6 * MIB;

/// An nbdkit server with filters over a file that holds `bytes`.
struct Filtered {
    server: Server,
    image: PathBuf,
}

impl Filtered {
    fn new(dirs: &TestDirs, name: &str, bytes: &[u8], filters: &[&str], parameters: &[&str]) -> Self {
        let image = dirs.file(&format!("{name}.img"), bytes);
        let filters: Vec<String> = filters.iter().map(|filter| format!("--filter={filter}")).collect();
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        let file = format!("file={}", text(&image));
        let server = Server::nbdkit(dirs, name, &[&filters[..], &["file", &file], parameters].concat());
        Self { server, image }
    }

    fn uri(&self) -> String {
        self.server.uri()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.image).expect("it is there")
    }
}

fn copy(dirs: &TestDirs, source: &str, destination: &str, flags: &[&str]) -> Outcome {
    dirs.blockhaul(&[&["copy", source, destination, "--overwrite"], flags].concat())
}

/// Checks that the copy failed with this code and errno, on this side, at an offset within the volume.
fn assert_error(failed: &Outcome, code: &str, errno: i32, side: &str, operations: &[&str]) {
    failed.assert_failed(1, code);
    let error = &failed.report()["error"];
    assert_eq!((&error["side"], &error["errno"]), (&side.into(), &errno.into()), "{failed:#?}");
    let operation = error["operation"].as_str().unwrap_or_default();
    assert!(operations.contains(&operation), "{failed:#?}");
    assert!(error["offset"].as_u64().is_some_and(|offset| offset < SIZE as u64), "{failed:#?}");
    assert!(error["length"].as_u64().is_some_and(|length| length > 0), "{failed:#?}");
    assert_eq!(failed.report()["quiesced"], true, "{failed:#?}");
}

#[test]
fn a_source_without_extents_is_read_in_full() {
    need!("a_source_without_extents_is_read_in_full", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE + 1001, 1);
    let source = Filtered::new(&dirs, "source", &bytes, &["noextents"], &[]);
    let copied = copy(&dirs, &source.uri(), "b", &[]);
    assert_whole(&copied, bytes.len(), "without extents");
    assert_eq!(copied.bytes("read"), bytes.len() as u64, "{copied:#?}");
    assert_same(&dirs.read("b"), &bytes, "without extents");
}

#[test]
fn zeros_are_written_to_a_destination_without_extents() {
    need!("zeros_are_written_to_a_destination_without_extents", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 2);
    dirs.file("a", &bytes);
    let destination = Filtered::new(&dirs, "destination", &noise(SIZE, 99), &["noextents"], &[]);
    assert_whole(&copy(&dirs, "a", &destination.uri(), &["--verify"]), SIZE, "without extents");
    assert_same(&destination.bytes(), &bytes, "without extents");
}

#[test]
fn zeros_are_written_to_servers_without_zero_or_fast_zero() {
    need!("zeros_are_written_to_servers_without_zero_or_fast_zero", &NEEDS);
    let modes: [&[&str]; 6] = [
        &["zeromode=none"],
        &["zeromode=emulate"],
        &["zeromode=notrim"],
        &["zeromode=emulate", "fastzeromode=none"],
        &["zeromode=emulate", "fastzeromode=slow"],
        &["zeromode=notrim", "fastzeromode=ignore"],
    ];
    for mode in modes {
        for flags in [&[][..], &["--sparse", "never"]] {
            let dirs = TestDirs::new();
            let bytes = mixed(SIZE, 3);
            let source = Export::with(&dirs, "source", Kind::NbdkitFile, &bytes);
            let destination = Filtered::new(&dirs, "destination", &noise(SIZE, 99), &["nozero"], mode);
            let what = format!("{mode:?} {flags:?}");
            assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), flags), SIZE, &what);
            assert_same(&destination.bytes(), &bytes, &what);
        }
    }
}

#[test]
fn a_copy_works_with_and_without_forced_unit_access() {
    need!("a_copy_works_with_and_without_forced_unit_access", &NEEDS);
    for mode in ["fuamode=emulate", "fuamode=native", "fuamode=force"] {
        let dirs = TestDirs::new();
        let bytes = mixed(SIZE, 4);
        dirs.file("a", &bytes);
        let destination = Filtered::new(&dirs, "destination", &noise(SIZE, 99), &["fua"], &[mode]);
        assert_whole(&copy(&dirs, "a", &destination.uri(), &[]), SIZE, mode);
        assert_same(&destination.bytes(), &bytes, mode);
    }
}

#[test]
fn errors_of_a_source_are_reported() {
    need!("errors_of_a_source_are_reported", &NEEDS);
    for (name, errno, code) in [("EIO", 5, "EIo"), ("EPERM", 1, "EPermission")] {
        let dirs = TestDirs::new();
        let error = format!("error-pread={name}");
        let parameters = [error.as_str(), "error-pread-rate=100%"];
        let source = Filtered::new(&dirs, "source", &noise(SIZE, 5), &["error"], &parameters);
        let failed = copy(&dirs, &source.uri(), "b", &[]);
        assert_error(&failed, code, errno, "source", &["read"]);
        assert_eq!(failed.bytes("durable"), 0, "{failed:#?}");
    }
}

#[test]
fn errors_of_a_destination_are_reported() {
    need!("errors_of_a_destination_are_reported", &NEEDS);
    for (name, errno, code) in [("EIO", 5, "EIo"), ("ENOSPC", 28, "ENoSpace")] {
        for call in ["pwrite", "zero"] {
            let dirs = TestDirs::new();
            // Mostly zeros, so that the copy sends requests to zero.
            let mut bytes = vec![0; SIZE];
            bytes[..MIB].copy_from_slice(&noise(MIB, 6));
            let source = Export::with(&dirs, "source", Kind::NbdkitFile, &bytes);
            let (error, rate) = (format!("error-{call}={name}"), format!("error-{call}-rate=100%"));
            let destination = Filtered::new(&dirs, "destination", &noise(SIZE, 99), &["error"], &[&error, &rate]);
            let failed = copy(&dirs, &source.uri(), &destination.uri(), &[]);
            assert_error(&failed, code, errno, "destination", &["write", "zero"]);
        }
    }
}

#[test]
fn some_failed_writes_are_never_called_durable() {
    need!("some_failed_writes_are_never_called_durable", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 7);
    dirs.file("a", &bytes);
    let parameters = ["error-pwrite=EIO", "error-pwrite-rate=10%"];
    let destination = Filtered::new(&dirs, "destination", &vec![0; SIZE], &["error"], &parameters);
    let args = ["--block-size", "64KiB", "--checkpoint-every", "256KiB"];
    let failed = copy(&dirs, "a", &destination.uri(), &args);
    assert_error(&failed, "EIo", 5, "destination", &["write"]);
    assert!(failed.bytes("durable") < SIZE as u64, "{failed:#?}");

    // Ranges that the checkpoint has as durable are not copied again, so their data must be there.
    drop(destination);
    let image = dirs.path("destination.img");
    let file = format!("file={}", text(&image));
    let whole = Server::nbdkit(&dirs, "destination", &["file", &file]);
    let resumed = dirs.blockhaul(&["copy", "a", &whole.uri(), "--resume"]);
    assert_whole(&resumed, SIZE, "once the errors are gone");
    assert_eq!(resumed.bytes("resumed"), failed.bytes("durable"), "{resumed:#?}");
    assert_same(&content(&whole.uri()), &bytes, "once the errors are gone");
}

#[test]
fn block_status_that_fails_is_an_error_or_data() {
    need!("block_status_that_fails_is_an_error_or_data", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 8);
    let source = Filtered::new(&dirs, "source", &bytes, &["error"], &["error-extents=EIO", "error-extents-rate=100%"]);
    let copied = copy(&dirs, &source.uri(), "b", &[]);
    if copied.code == Some(0) {
        assert_same(&dirs.read("b"), &bytes, "the whole source is read as data");
    } else {
        copied.assert_failed(1, "EIo");
        assert_eq!(copied.report()["error"]["side"], "source", "{copied:#?}");
    }
}

#[test]
fn a_flush_that_fails_ends_the_copy_and_nothing_counts_as_durable() {
    need!("a_flush_that_fails_ends_the_copy_and_nothing_counts_as_durable", &NEEDS);
    let dirs = TestDirs::new();
    dirs.file("a", &noise(MIB, 9));
    let destination = Server::without_flush(&dirs, "destination", Address::Unix(dirs.socket("destination")));
    let failed = copy(&dirs, "a", &destination.uri(), &["--block-size", "256KiB"]);
    failed.assert_failed(1, "EIo");
    let error = &failed.report()["error"];
    assert_eq!((&error["side"], &error["operation"]), (&"destination".into(), &"flush".into()), "{failed:#?}");
    assert_eq!(failed.bytes("durable"), 0, "{failed:#?}");
}

#[test]
fn a_copy_waits_for_slow_requests() {
    need!("a_copy_waits_for_slow_requests", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 10);
    let delays = ["delay-read=10ms", "delay-write=10ms", "delay-zero=10ms", "delay-extents=10ms", "delay-open=20ms"];
    let source = Filtered::new(&dirs, "source", &bytes, &["delay"], &delays);
    let destination = Filtered::new(&dirs, "destination", &noise(SIZE, 99), &["delay"], &delays);
    assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), &["--verify"]), SIZE, "with delays");
    assert_same(&destination.bytes(), &bytes, "with delays");
}

#[test]
fn a_copy_works_with_one_request_at_a_time_on_one_connection() {
    need!("a_copy_works_with_one_request_at_a_time_on_one_connection", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 11);
    let serialised = ["serialize=connections"];
    let source = Filtered::new(&dirs, "source", &bytes, &["noparallel"], &serialised);
    let destination = Filtered::new(&dirs, "destination", &noise(SIZE, 99), &["noparallel"], &["serialize=requests"]);
    assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), &[]), SIZE, "one at a time");
    assert_same(&destination.bytes(), &bytes, "one at a time");
}

#[test]
fn a_read_only_export_is_refused_and_untouched() {
    need!("a_read_only_export_is_refused_and_untouched", &NEEDS);
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 12));
    let old = noise(SIZE, 99);
    let image = dirs.file("destination.img", &old);
    let file = format!("file={}", text(&image));
    let destination = Server::nbdkit(&dirs, "destination", &["--readonly", "file", &file]);
    for flags in [&[][..], &["--overwrite"], &["--restart"]] {
        let refused = dirs.blockhaul(&[&["copy", "a", &destination.uri()], flags].concat());
        refused.assert_failed(1, "EReadOnly");
        assert_eq!(refused.report()["error"]["side"], "destination", "{refused:#?}");
    }
    assert_same(&dirs.read("destination.img"), &old, "the export that is read-only");
    // A read-only export can be a source.
    assert_whole(&copy(&dirs, &destination.uri(), "b", &[]), SIZE, "from a read-only export");
    assert_same(&dirs.read("b"), &old, "from a read-only export");
}

#[test]
fn a_copy_works_with_simple_replies_only() {
    need!("a_copy_works_with_simple_replies_only", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE + 513, 13);
    let image = dirs.file("source.img", &bytes);
    let file = format!("file={}", text(&image));
    // The option disables structured replies, and with them block status.
    let source = Server::nbdkit(&dirs, "source", &["--no-sr", "file", &file]);
    assert_whole(&copy(&dirs, &source.uri(), "b", &["--verify"]), bytes.len(), "simple replies");
    assert_same(&dirs.read("b"), &bytes, "simple replies");
    // Without fixed newstyle the export is chosen by EXPORT_NAME, or the copy is refused with a message.
    let size = format!("size={}", bytes.len());
    let old = Server::nbdkit(&dirs, "old", &["--mask-handshake=0", "memory", &size]);
    let refused = copy(&dirs, &source.uri(), &old.uri(), &[]);
    refused.assert_failed(1, "EUnsupported");
    let refused = copy(&dirs, &Server::nbdkit(&dirs, "oldest", &["--oldstyle", "memory", &size]).uri(), "c", &[]);
    refused.assert_failed(1, "EUnsupported");
}

#[test]
fn a_missing_export_or_server_is_reported() {
    need!("a_missing_export_or_server_is_reported", &NEEDS);
    let dirs = TestDirs::new();
    dirs.file("a", &noise(MIB, 14));
    let args = ["--filter=exportname", "memory", "1M", "exportname-strict=true", "exportname=known"];
    let server = Server::nbdkit(&dirs, "server", &args);
    let socket = dirs.socket("server");
    let known = format!("nbd+unix:///known?socket={}", text(&socket));
    let unknown = format!("nbd+unix:///unknown?socket={}", text(&socket));
    let nowhere = format!("nbd+unix:///?socket={}", text(&dirs.socket("nowhere")));
    assert_whole(&dirs.blockhaul(&["copy", "a", &known]), MIB, "to a named export");
    dirs.blockhaul(&["copy", &unknown, "b"]).assert_failed(1, "ENotFound");
    dirs.blockhaul(&["copy", "a", &unknown]).assert_failed(1, "ENotFound");
    dirs.blockhaul(&["copy", &nowhere, "b"]).assert_failed(1, "ENotFound");
    let crate::support::Address::Tcp(port) = crate::support::Address::free_port() else { unreachable!("it is a port") };
    let refused = dirs.blockhaul(&["copy", &format!("nbd://127.0.0.1:{port}/"), "b", "--retry-for", "1s"]);
    refused.assert_failed(1, "EUnreachable");
    assert!(!dirs.path("b").exists(), "a refusal leaves nothing behind");
    drop(server);
}
