//! Tests the durability of the embedded store: a power cut loses no acknowledged write, and the store outlives a
//! failing disk. The disk of these tests is in memory and keeps apart what has been flushed.

use super::*;
use crate::coord::{CreateMode, Zxid};
use redb::{Database, StorageBackend};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use tempfile::TempDir;

/// A disk with a volatile cache.
#[derive(Debug, Default)]
struct Disk(Mutex<DiskState>);

#[derive(Clone, Debug, Default)]
struct DiskState {
    /// Content as programs see it.
    now: Vec<u8>,
    /// Content at the last flush.
    flushed: Vec<u8>,
    /// Writes since then.
    unflushed: Vec<DiskChange>,
    is_failing: bool,
}

#[derive(Clone, Debug)]
enum DiskChange {
    Write(usize, Vec<u8>),
    Resize(usize),
}

/// Unit that a disk writes wholly or not at all.
const SECTOR: usize = 512;

impl DiskChange {
    fn put(&self, image: &mut Vec<u8>) {
        match self {
            Self::Resize(length) => image.resize(*length, 0),
            Self::Write(at, data) => {
                image.resize(image.len().max(at + data.len()), 0);
                image[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl DiskState {
    fn check(&self) -> io::Result<()> {
        if self.is_failing { Err(io::Error::other("the disk fails")) } else { Ok(()) }
    }

    fn put(&mut self, change: DiskChange) -> io::Result<()> {
        self.check()?;
        change.put(&mut self.now);
        self.unflushed.push(change);
        Ok(())
    }

    /// Returns what a power cut leaves: what was flushed, and any of the sectors written since.
    fn without_power(&self) -> Self {
        let mut image = self.flushed.clone();
        for change in self.unflushed.iter().filter(|_| fastrand::bool()) {
            change.put(&mut image);
        }
        Self { now: image.clone(), flushed: image, unflushed: Vec::new(), is_failing: false }
    }
}

impl Disk {
    fn lock(&self) -> std::sync::MutexGuard<'_, DiskState> {
        self.0.lock().expect("no test panics with it")
    }

    fn store_file(self: &Arc<Self>) -> StoreFile {
        let disk = self.clone();
        let open = move |_: &Path| Ok(Database::builder().create_with_backend(TestBackend(disk.clone()))?);
        StoreFile::with(PathBuf::from("disk"), Box::new(open))
    }
}

/// The disk as a database uses it.
#[derive(Debug)]
struct TestBackend(Arc<Disk>);

impl StorageBackend for TestBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        disk.check()?;
        let at = offset as usize;
        let bytes = disk.now.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().put(DiskChange::Resize(length as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.check()?;
        disk.flushed = disk.now.clone();
        disk.unflushed.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let mut at = offset as usize;
        let mut rest = data;
        while !rest.is_empty() {
            let (sector, later) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
            disk.put(DiskChange::Write(at, sector.to_vec()))?;
            (at, rest) = (at + sector.len(), later);
        }
        Ok(())
    }
}

fn create(path: &str, mode: CreateMode) -> Op {
    Op::Create { path: path.to_owned(), data: Vec::new(), mode }
}

fn set(path: &str, number: i32, version: i32) -> Op {
    Op::Set { path: path.to_owned(), data: number.to_string().into_bytes(), version }
}

/// The numbers in `/a` and `/b`, which every write sets to the same one, and the number of the write.
async fn numbers(session: &dyn Session) -> (i32, i32, Zxid) {
    let mut found = Vec::new();
    for path in ["/a", "/b"] {
        let node = session.get(path).await.expect("the store is open").expect("it was made before the power went");
        found.push((String::from_utf8_lossy(&node.data).parse().unwrap_or(0), node.stat.modified));
    }
    (found[0].0, found[1].0, found[0].1)
}

/// Writers count in two nodes at a time while the power may be cut at any moment: every acknowledged write is there
/// afterwards, both nodes agree, and numbers of transactions and sessions never repeat.
#[tokio::test]
async fn acknowledged_writes_survive_a_loss_of_power() {
    let seed = fastrand::u64(..);
    fastrand::seed(seed);
    println!("seed {seed}");
    let mut disk = Arc::new(Disk::default());
    let (mut acknowledged, mut last, mut version) = (0, Zxid(0), 0);
    for round in 0..30 {
        let center = Embedded::on(disk.store_file()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let session = center.open().await.expect("the store is open");
        assert!(session.id().0 > last.0, "round {round}: session {:?} after {last:?}", session.id());
        if round == 0 {
            let made =
                session.multi(vec![create("/a", CreateMode::Persistent), create("/b", CreateMode::Persistent)]).await;
            made.expect("both are new");
        }
        let (a, b, modified) = numbers(&*session).await;
        assert!(a == b && a >= acknowledged, "round {round}: {a} and {b} after {acknowledged} was acknowledged");
        assert!(modified >= last);
        assert_eq!(session.get("/e").await, Ok(None), "round {round}: it went with its session");
        session.multi(vec![create("/e", CreateMode::Ephemeral)]).await.expect("it is new");
        version = version.max(session.get("/a").await.expect("open").expect("made").stat.version);

        let mut lost = None;
        for _ in 0..fastrand::i32(1..10) {
            let number = acknowledged.max(a) + 1;
            let write = session.multi(vec![set("/a", number, version), set("/b", number, version)]);
            // At any point of the write: the thread of the store runs meanwhile.
            let cut = async { fastrand::bool().then(|| disk.lock().without_power()) };
            let (done, image) = tokio::join!(write, cut);
            let done = done.expect("no other session writes");
            let Done::Set(stat) = done[0] else { panic!("{done:?}") };
            if let Some(image) = image {
                lost = Some(image);
                break;
            }
            (acknowledged, last, version) = (number, stat.modified, stat.version);
        }
        let image = lost.unwrap_or_else(|| disk.lock().without_power());
        disk = Arc::new(Disk(Mutex::new(image)));
    }
}

/// A write that the disk refused is never acknowledged, and sessions continue when the disk works again.
#[tokio::test]
async fn a_failing_disk_is_reported_and_survived() {
    let disk = Arc::new(Disk::default());
    let center = Embedded::on(disk.store_file()).expect("the disk works");
    let (session, other) = (center.open().await.expect("open"), center.open().await.expect("open"));
    session
        .multi(vec![create("/a", CreateMode::Persistent), create("/mine", CreateMode::Ephemeral)])
        .await
        .expect("new");
    other.multi(vec![create("/others", CreateMode::Ephemeral)]).await.expect("new");
    let (_, watch) = session.get_and_watch("/a").await.expect("open");

    disk.lock().is_failing = true;
    let unknown = session.multi(vec![set("/a", 1, 0)]).await;
    assert!(matches!(unknown, Err(CoordError::Unknown(_))), "{unknown:?}");
    let mut states = session.states();
    assert_eq!(*states.borrow_and_update(), SessionState { connection: ConnectionState::Disconnected, reconnects: 0 });
    assert_eq!(session.multi(vec![set("/a", 1, 0)]).await, Err(CoordError::NotConnected));
    assert_eq!(session.get("/a").await, Err(CoordError::NotConnected));
    assert!(matches!(center.open().await, Err(CoordError::NotConnected)));
    other.close().await;

    disk.lock().is_failing = false;
    let back = *states.wait_for(SessionState::is_connected).await.expect("the session continues");
    assert_eq!(back.reconnects, 1);
    watch.fired().await;
    let a = session.get("/a").await.expect("open").expect("it was durable");
    assert!(a.stat.version <= 1);
    let mine = session.get("/mine").await.expect("open").expect("its session is alive");
    assert_eq!(mine.stat.owner, Some(session.id()));
    assert_eq!(session.get("/others").await, Ok(None), "its session ended while nothing could be written");
    session.multi(vec![set("/a", 2, a.stat.version)]).await.expect("the disk works");
}

/// A file keeps its nodes from one process to the next, without what belonged to the sessions of the first.
#[tokio::test]
async fn a_file_keeps_its_nodes_from_one_process_to_the_next() {
    let folder = TempDir::new().expect("temporary folders can be made");
    let path = folder.path().join("center.redb");
    let center = Embedded::open(&path).expect("the folder can be written");
    let error = Embedded::open(&path).expect_err("it is open");
    assert_eq!(error.to_string(), format!("open the task center's store {}: another process uses it", path.display()));
    let session = center.open().await.expect("open");
    let made = [
        create("/a", CreateMode::Persistent),
        create("/a/b", CreateMode::Persistent),
        create("/a/e", CreateMode::Ephemeral),
    ];
    session.multi(made.to_vec()).await.expect("new");
    session.multi(vec![set("/a", 7, 0), set("/", 8, 0)]).await.expect("no other session writes");
    let (top, a) = (session.get("/").await, session.get("/a").await);
    let id = session.id();
    // As a crash leaves the file: no session was closed.
    let crashed = folder.path().join("crashed.redb");
    std::fs::copy(&path, &crashed).expect("the folder can be written");
    drop((session, center));
    for path in [crashed, path] {
        let center = Embedded::open(&path).expect("no other process uses it");
        let session = center.open().await.expect("open");
        assert!(session.id() > id);
        assert_eq!((session.get("/").await, session.get("/a").await), (top.clone(), a.clone()));
        assert_eq!(session.children("/a").await, Ok(vec!["b".to_owned()]));
    }
}

/// A file of another format is refused with its name.
#[test]
fn a_file_that_is_no_store_is_refused() {
    let folder = TempDir::new().expect("temporary folders can be made");
    let path = folder.path().join("center.redb");
    std::fs::write(&path, vec![b'x'; 8192]).expect("the folder can be written");
    let error = Embedded::open(&path).expect_err("it is no store").to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    let missing = folder.path().join("no/such/folder");
    let error = Embedded::open(&missing).expect_err("it has no folder").to_string();
    assert!(error.contains("No such file"), "{error}");
    let other = folder.path().join("other.redb");
    let database = Database::create(&other).expect("the folder can be written");
    let transaction = database.begin_write().expect("no other process uses it");
    let meta: redb::TableDefinition<'_, &str, i64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).expect("new").insert("format", 9).expect("new");
    transaction.commit().expect("it can be written");
    drop(database);
    let error = Embedded::open(&other).expect_err("it is newer").to_string();
    assert!(error.ends_with("format 9, this program knows 1: upgrade it"), "{error}");
}
