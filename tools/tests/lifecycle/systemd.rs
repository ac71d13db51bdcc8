//! Tests the interface to the service manager: notifications over a real socket, the watchdog, and the hardened unit.

use crate::support::{Daemon, Notified, blockhaul, run, run_isolated};
use blockhaul_testkit::{Need, need};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Highest permitted exposure level of `systemd-analyze security`.
const EXPOSURE_MAX: f64 = 1.5;

fn unit() -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tools live one level below the root");
    root.join("packaging/systemd/taskd.service")
}

#[test]
fn systemd_is_notified_of_readiness_status_watchdog_and_stop() {
    run_isolated("systemd::systemd_is_notified_of_readiness_status_watchdog_and_stop", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        let manager = Notified::at(dir.path().join("notify"));
        let mut command = Daemon::command(dir.path(), &[]);
        command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "3000000");
        let mut daemon = Daemon::start(command, &dir.path().join("said"));
        let first = manager.wait_for("READY=1");
        assert!(first.len() == 1 && first[0].contains("STATUS="), "READY is in the first message: {first:?}");
        manager.wait_for("STATUS=leader; 0 of 4 tasks");
        manager.wait_for("WATCHDOG=1");
        manager.wait_for("WATCHDOG=1");
        daemon.signal(Signal::SIGSTOP);
        while manager.next(Duration::from_millis(200)).is_some() {}
        assert_eq!(manager.next(Duration::from_secs(3)), None, "a stopped process sends no watchdog message");
        daemon.signal(Signal::SIGCONT);
        manager.wait_for("WATCHDOG=1");
        daemon.signal(Signal::SIGTERM);
        let last = manager.wait_for("STOPPING=1");
        assert!(last.last().unwrap().contains("STATUS=stopping"), "{last:?}");
        assert_eq!(daemon.ended(), Some(0));
    });
}

#[test]
fn without_a_watchdog_no_watchdog_message_is_sent() {
    run_isolated("systemd::without_a_watchdog_no_watchdog_message_is_sent", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        let manager = Notified::at(dir.path().join("notify"));
        let mut command = Daemon::command(dir.path(), &[]);
        command.env("NOTIFY_SOCKET", &manager.path);
        let mut daemon = Daemon::start(command, &dir.path().join("said"));
        manager.wait_for("STATUS=leader");
        daemon.signal(Signal::SIGTERM);
        let all = manager.wait_for("STOPPING=1");
        assert!(!all.iter().any(|message| message.contains("WATCHDOG")), "{all:?}");
        assert_eq!(daemon.ended(), Some(0));
    });
}

#[test]
fn restarts_are_counted_and_shown() {
    run_isolated("systemd::restarts_are_counted_and_shown", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        for restarts in 0..3 {
            let mut daemon = Daemon::alone(dir.path(), &["--listen", "127.0.0.1:7400"]);
            let shows = |what: &str| {
                let output = Command::new(blockhaul()).args([what, "--json"]).output().unwrap();
                let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                line["restarts"] == restarts
            };
            crate::support::wait_until("the commands show the restarts", || shows("center") && shows("runners"));
            // A start after a crash counts as well.
            if restarts == 0 { daemon.kill() } else { assert_eq!(daemon.stop(), Some(0)) }
        }
    });
}

/// Needs Debian's package `systemd`.
#[test]
fn the_unit_is_hardened_and_never_reaches_a_start_limit() {
    let text = std::fs::read_to_string(unit()).expect("the unit is part of the repository");
    let has = |line: &str| text.lines().any(|found| found.trim() == line);
    for line in ["Type=notify", "StartLimitIntervalSec=0", "Restart=on-failure", "User=blockhaul", "LimitCORE=0"] {
        assert!(has(line), "{line}");
    }
    assert!(text.lines().any(|line| line.starts_with("WatchdogSec=")), "{text}");
    need!("the_unit_is_hardened_and_never_reaches_a_start_limit", &[Need::Program("systemd-analyze")]);
    let output = Command::new("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]).arg(unit()).output();
    let output = output.expect("it is installed");
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict = log.lines().find_map(|line| line.split("Overall exposure level for taskd.service:").nth(1));
    let verdict = verdict.unwrap_or_else(|| panic!("{log}{}", String::from_utf8_lossy(&output.stderr)));
    let exposure: f64 =
        verdict.split_whitespace().next().and_then(|number| number.parse().ok()).expect("it is a number");
    println!("exposure: {exposure}");
    assert!(exposure <= EXPOSURE_MAX, "{exposure} is more than {EXPOSURE_MAX}:\n{log}");
}
