//! Measures a long queue: how long a dispatcher takes to read it, how fast it assigns it, and how much memory it needs.

use crate::fleet::light_runners::{Crew, launch};
use crate::measure::{Bound, Measure};
use crate::options::Options;
use crate::process::memory_mib;
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::wire::{NoopWork, Spec, StatusRequest, SubmitRequest, spec::Work};
use blockhaul_testkit::test_cluster::TestCluster;
use std::time::{Duration, Instant};

/// Submissions under way at once.
const CLIENTS: usize = 32;
/// Time between two checks of the center.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn measure(options: &Options) -> Vec<Measure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be made");
    let mut cluster = TestCluster::new(1, 3);
    // Only the dispatcher is measured: its own node runs no tasks.
    cluster.ask(&["drain", "n0"]);
    let address = cluster.nodes[0].address();
    runtime.block_on(submit(options.tasks, &address));
    cluster.nodes[0].kill();
    let start = Instant::now();
    cluster.nodes[0].start();
    runtime.block_on(until(&address, |pending, _| pending >= options.tasks));
    let reconciled = start.elapsed();
    let _runners = runtime.block_on(launch(&crew(&cluster, options.runners)));
    // The middle half of the queue: neither its start, while runners register, nor its end.
    let quarter = options.tasks / 4;
    runtime.block_on(until(&address, |pending, _| pending <= 3 * quarter));
    let first = Instant::now();
    runtime.block_on(until(&address, |pending, _| pending <= quarter));
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let rate = (2 * quarter) as f64 / first.elapsed().as_secs_f64();
    runtime.block_on(until(&address, |_, succeeded| succeeded == options.tasks));
    let memory = memory_mib(cluster.nodes[0].pid(), "VmHWM");
    runtime.shutdown_background();
    vec![
        Measure::of_times("start to the queue read", &[reconciled], Bound::AtMost(1e4)),
        Measure::new("assignments committed", "1/s", vec![rate], Bound::AtLeast(200.0)),
        Measure::new("peak memory of the dispatcher's process", "MiB", vec![memory], Bound::AtMost(512.0)),
    ]
}

/// Returns runners in this process.
pub(crate) fn crew(cluster: &TestCluster, count: usize) -> Crew {
    let folder = cluster.dirs.path("fleet");
    std::fs::create_dir(&folder).expect("the directory is new");
    Crew { zookeeper: cluster.zookeeper(), folder, first: 0, count, slots: 4 }
}

pub(crate) fn client(address: &str) -> CenterClient {
    CenterClient::new(vec![address.to_owned()], Channels::new(None)).expect("there is an address")
}

/// Submits tasks that take no time.
async fn submit(count: usize, address: &str) {
    let clients = (0..CLIENTS).map(|first| {
        let mut client = client(address);
        tokio::spawn(async move {
            for number in (first..count).step_by(CLIENTS) {
                let spec = Some(Spec { work: Some(Work::Noop(NoopWork { milliseconds: 0, node: None })) });
                let request = SubmitRequest { id: format!("queued{number}"), spec, ..SubmitRequest::default() };
                client.submit(request).await.unwrap_or_else(|fault| panic!("submit a task: {fault:?}"));
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("every task is taken");
    }
}

/// Waits until the numbers of pending and succeeded tasks satisfy `holds`.
pub(crate) async fn until(address: &str, holds: impl Fn(usize, usize) -> bool) {
    let mut client = client(address);
    let (deadline, mut last) = (Instant::now() + Duration::from_secs(900), None);
    loop {
        if let Ok(status) = client.status(StatusRequest {}).await {
            let count =
                |state: &str| usize::try_from(*status.tasks.get(state).unwrap_or(&0)).expect("counts are small");
            if holds(count("PENDING"), count("SUCCEEDED")) {
                return;
            }
            last = Some(status.tasks);
        }
        assert!(Instant::now() < deadline, "the queue does not move: {last:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
