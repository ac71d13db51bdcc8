//! Tests access control: certificates between all parts of a center, and credentials in the coordination service.

use crate::support::{
    Authority, ClusterRecords, Identity, MIB, NEEDS, Need, Records, SHORT_SESSION, TestCluster, TestDirs, need, noise,
    port, text,
};
use blockhaul_control::coord::{CoordError, Refusal, paths};
use blockhaul_control::model::{Record, TaskSpec};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);
/// Remaining lifetime of a certificate that must expire soon, but not before it is read.
const BRIEF: Duration = Duration::from_secs(5);

#[test]
fn only_nodes_and_clients_of_one_authority_can_call_each_other() {
    let needs = [&NEEDS[..], &[Need::Program("openssl")]].concat();
    need!("only_nodes_and_clients_of_one_authority_can_call_each_other", &needs);
    let (mut cluster, ours) = (TestCluster::idle(2, 1, &[]), Authority::new());
    for index in 0..2 {
        cluster.nodes[index].set_flags(&ours.certify(&format!("n{index}")).flags());
        cluster.nodes[index].start();
    }
    let client = ours.certify("client");
    let theirs = Authority::new();
    let stranger = theirs.certify("stranger");
    let ask = |args: &[&str], identity: &Identity| cluster.blockhaul(&[args, &identity.flags()].concat());
    // Two strangers retry as clients do: one with a certificate of another authority, one without a certificate.
    let strangers = [&stranger.flags()[..], &[]].map(|flags| cluster.launch(&[&["center"], flags].concat()));
    cluster.wait_until("both nodes", |_| {
        let seen = ask(&["runners"], &client).lines;
        seen.iter().filter(|node| node["registered"] == true).count() == 2
    });
    // Both nodes run a task, so calls in both directions are answered.
    for node in ["n0", "n1"] {
        let done = ask(&["submit", "noop", "10ms", "--id", node, "--node", node, "--wait"], &client);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    for stranger in strangers {
        let refused = stranger.end();
        assert_eq!(refused.code, Some(1), "{refused:?}");
    }
}

/// Two nodes that the file lists run tasks for each other; clients have the rights of their roles, and no more.
#[test]
fn roles_count_on_every_node_and_the_leader_keeps_an_audit_log() {
    let needs = [&NEEDS[..], &[Need::Program("openssl")]].concat();
    need!("roles_count_on_every_node_and_the_leader_keeps_an_audit_log", &needs);
    let (mut cluster, ours) = (TestCluster::idle(2, 1, &[]), Authority::new());
    let rules = "nodes = ['n0', 'n1']\nview = ['viewer']\nsubmit = ['ci']\noperate = ['ops']\n";
    let roles = cluster.dirs.file("roles.toml", rules.as_bytes());
    for index in 0..2 {
        cluster.nodes[index].set_flags(&ours.certify(&format!("n{index}")).flags());
        cluster.nodes[index].set_flags(&["--roles", text(&roles)]);
        cluster.nodes[index].start();
    }
    let certified = |name: &str| ours.certify_as(&format!("client-{name}"), &format!("/CN={name}"), "IP:127.0.0.1");
    let [viewer, ci, ops, n0] = ["viewer", "ci", "ops", "n0"].map(certified);
    let ask = |args: &[&str], identity: &Identity| cluster.blockhaul(&[args, &identity.flags()].concat());
    cluster.wait_until("both nodes", |_| {
        let seen = ask(&["runners"], &viewer).lines;
        seen.iter().filter(|node| node["registered"] == true).count() == 2
    });
    for node in ["n0", "n1"] {
        let done = ask(&["submit", "noop", "10ms", "--id", node, "--node", node, "--wait"], &ci);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    for (args, identity, words) in [
        (
            &["submit", "noop", "10ms"][..],
            &viewer,
            "client 'viewer' has the role view, and Submit needs the role submit",
        ),
        (&["drain", "n1"][..], &ci, "client 'ci' has the role submit, and Drain needs the role operate"),
        (&["list"][..], &n0, "'n0' is a node, not a client"),
    ] {
        let refused = ask(args, identity);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("EPermission") && refused.stderr.contains(words), "{refused:?}");
    }
    let done = ask(&["drain", "n1"], &ops);
    assert_eq!(done.code, Some(0), "{done:?}");
    // Whichever of them leads has both lines of each change.
    let logs =
        (0..2).map(|index| std::fs::read_to_string(cluster.nodes[index].state("audit.jsonl")).unwrap_or_default());
    let logs: Vec<String> = logs.collect();
    let drained = logs.concat().lines().filter(|line| line.contains(r#""what":"Drain""#)).count();
    assert!((1..=2).contains(&drained), "its last line may be on its way: {logs:?}");
    assert!(logs.concat().contains(r#""who":"ops","role":"operate""#), "{logs:?}");
}

/// The node does not stand for election while its copies continue; with a new certificate it is reachable again.
#[test]
fn a_leader_whose_certificate_expires_resigns_and_its_copies_continue() {
    let needs = [&NEEDS[..], &[Need::Program("openssl")]].concat();
    need!("a_leader_whose_certificate_expires_resigns_and_its_copies_continue", &needs);
    let (mut cluster, ours) = (TestCluster::idle(2, 1, &SHORT_SESSION), Authority::new());
    let live: Vec<Identity> = (0..2).map(|index| ours.certify(&format!("n{index}"))).collect();
    let client = ours.certify("client");
    let ask = |cluster: &TestCluster, args: &[&str]| cluster.blockhaul(&[args, &client.flags()].concat());
    let leader = |cluster: &TestCluster| ask(cluster, &["center"]).lines.last().map(|center| center["leader"].clone());
    for (node, identity) in cluster.nodes.iter_mut().zip(&live) {
        node.set_flags(&identity.flags());
    }
    cluster.nodes[0].start();
    cluster.wait_until("n0 leads", |cluster| leader(cluster).is_some_and(|leader| leader == "n0"));
    let (source, destination) = (cluster.uri(0, "source"), cluster.uri(0, "destination"));
    cluster.fill("source", &noise(32 * MIB, 7));
    let slow = ["--id", "copy", "--limit", "128KiB/s", "--reflink", "never"];
    let submitted = ask(&cluster, &[&["submit", "copy", &source, &destination], &slow[..]].concat());
    assert_eq!(submitted.code, Some(0), "{submitted:?}");
    cluster.nodes[1].start();
    cluster.wait_until("both are registered", |cluster| {
        let seen = ask(cluster, &["runners"]).lines;
        seen.iter().filter(|node| node["registered"] == true).count() == 2
    });
    cluster.wait_until("a certificate that is about to expire", |cluster| {
        let now = SystemTime::now();
        live[0].replace(&ours.certify_for("brief", now - HOUR, now + BRIEF));
        cluster.nodes[0].signal(Signal::SIGHUP);
        std::thread::sleep(BRIEF);
        cluster.nodes[0].log().contains("does not lead: the certificate")
    });
    cluster.wait_until("n1 leads", |cluster| leader(cluster).is_some_and(|leader| leader == "n1"));
    assert!(cluster.nodes[0].log().contains("lost leadership"), "it has resigned");
    // A client that calls only this node gets the reason, from the second on at which the certificate expires.
    cluster.wait_until("the certificate of n0 is refused", |cluster| {
        let address = cluster.nodes[0].address();
        let alone = cluster.dirs.blockhaul(&[&["center", "--center", &address], &client.flags()[..]].concat());
        let message = "the certificate of that node has expired at";
        alone.code == Some(1) && alone.stderr.contains(message) && alone.stderr.contains(&address)
    });
    live[0].replace(&ours.certify("next"));
    // The new leader reaches n0 again: the limit of its copy is lifted, and another task runs there.
    let hurried = ask(&cluster, &["set", "copy", "--limit", "none"]);
    assert_eq!(hurried.code, Some(0), "{hurried:?}");
    let done = ask(&cluster, &["watch", "copy"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let attempts = done.lines.last().expect("it shows the task")["attempts"].as_array().map(Vec::len);
    assert_eq!(attempts, Some(1), "{done:?}");
    assert_eq!(cluster.read("destination"), cluster.read("source"));
    let done = ask(&cluster, &["submit", "noop", "10ms", "--id", "after", "--node", "n0", "--wait"]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn a_command_with_an_expired_certificate_fails_without_a_call() {
    need!("a_command_with_an_expired_certificate_fails_without_a_call", &[Need::Program("openssl")]);
    let (dirs, ours, now) = (TestDirs::new(), Authority::new(), SystemTime::now());
    let lapsed = ours.certify_for("lapsed", now - HOUR * 2, now - HOUR);
    // No process listens there, and the command does not wait for one.
    let address = format!("127.0.0.1:{}", port());
    let refused = dirs.blockhaul(&[&["center", "--center", &address], &lapsed.flags()[..]].concat());
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let stderr = &refused.stderr;
    assert!(
        stderr.contains("EPermission") && stderr.contains("'CN=lapsed' in ") && stderr.contains("has expired at"),
        "{stderr}"
    );
    assert!(!stderr.contains("waiting for"), "{stderr}");
}

#[test]
fn with_credentials_only_nodes_can_write_the_records() {
    need!("with_credentials_only_nodes_can_write_the_records", &NEEDS);
    let mut cluster = TestCluster::idle(2, 1, &[]);
    let file = cluster.dirs.file("credentials", b"digest:center:secret\n");
    for node in &mut cluster.nodes {
        node.set_flags(&["--zookeeper-auth", text(&file)]);
    }
    cluster.start();
    cluster.submit_noop("noop", Duration::from_millis(10), &[]);
    cluster.wait_for_success("noop");
    let stranger = Records::of(&cluster.ensemble.addresses());
    let refused = CoordError::Refused { index: 0, why: Refusal::NoAuth };
    for path in ["/cell/tasks/00/x", "/cell/claims/00/x", "/cell/runners/n7", "/cell/x"] {
        assert_eq!(stranger.create(path, b"{}"), Err(refused.clone()), "{path}");
    }
    assert_eq!(stranger.set("/cell/leader_epoch", b"{}").map_err(|_| ()), Err(()));
}

/// The records are open to everybody here: whoever changes one cannot change what is done.
#[test]
fn a_record_that_was_altered_by_hand_is_refused_by_the_runner() {
    let needs = [&NEEDS[..], &[Need::Program("openssl")]].concat();
    need!("a_record_that_was_altered_by_hand_is_refused_by_the_runner", &needs);
    let mut cluster = TestCluster::idle(2, 1, &[]);
    let key = cluster.dirs.file("anna.key", b"");
    let keys = key.with_file_name("keys");
    std::fs::create_dir(&keys).expect("the folder is writable");
    let openssl = |args: &[&str]| {
        let status = std::process::Command::new("openssl").args(args).status().expect("it is there");
        assert!(status.success(), "{args:?}");
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", text(&key)]);
    openssl(&["pkey", "-in", text(&key), "-pubout", "-out", text(&keys.join("anna.pub"))]);
    for node in &mut cluster.nodes {
        node.set_flags(&["--order-keys", text(&keys)]);
    }
    cluster.start();
    let unsigned = cluster.blockhaul(&["submit", "noop", "10ms", "--id", "unsigned"]);
    assert!(unsigned.code == Some(1) && unsigned.stderr.contains("EPermission"), "{unsigned:?}");
    cluster.fill("source", &noise(MIB, 7));
    let source = cluster.uri(0, "source");
    let sign = ["--sign", text(&key)];
    let done = cluster.blockhaul(&[&["submit", "noop", "10ms", "--id", "signed", "--wait"], &sign[..]].concat());
    assert_eq!(done.code, Some(0), "{done:?}");
    for id in ["good", "altered"] {
        let destination = cluster.uri(0, id);
        let copy = ["submit", "copy", &source, &destination, "--id", id, "--delay", "10s"];
        let submitted = cluster.blockhaul(&[&copy[..], &sign].concat());
        assert_eq!(submitted.code, Some(0), "{submitted:?}");
    }
    let records = cluster.records();
    let mut record = records.task("altered").expect("it is stored");
    assert!(record.order.is_some());
    let TaskSpec::Copy(copy) = &mut record.spec else { panic!("it is a copy") };
    copy.destination = cluster.uri(0, "elsewhere");
    records.set(&paths::task(&record.id), &record.encode()).expect("everybody may write");
    let refused = cluster.blockhaul(&["watch", "altered"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("EPermission"), "{refused:?}");
    let done = cluster.blockhaul(&["watch", "good"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(cluster.read("good"), cluster.read("source"));
    assert!(!["altered", "elsewhere"].iter().any(|name| cluster.volume(name).exists()), "nothing was touched");
}

#[test]
fn an_unusable_center_is_logged_with_the_answer_of_each_server() {
    need!("an_unusable_center_is_logged_with_the_answer_of_each_server", &NEEDS);
    let mut cluster = TestCluster::idle(2, 1, &[]);
    let own = cluster.dirs.file("credentials", b"digest:center:secret\n");
    let wrong = cluster.dirs.file("wrong", b"digest:center:guessed\n");
    let metrics = format!("127.0.0.1:{}", port());
    cluster.nodes[0].set_flags(&["--zookeeper-auth", text(&own)]);
    cluster.nodes[0].start();
    cluster.wait_until("a node leads", |cluster| cluster.leader().is_some());
    cluster.nodes[1].set_flags(&["--zookeeper-auth", text(&wrong), "--metrics", &metrics]);
    cluster.nodes[1].start();
    cluster.wait_until("the wrong credentials are logged", |cluster| {
        cluster.nodes[1].log().contains("check --zookeeper-auth")
    });
    let mut page = String::new();
    let mut stream = TcpStream::connect(&metrics).expect("metrics are served");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it listens");
    stream.read_to_string(&mut page).expect("it answers");
    assert!(page.lines().any(|line| line == "blockhaul_serving 0"), "{page}");
    assert_eq!(cluster.nodes[1].stop().code(), Some(0));
    // One address is not ZooKeeper, the other one has no listener.
    let (other, closed) = (cluster.nodes[0].address(), format!("127.0.0.1:{}", port()));
    cluster.nodes[1].set_flags(&["--zookeeper", &format!("{closed},{other}/cell")]);
    cluster.nodes[1].start();
    cluster.wait_until("both servers and their answers are logged", |cluster| {
        let log = cluster.nodes[1].log();
        log.contains(&format!("{closed}: Connection refused")) && log.contains(&format!("{other}: "))
    });
    assert_eq!(cluster.nodes[1].stop().code(), Some(0));
}
