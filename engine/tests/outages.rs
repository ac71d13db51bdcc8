//! Goal: an outage at the worst moment neither holds up a job for ever nor lets bytes count that are gone. Method: a
//! server that does with each request what the test says. Each of these has hung, or copied wrongly, once.

mod scripted;

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::Code;
use blockhaul_engine::job::StopReason;
use blockhaul_engine::nbd::NbdUri;
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::{BlockSize, CheckpointLocation, CopySpec, NetworkTerms, Overwrite, Reference, VerifySpec};
use blockhaul_engine::volume::Locator;
use blockhaul_testkit::need;
use scripted::{Act, FLUSH, READ, Request, STATUS, Server, WRITE, ZERO};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn engine(cores: usize) -> Result<Engine, String> {
    let engine = Engine::start(EngineConfig { cores: Some(cores), ..EngineConfig::default() });
    engine.map_err(|error| format!("{cores} cores: {error}"))
}

fn export(server: &Server) -> Locator {
    Locator::Nbd(NbdUri::parse(&server.uri()).unwrap())
}

fn copy(source: Locator, destination: Locator, seconds: u64) -> CopySpec {
    let seconds = Duration::from_secs(seconds);
    let network = NetworkTerms { retry_for: seconds, request_timeout: seconds, ..NetworkTerms::default() };
    let block_size = Some(BlockSize::new(256 << 10).unwrap());
    CopySpec { network, block_size, checkpoint: CheckpointLocation::None, ..CopySpec::new(source, destination) }
}

/// Bytes that differ from place to place.
fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| (at % 251) as u8 + 1).collect()
}

fn file(path: &Path, content: &[u8]) -> Locator {
    fs::write(path, content).unwrap();
    path.into()
}

/// Reads, and everything is data.
fn plain(request: &Request) -> Act {
    match request.command {
        STATUS => Act::Extents(vec![(request.len, 0)]),
        READ => Act::Done(bytes(request.offset..request.offset + u64::from(request.len))),
        _ => Act::Done(Vec::new()),
    }
}

#[test]
fn a_worker_that_waits_for_a_session_gets_one_in_every_order() {
    let engine = need!("a_worker_that_waits_for_a_session_gets_one_in_every_order", engine(2));
    let folder = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    let size = 128 * MIB;
    let server = Server::start(
        folder.path(),
        "s",
        size,
        |_, _| true,
        move |request| {
            // Every now and then all connections are lost at once, also those that were just made.
            if count.fetch_add(1, SeqCst) % 24 == 23 { Act::CutAll } else { plain(request) }
        },
    );
    let to = folder.path().join("copy");
    let report = engine.submit(copy(export(&server), to.as_path().into(), 20)).wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert!(fs::read(to).unwrap() == bytes(0..size));
}

#[test]
fn a_server_that_accepts_fewer_connections_ends_the_job_in_time() {
    let engine = need!("a_server_that_accepts_fewer_connections_ends_the_job_in_time", engine(2));
    let folder = tempfile::tempdir().unwrap();
    let lets_in = |number, open| number < 2 || open < 1;
    let server = Server::start(folder.path(), "s", 256 * MIB, lets_in, |request| {
        std::thread::sleep(Duration::from_millis(2));
        plain(request)
    });
    let job = engine.submit(copy(export(&server), folder.path().join("copy").as_path().into(), 2));
    while job.progress().written == 0 {
        std::thread::yield_now();
    }
    server.cut_all();
    let report = job.wait();
    let code = report.error.as_ref().map(|error| error.code);
    assert!(report.status == Status::Succeeded || code == Some(Code::Unreachable), "{report:?}");
}

#[test]
fn zeros_that_a_restarted_server_lost_are_not_skipped_by_an_old_block_status() {
    let engine = need!("zeros_that_a_restarted_server_lost_are_not_skipped_by_an_old_block_status", engine(1));
    let folder = tempfile::tempdir().unwrap();
    let (size, first) = (1024 * MIB, 256 * MIB);
    let source = folder.path().join("hole");
    File::create(&source).unwrap().set_len(size).unwrap();
    // Before the restart: every second MiB of the first window is zeros, and all of the rest. After it: nothing is.
    let (zeroed, since) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let seen = Arc::clone(&since);
    let server = Server::start(
        folder.path(),
        "d",
        size,
        |_, _| true,
        move |request| {
            let is_new = zeroed.load(SeqCst) >= 20;
            match request.command {
                STATUS if is_new => Act::Extents(vec![(request.len, 0)]),
                STATUS if request.offset < first => {
                    let count = (first - request.offset).min(request.len.into()) / MIB;
                    Act::Extents((0..count as u32).map(|at| (MIB as u32, if at % 2 == 0 { 3 } else { 0 })).collect())
                }
                STATUS => Act::Extents(vec![(request.len, 3)]),
                ZERO => {
                    std::thread::sleep(Duration::from_millis(10));
                    if zeroed.fetch_add(1, SeqCst) == 19 {
                        return Act::CutAll;
                    }
                    if request.offset >= first {
                        since.fetch_add(request.len.into(), SeqCst);
                    }
                    Act::Done(Vec::new())
                }
                READ => Act::Done(vec![0; request.len as usize]),
                _ => Act::Done(Vec::new()),
            }
        },
    );
    // Allocated zeros could be data.
    let spec = CopySpec { overwrite: Overwrite::Yes, ..copy(source.as_path().into(), export(&server), 20) };
    let report = engine.submit(spec).wait();
    assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    assert!(seen.load(SeqCst) >= size - first, "only {} bytes were zeroed anew", seen.load(SeqCst));
}

/// Content of a server that loses unflushed writes.
#[derive(Default)]
struct Disk {
    cache: Vec<u8>,
    stable: Vec<u8>,
    /// Connections before this one are to a server that is gone, and gets nothing through any more.
    first: usize,
    restarted: bool,
    written: u64,
}

#[test]
fn a_flush_over_a_later_connection_does_not_cover_writes_of_an_earlier_one() {
    let engine = need!("a_flush_over_a_later_connection_does_not_cover_writes_of_an_earlier_one", engine(2));
    let folder = tempfile::tempdir().unwrap();
    let size = 32 * MIB;
    let content = bytes(0..size);
    let source = file(&folder.path().join("source"), &content);
    let empty = vec![0; size as usize];
    let disk = Arc::new(Mutex::new(Disk { cache: empty.clone(), stable: empty, ..Disk::default() }));
    let (door, inside) = (Arc::clone(&disk), Arc::clone(&disk));
    // Of the first two connections one has written and is lost; the next one writes; later ones reach a new server.
    let lets_in = move |number, _| {
        let disk = &mut *door.lock().unwrap();
        if number >= 3 && !disk.restarted {
            disk.restarted = true;
            disk.first = number;
            disk.cache = disk.stable.clone();
        }
        // Time for the one before it to write, which it has to itself until then.
        number < 3 || !disk.restarted || disk.first <= number
    };
    let server = Server::start(folder.path(), "d", size, lets_in, move |request| {
        let disk = &mut *inside.lock().unwrap();
        if request.connection < disk.first {
            return Act::Silence;
        }
        let start = request.offset as usize;
        let range = start..start + request.len as usize;
        match request.command {
            WRITE => {
                disk.written += 1;
                disk.cache[range].copy_from_slice(&request.payload);
            }
            ZERO => disk.cache[range].fill(0),
            FLUSH => disk.stable = disk.cache.clone(),
            READ => return Act::Done(disk.cache[range].to_vec()),
            _ => return Act::Extents(vec![(request.len, 0)]),
        }
        Act::Done(Vec::new())
    });
    let limit_bytes_per_second = Some(8 * MIB);
    let job = engine.submit(CopySpec { limit_bytes_per_second, ..copy(source, export(&server), 3) });
    while disk.lock().unwrap().written < 4 {
        std::thread::yield_now();
    }
    server.cut_all();
    let report = job.wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert!(disk.lock().unwrap().stable == content, "what was reported as durable is not there");
}

#[test]
fn a_comparison_with_a_receipt_needs_one_connection() {
    let engine = need!("a_comparison_with_a_receipt_needs_one_connection", engine(1));
    let folder = tempfile::tempdir().unwrap();
    let (source, receipt) = (folder.path().join("source"), folder.path().join("receipt"));
    File::create(&source).unwrap().set_len(64 * MIB).unwrap();
    let server = Server::start(
        folder.path(),
        "d",
        64 * MIB,
        |_, open| open == 0,
        |request| match request.command {
            STATUS => Act::Extents(vec![(request.len, 0)]),
            READ => Act::Done(vec![0; request.len as usize]),
            _ => Act::Done(Vec::new()),
        },
    );
    let spec = copy(source.as_path().into(), export(&server), 3);
    let network = spec.network;
    let report = engine.submit(CopySpec { receipt: Some(receipt.clone()), ..spec }).wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    let spec = VerifySpec { network, ..VerifySpec::new(Reference::Receipt(receipt), export(&server)) };
    let report = engine.verify(spec).wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
}

#[test]
fn a_server_that_needs_longer_for_a_window_than_for_a_request_is_slow_and_not_dead() {
    let engine = need!("a_server_that_needs_longer_for_a_window_than_for_a_request_is_slow_and_not_dead", engine(1));
    let folder = tempfile::tempdir().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let lets_in = move |_, _| {
        counted.fetch_add(1, SeqCst);
        true
    };
    // 8 requests under way, 2 s in all.
    let server = Server::start(folder.path(), "s", 4 * MIB, lets_in, |request| {
        std::thread::sleep(Duration::from_millis(250));
        plain(request)
    });
    let mut spec = copy(export(&server), folder.path().join("copy").as_path().into(), 1);
    spec.network.connections = Some(1);
    let report = engine.submit(spec).wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert_eq!(connections.load(SeqCst), 1, "given up and made anew");
}

#[test]
fn a_request_that_is_overtaken_for_too_long_is_lost() {
    let engine = need!("a_request_that_is_overtaken_for_too_long_is_lost", engine(1));
    let folder = tempfile::tempdir().unwrap();
    let (swallowed, answered) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let first = Arc::clone(&answered);
    let server = Server::start(
        folder.path(),
        "s",
        16 * MIB,
        |_, _| true,
        move |request| {
            if request.command == READ && request.offset == MIB && swallowed.fetch_add(1, SeqCst) == 0 {
                return Act::Silence;
            }
            std::thread::sleep(Duration::from_millis(50));
            first.fetch_add(usize::from(request.connection == 0), SeqCst);
            plain(request)
        },
    );
    let copied = folder.path().join("copy");
    let report = engine.submit(copy(export(&server), copied.as_path().into(), 1)).wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert_eq!(fs::read(copied).unwrap(), bytes(0..16 * MIB));
    assert!(answered.load(SeqCst) < 60, "it was found out only when nothing else was left to answer");
}

#[test]
fn a_job_whose_server_is_silent_leaves_slots_to_the_others() {
    let engine = need!("a_job_whose_server_is_silent_leaves_slots_to_the_others", engine(1));
    let folder = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let server = Server::start(
        folder.path(),
        "s",
        64 * MIB,
        |_, _| true,
        move |request| match request.command {
            READ => {
                seen.fetch_add(1, SeqCst);
                Act::Silence
            }
            _ => plain(request),
        },
    );
    let source = file(&folder.path().join("source"), &bytes(0..16 * MIB));
    let healthy = engine.submit(CopySpec {
        limit_bytes_per_second: Some(32 * MIB),
        ..copy(source, folder.path().join("copy").as_path().into(), 3)
    });
    let stuck = engine.submit(copy(export(&server), folder.path().join("stuck").as_path().into(), 3600));
    while count.load(SeqCst) < 2 {
        std::thread::yield_now();
    }
    let report = healthy.wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    stuck.cancel(StopReason::UserCancel);
    drop(stuck.wait());
}

#[test]
fn a_server_that_shuts_down_may_still_execute_unanswered_requests() {
    let engine = need!("a_server_that_shuts_down_may_still_execute_unanswered_requests", engine(1));
    let folder = tempfile::tempdir().unwrap();
    let writes = AtomicUsize::new(0);
    let server = Server::start(
        folder.path(),
        "d",
        16 * MIB,
        |number, _| number == 0,
        move |request| match request.command {
            WRITE if writes.fetch_add(1, SeqCst) == 3 => Act::Failed(108),
            WRITE => Act::Silence,
            READ => Act::Done(vec![0; request.len as usize]),
            _ => plain(request),
        },
    );
    let source = file(&folder.path().join("source"), &bytes(0..16 * MIB));
    let report = engine.submit(copy(source, export(&server), 1)).wait();
    assert_eq!((report.status, report.quiesced), (Status::Failed, false), "{report:?}");
}
