//! Tests servers that crash, disappear, return with another export, or stop replying, in the middle of a copy.

use crate::support::{
    Export, Kind, MIB, Need, Offer, Outcome, Peer, PeerScript, Proxy, Running, SeededRandom, Server, Store, TestDirs,
    assert_all_there, assert_same, assert_whole, content, iterations, mixed, moving, need, noise, recorded, text, wire,
};
use std::time::Duration;

const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program("nbdkit"),
    Need::Program("nbdcopy"),
    Need::Program("qemu-nbd"),
    Need::Program("setpriv"),
];
const SIZE: usize = 8 * MIB;
/// Flags of a copy that is slow enough to be disturbed in the middle.
const SLOWLY: [&str; 6] = ["--limit", "6MiB/s", "--block-size", "64KiB", "--checkpoint-every", "512KiB"];

fn start(dirs: &TestDirs, source: &str, destination: &str, flags: &[&str]) -> Running {
    dirs.start(&[&["copy", source, destination, "--overwrite"], &SLOWLY[..], flags].concat())
}

/// Tells whether a third is written.
fn a_third(progress: &serde_json::Value) -> bool {
    progress["written"].as_u64() > Some(SIZE as u64 / 3)
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Checks that the copy failed with an unreachable server and prints how to resume.
fn assert_unreachable(failed: &Outcome, side: &str) {
    failed.assert_failed(1, "EUnreachable");
    assert_eq!(failed.report()["error"]["side"], side, "{failed:#?}");
    assert!(failed.stderr.contains(" copy --resume "), "the command to resume is printed: {failed:#?}");
}

/// Checks that a copy survives if servers of this kind are killed and restarted on both sides, in turn.
fn survives_restarts(test: &str, kind: Kind) {
    need!(test, &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 1);
    let mut source = Export::with(&dirs, "source", kind, &bytes);
    let mut destination = Export::full_of_old_data(&dirs, "destination", kind, SIZE);
    let mut copying = start(&dirs, &source.uri(), &destination.uri(), &[]);
    copying.until(moving);
    destination.server.kill();
    pause(300);
    destination.server.restart();
    copying.until(a_third);
    source.server.kill();
    pause(100);
    source.server.restart();
    let copied = copying.end();
    match kind {
        Kind::NbdkitFileOneConnection => assert_whole(&copied, SIZE, test),
        // Of several connections only the first to break was certainly closed by the server.
        _ => assert_all_there(&copied, SIZE, test),
    }
    assert_same(&destination.content(), &bytes, test);
}

#[test]
fn nbdkit_killed_and_restarted_on_either_side() {
    survives_restarts("nbdkit_killed_and_restarted_on_either_side", Kind::NbdkitFile);
}

#[test]
fn nbdkit_of_one_connection_killed_and_restarted_on_either_side() {
    let test = "nbdkit_of_one_connection_killed_and_restarted_on_either_side";
    survives_restarts(test, Kind::NbdkitFileOneConnection);
}

#[test]
fn qemu_killed_and_restarted_on_either_side() {
    survives_restarts("qemu_killed_and_restarted_on_either_side", Kind::QemuRaw);
}

#[test]
fn nbd_server_killed_and_restarted_on_either_side() {
    need!("nbd_server_killed_and_restarted_on_either_side", &[Need::Program("nbd-server"), Need::Program("unshare")]);
    survives_restarts("nbd_server_killed_and_restarted_on_either_side", Kind::NbdServer);
}

#[test]
fn a_copy_survives_a_crash_of_both_servers_at_once() {
    need!("a_copy_survives_a_crash_of_both_servers_at_once", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 2);
    let mut source = Export::with(&dirs, "source", Kind::NbdkitFile, &bytes);
    let mut destination = Export::full_of_old_data(&dirs, "destination", Kind::QemuRaw, SIZE);
    let mut copying = start(&dirs, &source.uri(), &destination.uri(), &[]);
    copying.until(moving);
    source.server.kill();
    destination.server.kill();
    pause(500);
    destination.server.restart();
    source.server.restart();
    assert_all_there(&copying.end(), SIZE, "both at once");
    assert_same(&destination.content(), &bytes, "both at once");
}

#[test]
fn a_copy_survives_a_server_that_exits_with_its_last_client() {
    need!("a_copy_survives_a_server_that_exits_with_its_last_client", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 3);
    let image = dirs.file("source.img", &bytes);
    let file = format!("file={}", text(&image));
    let mut server = Server::nbdkit(&dirs, "source", &["--filter=exitlast", "file", &file]);
    let proxy = Proxy::to(server.address());
    let mut copying = start(&dirs, &proxy.uri(""), "b", &[]);
    copying.until(moving);
    proxy.cut();
    server.restart();
    assert_whole(&copying.end(), SIZE, "a server that exits");
    assert_same(&dirs.read("b"), &bytes, "a server that exits");
}

/// Copies to a peer that is killed at moments that `seed` chooses and loses unflushed writes each time. Returns the
/// bytes lost.
fn copy_to_lossy_server(multi_conn: bool, flags: &[&str], seed: u64) -> u64 {
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, seed);
    dirs.file("a", &bytes);
    let offer = Offer { multi_conn, ..Offer::default() };
    let store = Store::new(noise(SIZE, 99), multi_conn, seed);
    let mut peer = Peer::over(&dirs, "peer", store, offer, PeerScript::default());
    let mut random = SeededRandom::new(seed);
    let mut copying = start(&dirs, "a", &peer.uri(), flags);
    copying.until(moving);
    for _ in 0..3 {
        pause(random.below(250));
        peer.kill();
        pause(random.below(60));
        peer.restart();
    }
    let what = format!("seed {seed}, multi_conn {multi_conn}, {flags:?}");
    assert_all_there(&copying.end(), SIZE, &what);
    peer.assert_no_violations();
    // After a success the data must survive the next crash as well.
    assert_same(peer.store().durable(), &bytes, &what);
    peer.store().lost()
}

#[test]
fn acknowledged_writes_that_a_server_lost_are_copied_again() {
    let mut lost = 0;
    for seed in 0..iterations("BLOCKHAUL_FORGETFUL", 2) {
        lost += copy_to_lossy_server(true, &[], 3 * seed + 1);
        // Without checkpoints there is one flush at the end, so a crash may lose everything.
        lost += copy_to_lossy_server(false, &["--no-checkpoint"], 3 * seed + 2);
        lost += copy_to_lossy_server(false, &["--connections", "4"], 3 * seed + 3);
    }
    assert!(lost > 0, "no crash has lost data: the test proves nothing");
}

#[test]
fn a_flush_counts_on_its_own_connection_only() {
    // The store makes only the writes of the flush's own connection durable.
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 4);
    dirs.file("a", &bytes);
    let offer = Offer { multi_conn: false, ..Offer::default() };
    let peer = Peer::start(&dirs, "peer", noise(SIZE, 99), offer, PeerScript::default());
    let args = ["copy", "a", &peer.uri(), "--overwrite", "--connections", "4", "--checkpoint-every", "1MiB"];
    assert_whole(&dirs.blockhaul(&args), SIZE, "without CAN_MULTI_CONN");
    assert_same(peer.store().durable(), &bytes, "without CAN_MULTI_CONN");
}

#[test]
fn a_copy_resumes_after_a_crash_of_both_the_server_and_the_copy() {
    for seed in 0..2 {
        let dirs = TestDirs::new();
        let bytes = mixed(SIZE, 5 + seed);
        dirs.file("a", &bytes);
        let store = Store::new(noise(SIZE, 99), true, seed);
        let mut peer = Peer::over(&dirs, "peer", store, Offer::default(), PeerScript::default());
        let mut copying = start(&dirs, "a", &peer.uri(), &[]);
        copying.until(recorded);
        pause(40 * seed);
        // In this order the checkpoint is older than the writes that the server loses.
        copying.crash();
        peer.kill();
        peer.restart();
        let resumed = dirs.blockhaul(&["copy", "a", &peer.uri(), "--resume"]);
        assert_whole(&resumed, SIZE, "resumed");
        assert!(resumed.bytes("resumed") > 0, "{resumed:#?}");
        assert_same(peer.store().durable(), &bytes, "the durable data after the crash");
    }
}

#[test]
fn a_destination_that_stays_unreachable_leaves_a_checkpoint_to_resume() {
    need!("a_destination_that_stays_unreachable_leaves_a_checkpoint_to_resume", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 6);
    dirs.file("a", &bytes);
    let mut destination = Export::full_of_old_data(&dirs, "destination", Kind::NbdkitFile, SIZE);
    let mut copying = start(&dirs, "a", &destination.uri(), &["--retry-for", "2s"]);
    copying.until(|progress| a_third(progress) && recorded(progress));
    destination.server.kill();
    let failed = copying.end();
    assert_unreachable(&failed, "destination");
    let durable = failed.bytes("durable");
    assert!(durable > 0 && durable < SIZE as u64, "{failed:#?}");
    assert!(dirs.checkpoint().is_some(), "the checkpoint is kept: {failed:#?}");

    destination.server.restart();
    let resumed = dirs.blockhaul(&["copy", "a", &destination.uri(), "--resume", "--block-size", "64KiB"]);
    assert_whole(&resumed, SIZE, "resumed");
    assert_eq!(resumed.bytes("resumed"), durable, "{resumed:#?}");
    assert_eq!(resumed.bytes("read"), SIZE as u64 - durable, "only what was missing: {resumed:#?}");
    assert_same(&destination.content(), &bytes, "resumed");
}

#[test]
fn a_source_that_stays_unreachable_leaves_a_checkpoint_to_resume() {
    need!("a_source_that_stays_unreachable_leaves_a_checkpoint_to_resume", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 7);
    let mut source = Export::with(&dirs, "source", Kind::QemuQcow2, &bytes);
    let mut copying = start(&dirs, &source.uri(), "b", &["--retry-for", "1s"]);
    copying.until(|progress| a_third(progress) && recorded(progress));
    source.server.kill();
    let failed = copying.end();
    assert_unreachable(&failed, "source");
    assert_eq!(failed.report()["quiesced"], true, "its destination is a file: {failed:#?}");
    source.server.restart();
    let resumed = dirs.blockhaul(&["copy", &source.uri(), "b", "--resume"]);
    assert_whole(&resumed, SIZE, "resumed");
    assert_eq!(resumed.bytes("resumed"), failed.bytes("durable"), "{resumed:#?}");
    assert_same(&dirs.read("b"), &bytes, "resumed");
}

/// Stalls the open connections on one side of a copy. Uses QEMU's server: nbdkit 1.32 fails an assertion when a client
/// disconnects in the middle of its replies.
fn survives_a_stall(test: &str, as_source: bool) {
    need!(test, &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 8);
    dirs.file("a", &bytes);
    let export = if as_source {
        Export::with(&dirs, "export", Kind::QemuRaw, &bytes)
    } else {
        Export::full_of_old_data(&dirs, "export", Kind::QemuRaw, SIZE)
    };
    let proxy = Proxy::to(export.server.address());
    let uri = proxy.uri("");
    let (source, destination) = if as_source { (uri.as_str(), "b") } else { ("a", uri.as_str()) };
    let mut copying = start(&dirs, source, destination, &["--request-timeout", "1s"]);
    copying.until(moving);
    let before = proxy.connections();
    proxy.stall_open();
    copying.until(a_third);
    assert!(proxy.connections() > before, "new connections took over");
    let copied = copying.end();
    assert_all_there(&copied, SIZE, test);
    // Abandoned writes are still in flight; abandoned reads are harmless.
    assert_eq!(copied.report()["quiesced"], as_source, "{test}: {copied:#?}");
    proxy.resume();
    pause(100);
    let found = if as_source { dirs.read("b") } else { export.content() };
    assert_same(&found, &bytes, test);
}

#[test]
fn a_stalled_connection_to_the_source_is_replaced() {
    survives_a_stall("a_stalled_connection_to_the_source_is_replaced", true);
}

#[test]
fn a_stalled_connection_to_the_destination_is_replaced() {
    survives_a_stall("a_stalled_connection_to_the_destination_is_replaced", false);
}

#[test]
fn a_copy_survives_a_path_that_stalls_and_resumes() {
    need!("a_copy_survives_a_path_that_stalls_and_resumes", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 9);
    dirs.file("a", &bytes);
    let export = Export::full_of_old_data(&dirs, "export", Kind::QemuRaw, SIZE);
    let proxy = Proxy::to(export.server.address());
    let mut copying = start(&dirs, "a", &proxy.uri(""), &["--request-timeout", "1s"]);
    copying.until(moving);
    proxy.stall();
    pause(1500);
    // Requests that were held back on the old connections arrive late and must do no harm.
    proxy.resume();
    assert_all_there(&copying.end(), SIZE, "a path that resumes");
    assert_same(&export.content(), &bytes, "a path that resumes");
}

#[test]
fn a_copy_survives_a_path_that_is_cut_repeatedly() {
    need!("a_copy_survives_a_path_that_is_cut_repeatedly", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 10);
    let source = Export::with(&dirs, "source", Kind::QemuRaw, &bytes);
    let destination = Export::full_of_old_data(&dirs, "destination", Kind::QemuRaw, SIZE);
    let (one, two) = (Proxy::to(source.server.address()), Proxy::to(destination.server.address()));
    let mut copying = start(&dirs, &one.uri(""), &two.uri(""), &[]);
    copying.until(moving);
    let mut random = SeededRandom::new(10);
    for round in 0..6 {
        pause(random.below(150));
        if round % 2 == 0 { one.cut() } else { two.cut() }
    }
    assert_all_there(&copying.end(), SIZE, "cut again and again");
    assert_same(&content(&destination.uri()), &bytes, "cut again and again");
}

/// Checks that the copy ends if the export differs after an outage.
fn assert_change_ends_copy(what: &str, side: &str, change: impl Fn(&Peer)) {
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 11));
    let is_source = side == "source";
    let mut peer = Peer::start(&dirs, "peer", noise(SIZE, 12), Offer::default(), PeerScript::default());
    let uri = peer.uri();
    let (source, destination) = if is_source { (uri.as_str(), "b") } else { ("a", uri.as_str()) };
    let mut copying = start(&dirs, source, destination, &["--retry-for", "5s"]);
    copying.until(moving);
    peer.kill();
    change(&peer);
    peer.restart();
    let failed = copying.end();
    assert_eq!(failed.code, Some(1), "{what}: {failed:#?}");
    let code = failed.error_code().as_str().unwrap_or_default();
    let named = ["EProtocol", "ESourceChanged", "ESizeMismatch", "EReadOnly", "ECheckpointMismatch", "EUnsupported"];
    assert!(named.contains(&code), "{what}: {failed:#?}");
    assert_eq!(failed.report()["error"]["side"], side, "{what}: {failed:#?}");
}

#[test]
fn an_export_that_comes_back_with_another_size_ends_the_copy() {
    assert_change_ends_copy("a longer source", "source", |peer| peer.store().resize(SIZE + 4096));
    assert_change_ends_copy("a shorter source", "source", |peer| peer.store().resize(SIZE - 4096));
    assert_change_ends_copy("a longer destination", "destination", |peer| peer.store().resize(SIZE + 4096));
    assert_change_ends_copy("a shorter destination", "destination", |peer| peer.store().resize(SIZE - 4096));
}

#[test]
fn an_export_that_comes_back_with_other_flags_ends_the_copy() {
    let read_only = Offer { further_flags: wire::can::READ_ONLY, ..Offer::default() };
    assert_change_ends_copy("read-only", "destination", |peer| peer.offer(read_only));
    let inconsistent = Offer { multi_conn: false, ..Offer::default() };
    assert_change_ends_copy("without CAN_MULTI_CONN", "destination", |peer| peer.offer(inconsistent));
    assert_change_ends_copy("without CAN_MULTI_CONN", "source", |peer| peer.offer(inconsistent));
}

#[test]
fn a_copy_without_sync_is_complete_after_a_crash_of_the_server() {
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 14);
    dirs.file("a", &bytes);
    let store = Store::new(noise(SIZE, 99), true, 14);
    let mut peer = Peer::over(&dirs, "peer", store, Offer::default(), PeerScript::default());
    let mut copying = start(&dirs, "a", &peer.uri(), &["--no-sync"]);
    copying.until(a_third);
    peer.kill();
    peer.restart();
    let copied = copying.end();
    copied.assert_done();
    assert_eq!(copied.bytes("durable"), 0, "{copied:#?}");
    assert!(peer.store().lost() > 0, "the crash has lost no data: the test proves nothing");
    assert_same(&content(&peer.uri()), &bytes, "without a flush");
}

#[test]
fn a_verification_survives_a_crash_of_the_server() {
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 15);
    let mut source = Peer::start(&dirs, "source", bytes.clone(), Offer::default(), PeerScript::default());
    let mut destination = Peer::start(&dirs, "destination", vec![0; SIZE], Offer::default(), PeerScript::default());
    let mut copying = start(&dirs, &source.uri(), &destination.uri(), &["--verify"]);
    copying.until(|progress| progress["verified"].as_u64() > Some(0));
    destination.kill();
    destination.restart();
    source.kill();
    source.restart();
    let copied = copying.end();
    assert_whole(&copied, SIZE, "read back");
    assert_eq!(copied.bytes("verified"), SIZE as u64, "{copied:#?}");
    assert_same(destination.store().durable(), &bytes, "read back");
}

#[test]
fn a_comparison_survives_crashes_of_the_servers() {
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 16);
    let mut flipped = bytes.clone();
    flipped[SIZE - 7] ^= 1;
    for (other, exit) in [(bytes.clone(), 0), (flipped, 3)] {
        let mut one = Peer::start(&dirs, "one", bytes.clone(), Offer::default(), PeerScript::default());
        let mut two = Peer::start(&dirs, "two", other, Offer::default(), PeerScript::default());
        let mut comparing = dirs.start(&["verify", &one.uri(), &two.uri(), "--limit", "6MiB/s"]);
        comparing.until(|progress| progress["verified"].as_u64() > Some(SIZE as u64 / 4));
        one.kill();
        one.restart();
        pause(200);
        two.kill();
        two.restart();
        let compared = comparing.end();
        assert_eq!(compared.code, Some(exit), "{compared:#?}");
    }
}

#[test]
fn progress_never_falls_over_an_outage() {
    let dirs = TestDirs::new();
    let bytes = noise(SIZE, 13);
    dirs.file("a", &bytes);
    let mut peer = Peer::start(&dirs, "peer", vec![0; SIZE], Offer::default(), PeerScript::default());
    // Nothing is flushed before the crash, so everything must be copied again.
    let mut copying = dirs.start(&["copy", "a", &peer.uri(), "--limit", "6MiB/s", "--block-size", "64KiB"]);
    copying.until(a_third);
    peer.kill();
    peer.restart();
    let copied = copying.end();
    assert_all_there(&copied, SIZE, "over an outage");
    let mut before = [0; 4];
    for line in copied.lines.iter().filter(|line| line["event"] == "progress") {
        let now = ["issued", "written", "durable", "verified"].map(|field| line[field].as_u64().expect("a number"));
        assert!(now[0] >= now[1] && now[1] >= now[2], "{line}");
        assert!(now.iter().zip(before).all(|(now, before)| *now >= before), "{line} after {before:?}");
        assert!(now.iter().all(|&now| now <= SIZE as u64), "{line}");
        before = now;
    }
    assert_same(peer.store().durable(), &bytes, "over an outage");
}
