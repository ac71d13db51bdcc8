//! Runs a cell: a ZooKeeper ensemble, some nodes, a directory of volumes that all nodes can reach, and a client.
//!
//! Nodes reach each server of the ensemble, and each other, through proxies of their own, so that any path can be cut alone.
//! Clients connect directly.

use super::nbd::{Need, Outcome, Running};
use super::permit::Permit;
use super::{Node, Records, Task, TestDirs, text};
use blockhaul_testkit::tcp_proxy::{Mode, TcpProxy};
use blockhaul_testkit::zookeeper::{Ensemble, Settings};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What every test with a cell needs.
pub(crate) const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program("java"),
    Need::File("/usr/share/java/zookeeper.jar"),
    Need::Program("setpriv"),
    Need::Program("nbdkit"),
];

/// For tests in which a node is lost for good: a short session, but not so short that a host that is busy looks like a
/// loss, and a short wait for its last writes.
pub(crate) const SHORT_SESSION: [&str; 4] = ["--session-timeout", "8s", "--quiet-after", "3s"];

/// For tests in which nothing is to be lost, whatever the host does.
pub(crate) const LONG_SESSION: [&str; 2] = ["--session-timeout", "30s"];

/// Nothing that is waited for takes half of this, whatever else the host does.
const WAIT_MAX: Duration = Duration::from_secs(180);
/// Between two looks: each is a process.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Nodes and what they stand on. Everything goes with it, the nodes first.
pub(crate) struct Cell {
    pub(crate) nodes: Vec<Node>,
    /// For each node its ways to each of the servers.
    server_links: Vec<Vec<TcpProxy>>,
    /// For each node the way by which others call it.
    inbound_links: Vec<TcpProxy>,
    pub(crate) ensemble: Ensemble,
    pub(crate) dirs: TestDirs,
    _permit: Permit,
}

impl Cell {
    /// `nodes` running nodes called n0, n1, ... over an ensemble of `servers`; returns once one of them leads.
    pub(crate) fn new(nodes: usize, servers: usize) -> Self {
        Self::with(nodes, servers, &[])
    }

    /// As [`Cell::new`]; every node is started with `args` besides.
    pub(crate) fn with(nodes: usize, servers: usize, args: &[&str]) -> Self {
        let mut cell = Self::idle(nodes, servers, args);
        cell.start();
        cell
    }

    /// As [`Cell::with`], but no node is started yet.
    pub(crate) fn idle(nodes: usize, servers: usize, args: &[&str]) -> Self {
        Self::over(Settings::new(servers), nodes, args)
    }

    /// As [`Cell::with`], over servers that are set up in this way.
    pub(crate) fn on(servers: Settings, nodes: usize, args: &[&str]) -> Self {
        let mut cell = Self::over(servers, nodes, args);
        cell.start();
        cell
    }

    fn over(servers: Settings, nodes: usize, args: &[&str]) -> Self {
        let permit = Permit::take();
        let dirs = TestDirs::new();
        std::fs::create_dir(dirs.path("volumes")).expect("the room is empty");
        let ensemble = Ensemble::with(servers);
        let mut cell = Self {
            nodes: Vec::new(),
            server_links: Vec::new(),
            inbound_links: Vec::new(),
            ensemble,
            dirs,
            _permit: permit,
        };
        (0..nodes).for_each(|_| cell.add(args));
        cell
    }

    /// One more node, not started yet.
    pub(crate) fn add(&mut self, args: &[&str]) {
        let id = format!("n{}", self.nodes.len());
        let server_links: Vec<TcpProxy> =
            (0..self.ensemble.len()).map(|server| TcpProxy::to(&self.ensemble.address(server))).collect();
        let hosts: Vec<String> = server_links.iter().map(TcpProxy::address).collect();
        let zookeeper = format!("{}/cell", hosts.join(","));
        let allowed = self.dirs.path("volumes");
        let mut node = Node::new(&self.dirs, &id);
        let inbound_link = TcpProxy::to(&node.address());
        let own = ["--zookeeper", &zookeeper, "--allow-path", text(&allowed), "--advertise", &inbound_link.address()];
        node.set_flags(&own);
        // The last word is the test's.
        node.set_flags(args);
        self.nodes.push(node);
        self.server_links.push(server_links);
        self.inbound_links.push(inbound_link);
    }

    /// Starts every node that does not run, and waits until one leads and all are registered.
    pub(crate) fn start(&mut self) {
        self.nodes.iter_mut().filter(|node| !node.is_started()).for_each(Node::start);
        self.wait_until_complete();
    }

    /// Waits until somebody leads and every node is registered.
    pub(crate) fn wait_until_complete(&self) {
        let all = self.nodes.len();
        self.wait_until("somebody leads and all are registered", |cell| {
            cell.leader().is_some() && cell.runners().len() == all
        });
    }

    /// A volume's path.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.dirs.path("volumes").join(name)
    }

    /// A volume's name as seen by one of the nodes.
    pub(crate) fn uri(&self, node: usize, name: &str) -> String {
        format!("file://n{node}{}", text(&self.volume(name)))
    }

    /// A volume with these bytes.
    pub(crate) fn fill(&self, name: &str, bytes: &[u8]) {
        let path = self.volume(name);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// What a volume holds.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let path = self.volume(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// Stops everything between a node and the ensemble, without a word.
    pub(crate) fn cut_off(&self, node: usize) {
        self.server_links[node].iter().for_each(|link| link.set(Mode::Stall));
    }

    /// Lets it through again, on new connections.
    pub(crate) fn reconnect(&self, node: usize) {
        for link in &self.server_links[node] {
            link.set(Mode::Cut);
            link.set(Mode::Pass);
        }
    }

    /// A node's way to one of the servers.
    pub(crate) fn server_link(&self, node: usize, server: usize) -> &TcpProxy {
        &self.server_links[node][server]
    }

    /// The server that a node is connected to.
    pub(crate) fn server_of(&self, node: usize) -> Option<usize> {
        (0..self.ensemble.len()).find(|&server| self.server_link(node, server).connections() > 0)
    }

    /// The way by which other nodes call this one.
    pub(crate) fn inbound_link(&self, node: usize) -> &TcpProxy {
        &self.inbound_links[node]
    }

    /// The center's records.
    pub(crate) fn records(&self) -> Records {
        Records::of(&format!("{}/cell", self.ensemble.addresses()))
    }

    /// Where clients reach the nodes.
    pub(crate) fn addresses(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// `blockhaul ARGS --center ... --json`, to its end.
    pub(crate) fn blockhaul(&self, args: &[&str]) -> Outcome {
        let addresses = self.addresses();
        self.dirs.blockhaul(&[args, &["--center", &addresses]].concat())
    }

    /// A running `blockhaul ARGS`.
    pub(crate) fn launch(&self, args: &[&str]) -> Running {
        let addresses = self.addresses();
        self.dirs.start(&[args, &["--center", &addresses]].concat())
    }

    /// The lines that a command must print, which must succeed.
    pub(crate) fn ask(&self, args: &[&str]) -> Vec<Value> {
        let outcome = self.blockhaul(args);
        assert_eq!(outcome.code, Some(0), "blockhaul {}: {outcome:?}", args.join(" "));
        outcome.lines
    }

    /// Submits a task that does nothing for so long.
    pub(crate) fn submit_noop(&self, id: &str, length: Duration, args: &[&str]) {
        self.ask(&[&["submit", "noop", &format!("{}ms", length.as_millis()), "--id", id], args].concat());
    }

    /// Submits a copy.
    pub(crate) fn submit(&self, id: &str, source: &str, destination: &str, args: &[&str]) {
        self.ask(&[&["submit", "copy", source, destination, "--id", id], args].concat());
    }

    /// Lifts a copy's limit.
    pub(crate) fn lift_limit(&self, id: &str) {
        let args = ["set", id, "--limit", "none"];
        let outcome = self.blockhaul(&args);
        // It may have come to its end without.
        let is_late = outcome.stderr.contains("EBusy") && self.task(id).is_over();
        assert!(outcome.code == Some(0) || is_late, "blockhaul {}: {outcome:?}", args.join(" "));
    }

    /// A task, if there is one of this name.
    pub(crate) fn find_task(&self, id: &str) -> Option<Task> {
        let outcome = self.blockhaul(&["get", id]);
        (outcome.code == Some(0)).then(|| Task(outcome.lines.last().cloned().expect("get prints a task")))
    }

    /// A task.
    pub(crate) fn task(&self, id: &str) -> Task {
        self.find_task(id).unwrap_or_else(|| panic!("{id} is not to be had: {:?}", self.blockhaul(&["get", id])))
    }

    /// Waits until a task is as it should be, and shows it.
    pub(crate) fn wait_for(&self, id: &str, what: &str, holds: impl Fn(&Task) -> bool) -> Task {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let task = self.find_task(id);
            if let Some(task) = task.as_ref().filter(|task| holds(task)) {
                return task.clone();
            }
            assert!(Instant::now() < until, "{id}: {what} does not come: {task:?}\n{:?}", self.blockhaul(&["runners"]));
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until a task is over; it must have succeeded.
    pub(crate) fn wait_for_success(&self, id: &str) -> Task {
        let task = self.wait_for(id, "its end", Task::is_over);
        assert_eq!(task.state(), "SUCCEEDED", "{task:?}");
        task
    }

    /// Waits until a task has written something durable, but not all; gives the index of its node.
    pub(crate) fn wait_for_progress(&self, id: &str) -> usize {
        let task = self.wait_for(id, "that it is on its way", |task| {
            assert!(!task.is_over(), "it was to be met on its way: {task:?}");
            task.state() == "RUNNING" && task.progress("durable") > 0
        });
        self.index(task.node())
    }

    /// As [`Cell::wait_for_progress`], and until the store knows of it: what a killed runner leaves behind.
    pub(crate) fn wait_for_checkpoint(&self, id: &str) -> usize {
        let node = self.wait_for_progress(id);
        let records = self.records();
        self.wait_until("a checkpoint", |_| records.task(id).is_some_and(|record| record.progress.durable > 0));
        node
    }

    /// Waits until a task that had one attempt runs in a second one; gives the index of its node.
    pub(crate) fn wait_for_second_attempt(&self, id: &str) -> usize {
        let task = self.wait_for(id, "a second attempt", |task| {
            assert!(!task.is_over(), "it was to be met on its way: {task:?}");
            task.state() == "RUNNING" && task.runners().len() > 1
        });
        self.index(task.node())
    }

    /// Waits for anything.
    pub(crate) fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + WAIT_MAX;
        while !holds(self) {
            assert!(Instant::now() < until, "{what}: does not come; {:?}", self.blockhaul(&["center"]));
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The index of a node.
    pub(crate) fn index(&self, id: &str) -> usize {
        self.nodes.iter().position(|node| node.id == id).unwrap_or_else(|| panic!("'{id}' is no node"))
    }

    /// What `blockhaul center` says; `None` while nobody leads.
    pub(crate) fn center(&self) -> Option<Value> {
        let outcome = self.blockhaul(&["center"]);
        (outcome.code == Some(0)).then(|| outcome.lines.last().cloned()).flatten()
    }

    /// The index of the node that leads, if one does.
    pub(crate) fn leader(&self) -> Option<usize> {
        let center = self.center()?;
        Some(self.index(center["leader"].as_str()?))
    }

    /// Waits until another node than this one leads; gives its index.
    pub(crate) fn wait_for_successor(&self, of: usize) -> usize {
        self.wait_until("another leader", |cell| cell.leader().is_some_and(|now| now != of));
        self.leader().expect("it was just there")
    }

    /// Names of the registered runners.
    pub(crate) fn runners(&self) -> Vec<String> {
        let outcome = self.blockhaul(&["runners"]);
        let registered = outcome.lines.iter().filter(|line| line["registered"] == true);
        registered.filter_map(|line| line["node"].as_str().map(str::to_owned)).collect()
    }
}
