//! Tests the service address: it is answered, restored, moved and removed; invalid addresses are refused.

use crate::support::{
    Daemon, Network, SOON, TestCluster, VIP, blockhaul, permit_cores, run, run_isolated, taskd, wait_until,
};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

/// Returns the leader, by a call to the service address.
fn leader_by_vip(cluster: &TestCluster) -> usize {
    let (code, lines) = cluster.blockhaul(&format!("{VIP}:7400"), &["center"]);
    assert_eq!(code, Some(0), "the service address does not answer");
    let leader = lines[0]["leader"]["node"].as_str().or(lines[0]["leader"].as_str()).unwrap_or_default();
    leader.trim_start_matches('n').parse().unwrap_or_else(|_| panic!("{}", lines[0]))
}

/// An open stream through the service address.
struct Stream {
    runtime: tokio::runtime::Runtime,
    stream: tonic::Streaming<HealthCheckResponse>,
}

impl Stream {
    fn through_vip() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it takes nothing");
        let stream = runtime.block_on(async {
            let center = tonic::transport::Endpoint::from_shared(format!("http://{VIP}:7400"));
            let center = center.expect("it is an address").connect().await.expect("it is answered");
            let asked = HealthClient::new(center).watch(HealthCheckRequest { service: String::new() }).await;
            let mut stream = asked.expect("it is answered").into_inner();
            stream.message().await.expect("it is answered").expect("a stream begins with the current state");
            stream
        });
        Self { runtime, stream }
    }

    /// Checks that the stream ends instead of waiting for a server that cannot send any more.
    fn assert_ended(mut self) {
        let ended = async { while matches!(self.stream.message().await, Ok(Some(_))) {} };
        let ended = self.runtime.block_on(async { tokio::time::timeout(SOON, ended).await });
        assert!(ended.is_ok(), "a stream through the service address stays open after its removal");
    }
}

/// The leader restores an address that was removed by hand. A stopped leader moves it within two seconds. A killed
/// leader leaves it behind, and removes it at its next start.
#[test]
fn the_service_address_is_restored_moved_and_cleaned_up() {
    run_isolated("vip::the_service_address_is_restored_moved_and_cleaned_up", &["zookeeper", "java", "nbdkit"], || {
        let mut cluster = TestCluster::new(&["--session-timeout", "6s"]);
        let leader = cluster.leader();
        assert_eq!(cluster.holders(), [leader]);
        cluster.network.inside(leader, &["ip", "address", "del", &format!("{VIP}/24"), "dev", "mgmt"]);
        assert!(cluster.holders().is_empty());
        wait_until("the address is restored", || cluster.holders() == [leader] && cluster.vip_answers());

        assert_eq!(leader_by_vip(&cluster), leader);
        let stream = Stream::through_vip();

        cluster.node(leader).signal(Signal::SIGTERM);
        let (next, time) = cluster.time_until_moved(leader);
        assert_eq!(leader_by_vip(&cluster), next, "the node with the address leads");
        stream.assert_ended();
        println!("the service address answers on another node {:.2} s after SIGTERM", time.as_secs_f64());
        assert!(time <= Duration::from_secs(2), "{time:?}");
        assert_eq!(cluster.node(leader).ended(), Some(0));
        cluster.restart(leader, &["--session-timeout", "6s"]);
        wait_until("all nodes are registered", || cluster.registered().len() == 3);
        assert_eq!(cluster.holders(), [next], "a node that returns does not move the address");

        cluster.node(next).kill();
        assert!(cluster.network.has(next, VIP), "a killed node leaves the address");
        wait_until("the next leader adds the address", || {
            (1..=3).any(|number| number != next && cluster.network.has(number, VIP))
        });
        cluster.restart(next, &["--session-timeout", "6s"]);
        wait_until("the address that was left behind is removed", || !cluster.network.has(next, VIP));
        wait_until("all nodes are registered", || cluster.registered().len() == 3 && cluster.holders().len() == 1);
        let fast = cluster.leader();
        cluster.node(fast).signal(Signal::SIGTERM);
        cluster.node(fast).signal(Signal::SIGINT);
        assert_eq!(cluster.node(fast).ended(), Some(0));
        assert!(!cluster.network.has(fast, VIP), "a fast stop removes the address as well");
    });
}

/// The process exits with 1 and one error line, without a core file and without the address.
#[test]
fn t_zbs_15_an_invalid_service_address_ends_the_server_with_one_error_line() {
    run_isolated("vip::t_zbs_15_an_invalid_service_address_ends_the_server_with_one_error_line", &[], || {
        permit_cores();
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "lan", "type", "bridge"]);
        let dir = tempfile::tempdir().unwrap();
        for (vip, code, why) in [
            ("10.9.0.300/24@lan", "EBadRequest", "invalid IP address"),
            ("10.9.0.0/24@lan", "EBadRequest", "a network or broadcast address"),
            ("127.0.0.1/8@lan", "EBadRequest", "special"),
            ("10.9.0.1/24", "EBadRequest", "ADDR/PREFIX@INTERFACE"),
            ("10.9.0.1/24@wan", "ENotFound", "no such interface"),
        ] {
            let mut daemon = Daemon::alone(dir.path(), &["--insecure", "--vip", vip]);
            assert_eq!(daemon.ended(), Some(1), "{vip}");
            let log = daemon.log();
            let line = log.lines().last().unwrap_or_default();
            assert!(line.contains(code) && line.contains(why) && line.contains("--vip"), "{vip}: {log}");
        }
        assert!(!run("ip", &["address", "show", "lan"]).contains("10.9."));
        run("ip", &["address", "add", "10.9.0.7/24", "dev", "lan"]);
        let own = ["--listen", "10.9.0.7:7400", "--insecure", "--vip", "10.9.0.7/24@lan"];
        assert_eq!(Daemon::alone(dir.path(), &own).ended(), Some(1));
        assert!(
            run("ip", &["address", "show", "lan"]).contains("10.9.0.7/24"),
            "a node's own address is never removed"
        );
        crate::support::assert_no_core(dir.path());
    });
}

/// The interface disappears while the node leads: the role cannot run on this host, so the server stops in order.
#[test]
fn t_zbs_13_a_dispatcher_whose_interface_disappears_stops_the_server() {
    run_isolated("vip::t_zbs_13_a_dispatcher_whose_interface_disappears_stops_the_server", &[], || {
        permit_cores();
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "lan", "type", "bridge"]);
        run("ip", &["link", "set", "lan", "up"]);
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::alone(dir.path(), &["--insecure", "--vip", "10.9.0.1/24@lan"]);
        daemon.wait_for_log("service address added");
        run("ip", &["link", "del", "lan"]);
        assert_eq!(daemon.ended(), Some(1));
        let log = daemon.log();
        assert!(log.lines().last().unwrap_or_default().contains("ENotFound"), "{log}");
        assert!(log.contains("deregistered") && log.contains("stopped"), "in good order: {log}");
        crate::support::assert_no_core(dir.path());
    });
}

/// Without the capabilities the error names them; without a service address none are needed.
#[test]
fn only_a_service_address_needs_capabilities_and_the_error_names_them() {
    run_isolated("vip::only_a_service_address_needs_capabilities_and_the_error_names_them", &["setpriv"], || {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "lan", "type", "bridge"]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let start = |flags: &[&str]| {
            let plain = Daemon::command(dir.path(), flags);
            let mut command = std::process::Command::new("setpriv");
            command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
            command.arg(plain.get_program()).args(plain.get_args());
            Daemon::start(command, &dir.path().join("said"))
        };
        let mut refused = start(&["--insecure", "--vip", "10.9.0.1/24@lan"]);
        assert_eq!(refused.ended(), Some(1));
        let log = refused.log();
        assert!(log.contains("EPermission") && log.contains("CAP_NET_ADMIN and CAP_NET_RAW"), "{log}");
        let mut plain = start(&[]);
        plain.wait_for_log("elected leader");
        assert_eq!(plain.stop(), Some(0));
    });
}

/// Starts a standalone node on the first host.
fn on_host(network: &Network, dir: &Path, flags: &[&str]) -> Daemon {
    let mut command = network.on(1, taskd().to_str().expect("paths of programs are text"));
    command.args(Daemon::command(dir, flags).get_args());
    Daemon::start(command, &dir.join("said"))
}

/// `--listen` is the node's own address, a wildcard address or the loopback address.
#[test]
fn the_service_address_answers_for_every_listen_address() {
    run_isolated("vip::the_service_address_answers_for_every_listen_address", &[], || {
        let (network, dir) = (Network::new(1), tempfile::tempdir().unwrap());
        run("ip", &["address", "add", "fd87::254/64", "dev", "mgmt", "nodad"]);
        network.inside(1, &["ip", "address", "add", "fd87::1/64", "dev", "mgmt", "nodad"]);
        for listen in ["10.87.0.1:7400", "0.0.0.0:7400", "127.0.0.1:7400", "[fd87::1]:7400", "[::]:7400"] {
            for (address, prefix, at) in [(VIP, 24, "10.87.0.100:7400"), ("fd87::100", 64, "[fd87::100]:7400")] {
                let vip = format!("{address}/{prefix}@mgmt");
                let mut daemon = on_host(&network, dir.path(), &["--listen", listen, "--insecure", "--vip", &vip]);
                wait_until("the address is added", || network.has(1, address));
                let asked = Command::new(blockhaul()).args(["center", "--center", at]).output().unwrap();
                assert!(asked.status.success(), "{listen}, {at}: {asked:?}");
                assert_eq!(daemon.stop(), Some(0));
                assert!(!network.has(1, address));
            }
        }
    });
}

/// An address at which the node cannot reach itself is not announced until it can.
#[test]
fn a_service_address_that_is_not_answered_is_removed_and_logged() {
    run_isolated("vip::a_service_address_that_is_not_answered_is_removed_and_logged", &[], || {
        let (network, dir) = (Network::new(1), tempfile::tempdir().unwrap());
        // A host sends to its own addresses through the loopback interface.
        network.inside(1, &["ip", "link", "set", "lo", "down"]);
        let vip = format!("{VIP}/24@mgmt");
        let mut daemon = on_host(&network, dir.path(), &["--listen", "10.87.0.1:7400", "--insecure", "--vip", &vip]);
        daemon.wait_for_log("service address not answered");
        wait_until("the address is removed", || !network.has(1, VIP));
        assert!(!daemon.log().contains("service address added"), "{}", daemon.log());
        network.inside(1, &["ip", "link", "set", "lo", "up"]);
        daemon.wait_for_log("service address added");
        assert_eq!(daemon.stop(), Some(0));
    });
}

/// Both are found at the start: another process at that address and port, and a node without certificates.
#[test]
fn a_node_that_cannot_listen_at_the_service_address_does_not_start() {
    run_isolated("vip::a_node_that_cannot_listen_at_the_service_address_does_not_start", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        for (link, address) in [("lan", "10.9.0.7/24"), ("other", "10.9.0.1/32")] {
            run("ip", &["link", "add", link, "type", "bridge"]);
            run("ip", &["address", "add", address, "dev", link]);
        }
        let dir = tempfile::tempdir().unwrap();
        let vip = ["--vip", "10.9.0.1/24@lan"];
        let occupied = std::net::TcpListener::bind("10.9.0.1:7400").unwrap();
        let flags = [&["--listen", "10.9.0.7:7400", "--insecure"], &vip[..]].concat();
        let mut daemon = Daemon::alone(dir.path(), &flags);
        assert_eq!(daemon.ended(), Some(1));
        let log = daemon.log();
        let line = log.lines().last().unwrap_or_default();
        assert!(["EBusy", "10.9.0.1:7400", "--vip"].iter().all(|word| line.contains(word)), "{log}");
        drop(occupied);
        run("ip", &["link", "del", "other"]);

        let mut daemon = Daemon::alone(dir.path(), &[&["--listen", "127.0.0.1:7400"], &vip[..]].concat());
        assert_eq!(daemon.ended(), Some(2));
        let log = daemon.log();
        let line = log.lines().last().unwrap_or_default();
        assert!(["EBadRequest", "--vip", "--insecure"].iter().all(|word| line.contains(word)), "{log}");
        assert!(!run("ip", &["address", "show", "lan"]).contains("10.9.0.1"));
    });
}

/// A neighbour that still sends to the previous owner's hardware address is corrected, with IPv4 and IPv6.
#[test]
fn neighbours_learn_the_new_owner_of_the_service_address() {
    run_isolated("vip::neighbours_learn_the_new_owner_of_the_service_address", &[], || {
        let (network, dir) = (Network::new(1), tempfile::tempdir().unwrap());
        run("ip", &["address", "add", "fd87::254/64", "dev", "mgmt", "nodad"]);
        network.inside(1, &["ip", "address", "add", "fd87::1/64", "dev", "mgmt", "nodad"]);
        let shown = network.inside(1, &["ip", "-o", "link", "show", "dev", "mgmt"]);
        let card = shown.split("link/ether ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let card = card.expect("the link has a hardware address").to_owned();
        for (address, prefix) in [("10.87.0.100", 24), ("fd87::100", 64)] {
            run("ip", &["neighbour", "replace", address, "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "mgmt"]);
            let vip = format!("{address}/{prefix}@mgmt");
            let mut daemon = on_host(&network, dir.path(), &["--insecure", "--vip", &vip]);
            wait_until("the neighbour has the new hardware address", || {
                run("ip", &["neighbour", "show", address]).contains(&card)
            });
            assert_eq!(daemon.stop(), Some(0));
            assert!(!network.has(1, address));
        }
    });
}
