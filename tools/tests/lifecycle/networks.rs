//! Tests cut links: a node without its storage network drops its roles, keeps running, and takes them again.

use crate::support::{TestCluster, run_isolated, wait_until};
use serde_json::Value;
use std::time::Duration;

/// Short timeouts to lose the network often, but long enough for a busy host.
const SHORT_TIMEOUTS: [&str; 6] = ["--data-channel-interval", "100ms", "--data-channel-timeout", "1s", "--slots", "1"];
const MIB: usize = 1 << 20;

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at / 4096 + at % 251) as u8 ^ seed).collect()
}

/// Returns the number of the node that a task runs on.
fn runner(task: &Value) -> usize {
    task["node"].as_str().and_then(|name| name.strip_prefix('n')?.parse().ok()).unwrap_or_default()
}

/// Returns node and outcome of each attempt of a task.
fn attempts(task: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = task["attempts"].as_array().cloned().unwrap_or_default();
    all.iter().map(|attempt| (text(&attempt["runner"]), text(&attempt["outcome"]))).collect()
}

/// With default timeouts: another node answers at the service address within 15 s of the cut, the leader's copy is
/// returned as interrupted and completes on another node, and the process keeps running, is not healthy, and registers
/// again later.
#[test]
fn t_zbs_8_a_leader_without_its_storage_network_resigns() {
    run_isolated(
        "networks::t_zbs_8_a_leader_without_its_storage_network_resigns",
        &["zookeeper", "java", "nbdkit"],
        || {
            let mut cluster = TestCluster::new(&["--slots", "1"]);
            let pids = cluster.pids();
            let volumes: Vec<_> = (1..=3_u8)
                .map(|number| {
                    let source = cluster.volume(&format!("s{number}"), &bytes(32 * MIB, number));
                    let destination = cluster.volume(&format!("d{number}"), &[]);
                    std::fs::File::options().write(true).open(&destination).unwrap().set_len(32 * MIB as u64).unwrap();
                    // The copies use the storage network: their requests hang when it is cut.
                    let uri = |volume: &str| format!("nbd://10.88.0.254/{volume}{number}");
                    let id = format!("c{number}");
                    let args =
                        ["submit", "copy", &uri("s"), &uri("d"), "--source-stable", "--limit", "2MiB/s", "--id", &id];
                    cluster.ask(&args);
                    (id, source, destination)
                })
                .collect();
            for (id, ..) in &volumes {
                cluster.wait_for(id, "something durable", |task| {
                    task["state"] == "RUNNING" && task["progress"]["durable"].as_u64() > Some(0)
                });
            }
            let leader = cluster.leader();
            let of_leader = volumes
                .iter()
                .find(|(id, ..)| runner(&cluster.task(id)) == leader)
                .expect("each node has one")
                .0
                .clone();
            cluster.network.cut("data", leader);
            let (next, time) = cluster.time_until_moved(leader);
            println!("the service address answers on another node {:.2} s after the cut", time.as_secs_f64());
            assert!(time <= Duration::from_secs(15), "{time:?}");
            wait_until("the node with the service address leads", || cluster.leader() == next);
            wait_until("the metrics of the old leader show no registration", || {
                cluster.is_registered_by_metrics(leader) == Some(false)
            });
            assert!(!cluster.is_healthy(leader) && cluster.is_healthy(next));
            for (id, ..) in &volumes {
                cluster.ask(&["set", id, "--limit", "none"]);
            }
            for (id, source, destination) in &volumes {
                let task = cluster.wait_for_success(id);
                let attempts = attempts(&task);
                if *id == of_leader {
                    let lost = (format!("n{leader}"), String::from("ERunnerInterrupt"));
                    assert!(attempts.len() == 2 && attempts[0] == lost && runner(&task) != leader, "{task}");
                } else {
                    assert_eq!(attempts.len(), 1, "{task}");
                }
                assert!(
                    std::fs::read(source).unwrap() == std::fs::read(destination).unwrap(),
                    "{id}: the volumes differ"
                );
            }
            assert!(!cluster.registered().contains(&leader), "a node whose link is cut does not register");
            cluster.network.join("data", leader);
            wait_until("all nodes are registered", || cluster.registered().len() == 3);
            assert!(cluster.is_healthy(leader));
            cluster.assert_no_process_ended(&pids);
            cluster.stop();
        },
    );
}

/// The roles move and return each time, and no process ends, so that no start limit of systemd is reached.
#[test]
fn t_zbs_9_ten_losses_in_a_row_end_no_process() {
    run_isolated("networks::t_zbs_9_ten_losses_in_a_row_end_no_process", &["zookeeper", "java", "nbdkit"], || {
        let mut cluster = TestCluster::new(&SHORT_TIMEOUTS);
        let pids = cluster.pids();
        let mut times = Vec::new();
        for round in 0..10 {
            let leader = cluster.leader();
            let ids: Vec<String> = (0..3).map(|number| format!("r{round}-{number}")).collect();
            ids.iter().for_each(|id| _ = cluster.ask(&["submit", "noop", "2500ms", "--id", id]));
            let mut of_leader = String::new();
            wait_until("the leader runs a task", || {
                let is_its = |id: &&String| {
                    let task = cluster.task(id);
                    task["state"] == "RUNNING" && runner(&task) == leader
                };
                of_leader = ids.iter().find(is_its).cloned().unwrap_or_default();
                !of_leader.is_empty()
            });
            cluster.network.cut("data", leader);
            let (_, time) = cluster.time_until_moved(leader);
            times.push(time);
            for id in &ids {
                let task = cluster.wait_for_success(id);
                let (failures, is_its) = (attempts(&task).len() - 1, *id == of_leader);
                assert!(failures == usize::from(is_its) && (!is_its || runner(&task) != leader), "{round}: {task}");
            }
            cluster.network.join("data", leader);
            wait_until("all nodes are registered", || cluster.registered().len() == 3);
        }
        println!("the service address moved in {times:?}");
        wait_until("all clocks are measured, and agree", || {
            let lines = cluster.ask(&["runners"]);
            lines.iter().all(|line| line["clock_offset_ms"].is_i64() && line["clock_is_off"] == false)
        });
        cluster.assert_no_process_ended(&pids);
        cluster.stop();
    });
}

/// Links of all nodes, of one node, and of both networks fail and return: the center recovers each time without help.
#[test]
fn a_center_recovers_from_networks_that_fail_and_return() {
    run_isolated(
        "networks::a_center_recovers_from_networks_that_fail_and_return",
        &["zookeeper", "java", "nbdkit"],
        || {
            let mut cluster = TestCluster::new(&[&SHORT_TIMEOUTS[..], &["--session-timeout", "6s"]].concat());
            let pids = cluster.pids();
            // All three storage links at once: the first nodes to notice give up their roles; the remaining ones have
            // too few peers for a verdict and keep theirs.
            (1..=3).for_each(|number| cluster.network.cut("data", number));
            wait_until("a node has lost the storage network", || {
                (1..=3).any(|number| losses(&mut cluster, number) > 0)
            });
            wait_until("a leader serves", || {
                (1..=2).contains(&cluster.registered().len()) && cluster.holders().len() == 1 && cluster.vip_answers()
            });
            (1..=3).for_each(|number| cluster.network.join("data", number));
            wait_until("all nodes are registered", || has_recovered(&cluster));

            // Interruptions below the timeout have no effect; longer ones cost the roles, with growing waits in
            // between.
            let leader = cluster.leader();
            let before = losses(&mut cluster, leader);
            for _ in 0..5 {
                cluster.network.cut("data", leader);
                std::thread::sleep(Duration::from_millis(200));
                cluster.network.join("data", leader);
                std::thread::sleep(Duration::from_millis(300));
            }
            assert_eq!(losses(&mut cluster, leader), before, "short interruptions are no loss");
            for _ in 0..6 {
                cluster.network.cut("data", leader);
                std::thread::sleep(Duration::from_millis(1500));
                cluster.network.join("data", leader);
                std::thread::sleep(Duration::from_millis(500));
            }
            let flaps = losses(&mut cluster, leader) - before;
            assert!(
                (1..=4).contains(&flaps),
                "six interruptions are {flaps} losses: each wait is longer than the one before"
            );
            wait_until("all nodes are registered", || has_recovered(&cluster));

            // The management network of the leader: it must remove the address before another node adds it.
            let leader = cluster.leader();
            cluster.network.cut("data", leader);
            cluster.network.cut("mgmt", leader);
            wait_until("the old leader removes the address", || !cluster.holders().contains(&leader));
            wait_until("another node leads", || cluster.leader() != leader);
            wait_until("the new leader has the address", || cluster.holders().len() == 1 && cluster.vip_answers());
            cluster.ask(&["submit", "noop", "1ms", "--id", "meanwhile", "--wait"]);
            cluster.network.join("data", leader);
            cluster.network.join("mgmt", leader);
            wait_until("all nodes are registered", || has_recovered(&cluster));
            cluster.ask(&["submit", "noop", "1ms", "--id", "afterwards", "--wait"]);
            cluster.assert_no_process_ended(&pids);
            cluster.stop();
        },
    );
}

fn has_recovered(cluster: &TestCluster) -> bool {
    cluster.registered().len() == 3 && cluster.holders().len() == 1 && cluster.vip_answers()
}

/// Returns how often a node has lost the storage network so far.
fn losses(cluster: &mut TestCluster, number: usize) -> usize {
    cluster.node(number).log().matches("storage network lost: no peer answers").count()
}
