//! Restarts all nodes and all runners one after the other, with a kill of the leader in the middle, while tasks are
//! submitted and run; checks that each task ends, and is done once.
//!
//! A task was done once if its record has one attempt that succeeded, and if the runners have noted one completion of it.

use super::cell::{Cell, Center, NODES, on_runners};
use super::timed_executor;
use crate::measure::{Bound, Measure};
use blockhaul_control::rpc::wire::{Task, VerifyWork, spec::Work};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Time that each task lasts.
const LASTS: Duration = Duration::from_secs(2);
/// Clients that submit, and the time between two submissions of one: a hundred tasks a second in all.
const CLIENTS: usize = 4;
const INTERVAL: Duration = Duration::from_millis(40);
/// Longest wait for the end of the last tasks.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Beginning of the names of the tasks.
const NAME: &str = "wave";

/// Submits tasks, until it is asked to stop.
struct Submitters {
    /// Number of tasks that were submitted so far.
    next: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Submitters {
    fn start(cell: &Cell) -> Self {
        let (next, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let client = |_| {
            let (center, next, over) = (cell.center.clone(), Arc::clone(&next), Arc::clone(&over));
            cell.runtime.spawn(async move {
                while !over.load(Relaxed) {
                    submit(&center, next.fetch_add(1, Relaxed)).await;
                    tokio::time::sleep(INTERVAL).await;
                }
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { next, over, clients }
    }

    /// Stops when all that was begun is submitted; returns the number of tasks.
    async fn stop(self) -> usize {
        self.over.store(true, Relaxed);
        for client in self.clients {
            client.await.expect("every task is accepted");
        }
        self.next.load(Relaxed)
    }
}

async fn submit(center: &Center, number: usize) {
    let (reference, volume) = (timed_executor::volume(LASTS), format!("nbd://127.0.0.1:1/checked{number}"));
    let work = VerifyWork { reference: Some(reference), volume, ..VerifyWork::default() };
    let mut client = center.client.clone();
    let request = on_runners(format!("{NAME}{number}"), Work::Verify(work));
    client.submit(request).await.unwrap_or_else(|fault| panic!("submit a task: {fault:?}"));
}

pub(crate) fn measure(cell: &mut Cell) -> Vec<Measure> {
    // Without them there would be no slots.
    cell.release();
    let submitters = Submitters::start(cell);
    let start = Instant::now();
    let middle = cell.hosts.len() / 2;
    restart_hosts(cell, 0..middle);
    (0..NODES).for_each(|node| restart_node(cell, node));
    kill_leader(cell);
    restart_hosts(cell, middle..cell.hosts.len());
    let lasted = start.elapsed();
    let submitted = cell.runtime.block_on(submitters.stop());
    let tasks = cell.runtime.block_on(ended(&cell.center, submitted));
    let mut completed: BTreeMap<String, usize> = BTreeMap::new();
    let noted = cell.hosts.iter().flat_map(super::host::Host::completed).filter(|id| id.starts_with(NAME));
    noted.for_each(|id| *completed.entry(id).or_default() += 1);
    let failed = submitted - tasks.iter().filter(|task| has_succeeded_once(task)).count();
    let other = tasks.iter().filter(|task| completed.get(&task.id) != Some(&1)).count();
    if let Some(task) = tasks.iter().find(|task| !has_succeeded_once(task)) {
        eprintln!("not done once: {task:?}");
    }
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let [submitted, failed, other] = [submitted, failed, other].map(|count| count as f64);
    vec![
        Measure::of_times("restart of all nodes and runners, one by one", &[lasted], Bound::None),
        Measure::new("tasks submitted meanwhile", "", vec![submitted], Bound::None),
        Measure::new("of these lost, not ended, or not ended well", "", vec![failed], Bound::AtMost(0.0)),
        Measure::new("of these not completed once by the runners", "", vec![other], Bound::AtMost(0.0)),
    ]
}

/// Stops and starts runners, process by process.
fn restart_hosts(cell: &mut Cell, which: std::ops::Range<usize>) {
    for host in which {
        cell.hosts[host].stop();
        cell.hosts[host].restart();
        cell.wait_until_complete();
    }
}

/// Stops and starts a node.
fn restart_node(cell: &mut Cell, node: usize) {
    let status = cell.cluster.nodes[node].stop();
    assert!(status.success(), "a stop ends with {status}");
    cell.cluster.nodes[node].start();
    cell.wait_until_complete();
}

/// Kills the leader, and starts it again when another node leads.
fn kill_leader(cell: &mut Cell) {
    let (leader, _) = cell.leader();
    let id = cell.cluster.nodes[leader].id.clone();
    cell.cluster.nodes[leader].kill();
    let successor = cell.center.wait_for("another node to lead", |status| status.leader != id);
    cell.runtime.block_on(successor);
    cell.cluster.nodes[leader].start();
    cell.wait_until_complete();
}

/// Waits until so many tasks have ended; returns all that there are after a while in any case.
async fn ended(center: &Center, count: usize) -> Vec<Task> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let tasks = center.list(NAME).await;
        let over = tasks.iter().filter(|task| matches!(task.state.as_str(), "SUCCEEDED" | "FAILED" | "CANCELLED"));
        if over.count() >= count || Instant::now() > deadline {
            return tasks;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Tells whether a task has succeeded in exactly one attempt.
fn has_succeeded_once(task: &Task) -> bool {
    let outcomes = task.attempts.iter().filter_map(|attempt| attempt.outcome.as_deref());
    task.state == "SUCCEEDED" && outcomes.filter(|outcome| *outcome == "succeeded").count() == 1
}
