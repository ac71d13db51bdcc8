//! Tests invalid input: invalid requests, forbidden volumes, undecodable records, and a store that is older than the
//! state of a node.

use crate::support::{ClusterRecords, ExportPair, MIB, NEEDS, Task, TestCluster, mixed, need, run, text};
use blockhaul_control::coord::paths;
use blockhaul_control::model::TaskId;
use std::path::Path;
use std::time::Duration;

#[test]
fn an_invalid_request_is_refused_and_stores_no_task() {
    need!("an_invalid_request_is_refused_and_stores_no_task", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    cluster.fill("volume", &mixed(MIB, 1));
    let uri = cluster.uri(0, "volume");
    let pair = ExportPair::new(&cluster, "pair", MIB);
    let writable = pair.destination.uri();
    let long = format!("file://n0/{}", "x".repeat(5000));
    let refused: [(&[&str], &str); 13] = [
        (&["submit", "copy", &uri, &uri], "ESameVolume"),
        (&["submit", "copy", "nbd://127.0.0.1:1/a", "nbd://127.0.0.1:1/a"], "ESameVolume"),
        (&["submit", "copy", &uri, "nbd://"], "EBadRequest"),
        (&["submit", "copy", &uri, "nbd://host:port/x"], "EBadRequest"),
        (&["submit", "copy", &uri, "gopher://host/x"], "EUnsupported"),
        (&["submit", "copy", &uri, "/plain/path"], "EBadRequest"),
        (&["submit", "copy", &uri, "file://n1/x"], "EBadRequest"),
        (&["submit", "copy", &uri, &long], "EBadRequest"),
        // A source that other clients may write while a request of a lost runner is in flight.
        (&["submit", "copy", &writable, "nbd://127.0.0.1:1/b"], "EBadRequest"),
        (&["submit", "noop", "1ms", "--id", "../etc"], "EBadRequest"),
        (&["submit", "noop", "1ms", "--priority", "10"], "EBadRequest"),
        (&["submit", "noop", "1ms", "--max-attempts", "101"], "EBadRequest"),
        (&["get", "unknown"], "ENotFound"),
    ];
    for (args, code) in refused {
        let outcome = cluster.blockhaul(args);
        assert!(matches!(outcome.code, Some(1 | 2)), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(code), "{args:?}: {outcome:?}");
    }
    assert!(cluster.ask(&["list"]).is_empty(), "no task was stored");
}

#[test]
fn a_volume_that_is_not_allowed_fails_the_task_and_is_not_touched() {
    need!("a_volume_that_is_not_allowed_fails_the_task_and_is_not_touched", &NEEDS);
    let cluster = TestCluster::with(1, 1, &["--allow-nbd", "127.0.0.2"]);
    cluster.fill("inside", &mixed(MIB, 1));
    let outside = cluster.dirs.file("outside", b"mine");
    std::os::unix::fs::symlink(&outside, cluster.volume("link")).expect("the folder is ours");
    std::os::unix::fs::symlink(cluster.dirs.path(""), cluster.volume("folder")).expect("the folder is ours");
    let pair = ExportPair::new(&cluster, "pair", MIB);
    let (inside, elsewhere) = (cluster.uri(0, "inside"), pair.destination.uri());
    let of = |path: &Path| format!("file://n0{}", text(path));
    let destinations = [
        ("direct", of(&outside)),
        ("link", cluster.uri(0, "link")),
        ("folder", cluster.uri(0, "folder/outside")),
        ("new", cluster.uri(0, "folder/new")),
        ("around", cluster.uri(0, "../outside")),
        ("network", elsewhere),
    ];
    for (id, destination) in destinations {
        cluster.submit(id, &inside, &destination, &["--overwrite", "--source-stable"]);
        let task = cluster.wait_for(id, "its refusal", Task::is_over);
        assert_eq!((task.state(), task.error()), ("FAILED", "EPermission"), "{task:?}");
    }
    cluster.submit("source", &of(&outside), &cluster.uri(0, "copy"), &[]);
    let task = cluster.wait_for("source", "its refusal", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", "EPermission"), "{task:?}");
    assert_eq!(cluster.dirs.read("outside"), b"mine");
    assert!(!cluster.dirs.path("new").exists() && !cluster.volume("copy").exists());
    assert_eq!(pair.writes(), 0);
}

/// n0 may not use the servers, n1 has no space for a journal: both are tried before n2, which can do it.
#[test]
fn a_task_that_fails_by_node_faults_goes_to_another_node() {
    need!("a_task_that_fails_by_node_faults_goes_to_another_node", &NEEDS);
    let mut cluster = TestCluster::idle(1, 1, &["--allow-nbd", "127.0.0.2"]);
    cluster.add(&[]);
    cluster.add(&[]);
    let journals = cluster.nodes[1].state("journals");
    std::fs::create_dir_all(&journals).expect("the directory is writable");
    let _full = FullFolder::mount(&journals);
    cluster.start();
    let pair = ExportPair::new(&cluster, "pair", MIB);
    pair.submit(&cluster, "x", &[]);
    let task = cluster.wait_for_success("x");
    assert_eq!(task.outcomes(), ["EPermission", "ENoSpace", "succeeded"], "{task:?}");
    assert_eq!(task.runners(), ["n0", "n1", "n2"], "{task:?}");
    pair.assert_copied();
    // Without n2 no node is left that could run the task. That fails a task only if every fault is a lasting one.
    assert_eq!(cluster.nodes[2].stop().code(), Some(0));
    assert_eq!(cluster.nodes[1].stop().code(), Some(0));
    cluster.wait_until("that n0 is alone", |cluster| cluster.runners() == ["n0"]);
    pair.submit(&cluster, "alone", &["--overwrite"]);
    let task = cluster.wait_for("alone", "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", "EPermission"), "{task:?}");
    assert!(task.reason().contains("only n0 has tried it"), "{task:?}");
}

/// A folder without space for a single byte, until it is dropped.
struct FullFolder(String);

impl FullFolder {
    fn mount(at: &Path) -> Self {
        let at = text(at).to_owned();
        run("mount", &["-t", "tmpfs", "-o", "size=4k", "tmpfs", &at]);
        std::fs::write(Path::new(&at).join("full"), [0; 4096]).expect("there is room for this");
        Self(at)
    }
}

impl Drop for FullFolder {
    fn drop(&mut self) {
        run("umount", &["--lazy", &self.0]);
    }
}

#[test]
fn undecodable_records_are_left_alone_and_reported() {
    need!("undecodable_records_are_left_alone_and_reported", &NEEDS);
    let mut cluster = TestCluster::with(2, 1, &["--session-timeout", "6s"]);
    let records = cluster.records();
    let path = |id: &str| paths::task(&TaskId::new(id).expect("the name is valid"));
    let bad: [(String, &[u8]); 4] = [
        (path("garbage"), b"\xff\xfe not a record"),
        (path("empty"), b""),
        (paths::runner("n9"), b"{}"),
        (paths::drain("n8"), b"[1, 2"),
    ];
    for (path, data) in &bad {
        records.create(path, data).expect("every client may write here");
    }
    // A record that could be decoded is damaged as well.
    cluster.submit_noop("good", Duration::from_millis(10), &[]);
    cluster.wait_for_success("good");
    records.set(&path("good"), b"{").expect("every client may write here");
    // The next leader reads all records again.
    let leader = cluster.leader().expect("a node leads");
    assert_eq!(cluster.nodes[leader].stop().code(), Some(0));
    let successor = cluster.wait_for_successor(leader);
    let unreadable = cluster.center().expect("a node leads")["unreadable"].clone();
    let reported: Vec<&str> = unreadable.as_array().into_iter().flatten().filter_map(|line| line.as_str()).collect();
    for path in bad.iter().map(|(path, _)| path).chain([&path("good")]) {
        assert!(reported.iter().any(|line| line.starts_with(&**path)), "{path}: {reported:?}");
    }
    assert!(cluster.nodes[successor].log().contains("cannot decode a record: leaving it alone"));
    cluster.submit_noop("after", Duration::from_millis(10), &[]);
    cluster.wait_for_success("after");
    let taken = cluster.blockhaul(&["submit", "noop", "10ms", "--id", "garbage"]);
    assert!(taken.code == Some(1) && taken.stderr.contains("EExists"), "the name is still taken: {taken:?}");
}

#[test]
fn a_node_refuses_calls_with_a_lower_epoch_than_it_has_stored() {
    need!("a_node_refuses_calls_with_a_lower_epoch_than_it_has_stored", &NEEDS);
    let mut cluster = TestCluster::new(1, 1);
    cluster.submit_noop("before", Duration::from_millis(10), &[]);
    cluster.wait_for_success("before");
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    let stored = cluster.nodes[0].state("leader_epoch");
    let heard = std::fs::read_to_string(&stored).expect("the node has stored the epoch of its leader");
    std::fs::write(&stored, i64::MAX.to_string()).expect("it is a file");
    cluster.start();
    cluster.submit_noop("refused", Duration::from_millis(10), &[]);
    let task = cluster.wait_for("refused", "a reason", |task| task.reason().contains("epoch"));
    assert!(!task.is_over(), "{task:?}");
    assert!(cluster.nodes[0].log().contains("call refused: lower leader epoch than seen before"));
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    std::fs::write(&stored, heard).expect("it is a file");
    cluster.start();
    cluster.wait_for_success("refused");
}

#[test]
fn a_node_takes_no_role_in_another_center_until_its_state_directory_is_reset() {
    need!("a_node_takes_no_role_in_another_center_until_its_state_directory_is_reset", &NEEDS);
    let mut cluster = TestCluster::new(1, 1);
    cluster.submit_noop("here", Duration::from_millis(10), &[]);
    cluster.wait_for_success("here");
    let identity = |cluster: &TestCluster| {
        cluster.center().expect("a node leads")["center"].as_str().unwrap_or_default().to_owned()
    };
    let first = identity(&cluster);
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    // The stored epoch is higher than any epoch that the other center will have.
    std::fs::write(cluster.nodes[0].state("leader_epoch"), i64::MAX.to_string()).expect("it is a file");
    let other = format!("{}/other", cluster.server_link(0, 0).address());
    cluster.nodes[0].set_flags(&["--zookeeper", &other]);
    cluster.nodes[0].start();
    cluster.wait_until("n0 logs which center it belongs to", |cluster| {
        let log = cluster.nodes[0].log();
        log.contains(&format!("this node belongs to center {first}, but")) && log.contains("/leader_epoch")
    });
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    assert!(!cluster.nodes[0].log().contains("lower leader epoch"), "the node has accepted no call");
    for name in ["center", "leader_epoch"] {
        std::fs::remove_file(cluster.nodes[0].state(name)).expect("it is there");
    }
    cluster.start();
    assert_ne!(identity(&cluster), first);
    cluster.submit_noop("there", Duration::from_millis(10), &[]);
    cluster.wait_for_success("there");
}

#[test]
fn a_volume_that_was_written_under_a_later_grant_is_not_written() {
    need!("a_volume_that_was_written_under_a_later_grant_is_not_written", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    cluster.fill("source", &mixed(MIB, 1));
    cluster.fill("destination", b"of a later time");
    let later = i64::MAX.to_string();
    xattr::set(cluster.volume("destination"), "user.blockhaul.epoch", later.as_bytes()).expect("files have attributes");
    cluster.submit(
        "early",
        &cluster.uri(0, "source"),
        &cluster.uri(0, "destination"),
        &["--overwrite", "--max-attempts", "1"],
    );
    let task = cluster.wait_for("early", "its refusal", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", "EFenced"), "{task:?}");
    assert_eq!(cluster.read("destination"), b"of a later time");
}
