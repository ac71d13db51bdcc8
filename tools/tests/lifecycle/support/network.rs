//! Sets up a storage and a management network, as bridges of this namespace, and hosts that are linked to both.
//!
//! | | storage | management |
//! | --- | --- | --- |
//! | this namespace | 10.88.0.254 | 10.87.0.254 |
//! | host 1, 2, 3 | 10.88.0.1, 2, 3 on `data` | 10.87.0.1, 2, 3 on `mgmt` |

use super::run;
use std::process::{Child, Command, Stdio};

/// Two networks and the hosts in them.
pub(crate) struct Network {
    /// A process for each host that keeps its namespace alive.
    hosts: Vec<Child>,
}

impl Network {
    /// Creates networks with this number of hosts.
    pub(crate) fn new(hosts: usize) -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        for (name, subnet) in [("data", 88), ("mgmt", 87)] {
            run("ip", &["link", "add", name, "type", "bridge"]);
            run("ip", &["address", "add", &format!("10.{subnet}.0.254/24"), "dev", name]);
            run("ip", &["link", "set", name, "up"]);
        }
        let mut network = Self { hosts: Vec::new() };
        (1..=hosts).for_each(|number| network.add(number));
        network
    }

    fn add(&mut self, number: usize) {
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).stdout(Stdio::null());
        let keeper = keeper.spawn().expect("unshare is installed");
        let pid = keeper.id().to_string();
        self.hosts.push(keeper);
        // The process enters its namespace a moment after its start.
        let own = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        while own(&pid).is_none_or(|namespace| Some(namespace) == own("self")) {
            std::thread::yield_now();
        }
        self.inside(number, &["ip", "link", "set", "lo", "up"]);
        for (name, subnet) in [("data", 88), ("mgmt", 87)] {
            let link = format!("{name}{number}");
            run("ip", &["link", "add", &link, "type", "veth", "peer", "name", name, "netns", &pid]);
            self.inside(number, &["ip", "address", "add", &format!("10.{subnet}.0.{number}/24"), "dev", name]);
            self.inside(number, &["ip", "link", "set", name, "up"]);
            run("ip", &["link", "set", &link, "up"]);
            self.join(name, number);
        }
    }

    /// Detaches a host's link from the bridge of a network (`data` or `mgmt`); the link of the host stays up.
    pub(crate) fn cut(&self, network: &str, host: usize) {
        run("ip", &["link", "set", &format!("{network}{host}"), "nomaster"]);
    }

    /// Attaches the link again.
    pub(crate) fn join(&self, network: &str, host: usize) {
        run("ip", &["link", "set", &format!("{network}{host}"), "master", network]);
    }

    /// Returns a command that runs on a host.
    pub(crate) fn on(&self, host: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.hosts[host - 1].id().to_string(), "--", program]);
        command
    }

    /// Runs a command on a host that must succeed; returns its stdout.
    pub(crate) fn inside(&self, host: usize, args: &[&str]) -> String {
        let pid = self.hosts[host - 1].id().to_string();
        run("nsenter", &[&["--net", "--target", &pid, "--"], args].concat())
    }

    /// Tells whether a host has this address.
    pub(crate) fn has(&self, host: usize, address: &str) -> bool {
        self.inside(host, &["ip", "-o", "address", "show"]).contains(&format!(" {address}/"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            let _ = host.kill();
            let _ = host.wait();
        }
    }
}
