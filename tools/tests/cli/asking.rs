//! Tests the commands that call a task center: malformed flags exit with 2 without a call; refusals of the center exit
//! with 1 or 2, depending on the error, and print one line.

use blockhaul_control::config::RawConfig;
use blockhaul_control::node::{Node, Stop, StopHandle};
use blockhaul_testkit::scratch::Scratch;
use clap::Parser;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Every command with its arguments and flags.
const COMMANDS: [(&[&str], &[&str]); 15] = [
    (
        &["submit", "copy"],
        &[
            "SRC",
            "DST",
            "--id",
            "--node",
            "--limit",
            "--verify",
            "--overwrite",
            "--sparse",
            "--reflink",
            "--digest",
            "--fence",
            "--source-stable",
            "--dest-id",
            "--priority",
            "--max-attempts",
            "--wait",
        ],
    ),
    (&["submit", "noop"], &["DURATION", "--id", "--node", "--priority", "--max-attempts", "--wait"]),
    (&["get"], &["ID"]),
    (&["watch"], &["ID"]),
    (&["cancel"], &["ID"]),
    (&["pause"], &["ID"]),
    (&["resume"], &["ID"]),
    (&["remove"], &["ID"]),
    (&["set"], &["ID", "--limit"]),
    (&["list"], &["--state"]),
    (&["runners"], &[]),
    (&["drain"], &["NODE", "--now", "--undo"]),
    (&["fence"], &["NODE", "--confirm"]),
    (&["center"], &[]),
    (&["submit"], &["copy", "noop"]),
];

/// Flags of all commands that make a call.
const COMMON: [&str; 6] = ["--center", "--json", "--log", "--tls-cert", "--tls-key", "--tls-ca"];

#[test]
fn the_help_of_each_command_names_its_arguments() {
    let scratch = Scratch::new();
    for (command, flags) in COMMANDS {
        let output = scratch.blockhaul(&[command, &["--help"]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        let common = if command == ["submit"] { &[][..] } else { &COMMON[..] };
        for flag in flags.iter().chain(common) {
            let named = help.split(|c: char| c.is_whitespace() || "[]<>,.=|".contains(c)).any(|word| word == *flag);
            assert!(named, "{command:?} --help does not name {flag}:\n{help}");
        }
    }
}

/// Starts a server that sends `answer` to every client and closes; returns its address.
fn answering_server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let address = listener.local_addr().expect("it is bound").to_string();
    std::thread::spawn(move || {
        for mut caller in listener.incoming().flatten() {
            let _ = caller.read(&mut [0; 1024]);
            let _ = caller.write_all(answer);
        }
    });
    address
}

/// Returns the first line on stderr of a command that waits for the center at `address`.
fn first_line(address: &str) -> String {
    let scratch = Scratch::new();
    let mut command = scratch.process(&["get", "x", "--center", address]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program was built");
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().expect("it was asked for"));
    stderr.read_line(&mut line).expect("the pipe is ours");
    child.kill().expect("it is our child");
    child.wait().expect("it is our child");
    line
}

#[test]
fn a_waiting_command_says_at_once_why_it_waits_and_what_to_do() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("there are ports").local_addr().expect("it is bound");
    for (address, advice) in [
        (closed.to_string(), "no taskd listens there"),
        (answering_server(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "another HTTP server"),
        (answering_server(b"\x15\x03\x03\x00\x02\x02\x16"), "that address needs TLS: use --tls-cert"),
        (answering_server(b"SSH-2.0-OpenSSH_9.9\r\n"), "no task center"),
    ] {
        let line = first_line(&address);
        let begins = format!("blockhaul: waiting for the task center at {address}: ");
        assert!(line.starts_with(&begins) && line.contains(advice), "{advice}: {line}");
    }
}

#[test]
fn an_invalid_address_is_refused_before_any_call() {
    let scratch = Scratch::new();
    for address in ["host:90936", "host", "host:", "host:0", "::1:7400", "http://host:1", "a:1,b:x"] {
        let output = scratch.blockhaul(&["get", "x", "--center", address]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{address}: {stderr}");
        assert!(stderr.contains("EBadRequest: --center"), "{address}: {stderr}");
    }
}

#[test]
fn malformed_requests_exit_with_2_and_make_no_call() {
    let malformed: [&[&str]; 37] = [
        &["submit"],
        &["submit", "move", "a", "b"],
        &["submit", "copy"],
        &["submit", "copy", "a"],
        &["submit", "copy", "a", "b", "c"],
        &["submit", "copy", "a", "b", "--priority", "high"],
        &["submit", "copy", "a", "b", "--priority", "-1"],
        &["submit", "copy", "a", "b", "--max-attempts", "0"],
        &["submit", "copy", "a", "b", "--limit", "5MiB"],
        &["submit", "copy", "a", "b", "--limit", "0/s"],
        &["submit", "copy", "a", "b", "--no-such-flag"],
        &["submit", "copy", "a", "b", "--id"],
        &["submit", "noop", "soon"],
        &["submit", "noop", "5s", "--limit", "1MiB/s"],
        &["get"],
        &["get", "a", "b"],
        &["get", "a", "--state", "RUNNING"],
        &["watch"],
        &["cancel"],
        &["pause"],
        &["resume"],
        &["remove"],
        &["set"],
        &["set", "a"],
        &["set", "a", "--limit", "fast"],
        &["set", "a", "--limit", "0/s"],
        &["set", "--limit", "none"],
        &["list", "a"],
        &["list", "--state"],
        &["runners", "n1"],
        &["drain"],
        &["drain", "n1", "--now", "--undo"],
        &["fence"],
        &["fence", "n1"],
        &["center", "now"],
        &["status"],
        &["get", "a", "--log", "==="],
    ];
    let scratch = Scratch::new();
    for args in malformed {
        let output = scratch.blockhaul(args).env("BLOCKHAUL_CENTER", "127.0.0.1:1").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(stderr.starts_with("blockhaul: EBadRequest: "), "{args:?}: {stderr}");
    }
    for args in [&["get", "a", "--center", ""][..], &["get", "a", "--tls-key", "key.pem"]] {
        let output = scratch.blockhaul(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

/// A task center of one node in this process.
pub(crate) struct TestCenter {
    pub(crate) address: String,
    stopper: StopHandle,
    thread: Option<JoinHandle<()>>,
}

impl TestCenter {
    pub(crate) fn start(scratch: &Scratch, more: &[&str]) -> Self {
        let (state, volumes) = (scratch.path("center"), scratch.path("volumes"));
        std::fs::create_dir(&volumes).unwrap();
        let args = ["taskd", "--standalone", "--node-id", "n1", "--listen", "127.0.0.1:0", "--cores", "1"];
        let places = ["--state-dir", state.to_str().unwrap(), "--allow-path", volumes.to_str().unwrap()];
        let raw = RawConfig::try_parse_from(args.into_iter().chain(places).chain(more.iter().copied())).unwrap();
        let server = Node::new(raw.resolve(|_| None).unwrap());
        let stopper = server.stopper();
        let (send_address, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let ready = server.initialise().await.unwrap();
                send_address.send(ready.address().to_string()).unwrap();
                ready.run().await.unwrap();
            });
        });
        Self { address: address.recv().expect("it listens"), stopper, thread: Some(thread) }
    }
}

impl Drop for TestCenter {
    fn drop(&mut self) {
        self.stopper.stop(Stop::Drained);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the center has failed");
    }
}

#[test]
fn a_refusal_of_the_center_is_one_line_and_the_exit_code_of_its_error() {
    let scratch = Scratch::new();
    let center = TestCenter::start(&scratch, &[]);
    let (source, destination) = ("file://n1/volumes/a", "file://n1/volumes/b");
    let long = "x".repeat(65);
    let refused: [(&[&str], i32, &str); 31] = [
        (&["submit", "noop", "--id", "a/b"], 2, "EBadRequest"),
        (&["submit", "noop", "--id", &long], 2, "EBadRequest"),
        (&["submit", "noop", "--priority", "10"], 2, "EBadRequest"),
        (&["submit", "noop", "--max-attempts", "1001"], 2, "EBadRequest"),
        (&["submit", "noop", "--node", "a/b"], 2, "EBadRequest"),
        (&["submit", "noop", "9999h"], 2, "EBadRequest"),
        (&["submit", "copy", source, "ssh://h/b"], 1, "EUnsupported"),
        (&["submit", "copy", source, "nbd://"], 2, "EBadRequest"),
        (&["submit", "copy", source, source], 1, "ESameVolume"),
        (&["submit", "copy", source, "file://n2/volumes/b"], 2, "EBadRequest"),
        (&["submit", "copy", source, destination, "--fence", "moat"], 2, "EBadRequest"),
        (&["submit", "copy", source, destination, "--fence", "command"], 1, "EUnsupported"),
        (&["submit", "copy", source, destination, "--sparse", "maybe"], 2, "EBadRequest"),
        (&["submit", "copy", source, destination, "--reflink", "maybe"], 2, "EBadRequest"),
        (&["submit", "copy", source, destination, "--digest", "md5"], 2, "EBadRequest"),
        (&["submit", "copy", source, "nbd://127.0.0.1:1/x", "--fence", "local"], 2, "EBadRequest"),
        (&["submit", "copy", source, "nbd://127.0.0.1:1/x"], 2, "EBadRequest"),
        (&["submit", "copy", source, destination, "--dest-id", ""], 2, "EBadRequest"),
        (&["get", "unknown"], 1, "ENotFound"),
        (&["get", "a/b"], 2, "EBadRequest"),
        (&["watch", "unknown"], 1, "ENotFound"),
        (&["cancel", "unknown"], 1, "ENotFound"),
        (&["pause", "unknown"], 1, "ENotFound"),
        (&["resume", "unknown"], 1, "ENotFound"),
        (&["remove", "unknown"], 1, "ENotFound"),
        (&["set", "unknown", "--limit", "1MiB/s"], 1, "ENotFound"),
        (&["list", "--state", "SLEEPING"], 2, "EBadRequest"),
        (&["drain", "unknown"], 1, "ENotFound"),
        (&["drain", "unknown", "--undo"], 1, "ENotFound"),
        (&["drain", "a/b"], 2, "EBadRequest"),
        (&["fence", "a/b", "--confirm"], 2, "EBadRequest"),
    ];
    for (args, exit, code) in refused {
        let output = scratch.blockhaul(&[args, &["--center", &center.address]].concat()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        // The election may not be complete yet.
        let stderr = stderr.lines().filter(|line| !line.contains("no node leads at the moment"));
        let stderr = stderr.map(|line| format!("{line}\n")).collect::<String>();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let is_one_line = stderr.starts_with(&format!("blockhaul: {code}: ")) && stderr.lines().count() == 1;
        assert!(is_one_line, "{args:?}: {stderr}");
    }
    let ask = |args: &[&str]| {
        let output = scratch.blockhaul(&[args, &["--json", "--center", &center.address]].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(ask(&["list"]), (Some(0), String::new()), "no task was stored");
    assert_eq!(ask(&["submit", "noop", "--id", "x", "--wait"]).0, Some(0));
    for (args, exit) in [(&["pause", "x"][..], 1), (&["resume", "x"], 1), (&["set", "x", "--limit", "none"], 1)] {
        assert_eq!(ask(args).0, Some(exit), "{args:?}: a noop cannot be changed");
    }
    assert_eq!(ask(&["cancel", "x"]).0, Some(0), "cancelling an ended task shows its final state");
    assert_eq!(ask(&["fence", "unknown", "--confirm"]).0, Some(0), "no task depends on it");
    for args in [&["get", "x"][..], &["watch", "x"], &["list"], &["runners"], &["center"], &["drain", "n1"]] {
        let (code, stdout) = ask(args);
        assert_eq!(code, Some(0), "{args:?}: {stdout}");
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|value| value.is_object());
        assert!(stdout.lines().count() > 0 && stdout.lines().all(is_json), "{args:?}: {stdout}");
    }
    let (code, stdout) = ask(&["remove", "unknown", "x"]);
    assert!(
        code == Some(1) && stdout.contains("\"id\":\"x\""),
        "a missing task does not prevent removing another one: {stdout}"
    );
    assert_eq!(ask(&["get", "x"]).0, Some(1), "the task is removed");
}
