//! Measures a center at rest: its writes to the ensemble, and the processor time of the leader with and without ten times
//! as many schedules as the fleet has, none of which fires.

use super::cell::{Cell, NODES, noop, on_runners, unix_ms};
use crate::measure::{Bound, Measure};
use crate::process::cpu_time;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::wire::{
    AddScheduleRequest, Interval, RemoveScheduleRequest, SubmitRequest, Trigger, trigger::When,
};
use std::time::{Duration, Instant, SystemTime};

/// Duration of a measurement: longer than every period of the center.
const LASTS: Duration = Duration::from_secs(60);
/// Time in which what was begun before ends.
const SETTLES: Duration = Duration::from_secs(10);
/// Schedules whose cost is measured, for each that stays.
const FACTOR: usize = 10;
/// A day in milliseconds.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Returns how long to settle and to measure.
fn times(cell: &Cell) -> (Duration, Duration) {
    if cell.options.is_soak { (SETTLES, LASTS) } else { (Duration::from_secs(1), Duration::from_secs(2)) }
}

pub(crate) fn measure(cell: &Cell) -> Vec<Measure> {
    let (settles, lasts) = times(cell);
    std::thread::sleep(settles);
    let writes = writes_by_runner(cell, lasts);
    vec![Measure::new("writes to ZooKeeper at rest, by runner", "1/s", vec![writes], Bound::AtMost(0.7))]
}

/// Returns the writes a second that all servers have committed meanwhile, by runner.
#[allow(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) fn writes_by_runner(cell: &Cell, lasts: Duration) -> f64 {
    let ensemble = &cell.cluster.ensemble;
    let (start, before) = (Instant::now(), ensemble.transactions());
    std::thread::sleep(lasts);
    let (seconds, after) = (start.elapsed().as_secs_f64(), ensemble.transactions());
    after.saturating_sub(before) as f64 / seconds / (NODES + cell.options.runners) as f64
}

pub(crate) fn measure_schedules(cell: &Cell) -> Vec<Measure> {
    let (settles, lasts) = times(cell);
    std::thread::sleep(settles);
    let without = leader_share(cell, lasts);
    let count = FACTOR * cell.options.schedules;
    let now_ms = unix_ms(SystemTime::now());
    let all: Vec<usize> = (0..count).collect();
    cell.runtime.block_on(cell.center.each(all, move |client, number| add(client, number, now_ms)));
    std::thread::sleep(settles);
    let with = leader_share(cell, lasts);
    let surplus: Vec<usize> = (cell.options.schedules..count).collect();
    cell.runtime.block_on(cell.center.each(surplus, remove));
    let cost = (with - without).max(0.0) * 100.0;
    vec![
        Measure::new("a core's share for 10 x as many idle schedules", "%", vec![cost], Bound::AtMost(5.0)),
        Measure::new("a core's share of the leader without them", "%", vec![without * 100.0], Bound::None),
    ]
}

/// Returns the share of a core that the leader's process uses.
fn leader_share(cell: &Cell, lasts: Duration) -> f64 {
    let (_, leader) = cell.leader();
    let (start, before) = (Instant::now(), cpu_time(leader));
    std::thread::sleep(lasts);
    (cpu_time(leader) - before).as_secs_f64() / start.elapsed().as_secs_f64()
}

/// Adds a schedule that does not fire for months, of each kind in turn.
async fn add(mut client: CenterClient, number: usize, now_ms: u64) {
    let when = match number % 3 {
        0 => When::Every(Interval { interval_ms: 900 * DAY_MS, from_ms: Some(now_ms / 1000 * 1000 - DAY_MS) }),
        1 => When::AtMs(now_ms / 1000 * 1000 + 300 * DAY_MS),
        _ => When::Cron(String::from("0 3 1 6 *")),
    };
    let task = SubmitRequest { id: String::new(), ..on_runners(String::new(), noop(Duration::ZERO)) };
    let request = AddScheduleRequest {
        name: name(number),
        trigger: Some(Trigger { when: Some(when) }),
        task: Some(task),
        no_catch_up: true,
        ..AddScheduleRequest::default()
    };
    client.add_schedule(request).await.unwrap_or_else(|fault| panic!("add a schedule: {fault:?}"));
}

async fn remove(mut client: CenterClient, number: usize) {
    let request = RemoveScheduleRequest { name: name(number), cancel_live: false };
    client.remove_schedule(request).await.unwrap_or_else(|fault| panic!("remove a schedule: {fault:?}"));
}

fn name(number: usize) -> String {
    format!("idle{number}")
}
