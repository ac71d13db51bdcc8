//! Tests signals in the middle of a copy, and a destination that is replaced while a copy waits for it.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, need, noise, outcome, recorded, text, write_sparse};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

const SIZE: usize = 12 * MIB + 4097;
const ARGS: [&str; 11] = [
    "copy",
    "a",
    "b",
    "--block-size",
    "64KiB",
    "--checkpoint-every",
    "512KiB",
    "--reflink",
    "never",
    "--limit",
    "24MiB/s",
];

fn source_in(dir: &TestDir) -> Vec<u8> {
    let source = mixed(SIZE, 141);
    write_sparse(&dir.path("a"), &source);
    source
}

#[test]
fn a_second_signal_ends_the_copy_at_once_and_it_can_be_resumed() {
    let dir = TestDir::new();
    let source = source_in(&dir);
    let mut copying = dir.start(&ARGS);
    copying.until(recorded);
    // Both are pending when the process continues; two of one kind would be merged.
    copying.signal(Signal::SIGSTOP);
    copying.signal(Signal::SIGTERM);
    copying.signal(Signal::SIGINT);
    copying.signal(Signal::SIGCONT);
    let (ended, status) = copying.end_with_status();
    let at_once = matches!(status.signal(), Some(2 | 6 | 15));
    assert!(
        at_once || status.code() == Some(75),
        "the copy drains before the second signal, or the signal ends it: {ended:#?}"
    );
    let resumed = dir.blockhaul(&["copy", "a", "b", "--resume"]);
    resumed.assert_done();
    assert!(resumed.bytes("resumed") > 0, "{resumed:#?}");
    assert_same(&dir.read("b"), &source, "the copy");
}

#[test]
fn a_signal_while_waiting_for_the_lock_touches_nothing() {
    let dir = TestDir::new();
    let _source = source_in(&dir);
    let held = File::options().read(true).write(true).create_new(true).open(dir.path("b")).expect("it is new");
    let _held = Flock::lock(held, FlockArg::LockExclusive).expect("no other process holds it");
    let mut waiting = dir.start(&[&ARGS[..], &["--lock-wait", "60s"]].concat());
    waiting.until(|_| true);
    waiting.signal(Signal::SIGTERM);
    let stopped = waiting.end();
    assert_eq!(stopped.code, Some(75), "{stopped:#?}");
    assert_eq!(stopped.error_code(), "ERunnerInterrupt");
    assert!(dir.read("b").is_empty() && dir.checkpoint_path().is_none(), "nothing was touched");
}

#[test]
fn the_printed_command_resumes_after_each_of_two_interrupts() {
    let dir = TestDir::new();
    // No zeros, which take no time.
    let source = noise(16 * MIB + 1, 143);
    dir.file("a", &source);
    let mut copying = dir.start(&[&ARGS[..9], &["--limit", "8MiB/s"]].concat());
    let mut before = 0;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        copying.until(|line| line["durable"].as_u64() > Some(before));
        copying.signal(signal);
        let stopped = copying.end();
        assert_eq!(stopped.code, Some(75), "{stopped:#?}");
        assert!(stopped.bytes("durable") >= stopped.bytes("resumed"), "{stopped:#?}");
        before = stopped.bytes("durable");
        let line = stopped.stderr.lines().find(|line| line.contains(" copy --resume ")).expect("it is printed");
        let mut shell = dir.command(Path::new("sh"), &["-c", &format!("exec {}", line.trim())]);
        copying = crate::support::Running::spawn(&mut shell);
        let first = copying.until(|line| line["planned"].as_u64() > Some(0));
        assert!(first["durable"].as_u64() >= Some(before), "durable bytes stay durable: {first}");
    }
    copying.end().assert_done();
    assert_same(&dir.read("b"), &source, "the copy");
}

#[test]
fn progress_of_a_resumed_copy_never_falls() {
    let dir = TestDir::new();
    let source = source_in(&dir);
    let mut copying = dir.start(&ARGS);
    copying.until(recorded);
    copying.crash();
    let resumed = dir.blockhaul(&[&ARGS[..], &["--resume", "--verify"]].concat());
    resumed.assert_done();
    let mut before = [0; 4];
    for line in resumed.lines.iter().filter(|line| line["event"] == "progress") {
        let now = ["issued", "written", "durable", "verified"].map(|field| line[field].as_u64().expect("a number"));
        assert!(now[0] >= now[1] && now[1] >= now[2], "{line}");
        assert!(now.iter().zip(before).all(|(now, before)| *now >= before), "{line} after {before:?}");
        before = now;
    }
    assert_eq!(before, [SIZE as u64; 4]);
    assert_same(&dir.read("b"), &source, "the copy");
}

#[test]
fn a_destination_replaced_between_open_and_lock_is_looked_up_again() {
    let dir = TestDir::new();
    let source = source_in(&dir);
    let old = File::options().read(true).write(true).create_new(true).open(dir.path("b")).expect("it is new");
    let held = Flock::lock(old, FlockArg::LockExclusive).expect("no other process holds it");
    let mut waiting = dir.start(&["copy", "a", "b", "--lock-wait", "60s", "--reflink", "never"]);
    // The copy has opened the old file once it waits for the lock.
    let open = format!("/proc/{}/fd", waiting.id());
    let has_opened = || {
        let open = std::fs::read_dir(&open).into_iter().flatten().flatten();
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|path| path == dir.path("b"))
    };
    waiting.until(|_| has_opened());
    dir.file("new", b"");
    std::fs::rename(dir.path("new"), dir.path("b")).expect("both are there");
    let mut old = held.unlock().expect("it is ours");
    waiting.end().assert_done();
    assert_same(&dir.read("b"), &source, "the copy is in the file of that name");
    let mut left = Vec::new();
    std::io::Read::read_to_end(&mut old, &mut left).expect("it is still open");
    assert!(left.is_empty(), "the unlinked file was not written");
}

#[test]
fn a_device_in_use_is_busy() {
    need!("a_device_in_use_is_busy", &[Need::Root, Need::LoopDevices, Need::Filesystem("ext4")]);
    let dir = TestDir::new();
    dir.file("a", &noise(MIB, 142));
    let image = dir.image("disk", "ext4", 32 << 20);
    let before = dir.read("disk");
    let device = dir.loop_device(&image, 512);
    crate::support::run("mount", &["-o", "ro", text(&device), text(&dir.mount_point("mounted"))]);
    let mut busy = dir.command(&crate::support::program(), &["copy", "a", text(&device), "--overwrite", "--json"]);
    outcome(&busy.output().expect("it was built")).assert_failed(1, "EBusy");
    dir.unmount(&dir.path("mounted"));
    assert!(dir.read("disk") == before, "nothing was written");
}
