//! Runs a cluster: a ZooKeeper ensemble, some nodes, a directory of volumes that all nodes can reach, and a client.
//!
//! Nodes reach each server of the ensemble, and each other, through proxies of their own, so that each connection can
//! be cut separately. Clients connect directly.

mod node;
mod oldest;
mod export_pair;
mod permit;
mod port;
mod task;

pub use export_pair::ExportPair;
pub use node::{Node, fake_clock_library};
pub use oldest::oldest_taskd;
pub use port::{address, port};
pub use task::Task;

use crate::Need;
use crate::nbd::TestDirs;
use crate::running::Running;
use crate::scratch::Outcome;
use crate::tcp_proxy::{Mode, TcpProxy};
use crate::test_dir::text;
use crate::zookeeper::{Ensemble, Settings};
use permit::Permit;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Needs of every test with a cluster.
pub const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program("java"),
    Need::File("/usr/share/java/zookeeper.jar"),
    Need::Program("setpriv"),
    Need::Program("nbdkit"),
];

/// Flags for tests in which a node is lost for good: a session that is short, but long enough for a busy host, and a
/// short `--quiet-after`.
pub const SHORT_SESSION: [&str; 4] = ["--session-timeout", "8s", "--quiet-after", "3s"];

/// Flags for tests in which no session may end, however busy the host is.
pub const LONG_SESSION: [&str; 2] = ["--session-timeout", "30s"];

/// Longest wait; more than twice of what any wait takes on a busy host.
const WAIT_MAX: Duration = Duration::from_secs(180);
/// Time between two checks; each check starts a process.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An ensemble, nodes and volumes. Dropping it ends and removes all of them, the nodes first.
pub struct TestCluster {
    pub nodes: Vec<Node>,
    /// For each node its proxies to the servers of the ensemble.
    server_links: Vec<Vec<TcpProxy>>,
    /// For each node the proxy through which other nodes call it.
    inbound_links: Vec<TcpProxy>,
    pub ensemble: Ensemble,
    pub dirs: TestDirs,
    _permit: Permit,
}

impl TestCluster {
    /// Starts `nodes` nodes named n0, n1, ... on an ensemble of `servers` servers; returns when one leads and all are
    /// registered.
    pub fn new(nodes: usize, servers: usize) -> Self {
        Self::with(nodes, servers, &[])
    }

    /// As [`TestCluster::new`]; every node is started with `args` besides.
    pub fn with(nodes: usize, servers: usize, args: &[&str]) -> Self {
        let mut cluster = Self::idle(nodes, servers, args);
        cluster.start();
        cluster
    }

    /// As [`TestCluster::with`], but no node is started yet.
    pub fn idle(nodes: usize, servers: usize, args: &[&str]) -> Self {
        Self::idle_on(Settings::new(servers), nodes, args)
    }

    /// As [`TestCluster::with`], on an ensemble with these settings.
    pub fn on(servers: Settings, nodes: usize, args: &[&str]) -> Self {
        let mut cluster = Self::idle_on(servers, nodes, args);
        cluster.start();
        cluster
    }

    /// As [`TestCluster::on`], but no node is started yet.
    pub fn idle_on(servers: Settings, nodes: usize, args: &[&str]) -> Self {
        let permit = Permit::take();
        let dirs = TestDirs::new();
        std::fs::create_dir(dirs.path("volumes")).expect("the directory is new");
        let ensemble = Ensemble::with(servers);
        let mut cluster = Self {
            nodes: Vec::new(),
            server_links: Vec::new(),
            inbound_links: Vec::new(),
            ensemble,
            dirs,
            _permit: permit,
        };
        (0..nodes).for_each(|_| cluster.add(args));
        cluster
    }

    /// Adds a node without starting it.
    pub fn add(&mut self, args: &[&str]) {
        let id = format!("n{}", self.nodes.len());
        let server_links: Vec<TcpProxy> =
            (0..self.ensemble.size()).map(|server| TcpProxy::to(&self.ensemble.address(server))).collect();
        let hosts: Vec<String> = server_links.iter().map(TcpProxy::address).collect();
        let zookeeper = format!("{}/cell", hosts.join(","));
        let allowed = self.dirs.path("volumes");
        let mut node = Node::new(&self.dirs, &id);
        let inbound_link = TcpProxy::to(&node.address());
        let own = ["--zookeeper", &zookeeper, "--allow-path", text(&allowed), "--advertise", &inbound_link.address()];
        node.set_flags(&own);
        // The flags of the test win.
        node.set_flags(args);
        self.nodes.push(node);
        self.server_links.push(server_links);
        self.inbound_links.push(inbound_link);
    }

    /// Starts all nodes that do not run, and waits until one leads and all are registered.
    pub fn start(&mut self) {
        self.nodes.iter_mut().filter(|node| !node.is_started()).for_each(Node::start);
        self.wait_until_complete();
    }

    /// Waits until a node leads and all are registered.
    pub fn wait_until_complete(&self) {
        let all = self.nodes.len();
        self.wait_until("a node leads and all are registered", |cluster| {
            cluster.leader().is_some() && cluster.runners().len() == all
        });
    }

    /// Returns the path of a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.dirs.path("volumes").join(name)
    }

    /// Returns the URI of a volume on a node.
    pub fn uri(&self, node: usize, name: &str) -> String {
        format!("file://n{node}{}", text(&self.volume(name)))
    }

    /// Writes a volume.
    pub fn fill(&self, name: &str, bytes: &[u8]) {
        let path = self.volume(name);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// Returns the content of a volume.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.volume(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// Stalls all traffic between a node and the ensemble; connections stay open.
    pub fn cut_off(&self, node: usize) {
        self.server_links[node].iter().for_each(|link| link.set(Mode::Stall));
    }

    /// Ends [`TestCluster::cut_off`]: old connections are closed, new ones pass.
    pub fn reconnect(&self, node: usize) {
        for link in &self.server_links[node] {
            link.set(Mode::Cut);
            link.set(Mode::Pass);
        }
    }

    /// Returns the proxy from a node to a server.
    pub fn server_link(&self, node: usize, server: usize) -> &TcpProxy {
        &self.server_links[node][server]
    }

    /// Returns the server that a node is connected to.
    pub fn server_of(&self, node: usize) -> Option<usize> {
        (0..self.ensemble.size()).find(|&server| self.server_link(node, server).connections() > 0)
    }

    /// Returns the proxy through which other nodes call a node.
    pub fn inbound_link(&self, node: usize) -> &TcpProxy {
        &self.inbound_links[node]
    }

    /// Returns the address of the center's records, as `HOSTS/CHROOT`.
    pub fn zookeeper(&self) -> String {
        format!("{}/cell", self.ensemble.addresses())
    }

    /// Returns the addresses of all nodes for clients.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// Runs `blockhaul ARGS --center ... --json` to its end.
    pub fn blockhaul(&self, args: &[&str]) -> Outcome {
        let addresses = self.addresses();
        self.dirs.blockhaul(&[args, &["--center", &addresses]].concat())
    }

    /// Starts `blockhaul ARGS --center ... --json`.
    pub fn launch(&self, args: &[&str]) -> Running {
        let addresses = self.addresses();
        self.dirs.start(&[args, &["--center", &addresses]].concat())
    }

    /// Runs a command that must succeed; returns its JSON lines.
    pub fn ask(&self, args: &[&str]) -> Vec<Value> {
        let outcome = self.blockhaul(args);
        assert_eq!(outcome.code, Some(0), "blockhaul {}: {outcome:?}", args.join(" "));
        outcome.lines
    }

    /// Submits a task that does nothing for so long.
    pub fn submit_noop(&self, id: &str, length: Duration, args: &[&str]) {
        self.ask(&[&["submit", "noop", &format!("{}ms", length.as_millis()), "--id", id], args].concat());
    }

    /// Submits a copy.
    pub fn submit(&self, id: &str, source: &str, destination: &str, args: &[&str]) {
        self.ask(&[&["submit", "copy", source, destination, "--id", id], args].concat());
    }

    /// Removes the rate limit of a copy.
    pub fn lift_limit(&self, id: &str) {
        let args = ["set", id, "--limit", "none"];
        let outcome = self.blockhaul(&args);
        // The copy may have ended before.
        let is_late = outcome.stderr.contains("EBusy") && self.task(id).is_over();
        assert!(outcome.code == Some(0) || is_late, "blockhaul {}: {outcome:?}", args.join(" "));
    }

    /// Returns a task; `None` if it does not exist.
    pub fn find_task(&self, id: &str) -> Option<Task> {
        let outcome = self.blockhaul(&["get", id]);
        (outcome.code == Some(0)).then(|| Task(outcome.lines.last().cloned().expect("get prints a task")))
    }

    /// Returns a task that must exist.
    pub fn task(&self, id: &str) -> Task {
        self.find_task(id).unwrap_or_else(|| panic!("{id} does not exist: {:?}", self.blockhaul(&["get", id])))
    }

    /// Waits until a task satisfies `holds`, and returns it.
    pub fn wait_for(&self, id: &str, what: &str, holds: impl Fn(&Task) -> bool) -> Task {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let task = self.find_task(id);
            if let Some(task) = task.as_ref().filter(|task| holds(task)) {
                return task.clone();
            }
            assert!(
                Instant::now() < until,
                "{id}: timed out waiting for: {what}: {task:?}\n{:?}",
                self.blockhaul(&["runners"])
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until a task has ended; it must have succeeded.
    pub fn wait_for_success(&self, id: &str) -> Task {
        let task = self.wait_for(id, "its end", Task::is_over);
        assert_eq!(task.state(), "SUCCEEDED", "{task:?}");
        task
    }

    /// Waits until a task is running and has durable bytes; returns the index of its node.
    pub fn wait_for_progress(&self, id: &str) -> usize {
        let task = self.wait_for(id, "durable bytes", |task| {
            assert!(!task.is_over(), "the task has ended too soon: {task:?}");
            task.state() == "RUNNING" && task.progress("durable") > 0
        });
        self.index(task.node())
    }

    /// Waits until the second attempt of a task runs; returns the index of its node.
    pub fn wait_for_second_attempt(&self, id: &str) -> usize {
        let task = self.wait_for(id, "a second attempt", |task| {
            assert!(!task.is_over(), "the task has ended too soon: {task:?}");
            task.state() == "RUNNING" && task.runners().len() > 1
        });
        self.index(task.node())
    }

    /// Waits until `holds` returns true.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + WAIT_MAX;
        while !holds(self) {
            assert!(Instant::now() < until, "timed out waiting for: {what}: {:?}", self.blockhaul(&["center"]));
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the index of a node.
    pub fn index(&self, id: &str) -> usize {
        self.nodes.iter().position(|node| node.id == id).unwrap_or_else(|| panic!("'{id}' is no node"))
    }

    /// Returns what `blockhaul center` prints; `None` while no node leads.
    pub fn center(&self) -> Option<Value> {
        let outcome = self.blockhaul(&["center"]);
        (outcome.code == Some(0)).then(|| outcome.lines.last().cloned()).flatten()
    }

    /// Returns the index of the leader, if there is one.
    pub fn leader(&self) -> Option<usize> {
        let center = self.center()?;
        Some(self.index(center["leader"].as_str()?))
    }

    /// Waits until a node other than `of` leads; returns its index.
    pub fn wait_for_successor(&self, of: usize) -> usize {
        self.wait_until("another leader", |cluster| cluster.leader().is_some_and(|now| now != of));
        self.leader().expect("a node leads")
    }

    /// Returns the names of the registered runners.
    pub fn runners(&self) -> Vec<String> {
        let outcome = self.blockhaul(&["runners"]);
        let registered = outcome.lines.iter().filter(|line| line["registered"] == true);
        registered.filter_map(|line| line["node"].as_str().map(str::to_owned)).collect()
    }
}
