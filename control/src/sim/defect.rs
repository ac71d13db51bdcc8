//! Plants defects, each of which shows that a checker can fail.
//!
//! A checker that never fails proves nothing. Each defect breaks one invariant that production code keeps or relies on.
//! Everything else is as the seed determines. Then some seed must fail, with the message of the checker of that
//! invariant.

use super::{run_result::RunResult, run_seed};
use crate::coord::paths;
use crate::coord::sim::Ensemble;
use crate::coord::{Op, Znode};
use crate::model::{OpId, Record, ScheduleRecord, TaskRecord, TaskState};
use std::time::Duration;
use tokio::time::sleep;

/// Defect to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// Copies write whether their gate is open or not, and ignore cancels and cut-offs.
    IgnoreGateAndCancel,
    /// Copies omit their last block and report success.
    OmitLastBlock,
    /// Copies report what they have not flushed as durable.
    ReportUnflushedAsDurable,
    /// Copies write before they have a write permit.
    WriteBeforePermit,
    /// Copies start over, whatever is known to be durable.
    IgnoreCheckpoint,
    /// Writes that were cut off land after two minutes.
    LateWritesLand,
    /// The clocks of runners are slow, and their leases with them.
    SlowClocks,
    /// Dispatchers treat the attempts of lost runners as drained at once.
    DrainAtOnce,
    /// Dispatchers do not wait for the end of a lost runner's lease.
    NoHoldOff,
    /// Runners execute a hook twice in an attempt, both at the same time.
    RunHooksAtOnce,
    /// Runners execute a hook twice in an attempt, one time after the other.
    RunHookTwice,
    /// No fault is repaired at the end of the time of faults.
    FaultsNeverEnd,
    /// A finished task is started again.
    ReviveEndedTask,
    /// A record is written without any guard.
    UnguardedWrite,
    /// A task that has not ended is removed.
    RemoveLiveTask,
    /// A second task gets the same destination.
    TwoHolders,
    /// A schedule forgets that an instant has fired.
    ForgetInstant,
}

/// Commits one write that breaks an invariant, as a client of the store, once the records permit it.
pub(super) async fn break_invariant(defect: Defect, ensemble: Ensemble, result: RunResult) {
    loop {
        sleep(Duration::from_millis(700)).await;
        let tasks: Vec<(String, Znode, TaskRecord)> = ensemble
            .committed_below("/tasks/")
            .into_iter()
            .filter_map(|(path, node)| TaskRecord::decode(&node.data).ok().map(|record| (path, node, record)))
            .collect();
        let ops =
            if defect == Defect::ForgetInstant { forget_instant(&ensemble) } else { invalid_write(defect, &tasks) };
        let Some(ops) = ops else { continue };
        let guard = ensemble
            .committed(paths::LEADER_EPOCH)
            .map(|node| Op::Check { path: paths::LEADER_EPOCH.to_owned(), version: node.stat.version });
        let guard = guard.filter(|_| defect != Defect::UnguardedWrite);
        let node = ensemble
            .committed(paths::LEADER_EPOCH)
            .and_then(|node| crate::model::Leader::decode(&node.data).ok().map(|leader| leader.node.to_string()));
        let Ok(session) = ensemble.client(&node.unwrap_or_default()).open().await else { continue };
        if session.multi(guard.into_iter().chain(ops).collect()).await.is_ok() {
            return result.note(format_args!("{defect:?} has done it"));
        }
    }
}

fn forget_instant(ensemble: &Ensemble) -> Option<Vec<Op>> {
    ensemble.committed_below("/schedules/").into_iter().find_map(|(path, node)| {
        let fired = ScheduleRecord::decode(&node.data).ok().filter(|record| record.fired > 0)?;
        let after = ScheduleRecord { considered_ms: fired.created_ms, op: OpId::fresh(), ..fired };
        Some(vec![Op::Set { path, data: after.encode(), version: node.stat.version }])
    })
}

fn invalid_write(defect: Defect, tasks: &[(String, Znode, TaskRecord)]) -> Option<Vec<Op>> {
    let rewritten = |path: &str, node: &Znode, record: &TaskRecord, change: &dyn Fn(&mut TaskRecord)| {
        let mut after = record.clone();
        change(&mut after);
        after.op = OpId::fresh();
        Some(vec![Op::Set { path: path.to_owned(), data: after.encode(), version: node.stat.version }])
    };
    match defect {
        Defect::ReviveEndedTask => {
            let (path, node, record) = tasks.iter().find(|(_, _, record)| record.state == TaskState::Succeeded)?;
            rewritten(path, node, record, &|after| after.state = TaskState::Pending)
        }
        Defect::UnguardedWrite => {
            let (path, node, record) = tasks.first()?;
            rewritten(path, node, record, &|after| after.reason = String::from("because"))
        }
        Defect::RemoveLiveTask => {
            let (path, node, _) = tasks.iter().find(|(_, _, record)| record.state == TaskState::Pending)?;
            Some(vec![Op::Delete { path: path.clone(), version: node.stat.version }])
        }
        Defect::TwoHolders => {
            let destination = |record: &TaskRecord| super::volume_name::VolumeName::destination(&record.spec);
            let (_, _, held) =
                tasks.iter().find(|(_, _, record)| record.holder.is_some() && destination(record).is_some())?;
            let is_rival =
                |record: &TaskRecord| record.state == TaskState::Pending && destination(record) == destination(held);
            let (path, node, record) = tasks.iter().find(|(_, _, record)| is_rival(record))?;
            rewritten(path, node, record, &|after| {
                (after.state, after.holder, after.claims) =
                    (TaskState::Assigned, held.holder.clone(), held.claims.clone());
            })
        }
        _ => None,
    }
}

/// Seeds among which a planted defect must show.
const SEEDS: u64 = 300;

fn assert_detected(defect: Defect, words: &str) {
    let mut failures = Vec::new();
    for seed in 0..SEEDS {
        if let Some(failure) = run_seed(seed, false, Some(defect)).failure {
            if failure.contains(words) {
                return;
            }
            failures.push(failure);
        }
    }
    panic!("{defect:?} was not detected as '{words}' in {SEEDS} seeds, but as {failures:#?}");
}

#[test]
fn writes_of_an_earlier_grant_after_a_later_one_are_detected() {
    assert_detected(Defect::IgnoreGateAndCancel, "was submitted after one of");
    assert_detected(Defect::SlowClocks, "was submitted after one of");
}

#[test]
fn writes_that_land_after_success_are_detected() {
    assert_detected(Defect::LateWritesLand, "was on its way");
}

#[test]
fn a_dispatcher_that_does_not_wait_is_detected() {
    assert_detected(Defect::DrainAtOnce, "was on its way");
    assert_detected(Defect::NoHoldOff, "after LOST");
}

#[test]
fn hooks_that_run_at_once_or_once_too_often_are_detected() {
    assert_detected(Defect::RunHooksAtOnce, "runs of its hook overlap");
    assert_detected(Defect::RunHookTwice, "runs at most once");
}

#[test]
fn success_without_the_data_is_detected() {
    assert_detected(Defect::OmitLastBlock, "succeeded, but the destination is");
}

#[test]
fn maps_with_bytes_that_are_not_durable_are_detected() {
    assert_detected(Defect::ReportUnflushedAsDurable, "are not durable");
}

#[test]
fn maps_that_are_ignored_are_detected() {
    assert_detected(Defect::IgnoreCheckpoint, "bytes that were durable");
}

#[test]
fn writes_before_running_is_stored_are_detected() {
    assert_detected(Defect::WriteBeforePermit, "before RUNNING was stored");
}

#[test]
fn tasks_that_are_stuck_are_detected() {
    assert_detected(Defect::FaultsNeverEnd, " for ");
}

#[test]
fn terminal_states_that_change_are_detected() {
    assert_detected(Defect::ReviveEndedTask, "Succeeded became Pending");
}

#[test]
fn writes_without_a_guard_are_detected() {
    assert_detected(Defect::UnguardedWrite, "without term or registration");
}

#[test]
fn tasks_that_disappear_are_detected() {
    assert_detected(Defect::RemoveLiveTask, "was removed while Pending");
}

#[test]
fn two_holders_of_one_destination_are_detected() {
    assert_detected(Defect::TwoHolders, "both hold");
}

#[test]
fn instants_that_are_decided_twice_are_detected() {
    assert_detected(Defect::ForgetInstant, "went back from");
}
