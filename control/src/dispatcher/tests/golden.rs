//! Compares decisions with golden text: this cluster state and time give exactly these lines.

use super::support::{copy, noop, submission};
use crate::coord::Zxid;
use crate::dispatcher::cluster_state::{ClusterState, FenceProgress};
use crate::dispatcher::decide::{DecisionLimits, decide};
use crate::dispatcher::decision::{Budget, Decision};
use crate::dispatcher::now::Now;
use crate::model::state_machine::{Checkpoint, TaskEvent, apply};
use crate::model::{
    CopyTask, Drain, Epoch, Failure, FenceMethod, Holder, Incarnation, NodeId, OpId, Registration, Submission, TaskId,
    TaskRecord, TaskSpec, TaskState,
};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::collections::BTreeMap;
use std::time::Duration;

const LIMITS: DecisionLimits = DecisionLimits {
    retention: Duration::from_secs(1000),
    quiet_after: Duration::from_secs(30),
    hold_off: Duration::from_secs(2),
    answer_within: Duration::from_secs(15),
    tasks_max: 4,
    ended_max: 4,
};
pub(super) const ROOM: Budget = Budget { writes: 64, calls: 64 };

pub(super) fn at(seconds: u64) -> Now {
    let unix_ms = seconds * 1000;
    Now { boot: Duration::from_secs(seconds), unix_ms, sure_ms: Some(unix_ms), is_clock_right: true }
}

fn runners(all: &[(&str, &str, u32)]) -> BTreeMap<NodeId, Registration> {
    let runner = |(node, incarnation, slots): &(&str, &str, u32)| {
        let registration = Registration {
            incarnation: Incarnation((*incarnation).to_owned()),
            slots: *slots,
            ..Registration::example(node)
        };
        (registration.node.clone(), registration)
    };
    all.iter().map(runner).collect()
}

pub(super) fn task(id: &str, spec: TaskSpec) -> TaskRecord {
    TaskRecord::new(submission(id, spec), 0)
}

fn export(id: &str, destination: &str, fence: FenceMethod) -> TaskRecord {
    task(id, TaskSpec::Copy(CopyTask { fence, ..copy("nbd://h/a", destination) }))
}

fn holder(node: &str, incarnation: &str) -> Holder {
    Holder { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation.to_owned()) }
}

fn assigned(record: &TaskRecord, to: &str) -> TaskRecord {
    let claims = vec![format!("claim of {}", record.id)];
    apply(record, TaskEvent::Assigned { to: holder(to, "a"), claims }, 0).unwrap()
}

fn running(record: &TaskRecord, on: &str) -> TaskRecord {
    apply(&assigned(record, on), TaskEvent::Started { epoch: Epoch(5) }, 0).unwrap()
}

fn cluster(tasks: impl IntoIterator<Item = TaskRecord>, all: &[(&str, &str, u32)]) -> ClusterState {
    let mut cluster = ClusterState::default();
    for record in tasks {
        cluster.observe(record, 0, None, at(0));
    }
    cluster.observe_runners(runners(all), cluster.observed(), at(0).boot);
    cluster
}

/// Returns the decisions as lines. Decisions to queue tasks are enacted, and the rest is decided again until there are
/// none.
pub(super) fn lines(cluster: &mut ClusterState, now: Now, budget: Budget) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let decisions = decide(cluster, &LIMITS, now, budget);
        let queued = decisions.iter().filter(|decision| matches!(decision, Decision::Queue(..))).count();
        for decision in &decisions {
            match decision {
                Decision::Queue(id, node) => {
                    cluster.clear_due(id);
                    cluster.enqueue(id, node.clone());
                }
                other => {
                    if let Decision::Idle(id) = other {
                        cluster.clear_due(id);
                    }
                    lines.push(line(other));
                }
            }
        }
        if queued == 0 {
            return lines;
        }
    }
}

fn line(decision: &Decision) -> String {
    let event = |event: &TaskEvent| match event {
        TaskEvent::Assigned { to, claims } => format!("assigned to {} claiming {}", to.node, claims.join(",")),
        TaskEvent::Revoked { code, .. } => format!("revoked {code}"),
        TaskEvent::Rejected(error) => format!("rejected {}", error.code),
        TaskEvent::RunnerLost => String::from("runner lost"),
        TaskEvent::RunnerReturned => String::from("runner returned"),
        TaskEvent::AttemptDrained { attempt } => format!("attempt {attempt} drained"),
        other => format!("{other:?}").to_lowercase(),
    };
    match decision {
        Decision::Transition { task, events } => {
            format!("{task}: {}", events.iter().map(event).collect::<Vec<_>>().join(", "))
        }
        Decision::Purge(task) => format!("{task}: purge"),
        Decision::Resolve(task, to) => format!("{task}: resolve on {}", to.node),
        Decision::Assign(task, to) => format!("{task}: assign to {}", to.node),
        Decision::Query(task, to) => format!("{task}: query {}", to.node),
        Decision::Notify(task, to) => format!("{task}: notify {}", to.node),
        Decision::Fence(holder) => format!("fence {}", holder.node),
        Decision::RaiseLevel => String::from("raise the level"),
        Decision::Interrupt(node) => format!("interrupt {node}"),
        Decision::Queue(task, _) => format!("{task}: queue"),
        Decision::Block(task, claim) => format!("{task}: blocked by {claim}"),
        Decision::Await(task, condition) => format!("{task}: await {condition}"),
        Decision::ReadRunners(task) => format!("{task}: read the runners"),
        Decision::WakeAt(task, until) => format!("{task}: wake at {}", until.as_secs()),
        Decision::Idle(task) => format!("{task}: idle"),
        Decision::NotifyFailure(task) => format!("{task}: notify of its failure"),
        Decision::Schedule(name, step) => format!("schedule {name}: {step:?}"),
        Decision::ReadMembers(name) => format!("schedule {name}: read members"),
        Decision::StoreMembers(group, members) => {
            let members: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
            format!("{group}: store {}", members.join(","))
        }
        Decision::ScheduleWakeAt(name, at) => format!("schedule {name}: wake at {}", at.as_secs()),
        Decision::ScheduleIdle(name) => format!("schedule {name}: idle"),
    }
}

#[test]
fn ready_tasks_go_to_the_least_loaded_runner_that_reaches_them() {
    let mut big = running(&task("big", noop(1)), "n1");
    big.progress.planned = 1 << 40;
    let tasks = [
        big,
        task("any1", noop(1)),
        task("any2", noop(1)),
        task("any3", noop(1)),
        task("pin", TaskSpec::Copy(copy("file://n1/a", "file://n1/b"))),
        task("gone", TaskSpec::Copy(copy("file://n9/a", "file://n9/b"))),
    ];
    let mut cluster = cluster(tasks, &[("n1", "a", 2), ("n2", "a", 2)]);
    let expected = [
        "big: idle",
        "any1: assigned to n2 claiming task:any1",
        "any2: assigned to n2 claiming task:any2",
        "any3: assigned to n1 claiming task:any3",
    ];
    assert_eq!(lines(&mut cluster, at(1), ROOM), expected);
}

#[test]
fn priority_comes_before_age_and_a_minute_before_priority() {
    let ranked =
        |id: &str, priority, created| TaskRecord::new(Submission { priority, ..submission(id, noop(1)) }, created);
    let tasks = [ranked("new", 1, 120_000), ranked("old", 0, 0), ranked("high", 9, 120_001), ranked("low", 0, 120_000)];
    let mut cluster = cluster(tasks, &[("n1", "a", 9)]);
    let order: Vec<String> =
        lines(&mut cluster, at(200), ROOM).iter().map(|line| line[..line.find(':').unwrap()].into()).collect();
    assert_eq!(order, ["high", "old", "new", "low"]);
}

#[test]
fn one_destination_goes_to_one_task_even_within_one_decision() {
    let tasks = ["a", "b"].map(|id| export(id, "nbd://h/same", FenceMethod::Lease));
    let mut cluster = cluster(tasks, &[("n1", "a", 9)]);
    let expected = ["a: assigned to n1 claiming nbd://h/same", "b: blocked by nbd://h/same"];
    assert_eq!(lines(&mut cluster, at(1), ROOM), expected);
}

#[test]
fn decisions_stay_within_the_budget() {
    let tasks = ["a", "b", "c"].map(|id| task(id, noop(1)));
    let mut cluster = cluster(tasks, &[("n1", "a", 9)]);
    let budget = Budget { writes: 1, calls: 0 };
    assert_eq!(lines(&mut cluster, at(1), budget), ["a: assigned to n1 claiming task:a"]);
}

#[test]
fn an_assigned_task_is_called_and_revoked_without_an_answer() {
    let mut cluster = cluster([assigned(&task("x", noop(1)), "n1")], &[("n1", "a", 9)]);
    assert_eq!(lines(&mut cluster, at(1), ROOM), ["x: assign to n1"]);
    let id = TaskId::new("x").unwrap();
    let runtime = &mut cluster.tasks.get_mut(&id).unwrap().runtime;
    (runtime.assign_reply, runtime.next_call) =
        (crate::dispatcher::tasks::AssignReply::NoAnswer, Duration::from_secs(4));
    assert_eq!(lines(&mut cluster, at(3), ROOM), ["x: wake at 4"]);
    assert_eq!(lines(&mut cluster, at(4), ROOM), ["x: query n1"]);
    assert_eq!(lines(&mut cluster, at(15), ROOM), ["x: revoked EUnreachable"]);
}

#[test]
fn the_backoff_of_a_failed_task_is_bounded_if_its_runners_clock_is_ahead() {
    let failed = |hour: u64| TaskRecord { not_before_ms: hour * 3_600_000 + 4000, ..task("a", noop(5)) };
    let view_of = |hour| cluster([failed(hour)], &[("n1", "a", 4)]);
    let mut near = view_of(0);
    assert_eq!(lines(&mut near, at(1), ROOM), ["a: wake at 4"]);
    assert_eq!(lines(&mut near, at(4), ROOM), ["a: assigned to n1 claiming task:a"]);
    let mut ahead = view_of(1);
    assert_eq!(lines(&mut ahead, at(1), ROOM), ["a: wake at 11"]);
    assert_eq!(lines(&mut ahead, at(75), ROOM), ["a: assigned to n1 claiming task:a"]);
}

#[test]
fn tasks_of_a_lost_runner_are_fenced_by_their_kind_of_fence() {
    let lost = |fence| {
        let record = running(&export("x", "nbd://h/b", fence), "n1");
        apply(&record, TaskEvent::RunnerLost, 0).unwrap()
    };
    let mut held = cluster([running(&export("x", "nbd://h/b", FenceMethod::Lease), "n1")], &[("n1", "b", 1)]);
    assert_eq!(lines(&mut held, at(1), ROOM), ["x: runner lost"]);
    let mut lease = cluster([lost(FenceMethod::Lease)], &[]);
    assert_eq!(lines(&mut lease, at(1), ROOM), ["x: wake at 2"]);
    assert_eq!(lines(&mut lease, at(2), ROOM), ["x: fenced(leaseover)"]);
    assert_eq!(lines(&mut lease, at(30), ROOM), ["x: attempt 0 drained"]);
    let mut manual = cluster([lost(FenceMethod::Manual)], &[]);
    assert_eq!(lines(&mut manual, at(1000), ROOM), ["x: idle"]);
    let mut command = cluster([lost(FenceMethod::Command)], &[]);
    assert_eq!(lines(&mut command, at(1), ROOM), ["fence n1"]);
    command.fences.insert((NodeId::new("n1").unwrap(), String::from("a")), FenceProgress::Done);
    assert_eq!(lines(&mut command, at(1), ROOM), ["x: fenced(command)"]);
}

/// A runner can register, get a lease and begin a task while an earlier read of the runners, without it, is on its way.
#[test]
fn a_runner_is_lost_only_by_a_read_that_has_begun_after_its_last_sign_of_life() {
    let export = export("x", "nbd://h/b", FenceMethod::Lease);
    let mut view = cluster([assigned(&export, "n1")], &[("n1", "a", 1)]);
    let before = view.observed();
    view.observe(running(&export, "n1"), 1, None, at(1));
    view.observe_runners(runners(&[]), before, at(1).boot);
    assert_eq!(lines(&mut view, at(1), ROOM), ["x: read the runners"]);
    view.observe_runners(runners(&[("n1", "a", 1)]), view.observed(), at(2).boot);
    assert_eq!(lines(&mut view, at(2), ROOM), ["x: idle"]);
    view.observe_runners(runners(&[]), view.observed(), at(3).boot);
    assert_eq!(lines(&mut view, at(3), ROOM), ["x: runner lost"]);
}

#[test]
fn a_lost_local_copy_waits_for_its_node() {
    let local = task("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")));
    let lost = apply(&running(&local, "n1"), TaskEvent::RunnerLost, 0).unwrap();
    let cancelled = apply(&lost, TaskEvent::CancelRequested, 0).unwrap();
    assert_eq!(lines(&mut cluster([lost.clone()], &[]), at(1000), ROOM), ["x: idle"]);
    assert_eq!(lines(&mut cluster([lost.clone()], &[("n1", "a", 1)]), at(1), ROOM), ["x: runner returned"]);
    assert_eq!(lines(&mut cluster([lost], &[("n1", "b", 1)]), at(1), ROOM), ["x: fenced(nodeback)"]);
    assert_eq!(lines(&mut cluster([cancelled.clone()], &[]), at(1), ROOM), ["x: wake at 30"]);
    assert_eq!(lines(&mut cluster([cancelled], &[]), at(30), ROOM), ["x: fenced(waited)"]);
}

#[test]
fn draining_full_and_stopping_runners_get_no_tasks() {
    let mut cluster = cluster([task("x", noop(1))], &[("n1", "a", 1), ("n2", "a", 0)]);
    let drain = Drain { since_ms: 0, now: false, until_ms: None, op: OpId(String::new()) };
    cluster.fleet.set_drain(&NodeId::new("n1").unwrap(), Some((drain, 0)));
    assert_eq!(lines(&mut cluster, at(1), ROOM), [""; 0]);
    cluster.fleet.set_drain(&NodeId::new("n1").unwrap(), None);
    assert_eq!(lines(&mut cluster, at(1), ROOM), ["x: assigned to n1 claiming task:x"]);
}

/// Returns a task after an attempt on each of these nodes that failed by a fault of the node.
fn failed_on(id: &str, nodes: &[(&str, Code)]) -> TaskRecord {
    nodes.iter().fold(export(id, "nbd://h/b", FenceMethod::Lease), |record, (node, code)| {
        let error = Failure::from(&Error::new(*code, Side::Source, Operation::Open, "not from here"));
        let failed = TaskEvent::Failed { error, retry_at_ms: 0, checkpoint: Checkpoint::default(), report: None };
        apply(&assigned(&record, node), failed, 0).unwrap()
    })
}

#[test]
fn a_task_goes_where_it_has_not_failed_by_a_fault_of_the_node() {
    let given = |tasks: Vec<TaskRecord>, all: &[(&str, &str, u32)]| lines(&mut cluster(tasks, all), at(1), ROOM);
    let unreachable = || failed_on("x", &[("n1", Code::Unreachable)]);
    let on = |node: &str| vec![format!("x: assigned to {node} claiming claim of x")];
    assert_eq!(given(vec![unreachable()], &[("n1", "a", 9), ("n2", "a", 1)]), on("n2"));
    assert_eq!(given(vec![unreachable()], &[("n1", "a", 9)]), on("n1"), "there is no other one");
    assert_eq!(
        given(vec![unreachable()], &[("n1", "a", 9), ("n2", "a", 0)]),
        [""; 0],
        "it waits for a free slot there"
    );
    let twice = failed_on("x", &[("n1", Code::Unreachable), ("n2", Code::Unreachable), ("n2", Code::Unreachable)]);
    let twice = TaskRecord { max_attempts: 5, state: TaskState::Pending, error: None, ..twice };
    let twice = TaskRecord { claims: vec![String::from("claim of x")], ..twice };
    assert_eq!(given(vec![twice], &[("n1", "a", 1), ("n2", "a", 9)]), on("n1"), "least often there");
    // Other tasks get the slot that this task avoids.
    let other = task("y", noop(1));
    let all = [("n1", "a", 9), ("n2", "a", 0)];
    assert_eq!(given(vec![unreachable(), other], &all), ["y: assigned to n1 claiming task:y"]);
}

#[test]
fn a_task_is_rejected_when_every_node_has_failed_it_for_good() {
    let refused = |nodes: &[&str]| {
        let nodes: Vec<_> = nodes.iter().map(|node| (*node, Code::Permission)).collect();
        failed_on("x", &nodes)
    };
    let given = |record, all: &[(&str, &str, u32)]| lines(&mut cluster([record], all), at(1), ROOM);
    let both = [("n1", "a", 1), ("n2", "a", 1)];
    assert_eq!(given(refused(&["n1"]), &both), ["x: assigned to n2 claiming claim of x"]);
    assert_eq!(given(refused(&["n1", "n2"]), &both), ["x: rejected EPermission"]);
    assert_eq!(given(refused(&["n1"]), &[("n1", "a", 1)]), ["x: rejected EPermission"]);
    // Another incarnation of the node may have another policy.
    assert_eq!(given(refused(&["n1"]), &[("n1", "b", 1)]), ["x: assigned to n1 claiming claim of x"]);
    // A draining node may still run it later.
    let mut cluster = cluster([refused(&["n1"])], &both);
    let drain = Drain { since_ms: 0, now: false, until_ms: None, op: OpId(String::new()) };
    cluster.fleet.set_drain(&NodeId::new("n2").unwrap(), Some((drain, 0)));
    assert_eq!(lines(&mut cluster, at(1), ROOM), [""; 0]);
}

/// Creates tasks that were submitted in this order, to leaders whose clocks differed by a day.
#[test]
fn tasks_are_assigned_in_the_order_of_creation_whatever_the_clocks() {
    let day = 86_400_000;
    let submitted = [("z", day + 1), ("y", 5), ("x", 2 * day), ("w", 6), ("v", 7)];
    let of = |order: &[usize]| {
        let mut cluster = cluster([], &[("n1", "a", 9)]);
        for &index in order {
            let (id, created_ms) = submitted[index];
            let zxid = Zxid(i64::try_from(index).unwrap());
            cluster.observe(TaskRecord::new(submission_of(id), created_ms), 0, Some(zxid), at(1));
        }
        lines(&mut cluster, at(1), ROOM).iter().map(|line| line[..1].to_owned()).collect::<String>()
    };
    assert_eq!(of(&[0, 1, 2, 3, 4]), "zyxwv");
    assert_eq!(of(&[4, 3, 2, 1, 0]), "zyxwv");
    assert_eq!(of(&[2, 4, 0, 3, 1]), "zyxwv");
    // The creating transaction is learned later, as for tasks of this term.
    let mut cluster = cluster([], &[("n1", "a", 9)]);
    for (id, created_ms) in submitted {
        cluster.observe(TaskRecord::new(submission_of(id), created_ms), 0, None, at(1));
    }
    for (index, (id, created_ms)) in submitted.into_iter().enumerate() {
        let zxid = Zxid(i64::try_from(index).unwrap());
        cluster.observe(TaskRecord::new(submission_of(id), created_ms), 0, Some(zxid), at(1));
    }
    let lines = lines(&mut cluster, at(1), ROOM);
    assert_eq!(lines.iter().map(|line| &line[..1]).collect::<String>(), "zyxwv");
}

fn submission_of(id: &str) -> Submission {
    submission(id, noop(1))
}

#[test]
fn nothing_is_purged_before_its_time_by_every_clock() {
    let ended = apply(&task("x", noop(1)), TaskEvent::CancelRequested, 5000).unwrap();
    let mut cluster = cluster([ended], &[]);
    let at_least = |sure_ms| Now { sure_ms, ..at(90_000) };
    assert_eq!(lines(&mut cluster, at_least(None), ROOM), ["x: wake at 90010"], "no node has answered yet");
    assert_eq!(
        lines(&mut cluster, at_least(Some(1_004_000)), ROOM),
        ["x: wake at 90001"],
        "by another clock it is too early"
    );
    assert_eq!(lines(&mut cluster, at_least(Some(1_005_000)), ROOM), ["x: purge"]);
}

#[test]
fn the_oldest_ended_tasks_are_purged_early_above_the_limit() {
    let mut cluster = ClusterState::default();
    let ended = |id: &str| apply(&task(id, noop(1)), TaskEvent::CancelRequested, 5000).unwrap();
    // Ids and times are in another order than the transactions that created the tasks: the latter count.
    for (id, created) in [("c", 1), ("b", 2), ("a", 3)] {
        cluster.observe(ended(id), 0, Some(Zxid(created)), at(6));
    }
    for (id, created) in [("new", 4), ("new2", 5), ("new3", 6)] {
        cluster.observe(task(id, noop(1)), 0, Some(Zxid(created)), at(6));
    }
    let purged = |cluster: &mut ClusterState| {
        lines(cluster, at(6), ROOM);
        let lines = lines(cluster, at(6), ROOM);
        lines.into_iter().filter(|line| line.ends_with("purge")).collect::<Vec<_>>()
    };
    assert_eq!(purged(&mut cluster), ["c: purge", "b: purge"]);
    // A task stays while it keeps its claim because an earlier attempt may still write.
    let id = TaskId::new("c").unwrap();
    let claimed = TaskRecord { claims: vec![String::from("claim")], ..ended("c") };
    cluster.observe(claimed, 1, Some(Zxid(1)), at(6));
    assert_eq!(purged(&mut cluster), ["b: purge", "a: purge"]);
    cluster.forget(&id, at(6).boot);
    cluster.forget(&TaskId::new("new").unwrap(), at(6).boot);
    assert_eq!(purged(&mut cluster), [""; 0]);
}

#[test]
fn ended_tasks_are_purged_after_their_time() {
    let ended = apply(&task("x", noop(1)), TaskEvent::CancelRequested, 5000).unwrap();
    let mut cluster = cluster([ended], &[]);
    assert_eq!(lines(&mut cluster, at(1004), ROOM), ["x: wake at 1005"]);
    assert_eq!(lines(&mut cluster, at(1005), ROOM), ["x: purge"]);
}
