//! Runs three nodes, two networks, a real ZooKeeper, and a service address.

use super::store::Server;
use super::{Daemon, Network, assert_no_core, blockhaul, taskd};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Service address of the cluster.
pub(crate) const VIP: &str = "10.87.0.100";
/// Longest wait, also on a busy host.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Nodes, numbered from 1, with their networks and servers.
pub(crate) struct TestCluster {
    nodes: Vec<Daemon>,
    pub(crate) network: Network,
    _servers: [Server; 2],
    dir: TempDir,
}

/// Waits until `holds` returns true.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "timed out waiting for: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

impl TestCluster {
    /// Starts nodes with a storage network and these further flags; returns when one leads and has the service address.
    pub(crate) fn new(flags: &[&str]) -> Self {
        super::permit_cores();
        let dir = tempfile::tempdir().expect("temporary directories can be created");
        let home = dir.path().to_owned();
        std::fs::create_dir(home.join("volumes")).expect("the directory is writable");
        let network = Network::new(3);
        let servers = [Server::zookeeper(&home), Server::nbd(&home.join("volumes"), &home)];
        let mut cluster = Self { nodes: Vec::new(), network, _servers: servers, dir };
        for number in 1..=3 {
            let node = cluster.launch(number, flags);
            cluster.nodes.push(node);
        }
        wait_until("a node leads and all are registered", || cluster.registered().len() == 3);
        wait_until("a node has the service address", || cluster.holders().len() == 1);
        cluster
    }

    fn launch(&self, number: usize, flags: &[&str]) -> Daemon {
        let home = self.dir.path();
        let mut command = self.network.on(number, taskd().to_str().expect("paths of programs are text"));
        command.args(["--node-id", &format!("n{number}"), "--zookeeper", "10.87.0.254:2181/cell", "--insecure"]);
        command.args(["--listen", &format!("10.87.0.{number}:7400")]);
        command.args(["--metrics", "0.0.0.0:7401", "--data-address", "data", "--vip", &format!("{VIP}/24@mgmt")]);
        command.args(["--cores", "1", "--memory", "16MiB", "--quiet-after", "1s"]);
        command.arg("--state-dir").arg(home.join(format!("n{number}.state")));
        command.arg("--allow-path").arg(home.join("volumes")).args(flags);
        Daemon::start(command, &home.join(format!("n{number}.said")))
    }

    /// Starts a node that has ended.
    pub(crate) fn restart(&mut self, number: usize, flags: &[&str]) {
        assert!(!self.nodes[number - 1].is_running(), "n{number} runs");
        self.nodes[number - 1] = self.launch(number, flags);
    }

    pub(crate) fn node(&mut self, number: usize) -> &mut Daemon {
        &mut self.nodes[number - 1]
    }

    /// Writes a volume; returns its path.
    pub(crate) fn volume(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("volumes").join(name);
        std::fs::write(&path, bytes).expect("the directory is writable");
        path
    }

    /// Runs `blockhaul ARGS --center ... --json`; returns its exit code and its JSON lines.
    pub(crate) fn blockhaul(&self, center: &str, args: &[&str]) -> (Option<i32>, Vec<Value>) {
        let mut command = Command::new(blockhaul());
        command.args(args).args(["--center", center, "--json"]);
        let output = command.output().expect("it was built with this test");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("it prints JSON")).collect();
        if output.status.code() != Some(0) {
            println!("blockhaul {}: {}", args.join(" "), complaint.trim_end());
        }
        (output.status.code(), lines)
    }

    /// As [`TestCluster::blockhaul`] with the addresses of all nodes; it must succeed.
    pub(crate) fn ask(&self, args: &[&str]) -> Vec<Value> {
        let (code, lines) = self.blockhaul("10.87.0.1:7400,10.87.0.2:7400,10.87.0.3:7400", args);
        assert_eq!(code, Some(0), "blockhaul {}", args.join(" "));
        lines
    }

    /// Returns a task as `get` prints it.
    pub(crate) fn task(&self, id: &str) -> Value {
        self.ask(&["get", id]).pop().expect("get prints a task")
    }

    /// Waits until a task satisfies `holds`, and returns it.
    pub(crate) fn wait_for(&self, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            last = self.task(id);
            if holds(&last) {
                return last;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        panic!("{id}: timed out waiting for: {what}: {last}")
    }

    /// Waits until a task has succeeded, and returns it.
    pub(crate) fn wait_for_success(&self, id: &str) -> Value {
        let is_over = |task: &Value| ["SUCCEEDED", "FAILED", "CANCELLED"].map(Value::from).contains(&task["state"]);
        let task = self.wait_for(id, "its end", is_over);
        assert_eq!(task["state"], "SUCCEEDED", "{task}");
        task
    }

    /// Returns the numbers of the registered nodes that do not stop.
    pub(crate) fn registered(&self) -> Vec<usize> {
        let lines = self.ask(&["runners"]);
        let there = lines.iter().filter(|line| line["registered"] == true && line["stopping"] == false);
        there.map(|line| number_of(&line["node"])).collect()
    }

    /// Returns the number of the leader.
    pub(crate) fn leader(&self) -> usize {
        number_of(&self.ask(&["center"]).pop().expect("center prints a line")["leader"])
    }

    /// Returns the numbers of the nodes that have the service address, which is at most one.
    pub(crate) fn holders(&self) -> Vec<usize> {
        let mut holders: Vec<usize> = (1..=3).filter(|&number| self.network.has(number, VIP)).collect();
        if holders.len() > 1 {
            // Hosts are checked one after the other: the address may have moved in between.
            holders.retain(|&number| self.network.has(number, VIP));
        }
        assert!(holders.len() <= 1, "the service address is on {holders:?}");
        holders
    }

    /// Tells whether the service address accepts connections.
    pub(crate) fn vip_answers(&self) -> bool {
        let address = format!("{VIP}:7400").parse().expect("it is an address");
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
    }

    /// Waits until a node other than `from` answers at the service address; returns its number and the time.
    pub(crate) fn time_until_moved(&self, from: usize) -> (usize, Duration) {
        let began = Instant::now();
        let mut to = 0;
        wait_until("another node answers at the service address", || {
            to = self.holders().first().copied().unwrap_or(from);
            to != from && self.vip_answers()
        });
        (to, began.elapsed())
    }

    /// Tells whether the health service of a node reports that it serves.
    pub(crate) fn is_healthy(&self, number: usize) -> bool {
        use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it takes nothing");
        runtime.block_on(async {
            let node = tonic::transport::Endpoint::from_shared(format!("http://10.87.0.{number}:7400"));
            let node = node.expect("it is an address").connect().await.expect("the process answers without its roles");
            let asked = HealthClient::new(node).check(HealthCheckRequest { service: String::new() }).await;
            asked.expect("the process answers without its roles").into_inner().status() == ServingStatus::Serving
        })
    }

    /// Tells whether a node's metrics show it as registered; `None` without metrics.
    pub(crate) fn is_registered_by_metrics(&self, number: usize) -> Option<bool> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(format!("10.87.0.{number}:7401")).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        let line = page.lines().find_map(|line| line.strip_prefix("blockhaul_runner_registered "))?;
        Some(line.trim() == "1")
    }

    /// Checks that all nodes are still the processes `pids` and have left no core file.
    pub(crate) fn assert_no_process_ended(&mut self, pids: &[nix::unistd::Pid]) {
        for (node, pid) in self.nodes.iter_mut().zip(pids) {
            assert!(node.is_running() && node.pid() == *pid, "a process has ended:\n{}", node.log());
        }
        assert_no_core(self.dir.path());
    }

    pub(crate) fn pids(&self) -> Vec<nix::unistd::Pid> {
        self.nodes.iter().map(Daemon::pid).collect()
    }

    /// Stops all nodes with SIGTERM.
    pub(crate) fn stop(mut self) {
        for node in &self.nodes {
            node.signal(nix::sys::signal::Signal::SIGTERM);
        }
        for node in &mut self.nodes {
            assert_eq!(node.ended(), Some(0), "{}", node.log());
        }
        assert_no_core(self.dir.path());
    }
}

/// Parses the number of a node from its name or from an object with its name.
fn number_of(name: &Value) -> usize {
    let name = name.as_str().or(name["node"].as_str()).unwrap_or_default();
    name.trim_start_matches('n').parse().unwrap_or_else(|_| panic!("'{name}' is no node"))
}
