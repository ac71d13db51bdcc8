//! Tests TLS with real servers: trust in servers, trust in clients, and intact bytes.

use super::Session;
use super::codec::Command;
use super::dial::Dialer;
use super::dial_support::{
    PATIENT, Server, authority_only, certificates, eventually, exchange, is_alone, pattern, pumps, text,
};
use super::uri::NbdUri;
use crate::error::{Code, Error, Result, Side};
use crate::volume::support::{need, scratch};
use std::fs;
use std::path::Path;

fn dial(uri: &str) -> Result<Session> {
    Dialer::new(&NbdUri::parse(uri).unwrap(), Side::Source, None)?.dial(PATIENT, &|| false)
}

/// The server in `dir`, with the certificates of a directory.
fn secure(dir: &Path, certificates: &Path) -> String {
    format!("nbds+unix:///?socket={}&tls-certificates={}", text(&dir.join("socket")), text(certificates))
}

/// nbdkit that insists on TLS.
fn nbdkit(dir: &Path, certificates: &Path, further: &[&str]) -> Result<Server, String> {
    let directory = format!("--tls-certificates={}", text(certificates));
    Server::nbdkit(dir, &[&["--tls=require", &directory], further].concat())
}

#[track_caller]
fn refused(outcome: Result<Session>, code: Code, words: &str) -> Error {
    let error = outcome.expect_err("a refusal");
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(words), "'{words}' is missing in: {error}");
    error
}

/// Writes and reads back 16 MiB, everything under way at once.
fn carries_data(session: &Session) {
    let (block, count) = (1 << 18, 64);
    assert!(!session.is_tcp, "the plain end of a pair");
    assert_eq!(exchange(session, Command::Write, block, count).len(), count);
    for answer in exchange(session, Command::Read, block, count) {
        let offset = answer.number as u64 * u64::from(block);
        assert!(answer.buffer == pattern(offset, block as usize), "block {} differs", answer.number);
    }
}

#[test]
fn nbdkit_is_verified_and_carries_data() {
    let (dir, remote) = (scratch(), scratch());
    let theirs = need!("nbdkit_is_verified", certificates(&dir.path().join("certificates")));
    let _nbdkit = need!("nbdkit_is_verified", nbdkit(dir.path(), &theirs, &["memory", "16M"]));
    let ours = authority_only(&theirs, &dir.path().join("ours"));
    carries_data(&dial(&secure(dir.path(), &ours)).unwrap());

    let directory = format!("--tls-certificates={}", text(&theirs));
    let started = Server::nbdkit_tcp(remote.path(), &["--tls=require", &directory, "memory", "16M"]);
    let (_nbdkit, port) = need!("nbdkit_is_verified", started);
    let parameters = format!("tls-certificates={}", text(&ours));
    carries_data(&dial(&format!("nbds://localhost:{port}/?{parameters}")).unwrap());
    let by_address = format!("nbds://127.0.0.1:{port}/?{parameters}");
    refused(dial(&by_address), Code::Permission, "tls-hostname");
    dial(&format!("{by_address}&tls-hostname=localhost")).unwrap();
}

#[test]
fn qemu_is_verified_and_carries_data() {
    let dir = scratch();
    let theirs = need!("qemu_is_verified", certificates(&dir.path().join("certificates")));
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let object = format!("tls-creds-x509,id=tls,endpoint=server,dir={},verify-peer=on", text(&theirs));
    let arguments = ["--object", &object, "--tls-creds", "tls", "-f", "raw", &text(&image)];
    let _qemu = need!("qemu_is_verified", Server::qemu(dir.path(), &arguments));
    carries_data(&dial(&secure(dir.path(), &theirs)).unwrap());
}

#[test]
fn a_server_of_another_authority_is_refused_unless_verification_is_off() {
    let dir = scratch();
    let theirs = need!("another_authority", certificates(&dir.path().join("certificates")));
    let others = need!("another_authority", certificates(&dir.path().join("others")));
    let _nbdkit = need!("another_authority", nbdkit(dir.path(), &theirs, &["memory", "16M"]));
    let uri = secure(dir.path(), &authority_only(&others, &dir.path().join("ours")));
    let error = refused(dial(&uri), Code::Permission, "tls-certificates=DIRECTORY");
    assert!(!error.retryable);
    let wrong_name = format!("{}&tls-hostname=example.com", secure(dir.path(), &theirs));
    refused(dial(&wrong_name), Code::Permission, "tls-hostname=NAME");
    carries_data(&dial(&format!("{uri}&tls-verify-peer=0&tls-hostname=example.com")).unwrap());
}

#[test]
fn a_server_that_requires_client_certificates_gets_one() {
    let dir = scratch();
    let theirs = need!("client_certificate", certificates(&dir.path().join("certificates")));
    let _nbdkit = need!("client_certificate", nbdkit(dir.path(), &theirs, &["--tls-verify-peer", "memory", "16M"]));
    carries_data(&dial(&secure(dir.path(), &theirs)).unwrap());
    let ours = authority_only(&theirs, &dir.path().join("ours"));
    let error = dial(&secure(dir.path(), &ours)).expect_err("a refusal");
    // Servers say so, or just close.
    assert!([Code::Permission, Code::Unreachable].contains(&error.code), "{error}");
    assert!(error.message.contains("client"), "{error}");
}

#[test]
fn with_and_without_tls_must_fit_the_server() {
    let (secured, open) = (scratch(), scratch());
    let theirs = need!("must_fit", certificates(&secured.path().join("certificates")));
    let _secured = need!("must_fit", nbdkit(secured.path(), &theirs, &["null"]));
    let _open = need!("must_fit", Server::nbdkit(open.path(), &["null"]));
    let plain = format!("nbd+unix:///?socket={}", text(&secured.path().join("socket")));
    refused(dial(&plain), Code::Unsupported, "nbds+unix://");
    refused(dial(&secure(open.path(), &theirs)), Code::Unsupported, "does not offer TLS");
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let dir = scratch();
    let sound = need!("cannot_be_used", certificates(&dir.path().join("sound")));
    let broken = |name: &str, change: &dyn Fn(&Path)| {
        let directory = authority_only(&sound, &dir.path().join(name));
        change(&directory);
        refused(dial(&secure(dir.path(), &directory)), Code::BadRequest, "").message
    };
    let take = |name: &'static str, to: &'static str| {
        let from = sound.join(name);
        move |directory: &Path| assert!(fs::copy(&from, directory.join(to)).unwrap() > 0)
    };
    let missing = broken("a", &|directory| fs::remove_file(directory.join("ca-cert.pem")).unwrap());
    assert!(missing.contains("ca-cert.pem does not exist"), "{missing}");
    let empty = broken("b", &|directory| fs::write(directory.join("ca-cert.pem"), "nothing").unwrap());
    assert!(empty.contains("ca-cert.pem"), "{empty}");
    let no_key = broken("c", &take("client-cert.pem", "client-cert.pem"));
    assert!(no_key.contains("without client-key.pem"), "{no_key}");
    let no_certificate = broken("d", &take("client-key.pem", "client-key.pem"));
    assert!(no_certificate.contains("without client-cert.pem"), "{no_certificate}");
    let mismatch = broken("e", &|directory| {
        take("client-cert.pem", "client-cert.pem")(directory);
        take("server-key.pem", "client-key.pem")(directory);
    });
    assert!(mismatch.contains("do not make an identity"), "{mismatch}");
    let garbage = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let revoked = broken("f", &|directory| fs::write(directory.join("ca-crl.pem"), garbage).unwrap());
    assert!(revoked.contains("authorities"), "{revoked}");
}

#[test]
fn two_hundred_connections_leave_no_thread_and_no_descriptor() {
    let test = "nbd::tls_tests::two_hundred_connections_leave_no_thread_and_no_descriptor";
    if !is_alone(test) {
        return;
    }
    let dir = scratch();
    let theirs = need!(test, certificates(&dir.path().join("certificates")));
    let nbdkit = need!(test, nbdkit(dir.path(), &theirs, &["memory", "16M"]));
    let uri = secure(dir.path(), &theirs);
    drop(dial(&uri).unwrap());
    eventually("the first one is gone", || pumps().is_empty());
    let ours = || fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, at_server) = (ours(), nbdkit.descriptors());
    for _ in 0..200 {
        let session = dial(&uri).unwrap();
        assert_eq!(exchange(&session, Command::Read, 4096, 2).len(), 2);
    }
    eventually("every thread ends", || pumps().is_empty());
    eventually("every descriptor is closed", || ours() <= before);
    eventually("the server has closed them, too", || nbdkit.descriptors() <= at_server);
}
