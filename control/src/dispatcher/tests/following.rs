//! Tests that a subscriber of all tasks knows what is stored, through changes by anybody and changes of the leader.

use super::support::*;
use crate::coord::sim::FaultRates;
use crate::dispatcher::{Config, DispatcherHandle, Next, Picture, Subscriber, TaskChange};
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{Actor, DrainMode, NodeId, Progress, Record, Submission, TaskCommand, TaskId, TaskRecord, TaskSpec};
use crate::model::{TaskState, Transition};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::sleep;

/// A subscriber and what it knows.
struct Client {
    subscriber: Subscriber,
    picture: Picture,
    /// States of all changes, as `t RUNNING`.
    seen: Vec<String>,
}

impl Client {
    async fn of(leader: &DispatcherHandle) -> Self {
        let subscriber = Subscriber::new(leader.feed().await.unwrap(), None);
        Self { subscriber, picture: Picture::default(), seen: Vec::new() }
    }

    /// Goes on with another leader, or over another connection.
    async fn reconnect(&mut self, leader: &DispatcherHandle) {
        self.subscriber = Subscriber::new(leader.feed().await.unwrap(), self.picture.position);
    }

    /// Takes everything that there is.
    async fn catch_up(&mut self, leader: &DispatcherHandle) {
        loop {
            match self.subscriber.next() {
                Next::Nothing => return,
                Next::Snapshot => {
                    let snapshot = leader.snapshot().await.unwrap();
                    self.subscriber.take(&snapshot);
                    self.picture.start_over(&snapshot, self.subscriber.position(snapshot.number), usize::MAX);
                }
                Next::Changes(changes) => {
                    for (number, change) in changes {
                        let state = if change.is_removed { "removed" } else { change.state.as_str() };
                        self.seen.push(format!("{} {state}", change.id));
                        self.picture.apply(&change, self.subscriber.position(number));
                    }
                }
            }
        }
    }
}

/// Returns what is stored.
fn stored(center: &TestCenter) -> BTreeMap<TaskId, TaskChange> {
    let nodes = center.ensemble.committed_below("/tasks/").into_iter().filter(|(_, node)| !node.data.is_empty());
    let records = nodes.filter_map(|(_, node)| Some((TaskRecord::decode(&node.data).ok()?, node.stat.version)));
    records.map(|(record, version)| (record.id.clone(), TaskChange::of(&record, version))).collect()
}

fn export_copy(name: &str) -> Submission {
    submission(name, TaskSpec::Copy(copy("nbd://h/a", &format!("nbd://h/{name}"))))
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_is_in_the_feed_in_its_order_and_progress_is_not() {
    let center = TestCenter::new(81, Config::default()).await;
    let mut client = Client::of(&center.leader).await;
    client.catch_up(&center.leader).await;
    assert_eq!((client.picture.snapshots, client.picture.tasks.len()), (1, 0));
    center.leader.submit(export_copy("t")).await.unwrap();
    client.catch_up(&center.leader).await;
    assert_eq!(client.seen, ["t PENDING"], "before anything else happens");
    let session = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.begin(&session, "t").await;
    let progress = Progress { planned: 9, durable: 4, ..Progress::default() };
    let checkpoint = Checkpoint { progress, ..Checkpoint::default() };
    assert!(center.step(&session, "t", TaskEvent::Checkpointed(checkpoint.clone())).await);
    center.leader.progress(vec![(id("t"), Progress { durable: 5, ..progress })]).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.leader.get(&id("t")).await.unwrap().progress.durable, 5, "the telemetry is known");
    assert!(center.step(&session, "t", TaskEvent::Succeeded { checkpoint, report: None }).await);
    sleep(Duration::from_secs(1)).await;
    center.leader.remove(&id("t")).await.unwrap();
    client.catch_up(&center.leader).await;
    assert_eq!(client.seen, ["t PENDING", "t ASSIGNED", "t RUNNING", "t SUCCEEDED", "t removed"]);
    assert_eq!((client.picture.snapshots, client.picture.tasks.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_by_hand_is_seen() {
    let center = TestCenter::new(82, Config::default()).await;
    for name in ["a", "b", "c"] {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
    }
    let mut client = Client::of(&center.leader).await;
    client.catch_up(&center.leader).await;
    center.ensemble_delete("a").await;
    center.overwrite("b", b"{}".to_vec()).await;
    center.leader.changed(vec![id("a"), id("b")]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    client.catch_up(&center.leader).await;
    assert_eq!(client.seen, ["a removed", "b removed"]);
    assert_eq!(client.picture.tasks, stored(&center), "what cannot be decoded is in no list either");
    // A new task of the same name, whose record has a lower version than the old one.
    center.leader.submit(submission("a", noop(2))).await.unwrap();
    client.catch_up(&center.leader).await;
    assert_eq!(client.picture.tasks, stored(&center));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_starts_with_all_tasks_and_the_present_one_goes_on() {
    let mut center = TestCenter::new(83, Config::default()).await;
    center.leader.submit(submission("a", noop(1))).await.unwrap();
    let mut client = Client::of(&center.leader).await;
    client.catch_up(&center.leader).await;
    center.leader.submit(submission("b", noop(1))).await.unwrap();
    client.reconnect(&center.leader).await;
    client.catch_up(&center.leader).await;
    assert_eq!((client.picture.snapshots, client.seen.len()), (1, 1), "the same leader goes on");
    center.change_leader("l2").await;
    assert!(!client.subscriber.changed().await, "the term is over");
    center.leader.submit(submission("c", noop(1))).await.unwrap();
    client.reconnect(&center.leader).await;
    client.catch_up(&center.leader).await;
    assert_eq!(client.picture.snapshots, 2);
    assert_eq!(client.picture.tasks, stored(&center));
    assert_eq!(client.picture.tasks.len(), 3);
}

/// Tasks that run, are cancelled, removed and lost, with lost answers and late reads, while the leader changes.
#[tokio::test(start_paused = true)]
async fn through_faults_and_ten_leaders_the_picture_is_what_is_stored() {
    for seed in 0..6 {
        let fault_rates = FaultRates { latency_ms: (0, 20), lost_reply: 0.1, lost_watch: 0.1, ..FaultRates::default() };
        let mut center = TestCenter::with_faults(seed, Config::default(), fault_rates).await;
        let mut client = Client::of(&center.leader).await;
        let mut session = center.runner("n1", "life-0", 3, Behaviour::Completing).await;
        for round in 0..10 {
            for number in 0..6 {
                let name = format!("t{round}-{number}");
                // An answer may be lost, and the client of a test does not ask again.
                let _ = center.leader.submit(submission(&name, noop(1))).await;
                if number % 3 == 0 {
                    let _ = center.leader.command(&id(&name), TaskCommand::Cancel).await;
                }
                client.catch_up(&center.leader).await;
            }
            if round == 1 {
                center.lose(&session).await;
                session = center.runner("n1", "life-1", 3, Behaviour::Completing).await;
            }
            let _ = center.leader.drain(&NodeId::new("n1").unwrap(), DrainMode::Undo, None).await;
            let _ = center.leader.remove(&id(&format!("t{round}-0"))).await;
            center.change_leader(&format!("l{round}")).await;
            client.reconnect(&center.leader).await;
            sleep(Duration::from_secs(120)).await;
            client.catch_up(&center.leader).await;
            assert_eq!(client.picture.tasks, stored(&center), "seed {seed}, round {round}");
        }
        assert!(client.picture.tasks.values().any(|task| task.state == TaskState::Succeeded), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_record_tells_who_asked_for_what() {
    let center = TestCenter::new(84, Config::default()).await;
    let session = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(export_copy("t")).await.unwrap();
    center.begin(&session, "t").await;
    sleep(Duration::from_secs(1)).await;
    center.leader.command(&id("t"), TaskCommand::Cancel).await.unwrap();
    let line = |transition: &Transition| (transition.state, transition.by.clone());
    let seen: Vec<_> = center.stored("t").transitions.iter().map(line).collect();
    assert_eq!(
        seen,
        [
            (TaskState::Pending, Actor::Client(None)),
            (TaskState::Assigned, Actor::Dispatcher),
            (TaskState::Running, Actor::Node),
            (TaskState::Cancelling, Actor::Client(None)),
        ]
    );
}
