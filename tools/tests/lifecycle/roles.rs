//! Tests roles that end and return while the process keeps running, and stops from any source.

use crate::support::{TestCluster, run_isolated, wait_until};
use blockhaul_control::config::RawConfig;
use blockhaul_control::node::{Node, Stop};
use clap::Parser;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Creates a server in this process, on the loopback interface.
fn server(folder: &Path) -> Node {
    let state = folder.join("state");
    let args = ["taskd", "--standalone", "--node-id", "n1", "--listen", "127.0.0.1:0", "--cores", "1", "--state-dir"];
    let raw = RawConfig::try_parse_from(args.iter().map(|word| word.as_ref()).chain([state.as_os_str()])).unwrap();
    Node::new(raw.resolve(|_| None).unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A thread of a role requests the stop, and the owner's thread carries it out: no thread waits for itself.
#[test]
fn t_zbs_10_a_stop_from_a_roles_thread_is_carried_out_by_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let (runtime, server) = (runtime(), server(dir.path()));
        let stopper = server.stopper();
        // Runs on the threads of the roles, once these have started.
        let role = runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stopper.stop(Stop::Drained);
        });
        assert_eq!(runtime.block_on(server.run_to_end()), Ok(()));
        runtime.block_on(role).unwrap();
    }
}

/// Stops before and during the start, before the run, and from two threads at once: the server ends once and releases
/// its state directory.
#[test]
fn t_zbs_11_concurrent_stops_stop_the_server_once() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let early = server(dir.path());
    early.stopper().stop(Stop::Drained);
    early.stopper().stop(Stop::Drained);
    assert_eq!(runtime.block_on(early.run_to_end()), Ok(()));
    assert!(!dir.path().join("state").exists(), "nothing was created");

    let between = server(dir.path());
    let stopper = between.stopper();
    let ready = runtime.block_on(between.initialise()).unwrap();
    stopper.stop(Stop::Drained);
    assert_eq!(runtime.block_on(ready.run()), Ok(()));

    for wait in [0, 1, 5, 20, 50, 100] {
        let server = server(dir.path());
        let stopping: Vec<_> = [Stop::Drained, Stop::Drained]
            .map(|how| {
                let stopper = server.stopper();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(wait));
                    stopper.stop(how);
                })
            })
            .into();
        assert_eq!(runtime.block_on(server.run_to_end()), Ok(()), "after {wait} ms");
        stopping.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// The runner's half of T-ZBS-13; the dispatcher's is with the service address.
#[test]
fn t_zbs_13_a_runner_that_cannot_start_stops_the_server() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let first = server(dir.path());
    let ready = runtime.block_on(first.initialise()).unwrap();
    let error = runtime.block_on(server(dir.path()).initialise()).map(drop).unwrap_err();
    assert!(error.message.contains("another taskd of this node"), "{error}");
    drop(ready);
    std::fs::write(dir.path().join("state/incarnations"), [0xff, 0xfe]).unwrap();
    std::fs::remove_file(dir.path().join("state/center.redb")).unwrap();
    std::fs::create_dir(dir.path().join("state/center.redb")).unwrap();
    let error = runtime.block_on(server(dir.path()).run_to_end()).unwrap_err();
    assert!(!error.message.is_empty(), "{error}");
}

/// A leader that is cut off from the coordination service: the dispatcher stops, a copy to an export is cut off, and a
/// copy between files of the node completes in one attempt.
#[test]
fn t_zbs_14_a_leader_that_lost_its_leadership_continues_as_a_runner() {
    run_isolated(
        "roles::t_zbs_14_a_leader_that_lost_its_leadership_continues_as_a_runner",
        &["zookeeper", "java", "nbdkit"],
        || {
            let mut cluster = TestCluster::new(&["--session-timeout", "6s", "--data-channel-timeout", "30s"]);
            let pids = cluster.pids();
            let (leader, noise) = (cluster.leader(), vec![0x5a; 64 * MIB]);
            let node = format!("n{leader}");
            let [source, local, network] = ["source", "local", "network"].map(|name| cluster.volume(name, &[]));
            std::fs::write(&source, &noise).unwrap();
            std::fs::File::options().write(true).open(&network).unwrap().set_len(64 * MIB as u64).unwrap();
            let file = |path: &Path| format!("file://{node}{}", path.display());
            let plain = ["--limit", "2MiB/s", "--reflink", "never"];
            cluster.ask(&[&["submit", "copy", &file(&source), &file(&local), "--id", "local"], &plain[..]].concat());
            let (from, to) = ("nbd://10.88.0.254/source", "nbd://10.88.0.254/network");
            let pinned = ["--node", &node, "--source-stable", "--id", "network"];
            cluster.ask(&[&["submit", "copy", from, to], &pinned[..], &plain[..2]].concat());
            for id in ["local", "network"] {
                cluster.wait_for(id, "something durable", |task| task["progress"]["durable"].as_u64() > Some(0));
            }
            cluster.network.cut("mgmt", leader);
            cluster.node(leader).wait_for_log("lost leadership");
            cluster.node(leader).wait_for_log("copy cut off");
            wait_until("another node leads", || cluster.leader() != leader);
            let before = written(&local);
            wait_until("the local copy continues", || written(&local) > before);
            cluster.network.join("mgmt", leader);
            wait_until("all nodes are registered", || cluster.registered().len() == 3);
            for id in ["local", "network"] {
                cluster.ask(&["set", id, "--limit", "none"]);
            }
            let outcomes = |id: &str| -> Vec<Value> {
                let task = cluster.wait_for_success(id);
                task["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].clone()).collect()
            };
            assert_eq!(outcomes("local"), ["succeeded"]);
            // A node that registers again before its earlier attempt has drained refuses the task, maybe more than once.
            let mut attempts = outcomes("network");
            attempts.retain(|outcome| outcome != "EBusy");
            assert_eq!(attempts, ["ELeaseLost", "succeeded"]);
            assert!(std::fs::read(&local).unwrap() == noise && std::fs::read(&network).unwrap() == noise);
            cluster.assert_no_process_ended(&pids);
            cluster.stop();
        },
    );
}

/// Returns how many bytes of a file have been written so far.
fn written(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|&&byte| byte != 0).count())
}
