//! Tests drains of idle nodes, drains that end by themselves, and the bound of drained nodes.

use super::support::*;
use crate::coord::paths;
use crate::dispatcher::Config;
use crate::model::{DrainMode, NodeId, SettingName, TaskState};
use blockhaul_engine::error::Code;
use std::time::Duration;
use tokio::time::sleep;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

async fn three_nodes(seed: u64) -> TestCenter {
    let center = TestCenter::new(seed, Config::default()).await;
    for name in ["n1", "n2", "n3"] {
        center.runner(name, "a", 1, Behaviour::Accepting).await;
    }
    sleep(Duration::from_secs(1)).await;
    center
}

fn drained(center: &TestCenter) -> Vec<&'static str> {
    let is_drained = |name: &&str| center.ensemble.committed(&paths::drain(name)).is_some();
    ["n1", "n2", "n3"].into_iter().filter(is_drained).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_that_hold_nothing_are_drained_and_no_others() {
    let center = three_nodes(140).await;
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    let busy = center.until("x", TaskState::Assigned).await.node().unwrap().clone();
    let mut idle: Vec<NodeId> = ["n1", "n2", "n3"].into_iter().map(node).filter(|name| *name != busy).collect();
    assert_eq!(center.leader.drain_idle(1, None).await.unwrap(), idle[..1]);
    assert_eq!(center.leader.drain_idle(9, None).await.unwrap(), idle.split_off(1));
    assert_eq!(center.leader.drain_idle(9, None).await.unwrap(), []);
    assert!(!drained(&center).contains(&busy.as_str()));
    center.leader.submit(submission("y", noop(1))).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        center.leader.get(&id("y")).await.unwrap().reason,
        "waiting for a runner: of 3 registered, 2 are draining, 1 has no free slot"
    );
}

#[tokio::test(start_paused = true)]
async fn drains_at_the_same_time_stay_within_the_bound() {
    let center = three_nodes(141).await;
    center.leader.settings(vec![(SettingName::MaxDrained, "1".to_owned())], None).await.unwrap();
    let (one, other) = (node("n1"), node("n2"));
    let both = tokio::join!(
        center.leader.drain(&one, DrainMode::Finish, None),
        center.leader.drain(&other, DrainMode::Finish, None),
    );
    assert!(both.0.is_ok() && both.1.unwrap_err().code == Code::Busy);
    assert_eq!(center.leader.drain_idle(9, None).await.unwrap(), []);
    assert_eq!(drained(&center), ["n1"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_when_its_time_is_over_also_under_another_leader() {
    let mut center = three_nodes(142).await;
    let hour = Some(Duration::from_secs(3600));
    center.leader.drain(&node("n1"), DrainMode::Finish, hour).await.unwrap();
    center.leader.drain(&node("n2"), DrainMode::Finish, hour).await.unwrap();
    center.leader.drain(&node("n3"), DrainMode::Finish, None).await.unwrap();
    sleep(Duration::from_secs(1800)).await;
    // Drained again for longer.
    center.leader.drain(&node("n2"), DrainMode::Finish, hour).await.unwrap();
    center.change_leader("l2").await;
    sleep(Duration::from_secs(1750)).await;
    assert_eq!(drained(&center), ["n1", "n2", "n3"]);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(drained(&center), ["n2", "n3"]);
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    assert_eq!(center.until("x", TaskState::Assigned).await.node().map(NodeId::as_str), Some("n1"));
    sleep(Duration::from_secs(1800)).await;
    assert_eq!(drained(&center), ["n3"]);
}
