//! Tests dialing real servers, and peers that are none.

use super::dial::{Dialer, list_exports};
use super::dial_support::{PATIENT, Server, eventually, exchange, is_alone, text};
use super::uri::NbdUri;
use super::{ReplyStyle, Session};
use crate::error::{Code, Error, Result, Side};
use crate::nbd::codec::Command;
use crate::volume::support::{need, scratch};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

fn dial_within(uri: &str, limit: Duration, cancelled: &dyn Fn() -> bool) -> Result<Session> {
    Dialer::new(&NbdUri::parse(uri).unwrap(), Side::Destination, None)?.dial(limit, cancelled)
}

fn dial(uri: &str) -> Result<Session> {
    dial_within(uri, PATIENT, &|| false)
}

fn unix(dir: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", text(&dir.join("socket")))
}

#[track_caller]
fn refused(outcome: Result<Session>, code: Code, words: &str) -> Error {
    let error = outcome.expect_err("a refusal");
    assert_eq!((error.code, error.side), (code, Side::Destination), "{error}");
    assert_eq!(error.retryable, code == Code::Unreachable, "{error}");
    assert!(error.message.contains(words), "'{words}' is missing in: {error}");
    error
}

/// A blocking socket that no program started later inherits.
#[track_caller]
fn is_fit_for_use(session: &Session) {
    let status = OFlag::from_bits_retain(fcntl(&session.socket, FcntlArg::F_GETFL).unwrap());
    assert!(!status.contains(OFlag::O_NONBLOCK));
    let flags = FdFlag::from_bits_retain(fcntl(&session.socket, FcntlArg::F_GETFD).unwrap());
    assert!(flags.contains(FdFlag::FD_CLOEXEC));
}

#[test]
fn real_servers_are_dialed_over_unix_and_tcp() {
    let (first, second, third) = (scratch(), scratch(), scratch());
    let _nbdkit = need!("real_servers", Server::nbdkit(first.path(), &["memory", "1M"]));
    let session = dial(&unix(first.path(), "")).unwrap();
    assert_eq!((session.facts.size_bytes, session.is_tcp), (1 << 20, false));
    assert_ne!(session.style, ReplyStyle::Simple);
    assert!(session.contexts.allocation.is_some() && session.contexts.dirty.is_none());
    is_fit_for_use(&session);

    let (_nbdkit, port) = need!("real_servers", Server::nbdkit_tcp(second.path(), &["memory", "2M"]));
    // A name with several addresses, of which one listens.
    for host in ["127.0.0.1", "localhost"] {
        let session = dial(&format!("nbd://{host}:{port}/any")).unwrap();
        assert_eq!((session.facts.size_bytes, session.is_tcp), (2 << 20, true));
        is_fit_for_use(&session);
        exchange(&session, Command::Write, 1 << 16, 32);
    }

    let image = third.path().join("image");
    std::fs::write(&image, vec![7; 3 << 20]).unwrap();
    let _qemu = need!("real_servers", Server::qemu(third.path(), &["-f", "raw", "-x", "disk", &text(&image)]));
    let session = dial(&unix(third.path(), "disk")).unwrap();
    assert_eq!(session.facts.size_bytes, 3 << 20);
    let read = exchange(&session, Command::Read, 1 << 20, 3);
    assert!(read.iter().all(|answer| answer.buffer.iter().all(|byte| *byte == 7)));
    refused(dial(&unix(third.path(), "other")), Code::NotFound, "'other'");
    let uri = NbdUri::parse(&unix(third.path(), "disk")).unwrap();
    let bitmap = Dialer::new(&uri, Side::Destination, Some("b0")).unwrap();
    refused(bitmap.dial(PATIENT, &|| false), Code::NotFound, "dirty bitmap 'b0'");
}

#[test]
fn exports_are_listed() {
    let (first, second) = (scratch(), scratch());
    let image = first.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let arguments = ["-r", "-f", "raw", "-x", "disk", "-D", "the words", &text(&image)];
    let _qemu = need!("exports_are_listed", Server::qemu(first.path(), &arguments));
    let listed = list_exports(&NbdUri::parse(&unix(first.path(), "")).unwrap()).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].name, listed[0].description.as_deref()), ("disk", Some("the words")));
    assert_eq!((listed[0].size_bytes, listed[0].read_only), (Some(1 << 20), Some(true)));

    let _nbdkit = need!("exports_are_listed", Server::nbdkit(second.path(), &["null", "5M"]));
    let listed = list_exports(&NbdUri::parse(&unix(second.path(), "")).unwrap()).unwrap();
    assert_eq!((&*listed[0].name, listed[0].size_bytes), ("", Some(5 << 20)));
    let error = list_exports(&NbdUri::parse(&unix(scratch().path(), "")).unwrap()).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
}

#[test]
fn an_oldstyle_server_is_too_old() {
    let dir = scratch();
    let _nbdkit = need!("an_oldstyle_server_is_too_old", Server::nbdkit(dir.path(), &["-o", "null"]));
    refused(dial(&unix(dir.path(), "")), Code::Unsupported, "oldstyle");
}

#[test]
fn each_kind_of_missing_server_has_its_own_error() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refused(dial(&format!("nbd://127.0.0.1:{port}/x")), Code::Unreachable, "refused");
    assert_eq!(error.errno, Some(nix::errno::Errno::ECONNREFUSED as i32));
    refused(dial("nbd://no-such-host.invalid/x"), Code::Unreachable, "no-such-host.invalid");

    let dir = scratch();
    refused(dial(&unix(dir.path(), "x")), Code::NotFound, "is the server running?");
    drop(UnixListener::bind(dir.path().join("socket")).unwrap());
    refused(dial(&unix(dir.path(), "x")), Code::Unreachable, "refused");
}

#[test]
fn a_silent_peer_costs_at_most_the_limit() {
    let dir = scratch();
    // The kernel completes the connection, but it is never accepted.
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let limit = Duration::from_millis(120);
    refused(dial_within(&unix(dir.path(), "x"), limit, &|| false), Code::Unreachable, "no answer in time");
    let looks = Cell::new(0);
    let cancelled = || {
        looks.set(looks.get() + 1);
        looks.get() > 5
    };
    let error = dial_within(&unix(dir.path(), "x"), Duration::MAX, &cancelled).unwrap_err();
    assert_eq!(error.code, Code::Cancelled);
}

#[test]
fn a_full_queue_of_connections_is_waited_for() {
    let dir = scratch();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let dials: Vec<_> = (0..3)
        .map(|_| {
            let uri = unix(dir.path(), "x");
            thread::spawn(move || dial_within(&uri, Duration::from_millis(150), &|| false))
        })
        .collect();
    for dial in dials {
        refused(dial.join().unwrap(), Code::Unreachable, "no answer in time");
    }
}

/// Serves one connection with `bytes`, one at a time, and closes.
fn scripted(bytes: Vec<u8>) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for byte in bytes {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
        }
        // The client may have closed already.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Until the client closes: a reset would overtake what was sent.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    (port, serving)
}

#[test]
fn a_peer_that_closes_or_violates_the_protocol_is_refused() {
    let greeting = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let reply = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0b\x80\0\0\x01\0\0\0\0".to_vec();
    let sound = [greeting.clone(), reply].concat();
    for len in 0..=sound.len() {
        let (port, serving) = scripted(sound[..len].to_vec());
        refused(dial(&format!("nbd://127.0.0.1:{port}/x")), Code::Unreachable, "negotiate");
        serving.join().unwrap();
    }
    let huge = [&sound[..greeting.len() + 16], &[0xff; 4]].concat();
    for nonsense in [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), [greeting, vec![1; 20]].concat(), huge] {
        let (port, serving) = scripted(nonsense);
        refused(dial(&format!("nbd://127.0.0.1:{port}/x")), Code::Protocol, "breaks the NBD protocol");
        serving.join().unwrap();
    }
}

#[test]
fn a_thousand_failed_dials_leak_nothing() {
    let test = "nbd::dial_tests::a_thousand_failed_dials_leak_nothing";
    if !is_alone(test) {
        return;
    }
    let closes = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closes.local_addr().unwrap().port();
    // Accepts, sends half a greeting, and closes; the other half of the dials finds no listener.
    let server = std::thread::spawn(move || {
        for _ in 0..500 {
            let (mut stream, _) = closes.accept().unwrap();
            let _ = std::io::Write::write_all(&mut stream, b"NBDMAGIC");
        }
    });
    let count = |of: &str| std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count();
    refused(dial("nbd+unix:///?socket=/no/such/socket"), Code::NotFound, "/no/such/socket");
    let (descriptors, threads) = (count("fd"), count("task"));
    for _ in 0..500 {
        refused(dial(&format!("nbd://127.0.0.1:{port}/")), Code::Unreachable, "127.0.0.1");
    }
    server.join().unwrap();
    for _ in 0..500 {
        refused(dial(&format!("nbd://127.0.0.1:{port}/")), Code::Unreachable, "127.0.0.1");
    }
    eventually("threads that looked up names are over", || count("task") < threads);
    assert!(count("fd") < descriptors, "the listener is gone, and nothing else has come");
}

#[test]
fn two_hundred_connections_leak_nothing() {
    let test = "nbd::dial_tests::two_hundred_connections_leak_nothing";
    if !is_alone(test) {
        return;
    }
    let dir = scratch();
    let nbdkit = need!(test, Server::nbdkit(dir.path(), &["null", "1M"]));
    drop(dial(&unix(dir.path(), "")).unwrap());
    let ours = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, theirs) = (ours(), nbdkit.descriptors());
    for _ in 0..200 {
        drop(dial(&unix(dir.path(), "")).unwrap());
        refused(dial("nbd+unix:///?socket=/no/such/socket"), Code::NotFound, "/no/such/socket");
    }
    assert_eq!(ours(), before);
    eventually("the server has closed them, too", || nbdkit.descriptors() <= theirs);
}
