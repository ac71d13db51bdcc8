//! Tests schedules: what they make, when, and what survives leaders and clocks.

use super::support::*;
use crate::coord::sim::FaultRates;
use crate::coord::{Op, paths};
use crate::dispatcher::{Config, NewSchedule, Query, ScheduleCommand, ScheduleView};
use crate::model::{
    CatchUp, NodeId, Record, Registration, ScheduleName, ScheduleState, TaskCommand, TaskSpec, TaskState, Template,
    Trigger,
};
use blockhaul_engine::error::{Code, Detail, Error};
use std::time::Duration;
use tokio::time::sleep;

/// Wall clock at the start of a test, in milliseconds since 1970.
const START_MS: u64 = 1_700_000_000_000;

/// Ends of tasks are soon seen, as these runners do not tell the leader.
pub(super) fn config() -> Config {
    Config { reconcile_every: Duration::from_secs(1), ..Config::default() }
}

pub(super) fn name(text: &str) -> ScheduleName {
    ScheduleName::new(text).unwrap()
}

pub(super) fn schedule(text: &str, trigger: Trigger, spec: TaskSpec) -> NewSchedule {
    NewSchedule {
        name: name(text),
        request: format!("{trigger:?} {spec:?}"),
        trigger,
        zone: String::from("UTC"),
        template: Template::new(submission("template", spec)).unwrap(),
        members: Vec::new(),
        catch_up: CatchUp::Once,
        keep: 10,
        replace: false,
        if_version: None,
        cancel_live: false,
    }
}

pub(super) fn every(seconds: u64) -> Trigger {
    Trigger::Every { interval_ms: seconds * 1000, from_ms: None }
}

pub(super) async fn add(center: &TestCenter, new: NewSchedule) -> Result<ScheduleView, Error> {
    center.leader.schedule(&new.name.clone(), ScheduleCommand::Add(Box::new(new))).await
}

pub(super) async fn command(
    center: &TestCenter,
    schedule: &str,
    command: ScheduleCommand,
) -> Result<ScheduleView, Error> {
    center.leader.schedule(&name(schedule), command).await
}

pub(super) async fn view(center: &TestCenter, schedule: &str) -> ScheduleView {
    center.leader.get_schedule(&name(schedule)).await.unwrap()
}

/// Returns the ids of all tasks.
pub(super) async fn tasks(center: &TestCenter) -> Vec<String> {
    let page = center.leader.list(Query::default()).await.unwrap();
    page.tasks.iter().map(|task| task.id.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_instant_makes_one_task_whoever_leads_and_whatever_answers_are_lost() {
    let faults = FaultRates { lost_reply: 0.3, latency_ms: (0, 20), ..FaultRates::default() };
    let mut center = TestCenter::with_faults(90, config(), faults).await;
    center.runner("n1", "a", 4, Behaviour::Completing).await;
    add(&center, NewSchedule { keep: 100, ..schedule("s", every(10), noop(1)) }).await.unwrap();
    for leader in ["l2", "l3", "l4"] {
        sleep(Duration::from_secs(25)).await;
        center.change_leader(leader).await;
    }
    sleep(Duration::from_secs(30)).await;
    let made = tasks(&center).await;
    let stored = view(&center, "s").await.record;
    assert!(made.len() >= 8 && made.len() as u64 == stored.fired, "{made:?} {stored:?}");
    assert!(made.iter().all(|id| id.starts_with("s.20231114T22") && id.ends_with("0Z")), "{made:?}");
    let of = center.stored(&made[0]);
    assert_eq!((of.schedule, of.state), (Some(name("s")), TaskState::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn a_live_task_skips_instants_and_its_end_lets_the_next_one_fire() {
    let center = TestCenter::new(91, config()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    add(&center, schedule("s", every(10), noop(1))).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    let first = tasks(&center).await[0].clone();
    center.begin(&runner, &first).await;
    sleep(Duration::from_secs(20)).await;
    let seen = view(&center, "s").await;
    assert_eq!((seen.record.fired, seen.record.skipped), (1, 2));
    assert!(seen.record.reason.contains(&format!("was skipped, as {first} was RUNNING")), "{}", seen.record.reason);
    assert_eq!(seen.live_task.map(String::from), Some(first.clone()));
    let busy = command(&center, "s", ScheduleCommand::Run).await.unwrap_err();
    assert!(busy.code == Code::Busy && busy.message.contains(&first), "{busy}");
    assert!(center.step(&runner, &first, done()).await);
    sleep(Duration::from_secs(10)).await;
    let seen = view(&center, "s").await.record;
    assert_eq!((seen.fired, seen.skipped, seen.reason.as_str()), (2, 2, ""));
}

#[tokio::test(start_paused = true)]
async fn as_many_ended_tasks_are_kept_as_the_schedule_says() {
    let center = TestCenter::new(92, config()).await;
    center.runner("n1", "a", 4, Behaviour::Completing).await;
    add(&center, NewSchedule { keep: 2, ..schedule("s", every(10), noop(1)) }).await.unwrap();
    sleep(Duration::from_secs(65)).await;
    assert_eq!(tasks(&center).await, ["s.20231114T221410Z", "s.20231114T221420Z"]);
    command(&center, "s", ScheduleCommand::Remove { cancel_live: false }).await.unwrap();
    assert_eq!(center.leader.get_schedule(&name("s")).await.unwrap_err().code, Code::NotFound);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(tasks(&center).await.len(), 2, "its tasks stay, and it makes no more");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_caught_up_once_or_never() {
    let mut center = TestCenter::new(93, config()).await;
    center.runner("n1", "a", 4, Behaviour::Completing).await;
    add(&center, schedule("once", every(600), noop(1))).await.unwrap();
    add(&center, NewSchedule { catch_up: CatchUp::None, ..schedule("none", every(600), noop(1)) }).await.unwrap();
    center.ensemble.stop();
    sleep(Duration::from_secs(2000)).await;
    center.ensemble.start();
    center.change_leader("l2").await;
    center.runner("n1", "b", 4, Behaviour::Completing).await;
    sleep(Duration::from_secs(5)).await;
    // The last of three instants, 200 s late.
    assert_eq!(tasks(&center).await, ["once.20231114T224320Z"]);
    assert!(view(&center, "none").await.record.reason.contains("was missed"));
    sleep(Duration::from_secs(600)).await;
    assert_eq!(tasks(&center).await, ["none.20231114T225320Z", "once.20231114T224320Z", "once.20231114T225320Z"]);
}

#[tokio::test(start_paused = true)]
async fn the_same_request_is_the_same_schedule_and_another_one_has_to_replace_it() {
    let center = TestCenter::new(94, config()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    assert!(!add(&center, schedule("s", every(10), noop(1))).await.unwrap().existed);
    let again = add(&center, schedule("s", every(10), noop(1))).await.unwrap();
    assert_eq!((again.existed, again.record.version), (true, 1));
    let other = || schedule("s", every(20), noop(1));
    assert_eq!(add(&center, other()).await.unwrap_err().code, Code::Exists);
    let wrong = NewSchedule { replace: true, if_version: Some(7), ..other() };
    assert!(add(&center, wrong).await.unwrap_err().message.contains("has version 1, not 7"));
    sleep(Duration::from_secs(11)).await;
    let first = tasks(&center).await[0].clone();
    center.begin(&runner, &first).await;
    let version = view(&center, "s").await.record.version;
    assert_eq!(version, 1, "what it does by itself is no change of its client's");
    let replaced = NewSchedule { replace: true, if_version: Some(version), cancel_live: true, ..other() };
    let replaced = add(&center, replaced).await.unwrap();
    assert_eq!((replaced.record.version, replaced.record.fired), (2, 0));
    center.until(&first, TaskState::Cancelling).await;
    let gone = NewSchedule { if_version: Some(1), ..schedule("t", every(10), noop(1)) };
    assert_eq!(add(&center, gone).await.unwrap_err().code, Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn what_would_never_or_too_often_fire_is_refused() {
    let center = TestCenter::new(95, config()).await;
    let refused = async |trigger| {
        let error = add(&center, schedule("s", trigger, noop(1))).await.unwrap_err();
        (error.code, error.detail)
    };
    let bad = |detail| (Code::BadRequest, Some(detail));
    assert_eq!(refused(Trigger::At(START_MS - 1000)).await, bad(Detail::Expired));
    assert_eq!(refused(Trigger::Cron(String::from("0 0 30 2 *"))).await, bad(Detail::InvalidCron));
    assert_eq!(refused(every(0)).await, bad(Detail::InvalidInterval));
    let zone = NewSchedule { zone: String::from("Mars/Base"), ..schedule("s", every(10), noop(1)) };
    assert_eq!(add(&center, zone).await.unwrap_err().detail, Some(Detail::InvalidTimeZone));
    for number in 0..5 {
        add(&center, schedule(&format!("fast{number}"), every(1), noop(1))).await.unwrap();
    }
    assert_eq!(refused(every(60)).await, (Code::Overloaded, None));
    command(&center, "fast0", ScheduleCommand::Remove { cancel_live: false }).await.unwrap();
    add(&center, schedule("s", every(60), noop(1))).await.unwrap();
    let copy = TaskSpec::Copy(copy("nbd://h/%Y", "nbd://h/%x"));
    assert_eq!(add(&center, schedule("c", every(60), copy)).await.unwrap_err().code, Code::BadRequest);
}

#[tokio::test(start_paused = true)]
async fn names_are_those_of_the_instant() {
    let center = TestCenter::new(96, config()).await;
    let copy = TaskSpec::Copy(copy("nbd://h/vm", "nbd://h/vm-%Y%m%d-%H%M"));
    let berlin = NewSchedule { zone: String::from("Europe/Berlin"), ..schedule("s", every(60), copy) };
    add(&center, berlin).await.unwrap();
    sleep(Duration::from_secs(61)).await;
    let TaskSpec::Copy(made) = center.stored("s.20231114T221420Z").spec else { panic!("a copy was asked for") };
    assert_eq!(made.destination, "nbd://h/vm-20231114-2314");
}

#[tokio::test(start_paused = true)]
async fn pauses_runs_and_ends() {
    let center = TestCenter::new(97, config()).await;
    center.runner("n1", "a", 4, Behaviour::Completing).await;
    add(&center, schedule("s", Trigger::At(START_MS + 30_000), noop(1))).await.unwrap();
    assert_eq!(view(&center, "s").await.next_ms, [START_MS + 30_000]);
    command(&center, "s", ScheduleCommand::Pause).await.unwrap();
    let run = command(&center, "s", ScheduleCommand::Run).await.unwrap();
    assert_eq!((run.record.state, run.record.fired), (ScheduleState::Paused, 1));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(tasks(&center).await.len(), 1);
    command(&center, "s", ScheduleCommand::Resume).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(view(&center, "s").await.record.state, ScheduleState::Active);
    sleep(Duration::from_secs(20)).await;
    let ended = view(&center, "s").await;
    assert_eq!((ended.record.state, ended.record.fired, ended.next_ms.len()), (ScheduleState::Ended, 2, 0));
    assert_eq!(command(&center, "s", ScheduleCommand::Resume).await.unwrap_err().code, Code::Busy);
    // Fired already: the instant counts, and its task stays the only one.
    command(&center, "s", ScheduleCommand::RefireFrom(START_MS)).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!((tasks(&center).await.len(), view(&center, "s").await.record.state), (2, ScheduleState::Ended));
}

#[tokio::test(start_paused = true)]
async fn a_boot_fires_once_and_a_restart_of_taskd_does_not() {
    let mut center = TestCenter::new(98, config()).await;
    let first = center.runner("n1", "a", 4, Behaviour::Completing).await;
    let on_boot = |text: &str| schedule(text, Trigger::OnBoot(NodeId::new("n1").unwrap()), noop(1));
    add(&center, on_boot("s")).await.unwrap();
    center.lose(&first).await;
    let second = center.runner("n1", "b", 4, Behaviour::Completing).await;
    sleep(Duration::from_secs(5)).await;
    assert!(tasks(&center).await.is_empty(), "the same boot");
    center.lose(&second).await;
    sleep(Duration::from_secs(1)).await;
    assert!(view(&center, "s").await.record.reason.contains("n1 is not registered"));
    // Boots again while nobody leads.
    let session = center.ensemble.client("n1").open().await.unwrap();
    let there = Registration { boot_id: String::from("second boot"), ..center.registration("n1", "c", 4) };
    let op = Op::Create { path: paths::runner("n1"), data: there.encode(), mode: crate::coord::CreateMode::Ephemeral };
    session.multi(vec![op]).await.unwrap();
    for leader in ["l2", "l3"] {
        center.change_leader(leader).await;
        sleep(Duration::from_secs(5)).await;
        let made = tasks(&center).await;
        assert!(made.len() == 1 && made[0].starts_with("s.boot-"), "{made:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn instants_ahead_of_the_clock_are_told_and_repaired() {
    let mut center = TestCenter::new(99, config()).await;
    center.runner("n1", "a", 4, Behaviour::Completing).await;
    add(&center, schedule("s", every(10), noop(1))).await.unwrap();
    center.clock.jump(86_400_000);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(view(&center, "s").await.record.fired, 1);
    center.clock.jump(0);
    center.change_leader("l2").await;
    sleep(Duration::from_secs(30)).await;
    let seen = view(&center, "s").await.record;
    assert!(seen.fired == 1 && seen.reason.contains("is in the future"), "{seen:?}");
    command(&center, "s", ScheduleCommand::RefireFrom(START_MS)).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    assert!(view(&center, "s").await.record.fired >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cancels_a_task_of_a_schedule_leaves_the_schedule_alone() {
    let center = TestCenter::new(100, config()).await;
    add(&center, schedule("s", every(10), noop(1))).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    let first = tasks(&center).await[0].clone();
    center.leader.command(&id(&first), TaskCommand::Cancel).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(view(&center, "s").await.record.fired, 2);
}
