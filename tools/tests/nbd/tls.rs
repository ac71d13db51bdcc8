//! Tests `nbds://`: servers with valid and invalid certificates, and servers that require a client certificate. The
//! tests make all certificates.

use crate::support::{
    Address, MIB, Need, Outcome, Server, TestDirs, assert_same, assert_whole, mixed, need, noise, run, text,
};
use std::path::PathBuf;

const NEEDS: [Need; 4] =
    [Need::Program("nbdkit"), Need::Program("qemu-nbd"), Need::Program("openssl"), Need::Program("setpriv")];
const SIZE: usize = 6 * MIB;

/// A certificate authority with a directory of certificates, under the file names that NBD programs use.
struct Authority {
    directory: PathBuf,
}

impl Authority {
    fn new(dirs: &TestDirs, name: &str) -> Self {
        let authority = Self { directory: dirs.path(name) };
        std::fs::create_dir(&authority.directory).expect("the directory is writable");
        let subject = format!("/CN=authority {name}");
        let args =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let (key, certificate) = (authority.path("ca-key.pem"), authority.path("ca-cert.pem"));
        let extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign,cRLSign"];
        let files = ["-keyout", &key, "-out", &certificate, "-subj", &subject];
        run("openssl", &[&args[..], &extensions, &files].concat());
        authority
    }

    fn path(&self, name: &str) -> String {
        text(&self.directory.join(name)).to_owned()
    }

    /// Makes a certificate for `role` (`server` or `client`) with these names.
    fn certify(&self, role: &str, names: &str, days: &str) {
        let (key, request) = (self.path(&format!("{role}-key.pem")), self.path("request.pem"));
        let args = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test"];
        run("openssl", &[&args[..], &["-keyout", &key, "-out", &request]].concat());
        let extensions = self.path("extensions");
        let usage = format!("subjectAltName={names}\nextendedKeyUsage={role}Auth\nkeyUsage=digitalSignature\n");
        std::fs::write(&extensions, usage).expect("the directory is writable");
        let (authority, authority_key) = (self.path("ca-cert.pem"), self.path("ca-key.pem"));
        let certificate = self.path(&format!("{role}-cert.pem"));
        let signed = ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial"];
        run("openssl", &[&signed[..], &["-days", days, "-extfile", &extensions, "-out", &certificate]].concat());
    }
}

/// A server that requires TLS, with its content.
struct TlsServer {
    server: Server,
    bytes: Vec<u8>,
    port: u16,
}

impl TlsServer {
    fn new(dirs: &TestDirs, authority: &Authority, flags: &[&str]) -> Self {
        let bytes = mixed(SIZE, 90);
        let image = dirs.file("secret.img", &bytes);
        let address = Address::free_port();
        let Address::Tcp(port) = address else { unreachable!("it is a port") };
        let certificates = format!("--tls-certificates={}", text(&authority.directory));
        let file = format!("file={}", text(&image));
        let args = [&["--tls=require", &certificates], flags, &["file", &file]].concat();
        Self { server: Server::nbdkit_at(dirs, "secret", address, &args), bytes, port }
    }

    fn uri(&self, host: &str, parameters: &str) -> String {
        format!("nbds://{host}:{}/?{parameters}", self.port)
    }
}

fn trusting(authority: &Authority) -> String {
    format!("tls-certificates={}", text(&authority.directory))
}

fn copy(dirs: &TestDirs, source: &str, destination: &str) -> Outcome {
    dirs.blockhaul(&["copy", source, destination, "--overwrite", "--retry-for", "1s"])
}

/// Checks that the copy fails at once, names the source, and creates nothing.
fn assert_refused(dirs: &TestDirs, refused: &Outcome, what: &str) {
    assert_eq!(refused.code, Some(1), "{what}: {refused:#?}");
    assert_eq!(refused.report()["error"]["side"], "source", "{what}: {refused:#?}");
    assert!(!dirs.path("b").exists(), "{what}: nothing was created: {refused:#?}");
}

#[test]
fn copies_from_and_to_a_server_over_tls_are_equal() {
    need!("copies_from_and_to_a_server_over_tls_are_equal", &NEEDS);
    let dirs = TestDirs::new();
    let authority = Authority::new(&dirs, "authority");
    authority.certify("server", "DNS:localhost,IP:127.0.0.1", "2");
    let server = TlsServer::new(&dirs, &authority, &[]);
    for host in ["localhost", "127.0.0.1"] {
        let copied = copy(&dirs, &server.uri(host, &trusting(&authority)), "b");
        assert_whole(&copied, SIZE, host);
        assert_same(&dirs.read("b"), &server.bytes, host);
    }
    let changed = mixed(SIZE, 91);
    dirs.file("a", &changed);
    let destination = server.uri("localhost", &trusting(&authority));
    assert_whole(&dirs.blockhaul(&["copy", "a", &destination, "--overwrite", "--verify"]), SIZE, "to a server");
    assert_same(&dirs.read("secret.img"), &changed, "to a server");
    let both = dirs.blockhaul(&["verify", "a", &destination]);
    assert_eq!(both.code, Some(0), "{both:#?}");
}

#[test]
fn a_copy_over_tls_on_a_unix_socket_verifies_the_given_hostname() {
    need!("a_copy_over_tls_on_a_unix_socket_verifies_the_given_hostname", &NEEDS);
    let dirs = TestDirs::new();
    let authority = Authority::new(&dirs, "authority");
    authority.certify("server", "DNS:storage.example", "2");
    let bytes = mixed(SIZE, 92);
    let image = dirs.file("secret.img", &bytes);
    let object =
        format!("--object=tls-creds-x509,id=tls,endpoint=server,verify-peer=off,dir={}", text(&authority.directory));
    let args = [object.as_str(), "--tls-creds=tls", "--read-only", "--format=raw", text(&image)];
    let server = Server::qemu_nbd(&dirs, "server", &args);
    let socket = text(&dirs.socket("server")).to_owned();
    let uri = format!("nbds+unix:///?socket={socket}&{}&tls-hostname=storage.example", trusting(&authority));
    assert_whole(&copy(&dirs, &uri, "b"), SIZE, "qemu-nbd");
    assert_same(&dirs.read("b"), &bytes, "qemu-nbd");
    drop(server);
}

#[test]
fn a_server_without_a_trusted_certificate_is_refused() {
    need!("a_server_without_a_trusted_certificate_is_refused", &NEEDS);
    let dirs = TestDirs::new();
    let (authority, other) = (Authority::new(&dirs, "authority"), Authority::new(&dirs, "other"));
    authority.certify("server", "DNS:storage.example", "2");
    let server = TlsServer::new(&dirs, &authority, &[]);
    let cases = [
        ("another authority", server.uri("localhost", &trusting(&other))),
        ("with the authorities of the system", server.uri("localhost", "")),
        ("another name", server.uri("localhost", &trusting(&authority))),
    ];
    for (what, uri) in cases {
        assert_refused(&dirs, &copy(&dirs, &uri, "b"), what);
    }
    let named = format!("{}&tls-hostname=storage.example", trusting(&authority));
    assert_whole(&copy(&dirs, &server.uri("localhost", &named), "b"), SIZE, "under its own name");
    assert_same(&dirs.read("b"), &server.bytes, "under its own name");
}

#[test]
fn verification_of_certificates_can_be_switched_off_and_is_logged() {
    need!("verification_of_certificates_can_be_switched_off_and_is_logged", &NEEDS);
    let dirs = TestDirs::new();
    let (authority, other) = (Authority::new(&dirs, "authority"), Authority::new(&dirs, "other"));
    authority.certify("server", "DNS:storage.example", "2");
    let server = TlsServer::new(&dirs, &authority, &[]);
    let blind = format!("{}&tls-verify-peer=0", trusting(&other));
    let copied = copy(&dirs, &server.uri("localhost", &blind), "b");
    assert_whole(&copied, SIZE, "without verification");
    assert_same(&dirs.read("b"), &server.bytes, "without verification");
    assert!(copied.stderr.contains("WARN") && copied.stderr.contains("localhost"), "a warning is logged: {copied:#?}");
}

#[test]
fn a_server_that_requires_a_client_certificate_is_copied_from_with_one() {
    need!("a_server_that_requires_a_client_certificate_is_copied_from_with_one", &NEEDS);
    let dirs = TestDirs::new();
    let (authority, stranger) = (Authority::new(&dirs, "authority"), Authority::new(&dirs, "stranger"));
    authority.certify("server", "DNS:localhost", "2");
    let server = TlsServer::new(&dirs, &authority, &["--tls-verify-peer"]);
    // This directory has the authority's certificate, but no client certificate.
    std::fs::copy(authority.path("ca-cert.pem"), stranger.path("ca-cert.pem")).expect("both are there");
    assert_refused(&dirs, &copy(&dirs, &server.uri("localhost", &trusting(&stranger)), "b"), "without a certificate");
    authority.certify("client", "DNS:client.example", "2");
    assert_whole(&copy(&dirs, &server.uri("localhost", &trusting(&authority)), "b"), SIZE, "with a certificate");
    assert_same(&dirs.read("b"), &server.bytes, "with a certificate");
}

#[test]
fn clear_text_and_tls_do_not_mix() {
    need!("clear_text_and_tls_do_not_mix", &NEEDS);
    let dirs = TestDirs::new();
    let authority = Authority::new(&dirs, "authority");
    authority.certify("server", "DNS:localhost", "2");
    let server = TlsServer::new(&dirs, &authority, &[]);
    let refused = copy(&dirs, &server.server.uri(), "b");
    refused.assert_failed(1, "EUnsupported");
    assert!(refused.stderr.contains("nbds://"), "the message names the remedy: {refused:#?}");

    let address = Address::free_port();
    let Address::Tcp(port) = address else { unreachable!("it is a port") };
    let _plain = Server::nbdkit_at(&dirs, "plain", address, &["memory", "1M"]);
    let uri = format!("nbds://localhost:{port}/?{}", trusting(&authority));
    assert_refused(&dirs, &copy(&dirs, &uri, "b"), "a server without TLS");
}

#[test]
fn pre_shared_keys_are_refused_as_unsupported() {
    let dirs = TestDirs::new();
    for parameter in ["tls-psk-file=keys.psk", "tls-psk=keys.psk"] {
        let refused = dirs.blockhaul(&["copy", &format!("nbds://localhost/?{parameter}"), "b"]);
        assert_eq!(refused.error_code(), "EUnsupported", "{refused:#?}");
        assert!(refused.stderr.to_lowercase().contains("psk") || refused.stderr.contains("shared"), "{refused:#?}");
    }
    dirs.file("a", &noise(MIB, 93));
    let refused = dirs.blockhaul(&["copy", "a", "nbds://localhost/?tls-certificates=nowhere", "--retry-for", "1s"]);
    refused.assert_failed(2, "EBadRequest");
    assert!(refused.stderr.contains("nowhere"), "the message names the directory: {refused:#?}");
}

#[test]
fn a_lost_tls_connection_is_made_again() {
    need!("a_lost_tls_connection_is_made_again", &NEEDS);
    let dirs = TestDirs::new();
    let authority = Authority::new(&dirs, "authority");
    authority.certify("server", "DNS:localhost", "2");
    let mut server = TlsServer::new(&dirs, &authority, &[]);
    let uri = server.uri("localhost", &trusting(&authority));
    let mut copying = dirs.start(&["copy", &uri, "b", "--limit", "4MiB/s", "--block-size", "64KiB"]);
    copying.until(crate::support::moving);
    server.server.restart();
    assert_whole(&copying.end(), SIZE, "with a server that was restarted");
    assert_same(&dirs.read("b"), &server.bytes, "with a server that was restarted");
}
