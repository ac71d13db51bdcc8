//! Tests what a daemon does not start with: a usage error exits 2, what this host lacks exits 1, and both messages say
//! what helps.

use crate::daemon::Room;
use std::process::Output;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_listener_that_others_reach_without_protection() {
    let output = Room::new().refusal(&["--listen", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("--insecure"), "{}", said(&output));
}

#[test]
fn a_flag_that_does_not_exist_or_a_file_that_cannot_be_read() {
    let room = Room::new();
    assert_eq!(room.refusal(&["--conquer"]).status.code(), Some(2));
    let output = room.refusal(&["--config", "/does/not/exist"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("/does/not/exist"), "{}", said(&output));
}

#[test]
fn an_address_that_somebody_else_has() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Room::new().refusal(&["--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("EBusy"), "{}", said(&output));
}

#[test]
fn a_state_directory_that_another_process_has() {
    let room = Room::new();
    let _first = room.start(&[]);
    let output = room.refusal(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("EBusy") && said(&output).contains("--state-dir"), "{}", said(&output));
}

#[test]
fn help_names_every_flag_of_the_contract() {
    let output = Room::new().refusal(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in [
        "--standalone",
        "--node-id",
        "--listen",
        "--advertise",
        "--zookeeper",
        "--zookeeper-auth",
        "--session-timeout",
        "--state-dir",
        "--allow-path",
        "--allow-nbd",
        "--slots",
        "--retention",
        "--quiet-after",
        "--hooks-dir",
        "--fence-command",
        "--metrics",
        "--data-address",
        "--data-channel-interval",
        "--data-channel-timeout",
        "--vip",
        "--config",
        "--tls-cert",
        "--tls-key",
        "--tls-ca",
        "--roles",
        "--insecure",
        "--log",
    ] {
        assert!(help.split(|c: char| c.is_whitespace() || "[]<>,.=".contains(c)).any(|word| word == flag), "{flag}");
    }
}
