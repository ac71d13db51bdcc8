//! Tests where tasks run: labels, keys of tasks that stay apart, slots by kind; and what their reasons say.

use super::support::*;
use crate::coord::{Op, Session};
use crate::dispatcher::{Config, Query};
use crate::model::{
    NodeId, NoopTask, PlacementRules, Record, Registration, SettingName, Submission, TaskSpec, TaskState, VerifyTask,
    parse_label,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Registers a node with labels.
async fn labelled(center: &TestCenter, node: &str, slots: u32, labels: &[&str]) -> Arc<dyn Session> {
    let session = center.runner(node, "a", slots, Behaviour::Accepting).await;
    let labels = labels.iter().map(|label| parse_label(label).unwrap()).collect();
    let data = Registration { labels, ..center.registration(node, "a", slots) }.encode();
    let path = crate::coord::paths::runner(node);
    session.multi(vec![Op::Set { path, data, version: 0 }]).await.unwrap();
    session
}

fn rules(require: &[&str], prefer: &[&str], apart_from: Option<&str>) -> PlacementRules {
    let labels = |texts: &[&str]| texts.iter().map(|text| parse_label(text).unwrap()).collect();
    PlacementRules { require: labels(require), prefer: labels(prefer), apart_from: apart_from.map(str::to_owned) }
}

async fn submit(center: &TestCenter, name: &str, spec: TaskSpec, placement: PlacementRules) {
    center.leader.submit(Submission { placement, ..submission(name, spec) }).await.unwrap();
}

async fn node_of(center: &TestCenter, name: &str) -> String {
    center.until(name, TaskState::Assigned).await.node().unwrap().to_string()
}

async fn reason(center: &TestCenter, name: &str) -> String {
    sleep(Duration::from_secs(1)).await;
    let record = center.leader.get(&id(name)).await.unwrap();
    assert_eq!(record.state, TaskState::Pending, "{}", record.reason);
    record.reason.clone()
}

fn verify() -> TaskSpec {
    TaskSpec::Verify(VerifyTask::example("nbd://h/a", "nbd://h/b"))
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_only_where_the_labels_are_that_it_requires() {
    let center = TestCenter::new(130, Config::default()).await;
    labelled(&center, "n1", 9, &["disk=hdd"]).await;
    labelled(&center, "n2", 1, &["disk=ssd", "rack=a"]).await;
    sleep(Duration::from_secs(1)).await;
    submit(&center, "a", noop(1), rules(&["disk=ssd"], &[], None)).await;
    assert_eq!(node_of(&center, "a").await, "n2");
    submit(&center, "b", noop(1), rules(&["disk=ssd"], &[], None)).await;
    submit(&center, "c", noop(1), rules(&["disk=tape", "rack=a"], &[], None)).await;
    assert_eq!(
        reason(&center, "b").await,
        "waiting for a runner: of 2 registered, 1 lacks disk=ssd, 1 has no free slot"
    );
    assert_eq!(reason(&center, "c").await, "waiting for a runner: of 2 registered, 2 lack disk=tape rack=a");
    // Those that require nothing do not wait behind them.
    submit(&center, "d", noop(1), PlacementRules::default()).await;
    assert_eq!(node_of(&center, "d").await, "n1");
    let pinned = TaskSpec::Noop(NoopTask::new(1, Some(NodeId::new("n1").unwrap())));
    submit(&center, "e", pinned, rules(&["disk=ssd"], &[], None)).await;
    assert_eq!(reason(&center, "e").await, "waiting for n1, which lacks disk=ssd");
    labelled(&center, "n3", 1, &["disk=tape", "rack=a"]).await;
    assert_eq!(node_of(&center, "c").await, "n3");
}

/// Tasks of one page that need the same share what is counted for them; those with other needs, or a key, do not.
#[tokio::test(start_paused = true)]
async fn a_list_says_of_each_task_what_is_said_of_it_alone() {
    let center = TestCenter::new(134, Config::default()).await;
    labelled(&center, "n1", 1, &["disk=hdd"]).await;
    labelled(&center, "n2", 1, &["disk=ssd"]).await;
    center.leader.settings(vec![(SettingName::SlotsVerify, "1".to_owned())], None).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    submit(&center, "a", noop(1), rules(&["disk=hdd"], &[], Some("db"))).await;
    submit(&center, "b", verify(), rules(&["disk=ssd"], &[], None)).await;
    for name in ["c", "d"] {
        node_of(&center, if name == "c" { "a" } else { "b" }).await;
        submit(&center, &format!("{name}1"), noop(1), rules(&["disk=ssd"], &[], None)).await;
        submit(&center, &format!("{name}2"), noop(1), rules(&["disk=tape"], &[], None)).await;
        submit(&center, &format!("{name}3"), verify(), rules(&["disk=ssd"], &[], None)).await;
        submit(&center, &format!("{name}4"), noop(1), rules(&["disk=hdd"], &[], Some("db"))).await;
        submit(&center, &format!("{name}5"), noop(1), PlacementRules::default()).await;
    }
    sleep(Duration::from_secs(1)).await;
    let page = center.leader.list(Query::default()).await.unwrap();
    assert_eq!(page.tasks.len(), 12);
    for listed in &page.tasks {
        assert_eq!(listed.reason, center.leader.get(&listed.id).await.unwrap().reason, "{}", listed.id);
    }
    let reasons: std::collections::BTreeSet<&String> = page.tasks.iter().map(|task| &task.reason).collect();
    assert!(reasons.len() >= 4, "they wait for different things: {reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_rather_runs_where_most_of_the_labels_are_that_it_prefers() {
    let center = TestCenter::new(131, Config::default()).await;
    labelled(&center, "n1", 9, &[]).await;
    labelled(&center, "n2", 2, &["rack=a"]).await;
    labelled(&center, "n3", 1, &["rack=a", "row=1"]).await;
    sleep(Duration::from_secs(1)).await;
    for (name, expected) in [("a", "n3"), ("b", "n2"), ("c", "n2"), ("d", "n1")] {
        submit(&center, name, noop(1), rules(&[], &["rack=a", "row=1"], None)).await;
        assert_eq!(node_of(&center, name).await, expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_with_one_key_never_share_a_node() {
    let center = TestCenter::new(132, Config::default()).await;
    let n1 = labelled(&center, "n1", 9, &[]).await;
    labelled(&center, "n2", 9, &[]).await;
    sleep(Duration::from_secs(1)).await;
    // All at once: the decision that places them sees none of them on a node.
    for name in ["a", "b", "c"] {
        submit(&center, name, noop(1), rules(&[], &[], Some("db"))).await;
    }
    submit(&center, "other", noop(1), rules(&[], &[], Some("web"))).await;
    sleep(Duration::from_secs(1)).await;
    let nodes = [node_of(&center, "a").await, node_of(&center, "b").await];
    assert!(nodes.contains(&"n1".to_owned()) && nodes.contains(&"n2".to_owned()), "{nodes:?}");
    node_of(&center, "other").await;
    let waiting = "waiting for a runner: of 2 registered, 2 have a task that it stays apart from";
    assert_eq!(reason(&center, "c").await, waiting);
    let first = if nodes[0] == "n1" { "a" } else { "b" };
    center.begin(&n1, first).await;
    assert!(center.step(&n1, first, done()).await);
    assert_eq!(node_of(&center, "c").await, "n1");
}

#[tokio::test(start_paused = true)]
async fn a_kind_has_no_more_slots_than_the_setting_gives_it() {
    let center = TestCenter::new(133, Config::default()).await;
    let n1 = labelled(&center, "n1", 9, &[]).await;
    center.leader.settings(vec![(SettingName::SlotsVerify, "2".to_owned())], None).await.unwrap();
    for name in ["a", "b", "c"] {
        submit(&center, name, verify(), PlacementRules::default()).await;
        sleep(Duration::from_millis(10)).await;
    }
    node_of(&center, "a").await;
    node_of(&center, "b").await;
    let full = "waiting for a runner: of 1 registered, 1 has no slot left for a verify";
    assert_eq!(reason(&center, "c").await, full);
    // Other kinds go on.
    submit(&center, "n", noop(1), PlacementRules::default()).await;
    node_of(&center, "n").await;
    center.begin(&n1, "a").await;
    assert!(center.step(&n1, "a", done()).await);
    assert_eq!(node_of(&center, "c").await, "n1");
    // A setting that is gone lets further ones run.
    submit(&center, "d", verify(), PlacementRules::default()).await;
    assert_eq!(reason(&center, "d").await, full);
    center.leader.settings(vec![(SettingName::SlotsVerify, "none".to_owned())], None).await.unwrap();
    node_of(&center, "d").await;
}
