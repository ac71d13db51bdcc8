//! Tests that clients who follow all tasks know what is stored, through changes of the leader.

use crate::support::{NEEDS, SHORT_SESSION, TestCluster, need};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Fields of a task that both `list` and `watch --all` show.
const FIELDS: [&str; 7] = ["kind", "state", "desired_state", "reason", "node", "group", "schedule"];

/// Tasks by name, with these fields.
type Picture = BTreeMap<String, Vec<Value>>;

fn fields(task: &Value) -> (String, Vec<Value>) {
    (task["id"].as_str().expect("it is a name").to_owned(), FIELDS.iter().map(|field| task[field].clone()).collect())
}

/// Builds the picture from the lines of `watch --all`, as the documentation says; returns the number of snapshots, too.
fn rebuilt(lines: &[Value]) -> (Picture, usize) {
    let (mut picture, mut snapshots) = (Picture::new(), 0);
    let mut open = None;
    for line in lines {
        assert_eq!(line["schema"], 1, "{line}");
        match line["event"].as_str() {
            Some("snapshot_begin") => {
                picture.clear();
                open = Some(line["tasks"].as_u64().expect("it is a number"));
            }
            Some("snapshot_end") => {
                assert_eq!(open.take(), Some(picture.len() as u64), "a snapshot is complete: {line}");
                snapshots += 1;
            }
            Some("task") => {
                assert!(open.is_some(), "{line}");
                picture.extend([fields(line)]);
            }
            Some("change") => {
                assert!(open.is_none(), "{line}");
                picture.extend([fields(line)]);
            }
            Some("removed") => drop(picture.remove(&fields(line).0)),
            _ => panic!("{line}"),
        }
    }
    (picture, snapshots)
}

fn listed(cluster: &TestCluster) -> Picture {
    cluster.ask(&["list"]).iter().map(fields).collect()
}

#[test]
fn a_follower_of_all_tasks_knows_through_leader_changes_what_the_list_says() {
    need!("a_follower_of_all_tasks_knows_through_leader_changes_what_the_list_says", &NEEDS);
    let mut cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    cluster.submit_noop("before", Duration::from_millis(10), &[]);
    let mut following = cluster.launch(&["watch", "--all"]);
    following.until_line(|line| line["event"] == "snapshot_end");
    for round in 0..2 {
        let leader = cluster.leader().expect("a node leads");
        for number in 0..4 {
            cluster.submit_noop(&format!("t{round}-{number}"), Duration::from_millis(200), &[]);
        }
        cluster.ask(&["cancel", &format!("t{round}-0")]);
        cluster.nodes[leader].kill();
        cluster.wait_for_successor(leader);
        cluster.nodes[leader].start();
        for number in 1..4 {
            cluster.wait_for(&format!("t{round}-{number}"), "its end", |task| task.is_over());
        }
        let last = format!("t{round}-3");
        following.until_line(|line| line["id"] == last.as_str() && line["state"] == "SUCCEEDED");
        cluster.ask(&["remove", &format!("t{round}-1")]);
    }
    cluster.submit_noop("last", Duration::from_millis(10), &[]);
    following.until_line(|line| line["id"] == "last" && line["state"] == "SUCCEEDED");
    cluster.wait_until("all tasks have ended", |cluster| {
        cluster.ask(&["list"]).iter().all(|task| task["state"] == "SUCCEEDED" || task["state"] == "CANCELLED")
    });
    // After this one, everything before it has arrived.
    cluster.submit_noop("mark", Duration::from_millis(10), &[]);
    following.until_line(|line| line["id"] == "mark" && line["state"] == "SUCCEEDED");
    let outcome = following.crash();
    let (picture, snapshots) = rebuilt(&outcome.lines);
    assert_eq!(picture, listed(&cluster), "{outcome:?}");
    assert!(snapshots >= 3, "one of each leader: {snapshots}");
    assert!(outcome.lines.iter().any(|line| line["event"] == "removed"), "{outcome:?}");
    // The position of the last line is known to the leader: nothing is repeated.
    let last = outcome.lines.last().expect("there are lines")["position"].as_str().expect("it is text").to_owned();
    let mut again = cluster.launch(&["watch", "--all", "--since", &last]);
    cluster.submit_noop("after", Duration::from_millis(10), &[]);
    let first = again.until_line(|_| true);
    assert_eq!((&first["event"], &first["id"]), (&"change".into(), &"after".into()), "{first}");
}

#[test]
fn the_transitions_of_a_task_tell_what_happened_through_leader_changes() {
    need!("the_transitions_of_a_task_tell_what_happened_through_leader_changes", &NEEDS);
    let mut cluster = TestCluster::with(3, 1, &SHORT_SESSION);
    let leader = cluster.leader().expect("a node leads");
    let runner = format!("n{}", (leader + 1) % 3);
    cluster.submit_noop("t", Duration::from_secs(600), &["--node", &runner]);
    cluster.wait_for("t", "RUNNING", |task| task.state() == "RUNNING");
    cluster.nodes[leader].kill();
    cluster.wait_for_successor(leader);
    cluster.ask(&["cancel", "t"]);
    cluster.wait_for("t", "its end", |task| task.is_over());
    let events = cluster.ask(&["events", "t"]);
    let seen: Vec<_> =
        events.iter().map(|event| [&event["state"], &event["by"]].map(|it| it.as_str().unwrap_or(""))).collect();
    let wanted = [
        ["PENDING", "client"],
        ["ASSIGNED", "dispatcher"],
        ["RUNNING", "node"],
        ["CANCELLING", "client"],
        ["CANCELLED", "node"],
    ];
    assert_eq!(seen, wanted, "{events:?}");
    assert!(events.iter().all(|event| event["schema"] == 1 && event["event"] == "transition" && event["id"] == "t"));
    assert!(events[1..].iter().all(|event| event["node"] == runner.as_str()), "{events:?}");
    assert!(events.is_sorted_by_key(|event| event["at"].as_str().unwrap_or("").to_owned()), "{events:?}");
}
