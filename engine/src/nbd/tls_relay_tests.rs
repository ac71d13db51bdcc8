//! Tests the relay between a plain end and a scripted peer: full in both directions, and every way to end.

use super::bounded_stream::BoundedStream;
use super::dial_support::{PATIENT, certificates, eventually, is_alone, pattern, pumps, text};
use super::tls::TlsConfig;
use super::tls_relay;
use super::uri::NbdUri;
use super::wait_bound::WaitBound;
use crate::error::Side;
use crate::volume::support::{need, scratch};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;

type TlsServer = StreamOwned<ServerConnection, UnixStream>;

/// More than all buffers on the way hold together.
const MUCH: usize = 8 << 20;

/// The plain end of a relay, and the server behind it.
fn connected() -> Result<(UnixStream, TlsServer), String> {
    let room = scratch();
    let directory = certificates(room.path())?;
    let (outer, theirs) = UnixStream::pair().unwrap();
    let accepting = accept(&directory, theirs);
    let uri = NbdUri::parse(&format!("nbds+unix:///?socket=/s&tls-certificates={}", text(&directory))).unwrap();
    let tls = TlsConfig::load(&uri, uri.tls.as_ref().unwrap(), Side::Source).unwrap();
    let handshake = tls.handshake(BoundedStream::new(outer.into(), WaitBound::new(PATIENT, &|| false))).unwrap();
    let (connection, stream) = handshake.into_parts();
    let plain = tls_relay::start(connection, stream.into_socket()).unwrap();
    Ok((plain.into(), accepting.join().unwrap()))
}

/// The other side of a handshake, on a thread.
fn accept(directory: &Path, stream: UnixStream) -> thread::JoinHandle<TlsServer> {
    let chain = vec![CertificateDer::from_pem_file(directory.join("server-cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(directory.join("server-key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let mut server = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
    thread::spawn(move || {
        while server.conn.is_handshaking() {
            server.conn.complete_io(&mut server.sock).unwrap();
        }
        server
    })
}

/// Writes until no more fits or all is written; returns the number of bytes.
fn fill(plain: &mut impl Write, bytes: &[u8]) -> usize {
    let mut at = 0;
    // What has just been taken on makes room a moment later.
    let mut vain = 0;
    while vain < 50 && at < bytes.len() {
        match plain.write(&bytes[at..]) {
            Ok(count) => (at, vain) = (at + count, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                vain += 1;
                thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }
    at
}

fn rest(plain: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    plain.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn both_directions_full_at_once_is_no_deadlock() {
    let (mut plain, mut server) = need!("both_directions_full", connected());
    let serving = thread::spawn(move || {
        // Says everything before it listens.
        server.write_all(&pattern(0, MUCH)).unwrap();
        server.flush().unwrap();
        let mut heard = vec![0; MUCH];
        server.read_exact(&mut heard).unwrap();
        heard
    });
    let sent = pattern(1 << 30, MUCH);
    plain.set_nonblocking(true).unwrap();
    let at = fill(&mut plain, &sent);
    assert!(at < MUCH, "nothing was full");
    plain.set_nonblocking(false).unwrap();
    let mut sender = plain.try_clone().unwrap();
    let expected = sent.clone();
    let sending = thread::spawn(move || sender.write_all(&sent[at..]).unwrap());
    let mut heard = vec![0; MUCH];
    plain.read_exact(&mut heard).unwrap();
    assert!(heard == pattern(0, MUCH));
    sending.join().unwrap();
    assert!(serving.join().unwrap() == expected);
}

/// Ticks of processor and switches of the only relay, while it sleeps.
fn asleep() -> Option<Vec<String>> {
    let task = pumps().pop()?;
    let (stat, status) = (fs::read_to_string(task.join("stat")).ok()?, fs::read_to_string(task.join("status")).ok()?);
    let fields: Vec<String> = stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect();
    let switches = status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned);
    (fields[0] == "S").then(|| fields[11..13].iter().cloned().chain(switches).collect())
}

/// It has not run for a while.
#[track_caller]
fn rests() {
    eventually("the relay rests", || {
        let before = asleep();
        thread::sleep(std::time::Duration::from_millis(50));
        before.is_some() && asleep() == before
    });
}

#[test]
fn a_relay_does_not_spin_and_ends_with_the_plain_end() {
    let test = "nbd::tls_relay_tests::a_relay_does_not_spin_and_ends_with_the_plain_end";
    if !is_alone(test) {
        return;
    }
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    // Idle, and half-closed with a server that does not mind.
    let (plain, server) = need!(test, connected());
    rests();
    plain.shutdown(Shutdown::Write).unwrap();
    rests();
    drop(plain);
    eventually("it ends", || pumps().is_empty());
    drop(server);
    // Full towards the server, which neither takes nor goes.
    let (mut plain, server) = need!(test, connected());
    plain.set_nonblocking(true).unwrap();
    assert!(fill(&mut plain, &pattern(0, MUCH)) < MUCH);
    rests();
    drop(plain);
    eventually("it ends", || pumps().is_empty());
    drop(server);
    // Full towards the plain end, with the server gone behind it.
    let (plain, mut server) = need!(test, connected());
    server.sock.set_nonblocking(true).unwrap();
    assert!(fill(&mut server, &pattern(0, MUCH)) < MUCH);
    rests();
    drop(server);
    rests();
    plain.shutdown(Shutdown::Both).unwrap();
    eventually("it ends", || pumps().is_empty());
    drop(plain);
    eventually("nothing is left", || descriptors() == before);
}

#[test]
fn bytes_sent_before_a_server_closed_arrive_before_the_end_of_file() {
    for says_goodbye in [true, false] {
        let (mut plain, mut server) = need!("what_a_server_said", connected());
        // These bytes are never read; they must not turn the end of file into a reset.
        plain.write_all(&pattern(0, 1 << 16)).unwrap();
        let serving = thread::spawn(move || {
            server.write_all(&pattern(0, MUCH)).unwrap();
            if says_goodbye {
                server.conn.send_close_notify();
            }
            server.flush().unwrap();
        });
        assert!(rest(&mut plain) == pattern(0, MUCH));
        serving.join().unwrap();
        eventually("sending fails", || plain.write(b"more").is_err_and(|e| e.kind() == ErrorKind::BrokenPipe));
    }
}

#[test]
fn bytes_accepted_before_the_plain_end_shut_down_are_sent_and_answered() {
    let (mut plain, mut server) = need!("what_was_accepted", connected());
    let serving = thread::spawn(move || {
        let mut heard = Vec::new();
        // Without close_notify this would be an error.
        server.read_to_end(&mut heard).unwrap();
        server.write_all(&pattern(7, MUCH)).unwrap();
        server.flush().unwrap();
        heard
    });
    let sent = pattern(0, MUCH);
    plain.write_all(&sent).unwrap();
    plain.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut plain) == pattern(7, MUCH));
    assert!(serving.join().unwrap() == sent);
}

#[test]
fn a_closed_plain_end_resets_the_server_connection_at_once() {
    let (mut plain, mut server) = need!("a_plain_end_that_is_closed", connected());
    plain.set_nonblocking(true).unwrap();
    assert!(fill(&mut plain, &pattern(0, MUCH)) < MUCH);
    drop(plain);
    let mut heard = Vec::new();
    let error = server.read_to_end(&mut heard).expect_err("it ends without close_notify");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(heard == pattern(0, MUCH)[..heard.len()]);
}

#[test]
fn invalid_tls_records_end_the_stream_after_the_valid_ones() {
    let (mut plain, mut server) = need!("nonsense", connected());
    server.write_all(b"whole").unwrap();
    server.flush().unwrap();
    server.sock.write_all(&[0x55; 100]).unwrap();
    assert_eq!(rest(&mut plain), b"whole");
}
