//! Simulates a client that follows all tasks through all faults, and compares what it knows with the store at the end.
//!
//! It makes no calls over the simulated network, whose faults would change with it: what is checked is the feed, its
//! subscribers and the changes of the leader. Seeds of every other number have such a client.

use super::invariants::InvariantChecker;
use super::net::{CLIENT, Net};
use crate::dispatcher::{DispatcherHandle, Next, Picture, Subscriber, TaskChange};
use crate::model::TaskId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest wait for an answer, and time between two looks for another leader.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time, in seconds, from the end of all tasks until the client knows of it: longer than a scan of the store takes.
const CATCH_UP_SECONDS: u64 = 120;

/// Client that follows all tasks.
#[derive(Debug)]
pub(super) struct SimSubscriber {
    picture: Arc<Mutex<Picture>>,
    following: JoinHandle<()>,
}

impl SimSubscriber {
    pub(super) fn start(net: Net, invariants: InvariantChecker) -> Self {
        let picture = Arc::<Mutex<Picture>>::default();
        let following = tokio::spawn(follow(net, invariants, picture.clone()));
        Self { picture, following }
    }

    /// Checks that the client knows what is stored. Nothing changes any more.
    pub(super) async fn check(&self, invariants: &InvariantChecker) {
        let mut known = BTreeMap::new();
        let mut stored = BTreeMap::new();
        for _ in 0..CATCH_UP_SECONDS {
            if self.following.is_finished() {
                return invariants.result.fail("the client that follows all tasks got what it cannot apply");
            }
            known = self.known();
            stored = stored_tasks(invariants);
            if known == stored {
                return invariants.result.count("pictures of all tasks compared");
            }
            sleep(Duration::from_secs(1)).await;
        }
        let differing = stored.iter().find(|(id, task)| known.get(id) != Some(task)).map(|(_, task)| task);
        let surplus = known.keys().find(|id| !stored.contains_key(id));
        let example = format!("{differing:?} is stored, {surplus:?} is not");
        invariants.result.fail(format_args!("a client that follows all tasks does not know what is stored: {example}"));
    }
}

impl SimSubscriber {
    fn known(&self) -> BTreeMap<TaskId, TaskChange> {
        let picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        picture.tasks.iter().map(|(id, task)| (id.clone(), plain(task.clone()))).collect()
    }
}

impl Drop for SimSubscriber {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// Returns a task without the version of its record, which grows with its progress, too.
fn plain(task: TaskChange) -> TaskChange {
    TaskChange { version: 0, ..task }
}

fn stored_tasks(invariants: &InvariantChecker) -> BTreeMap<TaskId, TaskChange> {
    let tasks = invariants.tasks().into_iter().map(|seen| seen.record);
    tasks.map(|record| (record.id.clone(), TaskChange::of(&record, 0))).collect()
}

async fn follow(net: Net, invariants: InvariantChecker, picture: Arc<Mutex<Picture>>) {
    loop {
        let node = invariants.leader().map(|leader| leader.node);
        let endpoint = node.as_ref().and_then(|node| net.find_endpoint(CLIENT, node.as_str()));
        if let (Some(node), Some(leader)) = (node, endpoint.and_then(|endpoint| endpoint.leader())) {
            let is_other = || invariants.leader().is_none_or(|leader| leader.node != node);
            follow_leader(&leader, &picture, is_other).await;
        }
        sleep(PATIENCE).await;
    }
}

/// Follows one leader until its term ends, it does not answer, or `is_other` says that another one leads.
async fn follow_leader(leader: &DispatcherHandle, picture: &Mutex<Picture>, is_other: impl Fn() -> bool) {
    let known = || picture.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(Ok(feed)) = timeout(PATIENCE, leader.feed()).await else { return };
    let since = known().position;
    let mut subscriber = Subscriber::new(feed, since);
    loop {
        match subscriber.next() {
            Next::Snapshot => {
                let Ok(Ok(snapshot)) = timeout(PATIENCE, leader.snapshot()).await else { return };
                subscriber.take(&snapshot);
                known().start_over(&snapshot, subscriber.position(snapshot.number), usize::MAX);
            }
            Next::Changes(changes) => {
                let mut known = known();
                changes.iter().for_each(|(number, change)| known.apply(change, subscriber.position(*number)));
            }
            Next::Nothing => match timeout(PATIENCE, subscriber.changed()).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) if is_other() => return,
                Err(_) => {}
            },
        }
    }
}
