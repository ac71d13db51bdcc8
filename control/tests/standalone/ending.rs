//! Tests that a process that is asked to stop ends, with 0, whatever its peers do.

use crate::daemon::{Room, noise, slow_copy};
use nix::sys::signal::Signal;
use std::net::TcpStream;

#[test]
fn sigterm_and_sigint_end_it_with_zero() {
    let room = Room::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = room.start(&[]);
        daemon.signal(signal);
        assert_eq!(daemon.ended(), Some(0), "{signal}");
    }
}

#[test]
fn a_signal_while_it_starts_ends_it_with_zero() {
    let room = Room::new();
    for _ in 0..3 {
        let mut child = room.command(&[]).spawn().unwrap();
        let process = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let status = format!("/proc/{process}/status");
        // From the moment on that the signal is caught.
        let catches = |text: &str| {
            let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim).unwrap_or("0");
            u64::from_str_radix(mask, 16).unwrap() & (1 << (Signal::SIGTERM as u64 - 1)) != 0
        };
        while !std::fs::read_to_string(&status).is_ok_and(|text| catches(&text)) {
            std::thread::yield_now();
        }
        nix::sys::signal::kill(process, Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_connections_and_watchers_do_not_hold_it() {
    let room = Room::new();
    std::fs::write(room.volume("a"), noise(32 << 20)).unwrap();
    let mut daemon = room.start(&[]);
    let mut client = daemon.client();
    client.submit(slow_copy("t", &room, 1 << 20)).await.unwrap();
    let watching = tokio::spawn(async move { client.follow("t", |_| ()).await });
    let _bare: Vec<_> = (0..8).map(|_| TcpStream::connect(&daemon.address).unwrap()).collect();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended(), Some(0));
    watching.abort();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let room = Room::new();
    let mut daemon = room.start(&[]);
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended(), Some(0));
    let again = room.start(&[]);
    assert!(!again.address.is_empty(), "what was left behind does not keep it from starting");
}
