//! Tests that repeatedly lost connections leak no descriptors, threads or memory.

use crate::support::{
    Command, MIB, Offer, Peer, PeerScript, Reaction, Running, Seen, TestDirs, assert_same, assert_whole, noise,
};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Resources of a process.
#[derive(Clone, Copy, Debug)]
struct ProcessResources {
    descriptors: usize,
    threads: u64,
    resident_kib: u64,
}

impl ProcessResources {
    fn of(process: &Running) -> Self {
        let place = format!("/proc/{}", process.id());
        let status = std::fs::read_to_string(format!("{place}/status")).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel reports it");
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
        };
        let descriptors = std::fs::read_dir(format!("{place}/fd")).expect("it runs").count();
        Self { descriptors, threads: field("Threads:"), resident_kib: field("VmRSS:") }
    }

    /// Checks that the resources have not grown by more than a connection in progress takes.
    fn assert_like(self, before: Self) {
        assert!(self.descriptors <= before.descriptors + 12, "descriptors leak: {before:?}, then {self:?}");
        assert!(self.threads <= before.threads + 6, "threads leak: {before:?}, then {self:?}");
        assert!(self.resident_kib <= before.resident_kib + (16 << 10), "memory leaks: {before:?}, then {self:?}");
    }
}

fn connections(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| matches!(seen, Seen::Connected(_))).count()
}

/// The source closes every connection instead of replying to its second read.
#[test]
fn connections_lost_after_every_reply_leak_nothing() {
    const SIZE: usize = 2 * MIB;
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 1);
    let reads = AtomicU64::new(0);
    let script = PeerScript::on_request(move |request| match request.command {
        Command::Read if reads.fetch_add(1, SeqCst) % 2 == 1 => Reaction::Close,
        _ => Reaction::Correct,
    });
    let peer = Peer::start(&dirs, "peer", bytes.clone(), Offer::default(), script);
    let args = ["copy", &peer.uri(), "b", "--block-size", "64KiB", "--depth", "1", "--connections", "1"];
    let copying = dirs.start(&args);
    peer.wait_until("ten connections", |seen| connections(seen) > 10);
    let before = ProcessResources::of(&copying);
    peer.wait_until("twenty-five connections", |seen| connections(seen) > 25);
    ProcessResources::of(&copying).assert_like(before);
    assert_whole(&copying.end(), SIZE, "with a connection for every reply");
    assert_same(&dirs.read("b"), &bytes, "with a connection for every reply");
}
