//! Measures a large group: how long its members take to be accepted, and how fast they are decided.

use crate::fleet::light_runners::launch;
use crate::measure::{Bound, Measure};
use crate::options::Options;
use crate::queue::{client, crew, until};
use blockhaul_control::rpc::wire::{
    Dependency, GroupWork, Membership, NoopWork, Spec, SubmitRequest, TaskName, spec::Work,
};
use blockhaul_testkit::test_cluster::TestCluster;
use std::time::Instant;

/// Members of the group.
const MEMBERS: usize = 10_000;
/// Members at its end that form a chain.
const CHAIN: usize = 1_000;
/// Submissions under way at once.
const CLIENTS: usize = 64;

pub(crate) fn measure(options: &Options) -> Vec<Measure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be made");
    let cluster = TestCluster::new(1, 3);
    // Only the dispatcher is measured: its own node runs no tasks.
    cluster.ask(&["drain", "n0"]);
    let address = cluster.nodes[0].address();
    let start = Instant::now();
    runtime.block_on(submit(&address));
    let accepted = start.elapsed();
    let _runners = runtime.block_on(launch(&crew(&cluster, options.runners)));
    let wide = MEMBERS - CHAIN;
    runtime.block_on(until(&address, |_, succeeded| succeeded >= wide / 4));
    let first = Instant::now();
    runtime.block_on(until(&address, |_, succeeded| succeeded >= 3 * wide / 4));
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let rate = (wide / 2) as f64 / first.elapsed().as_secs_f64();
    runtime.block_on(until(&address, |_, succeeded| succeeded > MEMBERS));
    runtime.shutdown_background();
    vec![
        Measure::of_times("group of 10,000 members accepted", &[accepted], Bound::AtMost(1e4)),
        Measure::new("members ended", "1/s", vec![rate], Bound::AtLeast(400.0)),
    ]
}

fn noop(id: String) -> SubmitRequest {
    let spec = Some(Spec { work: Some(Work::Noop(NoopWork { milliseconds: 0, node: None })) });
    let group = Some(Membership { group: "g".to_owned(), clean_up: false });
    SubmitRequest { id, spec, group, ..SubmitRequest::default() }
}

async fn submit(address: &str) {
    let members = u32::try_from(MEMBERS).expect("counts are small");
    let work = GroupWork { digest: "0".repeat(64), members, parallel: None, continues: false, hold: false };
    let spec = Some(Spec { work: Some(Work::Group(work)) });
    let mut center = client(address);
    let group = SubmitRequest { id: "g".to_owned(), spec, ..SubmitRequest::default() };
    center.submit(group).await.expect("the group is accepted");
    let clients = (0..CLIENTS).map(|first| {
        let mut client = client(address);
        tokio::spawn(async move {
            for number in (first..MEMBERS - CHAIN).step_by(CLIENTS) {
                let member = noop(format!("g.{number}"));
                client.submit(member).await.unwrap_or_else(|fault| panic!("submit a member: {fault:?}"));
            }
        })
    });
    let mut jobs: Vec<_> = clients.collect();
    let mut chain = client(address);
    jobs.push(tokio::spawn(async move {
        for number in 0..CHAIN {
            let after =
                (number > 0).then(|| Dependency { task: format!("g.c{}", number - 1), condition: String::new() });
            let member = SubmitRequest { after: after.into_iter().collect(), ..noop(format!("g.c{number}")) };
            chain.submit(member).await.unwrap_or_else(|fault| panic!("submit a member: {fault:?}"));
        }
    }));
    for job in jobs {
        job.await.expect("every member is accepted");
    }
    center.seal(TaskName { id: "g".to_owned() }).await.expect("all members are stored");
}
