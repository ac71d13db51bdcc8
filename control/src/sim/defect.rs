//! Planted defects: each shows that a judge can fail.
//!
//! A judge that never speaks proves nothing. Each of these breaks one promise that production code builds on or keeps, in
//! a world that is otherwise as its seed says; some seed must then fail, and in the words of the judge in question.

use super::{play, verdict::Verdict};
use crate::coord::paths;
use crate::coord::sim::Ensemble;
use crate::coord::{Node, Op};
use crate::model::{OpId, Record, TaskRecord, TaskState};
use std::time::Duration;
use tokio::time::sleep;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// Copies write whether their gate is open or not, and hear neither a cancel nor a cut.
    DeafCopies,
    /// Copies leave their last block out and say that all is done.
    LazyCopies,
    /// Copies call durable what they have not flushed.
    BoastingCopies,
    /// Copies write before they have asked.
    HastyCopies,
    /// Copies begin anew, whatever is known to be durable.
    ForgetfulCopies,
    /// Writes that were cut off land after two minutes.
    LongLives,
    /// The clocks of runners go slowly, and their leases with them.
    SlowClocks,
    /// Dispatchers take the attempts of lost runners for quiet at once.
    Hurry,
    /// Dispatchers leave a lost runner no time to come to its lease's end.
    NoHoldOff,
    /// Nothing is mended when the storm is over.
    NoCalm,
    /// Somebody takes a finished task up again.
    Reviver,
    /// Somebody writes a record without any guard.
    Vandal,
    /// Somebody removes a task that has not ended.
    Thief,
    /// Somebody gives a second task the same destination.
    Matchmaker,
}

/// A client of the store who keeps no rules: does its mischief once, when it can.
pub(super) async fn mischief(plant: Plant, ensemble: Ensemble, verdict: Verdict) {
    loop {
        sleep(Duration::from_millis(700)).await;
        let tasks: Vec<(String, Node, TaskRecord)> = ensemble
            .committed_below("/tasks/")
            .into_iter()
            .filter_map(|(path, node)| TaskRecord::decode(&node.data).ok().map(|record| (path, node, record)))
            .collect();
        let Some(ops) = mischievous(plant, &tasks) else { continue };
        let guard = ensemble
            .committed(paths::LEADER_EPOCH)
            .map(|node| Op::Check { path: paths::LEADER_EPOCH.to_owned(), version: node.stat.version });
        let guard = guard.filter(|_| plant != Plant::Vandal);
        let node = ensemble
            .committed(paths::LEADER_EPOCH)
            .and_then(|node| crate::model::Leader::decode(&node.data).ok().map(|leader| leader.node.to_string()));
        let Ok(session) = ensemble.client(&node.unwrap_or_default()).open().await else { continue };
        if session.multi(guard.into_iter().chain(ops).collect()).await.is_ok() {
            return verdict.note(format_args!("{plant:?} has done it"));
        }
    }
}

fn mischievous(plant: Plant, tasks: &[(String, Node, TaskRecord)]) -> Option<Vec<Op>> {
    let rewritten = |path: &str, node: &Node, record: &TaskRecord, change: &dyn Fn(&mut TaskRecord)| {
        let mut after = record.clone();
        change(&mut after);
        after.op = OpId::fresh();
        Some(vec![Op::Set { path: path.to_owned(), data: after.encode(), version: node.stat.version }])
    };
    match plant {
        Plant::Reviver => {
            let (path, node, record) = tasks.iter().find(|(_, _, record)| record.state == TaskState::Succeeded)?;
            rewritten(path, node, record, &|after| after.state = TaskState::Pending)
        }
        Plant::Vandal => {
            let (path, node, record) = tasks.first()?;
            rewritten(path, node, record, &|after| after.reason = String::from("because"))
        }
        Plant::Thief => {
            let (path, node, _) = tasks.iter().find(|(_, _, record)| record.state == TaskState::Pending)?;
            Some(vec![Op::Delete { path: path.clone(), version: node.stat.version }])
        }
        Plant::Matchmaker => {
            let destination = |record: &TaskRecord| super::place::Place::destination(&record.spec);
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

/// Seeds in which a planted defect must show itself.
const SEEDS: u64 = 300;

fn shows(plant: Plant, words: &str) {
    let mut said = Vec::new();
    for seed in 0..SEEDS {
        if let Some(failure) = play(seed, false, Some(plant)).failure {
            if failure.contains(words) {
                return;
            }
            said.push(failure);
        }
    }
    panic!("{plant:?} was not noticed as '{words}' in {SEEDS} seeds, but as {said:#?}");
}

#[test]
fn writes_of_an_earlier_grant_after_a_later_one_are_noticed() {
    shows(Plant::DeafCopies, "was submitted after one of");
    shows(Plant::SlowClocks, "was submitted after one of");
}

#[test]
fn writes_that_land_after_success_are_noticed() {
    shows(Plant::LongLives, "was on its way");
}

#[test]
fn a_dispatcher_that_does_not_wait_is_noticed() {
    shows(Plant::Hurry, "was on its way");
    shows(Plant::NoHoldOff, "after LOST");
}

#[test]
fn success_without_the_data_is_noticed() {
    shows(Plant::LazyCopies, "succeeded, but the destination is");
}

#[test]
fn maps_that_invent_are_noticed() {
    shows(Plant::BoastingCopies, "are not durable");
}

#[test]
fn maps_that_are_not_gone_on_with_are_noticed() {
    shows(Plant::ForgetfulCopies, "bytes that were durable");
}

#[test]
fn writes_before_running_is_stored_are_noticed() {
    shows(Plant::HastyCopies, "before RUNNING was stored");
}

#[test]
fn tasks_that_stand_still_are_noticed() {
    shows(Plant::NoCalm, " for ");
}

#[test]
fn terminal_states_that_change_are_noticed() {
    shows(Plant::Reviver, "Succeeded became Pending");
}

#[test]
fn writes_without_a_guard_are_noticed() {
    shows(Plant::Vandal, "without leader_term or registration");
}

#[test]
fn tasks_that_disappear_are_noticed() {
    shows(Plant::Thief, "was removed while Pending");
}

#[test]
fn two_holders_of_one_destination_are_noticed() {
    shows(Plant::Matchmaker, "both hold");
}
