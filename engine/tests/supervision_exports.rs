//! Goal: behind a closed gate nothing reaches a server that would change its export, no connection is made, and no time
//! runs out; a cut ends everything at once. Method: servers that do with each request what the test says.

#[allow(dead_code, reason = "the scripts of other tests can do more")]
mod scripted;

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::Code;
use blockhaul_engine::extent::{ByteRange, RangeSet};
use blockhaul_engine::job::{JobHandle, StopReason};
use blockhaul_engine::nbd::NbdUri;
use blockhaul_engine::progress::{Progress, Status};
use blockhaul_engine::spec::{BlockSize, CheckpointLocation, CopySpec, NetworkTerms, Overwrite, ResumePolicy, Verify};
use blockhaul_engine::supervision::Supervision;
use blockhaul_engine::volume::Locator;
use blockhaul_engine::write_gate::WriteGate;
use scripted::{Act, FLUSH, READ, Request, STATUS, Server, WRITE, ZERO};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

fn engine() -> Engine {
    Engine::start(EngineConfig { cores: Some(1), ..EngineConfig::default() }).unwrap()
}

fn export(server: &Server) -> Locator {
    Locator::Nbd(NbdUri::parse(&server.uri()).unwrap())
}

/// Of blocks of 256 KiB; a server may be gone or silent for a second.
fn spec(source: Locator, destination: Locator) -> CopySpec {
    let second = Duration::from_secs(1);
    let network = NetworkTerms { retry_for: second, request_timeout: second, ..NetworkTerms::default() };
    let block_size = Some(BlockSize::new(256 << 10).unwrap());
    CopySpec { network, block_size, ..CopySpec::new(source, destination) }
}

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8 + 1).collect()
}

fn source(folder: &Path) -> Locator {
    let path = folder.join("source");
    fs::write(&path, bytes()).unwrap();
    path.into()
}

/// Content of an export, and how often it was changed.
#[derive(Default)]
struct Store {
    content: Mutex<Vec<u8>>,
    changes: AtomicUsize,
}

impl Store {
    fn new() -> Arc<Self> {
        Arc::new(Self { content: Mutex::new(vec![0; SIZE as usize]), changes: AtomicUsize::new(0) })
    }

    fn serve(&self, request: &Request) -> Act {
        let Request { command, offset, len, payload, .. } = request;
        let (start, end) = (*offset as usize, *offset as usize + *len as usize);
        let content = &mut *self.content.lock().unwrap();
        self.changes.fetch_add(usize::from(matches!(*command, WRITE | ZERO | FLUSH)), SeqCst);
        match *command {
            READ => return Act::Done(content[start..end].to_vec()),
            STATUS => return Act::Extents(vec![(*len, 0)]),
            WRITE => content[start..end].copy_from_slice(payload),
            ZERO => content[start..end].fill(0),
            _ => {}
        }
        Act::Done(Vec::new())
    }

    fn changes(&self) -> usize {
        self.changes.load(SeqCst)
    }
}

/// A server of `store`, which counts those it has let in.
fn server(folder: &Path, store: &Arc<Store>, let_in: &Arc<AtomicUsize>) -> Server {
    let (store, let_in) = (Arc::clone(store), Arc::clone(let_in));
    let lets_in = move |_, _| let_in.fetch_add(1, SeqCst) < usize::MAX;
    Server::start(folder, "s", SIZE, lets_in, move |request| store.serve(request))
}

fn open_gate() -> (Arc<WriteGate>, Supervision) {
    let gate = Arc::new(WriteGate::closed());
    gate.open_until(Duration::MAX);
    let supervision = Supervision { gate: Some(Arc::clone(&gate)), ..Supervision::default() };
    (gate, supervision)
}

/// A copy that has begun to write and is far from its end, and its gate. Its blocks are so small that a socket takes
/// each of them at once: none is half sent when the gate closes.
fn on_its_way(engine: &Engine, folder: &Path, to: &Server) -> (JobHandle, Arc<WriteGate>) {
    let (gate, supervision) = open_gate();
    let limit_bytes_per_second = Some(8 * MIB);
    let block_size = Some(BlockSize::new(16 << 10).unwrap());
    let copy = CopySpec { limit_bytes_per_second, block_size, ..spec(source(folder), export(to)) };
    let job = engine.submit_supervised(copy, supervision);
    let is_idle = |at: Progress| at.written > 0 && at.issued == at.written;
    while !is_idle(job.progress()) {
        std::thread::yield_now();
    }
    (job, gate)
}

/// Longer than a server may be gone or silent.
fn is_held_up(job: &JobHandle) -> bool {
    job.wait_for(Duration::from_millis(2500)).is_none()
}

#[test]
fn blocks_read_before_the_gate_closed_are_sent_when_it_opens() {
    let folder = tempfile::tempdir().unwrap();
    let (store, count) = (Store::new(), Arc::default());
    let to = server(folder.path(), &store, &count);
    let (gate, supervision) = open_gate();
    // A source whose first answers come when the gate has been closed.
    let (asked, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_asked, may_answer) = (Arc::clone(&asked), Arc::clone(&answers));
    let from = Server::start(
        folder.path(),
        "from",
        SIZE,
        |_, _| true,
        move |request| match request.command {
            STATUS => Act::Extents(vec![(request.len, 0)]),
            _ => {
                is_asked.store(true, SeqCst);
                while !may_answer.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Act::Done(bytes()[request.offset as usize..][..request.len as usize].to_vec())
            }
        },
    );
    let engine = engine();
    let patient = NetworkTerms { request_timeout: Duration::from_secs(60), ..NetworkTerms::default() };
    let copy = CopySpec { network: patient, ..spec(export(&from), export(&to)) };
    let job = engine.submit_supervised(copy, supervision);
    while !asked.load(SeqCst) {
        std::thread::yield_now();
    }
    gate.close();
    answers.store(true, SeqCst);
    assert!(is_held_up(&job));
    assert_eq!((store.changes(), job.progress().written), (0, 0));
    gate.open_until(Duration::MAX);
    let report = job.wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert!(*store.content.lock().unwrap() == bytes(), "the copy differs");
    assert_eq!(job.durable_ranges(), RangeSet::from_iter([ByteRange::new(0, SIZE)]));
}

#[test]
fn a_lost_connection_is_made_again_when_the_gate_opens_and_the_wait_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (store, count) = (Store::new(), Arc::default());
    let to = server(folder.path(), &store, &count);
    let engine = engine();
    let (job, gate) = on_its_way(&engine, folder.path(), &to);
    gate.close();
    let before = count.load(SeqCst);
    to.cut_all();
    assert!(is_held_up(&job));
    let changes = store.changes();
    assert!(is_held_up(&job));
    assert_eq!((count.load(SeqCst), store.changes()), (before, changes));
    job.set_limit(None);
    gate.open_until(Duration::MAX);
    let report = job.wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert!(count.load(SeqCst) > before && *store.content.lock().unwrap() == bytes());
}

#[test]
fn a_copy_cancelled_behind_a_closed_gate_drops_unsent_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, count) = (Store::new(), Arc::default());
    let to = server(folder.path(), &store, &count);
    let engine = engine();
    let (job, gate) = on_its_way(&engine, folder.path(), &to);
    gate.close();
    assert!(is_held_up(&job));
    let changes = store.changes();
    job.cancel(StopReason::LeaseLost);
    let report = job.wait();
    let code = report.error.as_ref().map(|error| error.code);
    assert_eq!(
        (report.status, code, report.quiesced),
        (Status::Interrupted, Some(Code::LeaseLost), true),
        "{report:?}"
    );
    assert_eq!(store.changes(), changes);
}

#[test]
fn a_cut_ends_a_job_with_a_silent_server_as_not_quiesced() {
    for reason in [None, Some(StopReason::LeaseLost)] {
        let folder = tempfile::tempdir().unwrap();
        let asked = Arc::new(AtomicBool::new(false));
        let is_asked = Arc::clone(&asked);
        let to = Server::start(
            folder.path(),
            "s",
            SIZE,
            |_, _| true,
            move |request| match request.command {
                STATUS => Act::Extents(vec![(request.len, 0)]),
                READ => Act::Done(vec![0; request.len as usize]),
                _ => {
                    is_asked.store(true, SeqCst);
                    Act::Silence
                }
            },
        );
        let engine = engine();
        let patient = NetworkTerms { request_timeout: Duration::from_secs(3600), ..NetworkTerms::default() };
        let copy = CopySpec { network: patient, ..spec(source(folder.path()), export(&to)) };
        let job = engine.submit_supervised(copy, open_gate().1);
        while !asked.load(SeqCst) {
            std::thread::yield_now();
        }
        reason.into_iter().for_each(|reason| job.cancel(reason));
        job.revoke_connections();
        job.revoke_connections();
        let report = job.wait();
        job.revoke_connections();
        assert_eq!((report.status, report.quiesced), (Status::Failed, false), "{report:?}");
        let message = report.error.map(|error| error.message).unwrap_or_default();
        assert!(message.contains("revoked") || message.contains("may still take effect"), "{message}");
    }
}

#[test]
fn a_job_that_is_cut_before_it_has_connected_never_does() {
    let folder = tempfile::tempdir().unwrap();
    // A server that never says a word.
    let socket = folder.path().join("mute");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let uri = NbdUri::parse(&format!("nbd+unix:///?socket={}", socket.display())).unwrap();
    let engine = engine();
    let job = engine.submit(spec(source(folder.path()), Locator::Nbd(uri)));
    job.revoke_connections();
    let report = job.wait();
    let error = report.error.unwrap();
    assert_eq!((report.status, error.code), (Status::Failed, Code::Unreachable), "{error:?}");
    assert!(error.message.contains("revoked"), "{error:?}");
}

#[test]
fn a_copy_to_an_export_is_continued_from_claims_without_its_journal() {
    let folder = tempfile::tempdir().unwrap();
    let (store, count) = (Store::new(), Arc::default());
    let to = server(folder.path(), &store, &count);
    let engine = engine();
    let journal = |name: &str| -> PathBuf { folder.path().join(name) };
    let limit_bytes_per_second = Some(8 * MIB);
    let checkpoint = CheckpointLocation::File(journal("first"));
    let copy = CopySpec { limit_bytes_per_second, checkpoint, ..spec(source(folder.path()), export(&to)) };
    let first = engine.submit_supervised(copy.clone(), open_gate().1);
    while first.durable_ranges().is_empty() {
        std::thread::yield_now();
    }
    first.cancel(StopReason::RunnerInterrupt);
    assert_eq!(first.wait().status, Status::Interrupted);
    let durable = first.durable_ranges();
    let copy = CopySpec {
        limit_bytes_per_second: None,
        checkpoint: CheckpointLocation::File(journal("second")),
        resume_policy: ResumePolicy::Resume,
        overwrite: Overwrite::Yes,
        verify: Verify::Yes,
        ..copy
    };
    let claiming = Supervision { durable: Some(durable.clone()), ..open_gate().1 };
    let report = engine.submit_supervised(copy, claiming).wait();
    assert_eq!(report.status, Status::Succeeded, "{report:?}");
    assert_eq!((report.bytes.resumed, report.bytes.written), (durable.bytes(), SIZE - durable.bytes()));
    assert!(report.digest.is_some() && *store.content.lock().unwrap() == bytes());
}
