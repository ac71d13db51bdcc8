//! Tests schedules that submit batches: their groups are completed by whichever leader there is.

use super::golden::{ROOM, at, lines, task};
use super::scheduling::{add, command, config, every, name, schedule, tasks, view};
use super::support::*;
use crate::batch::OnFailure;
use crate::coord::sim::FaultRates;
use crate::coord::{Op, paths};
use crate::dispatcher::cluster_state::ClusterState;
use crate::dispatcher::schedules::MembersRead;
use crate::dispatcher::{NewSchedule, ScheduleCommand};
use crate::model::{
    CatchUp, GroupName, GroupTask, MemberTemplate, Membership, OpId, ScheduleRecord, ScheduleState, Submission,
    TaskCommand, TaskRecord, TaskSpec, TaskState, UnknownFields,
};
use blockhaul_engine::error::{Code, Error};
use blockhaul_engine::flow::graph::Condition::{self, End, Success};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// First group of a schedule that fires every ten seconds.
const FIRST: &str = "s.20231114T221330Z";

fn group(members: usize) -> TaskSpec {
    TaskSpec::Group(GroupTask {
        digest: "ab".repeat(32),
        members: u32::try_from(members).unwrap(),
        parallel: None,
        on_failure: OnFailure::Stop,
        hold: false,
        unknown: UnknownFields::default(),
    })
}

fn member(name: &str, on: &[(&str, Condition)], spec: TaskSpec) -> MemberTemplate {
    let after = on.iter().map(|(name, condition)| (id(name), *condition)).collect();
    let clean_up = on.iter().any(|(_, condition)| *condition == End);
    MemberTemplate::new(Submission { after, ..submission(name, spec) }, clean_up).unwrap()
}

/// Members of which each but the first one waits for the first one.
fn fan(count: usize) -> Vec<MemberTemplate> {
    let first = [member("m0", &[], noop(1))];
    first
        .into_iter()
        .chain((1..count).map(|number| member(&format!("m{number}"), &[("m0", Success)], noop(1))))
        .collect()
}

fn batch(text: &str, seconds: u64, members: Vec<MemberTemplate>) -> NewSchedule {
    NewSchedule { members: members.clone(), ..schedule(text, every(seconds), group(members.len())) }
}

/// Returns the number of stored parts of a schedule's batch.
fn parts(center: &TestCenter, schedule: &str) -> usize {
    center.ensemble.committed_below(&format!("{}/", paths::schedule(&name(schedule)))).len()
}

async fn members(center: &TestCenter, group: &str) -> Vec<String> {
    let prefix = format!("{group}.");
    tasks(center).await.into_iter().filter(|id| id.starts_with(&prefix)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_group_is_stored_and_sealed_whoever_leads_and_whatever_answers_are_lost() {
    let faults = FaultRates { lost_reply: 0.2, latency_ms: (20, 60), ..FaultRates::default() };
    let mut center = TestCenter::with_faults(110, config(), faults).await;
    center.runner("n1", "a", 8, Behaviour::Completing).await;
    let added = add(&center, batch("s", 3600, fan(60))).await.unwrap();
    assert!(added.record.parts > 0 && parts(&center, "s") as u64 == added.record.parts);
    let run = command(&center, "s", ScheduleCommand::Run).await.unwrap();
    let made = String::from(run.live_task.unwrap());
    for leader in ["l2", "l3", "l4"] {
        center.change_leader(leader).await;
        sleep(Duration::from_millis(300)).await;
    }
    let ended = center.until(&made, TaskState::Succeeded).await;
    assert!(ended.members.unwrap().sealed_ms.is_some());
    assert_eq!((ended.schedule, members(&center, &made).await.len()), (Some(name("s")), 60));
    let last = center.stored(&format!("{made}.m59"));
    assert_eq!((last.state, last.schedule), (TaskState::Succeeded, None));
    assert_eq!(view(&center, "s").await.record.fired, 1);
}

#[tokio::test(start_paused = true)]
async fn names_are_those_of_the_instant_and_a_live_group_skips() {
    let center = TestCenter::new(111, config()).await;
    let copy = TaskSpec::Copy(copy("nbd://h/vm", "nbd://h/vm-%Y%m%d-%H%M%S"));
    let members = vec![member("a", &[], noop(1)), member("b", &[("a", End)], copy)];
    let berlin = NewSchedule { zone: String::from("Europe/Berlin"), ..batch("s", 10, members) };
    add(&center, berlin).await.unwrap();
    // Nobody runs the members.
    sleep(Duration::from_secs(35)).await;
    let TaskSpec::Copy(made) = center.stored(&format!("{FIRST}.b")).spec else { panic!("a copy was asked for") };
    assert_eq!(made.destination, "nbd://h/vm-20231114-231330");
    let seen = view(&center, "s").await;
    assert_eq!((seen.record.fired, seen.record.skipped), (1, 2));
    assert!(seen.record.reason.contains(&format!("{FIRST} was RUNNING")), "{}", seen.record.reason);
    let joined = Submission {
        group: Some(GroupName { id: id(FIRST), clean_up: false }),
        ..submission(&format!("{FIRST}.c"), noop(1))
    };
    assert!(center.leader.submit(joined).await.is_err());
    center.leader.command(&id(FIRST), TaskCommand::CancelAll).await.unwrap();
    center.until(FIRST, TaskState::Cancelled).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(view(&center, "s").await.record.fired, 2);
}

#[tokio::test(start_paused = true)]
async fn ended_groups_go_with_their_members() {
    let center = TestCenter::new(112, config()).await;
    center.runner("n1", "a", 8, Behaviour::Completing).await;
    add(&center, NewSchedule { keep: 1, ..batch("s", 10, fan(3)) }).await.unwrap();
    sleep(Duration::from_secs(45)).await;
    let left = tasks(&center).await;
    let last = "s.20231114T221400Z";
    let wanted: Vec<String> = ["", ".m0", ".m1", ".m2"].iter().map(|member| format!("{last}{member}")).collect();
    assert_eq!(left, wanted);
}

#[tokio::test(start_paused = true)]
async fn a_template_stays_until_its_last_group_is_stored() {
    let faults = FaultRates { latency_ms: (200, 300), ..FaultRates::default() };
    let center = TestCenter::with_faults(113, config(), faults).await;
    add(&center, batch("s", 3600, fan(40))).await.unwrap();
    let run = command(&center, "s", ScheduleCommand::Run).await.unwrap();
    let made = String::from(run.live_task.unwrap());
    assert!(members(&center, &made).await.len() < 40);
    command(&center, "s", ScheduleCommand::Remove { cancel_live: false }).await.unwrap();
    assert!(center.stored(&made).members.unwrap().sealed_ms.is_some());
    assert_eq!((members(&center, &made).await.len(), parts(&center, "s")), (40, 0));
    // Without the group the template is not needed.
    add(&center, batch("t", 3600, fan(40))).await.unwrap();
    let run = command(&center, "t", ScheduleCommand::Run).await.unwrap();
    let made = String::from(run.live_task.unwrap());
    command(&center, "t", ScheduleCommand::Remove { cancel_live: true }).await.unwrap();
    let ended = center.until(&made, TaskState::Cancelled).await;
    assert!(ended.members.unwrap().sealed_ms.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replacement_replaces_the_members() {
    let center = TestCenter::new(114, config()).await;
    center.runner("n1", "a", 8, Behaviour::Completing).await;
    let long = |count| {
        let long = |member: MemberTemplate| MemberTemplate { windows: vec!["00:00-24:00".repeat(200)], ..member };
        fan(count).into_iter().map(long).collect::<Vec<_>>()
    };
    add(&center, batch("s", 10, long(9))).await.unwrap();
    let before = parts(&center, "s");
    let other = NewSchedule { request: String::from("other"), replace: true, ..batch("s", 10, fan(2)) };
    add(&center, other).await.unwrap();
    assert!(before > 1 && parts(&center, "s") == 1, "{before}");
    sleep(Duration::from_secs(12)).await;
    assert_eq!(members(&center, FIRST).await.len(), 2);
    let single = NewSchedule { request: String::from("single"), replace: true, ..schedule("s", every(10), noop(1)) };
    add(&center, single).await.unwrap();
    assert_eq!(parts(&center, "s"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_be_read_is_told_and_read_again() {
    let center = TestCenter::new(115, config()).await;
    add(&center, batch("s", 10, fan(2))).await.unwrap();
    let session = center.ensemble.client("operator").open().await.unwrap();
    let path = paths::schedule_part(&name("s"), 0);
    let kept = center.ensemble.committed(&path).unwrap().data;
    session.multi(vec![Op::Set { path: path.clone(), data: b"[".to_vec(), version: 0 }]).await.unwrap();
    sleep(Duration::from_secs(12)).await;
    let told = center.leader.get(&id(FIRST)).await.unwrap();
    assert!(told.state == TaskState::Pending && told.reason.contains("cannot be decoded"), "{}", told.reason);
    assert!(view(&center, "s").await.record.reason.contains("its batch cannot be read"));
    session.multi(vec![Op::Set { path, data: kept, version: 1 }]).await.unwrap();
    center.until(FIRST, TaskState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_makes_no_valid_tasks_is_refused() {
    let center = TestCenter::new(116, config()).await;
    let refused = async |new: NewSchedule| -> Error { add(&center, new).await.unwrap_err() };
    let copy = |destination: &str| TaskSpec::Copy(copy("nbd://h/vm", destination));
    let named = |name: &str| vec![member(name, &[], noop(1))];
    for (new, word) in [
        (batch("s", 10, fan(201)), "at most 200"),
        (batch("s", 10, named(&"x".repeat(60))), "shorter"),
        (batch("s", 10, vec![member("a", &[], copy("nbd://h/%x"))]), "no pattern"),
        (NewSchedule { members: fan(3), ..batch("s", 10, fan(2)) }, "has 3 members, not 2"),
        (NewSchedule { members: fan(1), ..schedule("s", every(10), noop(1)) }, "has 1 members, not 0"),
    ] {
        let error = refused(new).await;
        assert!(error.code == Code::BadRequest && error.message.contains(word), "{word}: {error}");
    }
    add(&center, batch("s", 10, fan(200))).await.unwrap();
}

/// Returns a schedule whose last task is `g`.
fn fired(members: usize) -> ScheduleRecord {
    let NewSchedule { name, request, trigger, zone, template, .. } = batch("s", 10, fan(members));
    ScheduleRecord {
        name,
        request,
        version: 1,
        trigger,
        zone,
        template,
        parts: 1,
        catch_up: CatchUp::Once,
        keep: 10,
        state: ScheduleState::Paused,
        created_ms: 0,
        considered_ms: 10_000,
        last_fired_ms: Some(10_000),
        last_task: Some(id("g")),
        seen_boot: None,
        fired: 1,
        skipped: 0,
        reason: String::new(),
        op: OpId::fresh(),
        unknown: UnknownFields::default(),
    }
}

#[test]
fn what_is_missing_is_decided_from_the_records_alone() {
    let made = TaskRecord { schedule: Some(name("s")), ..task("g", group(3)) };
    let membership = Membership {
        group: id("g"),
        created_ms: made.created_ms,
        clean_up: false,
        desired_state: crate::model::DesiredState::Run,
    };
    let stored = |name: &str| TaskRecord { group: Some(membership.clone()), ..task(name, noop(1)) };
    let decided = |records: &[TaskRecord], read: bool| {
        let mut cluster = ClusterState::default();
        for record in records {
            assert!(cluster.observe(record.clone(), 0, None, at(0)));
        }
        cluster.schedules.observe(fired(3), 0, at(0)).unwrap();
        if read {
            cluster.schedules.get_mut(&name("s")).unwrap().members = MembersRead::Read(Arc::new(fan(3)));
        }
        let all = lines(&mut cluster, at(1), ROOM);
        all.into_iter().filter(|line| line.starts_with("g: ") || line.contains("read members")).collect::<Vec<_>>()
    };
    let group = || made.clone();
    assert_eq!(decided(&[group()], false), ["schedule s: read members"]);
    assert_eq!(decided(&[group()], true), ["g: store g.m0"]);
    assert_eq!(decided(&[group(), stored("g.m0")], true), ["g: store g.m1,g.m2"]);
    assert_eq!(decided(&[group(), stored("g.m0"), stored("g.m2")], true), ["g: store g.m1"]);
    let all = [group(), stored("g.m0"), stored("g.m1"), stored("g.m2")];
    assert_eq!(decided(&all, false), ["g: sealed"], "the batch need not be read for that");
    let taken = decided(&[group(), task("g.m0", noop(1))], true);
    assert!(taken[0].starts_with("g: memberfailed(") && taken[0].ends_with(", sealmissed"), "{taken:?}");
    let other = TaskRecord { schedule: Some(name("t")), ..group() };
    assert_eq!(decided(&[other], true), ["g: wake at 600"], "no schedule completes it");
}
