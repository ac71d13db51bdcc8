//! Tests schedules: what they make with real processes, a real clock and a real ensemble, while leaders die.

use crate::support::{MIB, NEEDS, SHORT_SESSION, TestCluster, need, text};
use blockhaul_testkit::scratch::Outcome;
use serde_json::Value;
use std::collections::BTreeSet;

fn schedule(cluster: &TestCluster, name: &str) -> Value {
    cluster.ask(&["schedule", "get", name]).pop().expect("get prints the schedule")
}

/// Returns the ids of the tasks of a schedule.
fn made(cluster: &TestCluster, name: &str) -> BTreeSet<String> {
    let of = |task: &Value| (task["schedule"] == name).then(|| task["id"].as_str().expect("an id").to_owned());
    cluster.ask(&["list"]).iter().filter_map(of).collect()
}

/// Returns the error that a command reports.
fn refusal(outcome: &Outcome) -> Value {
    outcome.lines.last().map(|report| report["error"].clone()).unwrap_or_default()
}

#[test]
fn a_schedule_copies_at_each_instant_although_its_leader_is_killed() {
    need!("a_schedule_copies_at_each_instant_although_its_leader_is_killed", &NEEDS);
    let mut cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    let content: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8).collect();
    cluster.fill("source", &content);
    let source = cluster.volume("source");
    let to = cluster.volume("copy-%H%M%S");
    // Every node of the test is on this host.
    let from = format!("file://n0{}", text(&source));
    let to = format!("file://n0{}", text(&to));
    let add = ["schedule", "add", "often", "--every", "2s", "--from", "2026-01-01T00:00:00Z", "copy", &from, &to];
    assert_eq!(cluster.ask(&add).pop().expect("an answer")["state"], "ACTIVE");
    cluster.wait_until("two tasks", |cluster| made(cluster, "often").len() >= 2);
    let before = made(&cluster, "often");
    let leader = (1..3).find(|node| cluster.leader() == Some(*node));
    if let Some(leader) = leader.or(cluster.leader()) {
        cluster.nodes[leader].kill();
        cluster.wait_for_successor(leader);
        cluster.start();
    }
    let count = before.len();
    cluster.wait_until("two more tasks", |cluster| made(cluster, "often").len() >= count + 2);
    let again = cluster.blockhaul(&add);
    assert!(again.code == Some(0) && again.stderr.contains("exists already"), "{again:?}");
    cluster.ask(&["schedule", "pause", "often"]);
    let tasks = made(&cluster, "often");
    for id in &tasks {
        let task = cluster.wait_for_success(id);
        let destination = task.0["destination"].as_str().expect("a copy has one").to_owned();
        // often.20260101T000002Z copies to copy-000002.
        let time = id.split('T').nth(1).expect("a time").trim_end_matches('Z');
        assert!(destination.ends_with(&format!("copy-{time}")), "{task:?}");
        assert!(cluster.read(&format!("copy-{time}")) == content, "{id} has copied something else");
    }
    let seen = schedule(&cluster, "often");
    assert_eq!(seen["fired"].as_u64(), Some(tasks.len() as u64), "{seen}");
    assert_eq!(cluster.ask(&["schedule", "remove", "often"]).pop().expect("an answer")["name"], "often");
    assert_eq!(refusal(&cluster.blockhaul(&["schedule", "get", "often"]))["code"], "ENotFound");
    assert_eq!(made(&cluster, "often"), tasks);
}

#[test]
fn a_schedule_is_listed_and_runs_on_demand_and_ends() {
    need!("a_schedule_is_listed_and_runs_on_demand_and_ends", &NEEDS);
    let cluster = TestCluster::new(1, 1);
    let add = |name: &str, args: &[&str]| cluster.blockhaul(&[&["schedule", "add", name], args].concat());
    assert_eq!(add("nightly", &["--cron", "0 2 * * *", "--tz", "Europe/Berlin", "noop"]).code, Some(0));
    assert_eq!(add("booted", &["--on-boot", "n0", "noop"]).code, Some(0));
    let listed = cluster.ask(&["schedule", "list"]);
    let names: Vec<&str> = listed.iter().filter_map(|schedule| schedule["name"].as_str()).collect();
    assert_eq!(names, ["booted", "nightly"]);
    assert_eq!(listed[1]["trigger"], "--cron '0 2 * * *'");
    assert_eq!(listed[1]["next_at"].as_array().map(Vec::len), Some(5));
    let run = cluster.ask(&["schedule", "run", "nightly"]).pop().expect("an answer");
    let task = run["last_task"].as_str().expect("a task").to_owned();
    assert!(task.starts_with("nightly.20") && run["fired"] == 1, "{run}");
    assert_eq!(cluster.wait_for_success(&task).0["schedule"], "nightly");
    for (args, word) in [
        (&["--cron", "61 2 * * *", "noop"][..], "InvalidCron"),
        (&["--cron", "0 2 * * *", "--tz", "Mars/Base", "noop"], "InvalidTimeZone"),
        (&["--at", "2001-01-01T00:00:00Z", "noop"], "Expired"),
        (&["--every", "1h", "copy", "/a-%x", "/b", "--node", "n0"], ""),
    ] {
        let refused = add("bad", args);
        let error = refusal(&refused);
        let detail = error["detail"].as_str().unwrap_or_default();
        assert!(refused.code == Some(2) && error["code"] == "EBadRequest" && detail == word, "{args:?}: {refused:?}");
    }
    assert_eq!(cluster.ask(&["schedule", "list"]).len(), 2, "nothing has changed");
}

#[test]
fn a_schedule_submits_a_batch_although_leaders_are_killed_while_it_is_stored() {
    need!("a_schedule_submits_a_batch_although_leaders_are_killed_while_it_is_stored", &NEEDS);
    let mut cluster = TestCluster::with(3, 4, &SHORT_SESSION);
    let content: Vec<u8> = (0..MIB).map(|index| (index % 249) as u8).collect();
    cluster.fill("source", &content);
    let (from, to) = (cluster.volume("source"), cluster.volume("copy-%H%M%S"));
    let mut batch =
        format!("[[copy]]\nid = 'root'\nfrom = 'file://n0{}'\nto = 'file://n0{}'\n", text(&from), text(&to));
    // Many members take many writes.
    for number in 1..=60 {
        let (from, to) = (text(&from), text(&to));
        batch += &format!(
            "[[verify]]\nid = 'v{number}'\nfrom = 'file://n0{from}'\nto = 'file://n0{to}'\nafter = ['root']\n"
        );
    }
    let file = cluster.volume("batch.toml");
    std::fs::write(&file, batch).expect("a file in the test's folder");
    let add = ["schedule", "add", "often", "--every", "1000d", "--keep", "1", "batch", text(&file)];
    let added = cluster.ask(&add).pop().expect("an answer");
    assert_eq!((&added["kind"], &added["members"]), (&Value::from("group"), &Value::from(61)), "{added}");
    let run = cluster.ask(&["schedule", "run", "often"]).pop().expect("an answer");
    let group = run["last_task"].as_str().expect("a group").to_owned();
    let leader = cluster.leader().expect("a node leads");
    cluster.nodes[leader].kill();
    cluster.wait_for_successor(leader);
    cluster.start();
    let task = cluster.wait_for_success(&group);
    assert_eq!(task.0["schedule"], "often");
    let members = cluster.ask(&["list", "--group", &group]);
    assert!(members.len() == 61 && members.iter().all(|member| member["state"] == "SUCCEEDED"), "{members:?}");
    let time = group.split('T').nth(1).expect("a time").trim_end_matches('Z');
    assert!(cluster.read(&format!("copy-{time}")) == content, "{group} has copied something else");
    // Of the next one, the members of the first go with it.
    let again = cluster.ask(&["schedule", "run", "often"]).pop().expect("an answer");
    let second = again["last_task"].as_str().expect("a group").to_owned();
    cluster.wait_for_success(&second);
    cluster.wait_until("the first group is gone", |cluster| cluster.ask(&["list", "--group", &group]).is_empty());
    assert_eq!(cluster.ask(&["schedule", "remove", "often"]).pop().expect("an answer")["name"], "often");
    let too_many = (0..201).map(|number| format!("[[run]]\nid = 'm{number}'\nhook = 'h'\n")).collect::<String>();
    std::fs::write(&file, too_many).expect("a file in the test's folder");
    let refused = cluster.blockhaul(&add);
    let error = refusal(&refused);
    assert!(
        error["code"] == "EBadRequest" && error["message"].as_str().is_some_and(|it| it.contains("200")),
        "{refused:?}"
    );
}
