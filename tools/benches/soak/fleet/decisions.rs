//! Measures pauses of a center's decisions, by tasks that become due one after the other.
//!
//! The tasks are stored before, so that no client takes part in the pause: whoever leads has something to decide at any
//! time. When that was decided is in the records, by the wall clock of this host, which all nodes share.

use super::cell::{Center, noop, on_nodes, unix_ms};
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::wire::{SubmitRequest, TaskName, Times};
use std::time::{Duration, Instant, SystemTime};

/// Time in which the tasks are submitted, before the first is due.
const AHEAD: Duration = Duration::from_millis(1500);
/// Longest wait for the last task to be assigned.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Tasks that become due at equal intervals.
#[derive(Debug)]
pub(crate) struct Decisions {
    ids: Vec<String>,
    /// When the first is due.
    first: SystemTime,
}

impl Decisions {
    /// Submits `count` tasks, of which the first is due in 1.5 s, and then one after each interval.
    pub(crate) async fn submit(center: &Center, name: &str, count: u32, interval: Duration, require: bool) -> Self {
        let first = SystemTime::now() + AHEAD;
        let ids: Vec<String> = (0..count).map(|number| format!("{name}.{number}")).collect();
        let request = |(number, id): (u32, &String)| {
            let start_at_ms = Some(unix_ms(first + interval * number));
            let task = on_nodes(id.clone(), noop(Duration::ZERO));
            let placement = task.placement.clone().filter(|_| require);
            SubmitRequest { times: Some(Times { start_at_ms, ..Times::default() }), placement, ..task }
        };
        center.submit((0..).zip(&ids).map(request).collect()).await;
        Self { ids, first }
    }

    /// Sleeps until tasks are due, and for a random part of half a second more.
    pub(crate) fn wait_for_first(&self) {
        let wait = self.first.duration_since(SystemTime::now()).unwrap_or_default();
        std::thread::sleep(wait + Duration::from_millis(fastrand::u64(..500)));
    }

    /// Waits until all tasks have been assigned; returns the longest time without a decision, from `since` on.
    pub(crate) async fn longest_pause(&self, center: &Center, since: SystemTime) -> Duration {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let assigned: Vec<Option<u64>> = center.each(self.ids.clone(), first_assignment).await;
            if let Some(all) = assigned.into_iter().collect::<Option<Vec<u64>>>() {
                return longest_pause(unix_ms(since), all);
            }
            assert!(Instant::now() < deadline, "tasks are due and not assigned: {:?}", self.ids.first());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Returns when a task was assigned for the first time, in milliseconds since 1970.
async fn first_assignment(mut client: CenterClient, id: String) -> Option<u64> {
    let task = client.get(TaskName { id }).await.ok()?;
    task.attempts.first().map(|attempt| attempt.started_ms)
}

/// Returns the longest time between two decisions, the first of which counts from `since_ms`.
fn longest_pause(since_ms: u64, mut decided_ms: Vec<u64>) -> Duration {
    decided_ms.retain(|at| *at > since_ms);
    decided_ms.push(since_ms);
    decided_ms.sort_unstable();
    let longest = decided_ms.windows(2).map(|pair| pair[1] - pair[0]).max();
    Duration::from_millis(longest.expect("a task was due after the fault"))
}
