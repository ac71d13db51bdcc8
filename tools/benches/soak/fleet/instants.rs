//! Measures how long after the instant of a schedule the first block of its copy reaches the destination, while all other
//! tasks are live.
//!
//! The copies are real: the nodes that can lead run them, between exports on this host. Five fire each second, the most
//! that a center takes.

use super::cell::{ATTEMPTS, Cell, NODE_LABEL, unix_ms};
use crate::measure::{Bound, Measure};
use crate::traffic::Traffic;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::wire::{
    AddScheduleRequest, CopyWork, Interval, Placement, RemoveScheduleRequest, ScheduleRequest, Spec, SubmitRequest,
    Task, Trigger, spec::Work, trigger::When,
};
use blockhaul_control::timestamp::Timestamp;
use blockhaul_testkit::scratch::MIB;
use blockhaul_testkit::test_cluster::ExportPair;
use std::time::{Duration, Instant, SystemTime};

/// Schedules that fire again and again; as many of them at each second as are left when one fires once.
const PERIODIC: usize = 24;
/// Seconds between two instants of one of these.
const PERIOD_S: u64 = 6;
/// Firings a second: [`PERIODIC`] / [`PERIOD_S`] and one more.
const FIRINGS_PER_S: u64 = 5;
/// Shortest run in seconds. Otherwise it lasts a second for each trial.
const SECONDS_MIN: usize = 3;
/// Destinations. Copies to one follow each other after two seconds and more.
const PAIRS: usize = 12;
/// Size of a volume in bytes.
const LENGTH: usize = 4 * MIB;
/// Time in which the schedules are added.
const AHEAD_S: u64 = 5;
/// Beginning of the names of the schedules.
const NAME: &str = "fire";

/// A copy that a schedule has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fired {
    /// Its instant, in milliseconds since 1970.
    at_ms: u64,
    /// When it ended.
    ended_ms: u64,
}

pub(crate) fn measure(cell: &mut Cell) -> Vec<Measure> {
    cell.fill();
    let pairs: Vec<ExportPair> =
        (0..PAIRS).map(|index| ExportPair::new(&cell.cluster, &format!("pair{index}"), LENGTH)).collect();
    let traffic: Vec<Traffic> = pairs.iter().map(Traffic::of).collect();
    let seconds = u64::try_from(cell.options.trials.max(SECONDS_MIN)).expect("it is small");
    let start_s = unix_ms(SystemTime::now()) / 1000 + AHEAD_S;
    let schedules = schedules(&pairs, start_s, seconds);
    let names: Vec<String> = schedules.iter().map(|schedule| schedule.name.clone()).collect();
    cell.runtime.block_on(cell.center.each(schedules, add));
    let end = Duration::from_secs(start_s + seconds);
    std::thread::sleep(end.saturating_sub(Duration::from_millis(unix_ms(SystemTime::now()))));
    let skipped: u64 = cell.runtime.block_on(cell.center.each(names, remove)).into_iter().sum();
    let tasks = cell.runtime.block_on(fired(cell));
    let mut times = Vec::new();
    for (pair, traffic) in pairs.iter().zip(&traffic) {
        let mut copies: Vec<Fired> = tasks.iter().filter(|task| is_to(task, pair)).map(Fired::of).collect();
        copies.sort_unstable_by_key(|copy| copy.at_ms);
        times.extend(first_blocks(&copies, &traffic.first_writes()));
    }
    // The first instant of each schedule may be up to a period later.
    let expected = seconds.saturating_sub(PERIOD_S) * FIRINGS_PER_S;
    assert!(times.len() as u64 >= expected, "{} copies have fired, at least {expected} were due", times.len());
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let skipped = skipped as f64;
    vec![
        Measure::of_times("instant of a schedule to the first block written", &times, Bound::P99AtMost(500.0)),
        Measure::new("instants without a copy, as the one before ran", "", vec![skipped], Bound::AtMost(0.0)),
    ]
}

/// Returns the schedules: some that fire again and again from a second on, and one for each second that fires once.
fn schedules(pairs: &[ExportPair], start_s: u64, seconds: u64) -> Vec<AddScheduleRequest> {
    // Those that fire once have two destinations of their own.
    let shared = pairs.len() - 2;
    let periodic = (0..PERIODIC).map(|number| {
        let phase = number as u64 * PERIOD_S / PERIODIC as u64;
        let from_ms = Some((start_s + phase) * 1000);
        let when = When::Every(Interval { interval_ms: PERIOD_S * 1000, from_ms });
        schedule(format!("{NAME}-every{number}"), when, &pairs[number % shared])
    });
    let once = (0..seconds).zip([shared, shared + 1].into_iter().cycle()).map(|(second, pair)| {
        schedule(format!("{NAME}-at{second}"), When::AtMs((start_s + second) * 1000), &pairs[pair])
    });
    periodic.chain(once).collect()
}

fn schedule(name: String, when: When, pair: &ExportPair) -> AddScheduleRequest {
    let (source, destination) = (pair.source.uri(), pair.destination.uri());
    let copy = CopyWork { source, destination, overwrite: true, ..CopyWork::default() };
    let require = [(NODE_LABEL.0.to_owned(), NODE_LABEL.1.to_owned())].into();
    let task = SubmitRequest {
        spec: Some(Spec { work: Some(Work::Copy(copy)) }),
        max_attempts: ATTEMPTS,
        placement: Some(Placement { require, ..Placement::default() }),
        ..SubmitRequest::default()
    };
    let (trigger, task) = (Some(Trigger { when: Some(when) }), Some(task));
    AddScheduleRequest { name, trigger, task, keep: Some(1000), ..AddScheduleRequest::default() }
}

async fn add(mut client: CenterClient, request: AddScheduleRequest) {
    client.add_schedule(request).await.unwrap_or_else(|fault| panic!("add a schedule: {fault:?}"));
}

/// Removes a schedule; returns at how many instants it has made no task.
async fn remove(mut client: CenterClient, name: String) -> u64 {
    let last = client.get_schedule(ScheduleRequest { name: name.clone() }).await;
    let last = last.unwrap_or_else(|fault| panic!("get a schedule: {fault:?}"));
    let request = RemoveScheduleRequest { name, cancel_live: false };
    client.remove_schedule(request).await.unwrap_or_else(|fault| panic!("remove a schedule: {fault:?}"));
    last.skipped
}

/// Waits until all copies that the schedules have made have succeeded, and returns them.
async fn fired(cell: &Cell) -> Vec<Task> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let tasks = cell.center.list(NAME).await;
        if tasks.iter().all(|task| task.state == "SUCCEEDED") {
            return tasks;
        }
        let other = tasks.iter().find(|task| task.state != "SUCCEEDED");
        assert!(Instant::now() < deadline, "copies of schedules do not succeed: {other:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_to(task: &Task, pair: &ExportPair) -> bool {
    let work = task.spec.as_ref().and_then(|spec| spec.work.as_ref());
    matches!(work, Some(Work::Copy(copy)) if copy.destination == pair.destination.uri())
}

impl Fired {
    /// Reads the instant from the name of the task: `NAME.20261129T020000Z`.
    fn of(task: &Task) -> Self {
        let instant = task.id.rsplit('.').next().filter(|text| text.len() == 16 && text.is_ascii());
        let text = instant.unwrap_or_else(|| panic!("{} names its instant", task.id));
        let (date, time) = (&text[..8], &text[9..15]);
        let text =
            format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..], &time[..2], &time[2..4], &time[4..]);
        let Timestamp(at_ms) = Timestamp::parse(&text).unwrap_or_else(|why| panic!("{}: {why}", task.id));
        Self { at_ms, ended_ms: task.updated_ms }
    }
}

/// Returns the time from each instant to the first write of its copy. Copies to one destination exclude each other, so the
/// first connection that writes after the instant and after the end of the copy before is the copy's.
fn first_blocks(copies: &[Fired], first_writes: &[Instant]) -> Vec<Duration> {
    let (now, now_ms) = (Instant::now(), unix_ms(SystemTime::now()));
    let ages = first_writes.iter().map(|at| u64::try_from((now - *at).as_millis()).expect("it is young"));
    let writes_ms: Vec<u64> = ages.map(|age| now_ms - age).collect();
    let before = std::iter::once(0).chain(copies.iter().map(|copy| copy.ended_ms));
    let first_block = |(copy, before_ms): (&Fired, u64)| {
        let since = copy.at_ms.max(before_ms);
        let write = writes_ms.iter().copied().filter(|at| *at >= since).min();
        let write = write.unwrap_or_else(|| panic!("a copy has written nothing: {copy:?}"));
        Duration::from_millis(write - copy.at_ms)
    };
    copies.iter().zip(before).map(first_block).collect()
}
