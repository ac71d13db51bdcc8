//! Tests groups: the members of a batch file in a center, while the client, their runner and the leader die.

use crate::support::{ClusterRecords, ExportPair, MIB, NEEDS, SHORT_SESSION, SafeDir, Task, TestCluster, need, text};
use std::fmt::Write;
use std::path::PathBuf;

/// Batch of a freeze, one slow copy for each pair, a comparison of the first one, and a thaw when all have ended.
fn machine(cluster: &TestCluster, pairs: &[ExportPair]) -> PathBuf {
    let mut text = String::from("[[run]]\nid = 'freeze'\nhook = 'note'\nargs = { STEP = 'freeze' }\n");
    let mut ends = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        let (from, to) = (pair.source.uri(), pair.destination.uri());
        let _ = writeln!(
            text,
            "[[copy]]\nid = 'copy-{index}'\nfrom = '{from}'\nto = '{to}'\nlimit = '512KiB/s'\nsource-stable = true\nafter = ['freeze']"
        );
        ends.push(format!("'copy-{index}:end'"));
    }
    let (from, to) = (pairs[0].source.uri(), pairs[0].destination.uri());
    let _ = writeln!(text, "[[verify]]\nid = 'check'\nfrom = '{from}'\nto = '{to}'");
    let ends = ends.join(", ");
    let _ = writeln!(text, "[[run]]\nid = 'thaw'\nhook = 'note'\nargs = {{ STEP = 'thaw' }}\nafter = [{ends}]");
    cluster.dirs.file("machine.toml", text.as_bytes())
}

fn count(group: &Task, state: &str) -> u64 {
    group.0["members"][state].as_u64().unwrap_or_default()
}

#[test]
fn a_machine_is_frozen_copied_and_thawed_although_the_client_a_runner_and_the_leader_die() {
    let name = "a_machine_is_frozen_copied_and_thawed_although_the_client_a_runner_and_the_leader_die";
    need!(name, &NEEDS);
    let dir = need!(name, SafeDir::new().ok_or("a folder that nobody else can change"));
    let out = dir.path("out");
    let script = format!("#!/bin/sh\necho \"$BLOCKHAUL_GROUP $BLOCKHAUL_ARG_STEP\" >> {}\n", text(&out));
    dir.executable("hooks/note", &script);
    let steps = || std::fs::read_to_string(&out).unwrap_or_default();
    let folder = dir.path("hooks");
    let args = [&SHORT_SESSION[..], &["--hooks-dir", text(&folder)]].concat();
    let mut cluster = TestCluster::with(3, 3, &args);
    let pairs = ["one", "two", "three", "four"].map(|name| ExportPair::new(&cluster, name, 32 * MIB));
    let file = machine(&cluster, &pairs);
    let submit = ["submit", "batch", file.to_str().expect("a path of ours"), "--id", "machine"];
    // A client that dies at any moment leaves a group that is not sealed, or one that is.
    let client = cluster.launch(&submit);
    cluster.wait_until("the group is stored", |cluster| cluster.find_task("machine").is_some());
    client.crash();
    let again = cluster.blockhaul(&submit);
    assert_eq!(again.code, Some(0), "{again:?}");
    let known = cluster.blockhaul(&submit);
    assert!(known.code == Some(0) && known.stderr.contains("task machine exists already: RUNNING"), "{known:?}");

    let first = cluster.wait_for_checkpoint("machine.copy-0");
    cluster.nodes[first].kill();
    assert_ne!(cluster.wait_for_second_attempt("machine.copy-0"), first);
    cluster.nodes[first].start();
    let leader = cluster.leader().expect("a node leads");
    cluster.nodes[leader].kill();
    cluster.nodes[leader].start();
    let group = cluster.task("machine");
    assert_eq!((group.state(), count(&group, "PENDING") > 0), ("RUNNING", true), "{group:?}");
    assert!(cluster.task("machine.check").reason().contains("task machine.copy-0"));
    assert_eq!(steps(), "machine freeze\n");
    (0..pairs.len()).for_each(|index| cluster.lift_limit(&format!("machine.copy-{index}")));
    assert_eq!(cluster.blockhaul(&["watch", "machine"]).code, Some(0));
    let group = cluster.task("machine");
    assert_eq!((group.state(), count(&group, "SUCCEEDED")), ("SUCCEEDED", 7), "{group:?}");
    assert_eq!(steps(), "machine freeze\nmachine thaw\n");
    let thaw = cluster.task("machine.thaw").0["attempts"][0]["started_at"].clone();
    for index in 0..pairs.len() {
        let ended = cluster.task(&format!("machine.copy-{index}")).0["updated_at"].clone();
        assert!(ended.as_str() <= thaw.as_str(), "copy {index} ended at {ended}, and the thaw began at {thaw}");
    }
    assert_eq!(group.progress("durable"), 4 * 32 * MIB as u64);
    pairs.iter().for_each(ExportPair::assert_copied);

    let members = cluster.ask(&["list", "--group", "machine"]);
    assert_eq!(members.len(), 7, "{members:?}");
    assert_eq!(cluster.blockhaul(&["remove", "machine.check"]).code, Some(1));
    assert_eq!(cluster.blockhaul(&["remove", "machine"]).code, Some(0));
    cluster.wait_until("all records are gone", |cluster| cluster.ask(&["list"]).is_empty());
}

#[test]
fn a_failed_member_stops_its_group_and_the_error_is_the_groups() {
    need!("a_failed_member_stops_its_group_and_the_error_is_the_groups", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    let pair = ExportPair::new(&cluster, "one", 32 * MIB);
    let (from, to) = (pair.source.uri(), pair.destination.uri());
    let missing = cluster.uri(0, "missing");
    let text = format!(
        "[[copy]]\nid = 'slow'\nfrom = '{from}'\nto = '{to}'\nlimit = '512KiB/s'\nsource-stable = true\n\
         [[copy]]\nid = 'bad'\nfrom = '{missing}'\nto = '{}'\n\
         [[verify]]\nid = 'last'\nfrom = '{from}'\nto = '{to}'\nafter = ['slow:end', 'bad:end']\n",
        cluster.uri(0, "copy")
    );
    let file = cluster.dirs.file("bad.toml", text.as_bytes());
    let outcome =
        cluster.blockhaul(&["submit", "batch", file.to_str().expect("a path of ours"), "--id", "g", "--wait"]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("g.bad"), "{outcome:?}");
    let group = cluster.task("g");
    assert_eq!((group.state(), group.error()), ("FAILED", "ENotFound"), "{group:?}");
    let state = |member: &str| cluster.task(&format!("g.{member}")).state().to_owned();
    assert_eq!([state("slow"), state("bad")], ["CANCELLED", "FAILED"]);
    // It is clean-up, and has found what the copy that was cut short has left.
    assert_eq!(state("last"), "FAILED");
    // The same order again, once its cause is gone: what has not succeeded, and clean-up.
    cluster.fill("missing", &[7; MIB]);
    assert_eq!(cluster.blockhaul(&["retry", "g"]).code, Some(0));
    let again = cluster.blockhaul(&["retry", "g"]);
    assert!(again.code == Some(0) && again.stderr.contains("task g~2 exists already"), "{again:?}");
    assert_eq!(cluster.blockhaul(&["retry", "g.bad"]).code, Some(2), "a member alone");
    cluster.lift_limit("g~2.slow");
    let group = cluster.wait_for_success("g~2");
    assert_eq!((count(&group, "SUCCEEDED"), group.0["retry_of"].as_str()), (3, Some("g")), "{group:?}");
    assert_eq!(cluster.blockhaul(&["retry", "g~2"]).code, Some(2), "it has succeeded");
    pair.assert_copied();
    assert_eq!(cluster.blockhaul(&["remove", "--older-than", "1d"]).code, Some(0));
    assert_eq!(cluster.ask(&["list"]).len(), 8, "nothing is that old");
    assert_eq!(cluster.blockhaul(&["remove", "--older-than", "0ms"]).code, Some(0));
    cluster.wait_until("all records are gone", |cluster| cluster.ask(&["list"]).is_empty());
}
