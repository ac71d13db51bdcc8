//! Tests levels: when the level of a center is raised, what is refused before, and what nodes announce.

use super::golden::at;
use super::holding::machine;
use super::support::*;
use crate::coord::{CreateMode, Op, Session, paths};
use crate::dispatcher::Config;
use crate::dispatcher::cluster_state::ClusterState;
use crate::dispatcher::level::{CenterLevel, decide_level};
use crate::model::level::LEVEL;
use crate::model::{
    Abilities, Incarnation, Meta, NodeId, Record, Registration, Renewal, Submission, TaskState, TaskTimes,
};
use blockhaul_engine::error::Code;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn life(node: &str) -> Incarnation {
    Registration::example(node).incarnation
}

fn meta(level: u32) -> Meta {
    Meta { schema: level, center: String::from("c") }
}

#[test]
fn the_level_is_raised_when_every_node_that_counts_announces_the_next_one() {
    let node = |name: &str| NodeId::new(name).unwrap();
    let now = at(100 * DAY_MS / 1000);
    let decided = |announced: &[&str], unreadable: &[&str], absent: &[(&str, u64)], level: u32| {
        let mut cluster = ClusterState::default();
        let there = ["n1", "n2"].map(|name| (node(name), Registration::example(name)));
        cluster.observe_runners(BTreeMap::from(there), 0, now.boot);
        let able = |name: &&str| (node(name), Abilities::of_this_program(life(name)));
        cluster.fleet.set_abilities(announced.iter().map(able).collect());
        cluster.set_unreadable(unreadable.iter().map(|name| node(name)).collect(), now.boot);
        let absent = absent.iter().map(|(name, days)| ((*name).to_owned(), now.unix_ms - days * DAY_MS)).collect();
        cluster.set_level(Some(CenterLevel { meta: meta(level), version: 0, absent }));
        decide_level(&cluster, now).is_some()
    };
    let all = ["n1", "n2"];
    assert!(decided(&all, &[], &[], 1));
    assert!(!decided(&all, &[], &[], LEVEL), "it is raised");
    assert!(!decided(&["n1"], &[], &[], 1));
    assert!(!decided(&all, &["n3"], &[], 1), "it may be of any level");
    assert!(!decided(&all, &[], &[("n3", 6)], 1), "it may come back as it was");
    assert!(decided(&all, &[], &[("n3", 8)], 1));
}

async fn create(session: &dyn Session, path: String, data: Vec<u8>, mode: CreateMode) {
    session.multi(vec![Op::Create { path, data, mode }]).await.unwrap();
}

/// Has a runner announce what this program can do, but for one kind.
async fn announce(session: &Arc<dyn Session>, node: &str, incarnation: &str, lacks: Option<&str>) {
    let mut able = Abilities::of_this_program(Incarnation(incarnation.to_owned()));
    able.kinds.retain(|kind| Some(kind.as_str()) != lacks);
    create(&**session, paths::abilities(node), able.encode(), CreateMode::Ephemeral).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_older_leader_would_ignore_is_refused_until_the_level_is_raised() {
    let config = Config { reconcile_every: Duration::from_secs(1), ..Config::default() };
    let center = TestCenter::new(120, config).await;
    let operator = center.ensemble.client("operator").open().await.unwrap();
    create(&*operator, paths::META.to_owned(), meta(1).encode(), CreateMode::Persistent).await;
    let gone = Renewal { incarnation: life("n9"), count: 1, unix_ms: u64::MAX };
    create(&*operator, paths::lease("n9"), gone.encode(), CreateMode::Persistent).await;
    let runner = center.runner("n1", "a", 4, Behaviour::Completing).await;
    sleep(Duration::from_secs(3)).await;
    let delayed = |name: &str| Submission {
        times: TaskTimes { delay_ms: Some(1000), ..TaskTimes::default() },
        ..submission(name, noop(1))
    };
    let refused = center.leader.submit(delayed("a")).await.unwrap_err();
    assert_eq!(refused.code, Code::Unsupported);
    for word in ["--delay", "n1 is of level 1", "n9 is away"] {
        assert!(refused.message.contains(word), "{refused}");
    }
    center.leader.submit(submission("plain", noop(1))).await.unwrap();
    center.until("plain", TaskState::Succeeded).await;
    announce(&runner, "n1", "a", None).await;
    sleep(Duration::from_secs(3)).await;
    let stored = || Meta::decode(&center.ensemble.committed(paths::META).unwrap().data).unwrap();
    assert_eq!(stored(), meta(1), "n9 may come back");
    let version = center.ensemble.committed(&paths::lease("n9")).unwrap().stat.version;
    operator.multi(vec![Op::Delete { path: paths::lease("n9"), version }]).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(stored(), meta(LEVEL));
    center.leader.submit(delayed("a")).await.unwrap();
    center.until("a", TaskState::Succeeded).await;
    // One that has come in between gets nothing.
    center.lose(&runner).await;
    center.runner("n2", "b", 4, Behaviour::Completing).await;
    center.leader.submit(submission("b", noop(1))).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    let waiting = center.leader.get(&id("b")).await.unwrap();
    assert_eq!(waiting.state, TaskState::Pending);
    assert!(waiting.reason.contains("1 has a taskd that cannot run a noop"), "{}", waiting.reason);
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_only_to_nodes_that_know_its_kind() {
    let config = Config { reconcile_every: Duration::from_secs(1), ..Config::default() };
    let center = TestCenter::new(121, config).await;
    let first = center.runner("n1", "a", 4, Behaviour::Completing).await;
    announce(&first, "n1", "a", Some("noop")).await;
    sleep(Duration::from_secs(3)).await;
    center.leader.submit(submission("t", noop(1))).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    let waiting = center.leader.get(&id("t")).await.unwrap();
    assert_eq!(&*waiting.reason, "waiting for a runner: of 1 registered, 1 has a taskd that cannot run a noop");
    let second = center.runner("n2", "b", 4, Behaviour::Completing).await;
    announce(&second, "n2", "b", None).await;
    let done = center.until("t", TaskState::Succeeded).await;
    assert_eq!(done.attempts[0].runner.node.as_str(), "n2");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_cannot_be_decoded_is_that_of_a_node_that_is_there() {
    let config = Config { reconcile_every: Duration::from_secs(1), ..Config::default() };
    let mut center = TestCenter::new(122, config).await;
    let runner = center.runner("n1", "a", 4, Behaviour::Accepting).await;
    center.leader.submit(submission("t", noop(1))).await.unwrap();
    center.begin(&runner, "t").await;
    let path = paths::runner("n1");
    let later = br#"{"node":{"name":"n1"}}"#.to_vec();
    runner.multi(vec![Op::Set { path: path.clone(), data: later, version: 0 }]).await.unwrap();
    for leader in [None, Some("l2")] {
        if let Some(leader) = leader {
            center.change_leader(leader).await;
        }
        sleep(Duration::from_secs(60)).await;
        assert_eq!(center.stored("t").state, TaskState::Running);
        let shown = center.leader.runners().await.unwrap();
        assert!(shown.len() == 1 && shown[0].is_unreadable && shown[0].tasks == 1, "{shown:?}");
        assert_eq!(center.leader.fence(&NodeId::new("n1").unwrap()).await.unwrap_err().code, Code::Busy);
    }
    center.leader.submit(submission("u", noop(1))).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(center.stored("u").state, TaskState::Pending, "it gets no further ones");
    runner.multi(vec![Op::Delete { path, version: 1 }]).await.unwrap();
    // It was lost with its node, and waits for another one.
    center.until("t", TaskState::Pending).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_show_what_has_ended_on_them_whoever_leads() {
    let config = Config { reconcile_every: Duration::from_secs(1), ..Config::default() };
    let mut center = TestCenter::new(123, config).await;
    center.runner("n1", "a", 4, Behaviour::Completing).await;
    let operator = center.ensemble.client("operator").open().await.unwrap();
    let namesake = Registration { address: String::from("g:1"), ..Registration::example("n1") };
    create(&*operator, paths::refused("n1", "other"), namesake.encode(), CreateMode::Ephemeral).await;
    for name in ["a", "b"] {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
        center.until(name, TaskState::Succeeded).await;
    }
    let ended = center.stored("b").attempts[0].ended_ms;
    for leader in ["l2", "l3"] {
        sleep(Duration::from_secs(5)).await;
        let shown = center.leader.runners().await.unwrap().remove(0);
        assert_eq!(shown.last_ended.map(|(task, at_ms)| (String::from(task), Some(at_ms))), Some(("b".into(), ended)));
        assert_eq!((shown.idle_since_ms, shown.failures, shown.refused), (ended, 0, vec![String::from("g:1")]));
        center.change_leader(leader).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_holds_its_place_only_where_all_kinds_of_its_members_are_known() {
    let config = Config { reconcile_every: Duration::from_secs(1), ..Config::default() };
    let center = TestCenter::new(122, config).await;
    let first = center.runner("n1", "a", 4, Behaviour::Accepting).await;
    announce(&first, "n1", "a", None).await;
    let second = center.runner("n2", "a", 4, Behaviour::Accepting).await;
    announce(&second, "n2", "a", Some("copy")).await;
    sleep(Duration::from_secs(3)).await;
    machine(&center, "g").await;
    sleep(Duration::from_secs(3)).await;
    let freeze = center.leader.get(&id("g.freeze")).await.unwrap();
    let lack = "waiting until all that g needs is free: n2 has a taskd that cannot run a copy";
    assert_eq!((freeze.state, &*freeze.reason), (TaskState::Pending, lack));
    center.lose(&second).await;
    let upgraded = center.runner("n2", "b", 4, Behaviour::Accepting).await;
    announce(&upgraded, "n2", "b", None).await;
    center.begin(&first, "g.freeze").await;
}
