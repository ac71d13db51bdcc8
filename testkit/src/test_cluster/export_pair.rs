//! Serves two exports on ports of this host: a read-only source, and a destination that records its requests in order.

use super::{Task, TestCluster, address};
use crate::content::{assert_same, mixed};
use crate::nbd::Server;
use crate::test_dir::text;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Names, in the log, of requests that change a volume.
const CHANGES: [&str; 3] = ["Write", "Zero", "Trim"];

/// An entry of the destination server's log about a request that changes the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    /// Number of the connection.
    connection: u64,
    /// Number of the request within its connection.
    id: u64,
    /// Whether the entry is of the reply rather than the request.
    is_answer: bool,
}

/// A source and a destination of the same size.
pub struct ExportPair {
    pub source: Server,
    pub destination: Server,
    bytes: Vec<u8>,
    image: PathBuf,
    /// Log of the destination's server, written as requests arrive.
    pub log: PathBuf,
}

impl ExportPair {
    /// Serves two exports of `length` bytes.
    pub fn new(cluster: &TestCluster, name: &str, length: usize) -> Self {
        Self::with(cluster, name, length, &[], &[])
    }

    /// As [`ExportPair::new`], with additional `filters` and `parameters` of the destination's server. Filters act on a
    /// request between its entry in the log and that of its reply.
    pub fn with(cluster: &TestCluster, name: &str, length: usize, filters: &[&str], parameters: &[&str]) -> Self {
        let dirs = &cluster.dirs;
        let bytes = mixed(length, 7);
        let golden = dirs.file(&format!("{name}.golden"), &bytes);
        let image = dirs.sparse(&format!("{name}.image"), length as u64);
        let log = dirs.path(&format!("{name}.log"));
        let source =
            Server::nbdkit_at(dirs, &format!("{name}.source"), address(), &["--readonly", "file", text(&golden)]);
        let logs = format!("logfile={}", text(&log));
        let own = ["file", text(&image), &logs];
        let destination = Server::nbdkit_at(
            dirs,
            &format!("{name}.destination"),
            address(),
            &[&["--filter=log"], filters, &own[..], parameters].concat(),
        );
        Self { source, destination, bytes, image, log }
    }

    /// Submits the copy; `args` follow the volumes on the command line.
    pub fn submit(&self, cluster: &TestCluster, id: &str, args: &[&str]) {
        cluster.submit(id, &self.source.uri(), &self.destination.uri(), args);
    }

    /// Submits a copy whose first attempt runs on `node`; later attempts may run on other nodes.
    pub fn submit_on(&self, cluster: &TestCluster, id: &str, node: usize, args: &[&str]) {
        let others =
            || cluster.nodes.iter().enumerate().filter(|(index, _)| *index != node).map(|(_, other)| &other.id);
        others().for_each(|other| drop(cluster.ask(&["drain", other])));
        self.submit(cluster, id, args);
        cluster.wait_for(id, "an assignment", |task| !task.runners().is_empty());
        others().for_each(|other| drop(cluster.ask(&["drain", other, "--undo"])));
    }

    /// Checks that the destination holds the bytes of the source.
    pub fn assert_copied(&self) {
        let found = std::fs::read(&self.image).expect("the image is a file of ours");
        assert_same(&found, &self.bytes, "the destination");
    }

    /// Returns how many requests to change the destination have arrived.
    pub fn writes(&self) -> usize {
        self.log().iter().filter(|line| !line.is_answer).count()
    }

    /// Waits until another such request has arrived.
    pub fn wait_for_more_writes(&self, cluster: &TestCluster) {
        let writes = self.writes();
        cluster.wait_until("another write", |_| self.writes() > writes);
    }

    /// Returns the connections made so far. A runner makes all of its connections before it writes.
    pub fn connections(&self) -> BTreeSet<u64> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let made = log.lines().filter(|line| line.contains(" Connect "));
        made.filter_map(|line| number(line, "connection=")).collect()
    }

    /// Checks that two runners have written one after the other: after the first request of another connection, no
    /// request of the first runner's connections `old` arrives.
    pub fn assert_no_overlap(&self, old: &BTreeSet<u64>) {
        let log = self.log();
        let requests: Vec<&Line> = log.iter().filter(|line| !line.is_answer).collect();
        let since = requests.iter().position(|line| !old.contains(&line.connection));
        let since = since.unwrap_or_else(|| panic!("no other connection than {old:?} has written"));
        let late: Vec<_> = requests[since..].iter().filter(|line| old.contains(&line.connection)).collect();
        assert!(late.is_empty(), "writes of a runner without the claim: {late:?}");
    }

    /// Checks that the copy succeeds in a second attempt after its first runner, with the connections `old`, was lost,
    /// and that the first runner wrote nothing after the second one began.
    pub fn assert_taken_over(&self, cluster: &TestCluster, id: &str, old: &BTreeSet<u64>) -> Task {
        cluster.lift_limit(id);
        let task = cluster.wait_for_success(id);
        assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
        self.assert_no_overlap(old);
        self.assert_copied();
        task
    }

    /// As [`ExportPair::assert_no_overlap`], and checks that every request of the first runner was answered before the
    /// first request of the second one.
    pub fn assert_drained_before_next(&self, old: &BTreeSet<u64>) {
        self.assert_no_overlap(old);
        let mut open = BTreeSet::new();
        for Line { connection, id, is_answer } in self.log() {
            match (old.contains(&connection), is_answer) {
                (true, false) => assert!(open.insert((connection, id)), "request numbers are unique"),
                (true, true) => assert!(open.remove(&(connection, id)), "a reply follows its request"),
                (false, _) => assert!(open.is_empty(), "another runner writes while these are in flight: {open:?}"),
            }
        }
    }

    fn log(&self) -> Vec<Line> {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().filter_map(line_of).collect()
    }
}

/// `DATE TIME connection=1 Write id=7 offset=0x0 count=0x10000 ...`, and for its answer `... connection=1 ...Write id=7
/// return=0`.
fn line_of(line: &str) -> Option<Line> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let verb = words.iter().find(|word| CHANGES.contains(&word.trim_start_matches('.')))?;
    Some(Line { connection: number(line, "connection=")?, id: number(line, "id=")?, is_answer: verb.starts_with('.') })
}

fn number(line: &str, name: &str) -> Option<u64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok())
}
