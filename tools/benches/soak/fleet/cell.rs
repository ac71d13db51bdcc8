//! Runs the center that all parts share: an ensemble, three nodes, and processes with runners; fills it with tasks.

use super::host::Host;
use super::light_runners::{self, Crew};
use super::options::FleetOptions;
use super::timed_executor;
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::wire::{
    CancelRequest, CenterStatus, CopyWork, ListRequest, NoopWork, Placement, Spec, StatusRequest, SubmitRequest, Task,
    spec::Work,
};
use blockhaul_testkit::test_cluster::{Node, TestCluster};
use blockhaul_testkit::zookeeper::Settings;
use nix::unistd::Pid;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;

/// Nodes that can lead.
pub(crate) const NODES: usize = 3;
/// Label of these nodes.
pub(crate) const NODE_LABEL: (&str, &str) = ("fleet", "node");
/// Runners of one process.
const RUNNERS_PER_HOST: usize = 250;
/// Slots of a runner, as by default.
const SLOTS_MAX: usize = 4;
/// Copies that need a lease, at most: that many runners hold one at once in a center of full size.
const LEASES_MAX: usize = 200;
/// Calls under way at once: fewer than one connection may have.
const CALLS: usize = 48;
/// Heap of a server: it holds all records.
const HEAP_MIB: u32 = 1024;
/// Time that a task lasts which holds its slot until it is cancelled.
const HOLDS: Duration = Duration::from_secs(24 * 3600);
/// Attempts of a task that must not fail because its runner was lost.
pub(crate) const ATTEMPTS: u32 = 100;
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Time between two checks of the center.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// See the module's head.
pub(crate) struct Cell {
    /// First, so that they end first.
    pub(crate) hosts: Vec<Host>,
    pub(crate) cluster: TestCluster,
    pub(crate) runtime: Runtime,
    pub(crate) center: Center,
    pub(crate) options: FleetOptions,
    fill: Fill,
}

/// How far the center is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Empty,
    /// All slots are held, and the other tasks wait for them.
    Full,
    /// The held slots have been released.
    Released,
}

impl Cell {
    /// Starts everything; returns when all runners are registered.
    pub(crate) fn new(options: &FleetOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be made");
        let label = format!("{}={}", NODE_LABEL.0, NODE_LABEL.1);
        let settings = Settings { heap_mib: if options.is_soak { HEAP_MIB } else { 128 }, ..Settings::new(3) };
        let mut cluster = TestCluster::idle_on(settings, NODES, &["--label", &label]);
        let zookeeper = cluster.zookeeper();
        for node in &mut cluster.nodes {
            // A thousand connections through a proxy would measure the proxy.
            let address = node.address();
            node.set_flags(&["--zookeeper", &zookeeper, "--advertise", &address]);
        }
        cluster.start();
        let center = Center::new(cluster.nodes.iter().map(Node::address).collect());
        let mut cell =
            Self { hosts: Vec::new(), cluster, runtime, center, options: options.clone(), fill: Fill::Empty };
        cell.start_hosts();
        cell
    }

    fn start_hosts(&mut self) {
        let folder = self.cluster.dirs.path("runners");
        std::fs::create_dir(&folder).expect("the directory is new");
        let all = self.options.runners;
        for first in (0..all).step_by(RUNNERS_PER_HOST) {
            let (zookeeper, slots) = (self.cluster.zookeeper(), u32::try_from(self.slots()).expect("it is small"));
            let count = RUNNERS_PER_HOST.min(all - first);
            self.hosts.push(Host::start(Crew { zookeeper, folder: folder.clone(), first, count, slots }));
        }
        self.wait_until_complete();
    }

    /// Slots of each runner: at most as many as half of the tasks can hold.
    fn slots(&self) -> usize {
        (self.options.tasks / 2 / self.options.runners).clamp(1, SLOTS_MAX)
    }

    /// Number of tasks that hold a slot in a full center.
    pub(crate) fn holders(&self) -> usize {
        self.slots() * self.options.runners
    }

    /// Waits until a node leads, and all nodes and runners are registered.
    pub(crate) fn wait_until_complete(&self) {
        self.runtime.block_on(self.center.wait_for_runners(NODES + self.options.runners));
    }

    /// Returns the index and the process of the node that leads.
    pub(crate) fn leader(&self) -> (usize, Pid) {
        let leader = self.runtime.block_on(self.center.status()).leader;
        let index = self.cluster.index(&leader);
        (index, self.cluster.nodes[index].pid())
    }

    /// Submits all tasks, if that was not done before: those that hold all slots of the runners, some of them copies with
    /// a lease, and then those that wait for a slot.
    pub(crate) fn fill(&mut self) {
        if self.fill != Fill::Empty {
            return;
        }
        let (holders, leases) = (self.holders(), LEASES_MAX.min(self.options.runners / 5));
        let holding = (0..holders).map(|number| {
            let work = if number < leases { copy(number) } else { noop(HOLDS) };
            on_runners(format!("hold{number}"), work)
        });
        let waiting =
            (holders..self.options.tasks).map(|number| on_runners(format!("queued{number}"), noop(Duration::ZERO)));
        self.runtime.block_on(async {
            self.center.submit(holding.collect()).await;
            self.center.wait_for("all slots to be held", |status| count(status, "RUNNING") >= holders).await;
            self.center.submit(waiting.collect()).await;
        });
        self.fill = Fill::Full;
    }

    /// Releases all slots that [`Cell::fill`] holds.
    pub(crate) fn release(&mut self) {
        if self.fill != Fill::Full {
            return;
        }
        let holding: Vec<String> = (0..self.holders()).map(|number| format!("hold{number}")).collect();
        let cancel = |mut client: CenterClient, id: String| async move {
            client.cancel(CancelRequest { id, all: false }).await.unwrap_or_else(|fault| panic!("cancel: {fault:?}"));
        };
        self.runtime.block_on(self.center.each(holding, cancel));
        self.fill = Fill::Released;
    }
}

/// Calls a center, at most [`CALLS`] at once over one connection to each node.
#[derive(Clone, Debug)]
pub(crate) struct Center {
    pub(crate) client: CenterClient,
}

impl Center {
    /// Creates a client of the center with nodes at these addresses.
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self { client: CenterClient::new(addresses, Channels::new(None)).expect("there is an address") }
    }

    pub(crate) async fn status(&self) -> CenterStatus {
        let mut client = self.client.clone();
        client.status(StatusRequest {}).await.unwrap_or_else(|fault| panic!("no node leads: {fault:?}"))
    }

    /// Waits until the status satisfies `holds`.
    pub(crate) async fn wait_for(&self, what: &str, holds: impl Fn(&CenterStatus) -> bool) {
        let (deadline, mut client) = (Instant::now() + WAIT_MAX, self.client.clone());
        loop {
            let status = client.status(StatusRequest {}).await;
            if status.as_ref().is_ok_and(&holds) {
                return;
            }
            assert!(Instant::now() < deadline, "timed out waiting for {what}: {status:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until a node leads, and so many nodes are registered.
    pub(crate) async fn wait_for_runners(&self, count: usize) {
        let count = u32::try_from(count).expect("counts are small");
        self.wait_for("all nodes to be registered", |status| status.runners == count).await;
    }

    /// Submits tasks, many at once.
    pub(crate) async fn submit(&self, requests: Vec<SubmitRequest>) {
        let submit = |mut client: CenterClient, request: SubmitRequest| async move {
            client.submit(request).await.unwrap_or_else(|fault| panic!("submit a task: {fault:?}"));
        };
        self.each(requests, submit).await;
    }

    /// Returns all tasks whose ids begin with `start`, in the order of their ids.
    pub(crate) async fn list(&self, start: &str) -> Vec<Task> {
        let (mut client, mut all) = (self.client.clone(), Vec::new());
        let mut after = start.to_owned();
        loop {
            let request = ListRequest { after, ..ListRequest::default() };
            let page = client.list(request).await.unwrap_or_else(|fault| panic!("list tasks: {fault:?}"));
            let found = page.tasks.len();
            all.extend(page.tasks.into_iter().take_while(|task| task.id.starts_with(start)));
            let is_past = found > 0 && !page.next.starts_with(start);
            if page.next.is_empty() || is_past {
                return all;
            }
            after = page.next;
        }
    }

    /// Makes a call for each item, many at once; returns the results in any order.
    pub(crate) async fn each<T, R, F>(
        &self,
        items: Vec<T>,
        call: impl Fn(CenterClient, T) -> F + Clone + Send + 'static,
    ) -> Vec<R>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Future<Output = R> + Send,
    {
        let items = Arc::new(Mutex::new(items.into_iter()));
        let caller = |_| {
            let (items, call, client) = (Arc::clone(&items), call.clone(), self.client.clone());
            tokio::spawn(async move {
                let mut results = Vec::new();
                loop {
                    let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(item) = next else { return results };
                    results.push(call(client.clone(), item).await);
                }
            })
        };
        let callers: Vec<_> = (0..CALLS).map(caller).collect();
        let mut all = Vec::new();
        for caller in callers {
            all.extend(caller.await.expect("every call is answered"));
        }
        all
    }
}

/// Returns the number of tasks in a state.
pub(crate) fn count(status: &CenterStatus, state: &str) -> usize {
    usize::try_from(*status.tasks.get(state).unwrap_or(&0)).expect("counts are small")
}

/// Returns the milliseconds since 1970.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).expect("the clock is right");
    u64::try_from(since.as_millis()).expect("it is not that late")
}

pub(crate) fn noop(lasts: Duration) -> Work {
    Work::Noop(NoopWork { milliseconds: u64::try_from(lasts.as_millis()).expect("it is short"), node: None })
}

/// A copy under a lease that holds its slot.
fn copy(number: usize) -> Work {
    let (source, destination) = (timed_executor::volume(HOLDS), format!("nbd://127.0.0.1:1/held{number}"));
    Work::Copy(CopyWork { source, destination, ..CopyWork::default() })
}

/// A task for the runners.
pub(crate) fn on_runners(id: String, work: Work) -> SubmitRequest {
    task(id, work, light_runners::LABEL)
}

/// A task for the nodes that can lead.
pub(crate) fn on_nodes(id: String, work: Work) -> SubmitRequest {
    task(id, work, NODE_LABEL)
}

fn task(id: String, work: Work, (name, value): (&str, &str)) -> SubmitRequest {
    let require = [(name.to_owned(), value.to_owned())].into();
    SubmitRequest {
        id,
        spec: Some(Spec { work: Some(work) }),
        max_attempts: ATTEMPTS,
        placement: Some(Placement { require, ..Placement::default() }),
        ..SubmitRequest::default()
    }
}
