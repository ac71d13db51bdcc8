//! Compares the graph with a model that decides everything anew after each operation.

use super::graph::{Change, Condition, DependError, Graph, Outcome, Readiness, TaskKey};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What a test does with the tasks that there are, by their numbers.
#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<(usize, Condition)>),
    Depend(usize, usize, Condition),
    End(usize, Outcome),
    Restart(usize),
    Remove(usize),
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::Success), Just(Condition::Failure), Just(Condition::End)]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Succeeded),
        2 => Just(Outcome::Failed),
        1 => Just(Outcome::Cancelled),
        1 => Just(Outcome::Skipped),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((0..24_usize, condition()), 0..4).prop_map(Step::Insert),
        2 => (0..24_usize, 0..24_usize, condition()).prop_map(|(task, on, condition)| Step::Depend(task, on, condition)),
        4 => (0..24_usize, outcome()).prop_map(|(task, outcome)| Step::End(task, outcome)),
        1 => (0..24_usize).prop_map(Step::Restart),
        1 => (0..24_usize).prop_map(Step::Remove),
    ]
}

/// A task of the model: each condition with its verdict, once there is one.
#[derive(Clone, Debug, Default)]
struct ModelTask {
    conditions: Vec<(usize, Condition, Option<bool>)>,
    broken: bool,
    outcome: Option<Outcome>,
    is_removed: bool,
}

impl ModelTask {
    fn is_waiting(&self) -> bool {
        self.conditions.iter().any(|(.., verdict)| verdict.is_none())
    }
}

#[derive(Debug, Default)]
struct Model(Vec<ModelTask>);

impl Model {
    fn add(&mut self, task: usize, on: usize, condition: Condition) {
        let other = &self.0[on];
        let verdict =
            if other.is_removed { Some(false) } else { other.outcome.map(|it| condition.is_met_by(Some(it))) };
        self.0[task].conditions.push((on, condition, verdict));
        self.0[task].broken |= verdict == Some(false);
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        let (mut open, mut seen) = (vec![from], BTreeSet::new());
        while let Some(task) = open.pop() {
            if task == to {
                return true;
            }
            if seen.insert(task) && !self.0[task].is_removed {
                let undecided = self.0[task].conditions.iter().filter(|(.., verdict)| verdict.is_none());
                open.extend(undecided.map(|&(on, ..)| on));
            }
        }
        false
    }

    /// Tasks that have become met or broken since the last call.
    fn news(&mut self, before: &[(bool, bool)]) -> BTreeSet<(usize, bool)> {
        let mut news = BTreeSet::new();
        for (index, task) in self.0.iter().enumerate() {
            let (was_waiting, was_broken) = before.get(index).copied().unwrap_or((true, false));
            if task.outcome.is_some() || was_broken {
                continue;
            }
            if task.broken {
                news.insert((index, true));
            } else if was_waiting && !task.is_waiting() {
                news.insert((index, false));
            }
        }
        news
    }

    fn state(&self) -> Vec<(bool, bool)> {
        self.0.iter().map(|task| (task.is_waiting(), task.broken)).collect()
    }
}

fn readiness(model: &ModelTask) -> &'static str {
    match (model.broken, model.is_waiting()) {
        (true, _) => "broken",
        (false, true) => "waiting",
        (false, false) => "met",
    }
}

fn name(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Waiting => "waiting",
        Readiness::Met => "met",
        Readiness::Broken(_) => "broken",
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_graph_agrees_with_a_model_that_decides_everything_anew(steps in prop::collection::vec(step(), 1..80)) {
        let (mut graph, mut model, mut keys) = (Graph::default(), Model::default(), Vec::<TaskKey>::new());
        for step in steps {
            let mut changes = Vec::new();
            let before = model.state();
            match step {
                Step::Insert(conditions) => {
                    let known: Vec<_> = conditions.into_iter().filter(|(on, _)| *on < keys.len()).collect();
                    model.0.push(ModelTask::default());
                    known.iter().for_each(|&(on, condition)| model.add(keys.len(), on, condition));
                    let key = graph.insert(known.iter().map(|&(on, condition)| (keys[on], condition)), &mut changes);
                    keys.push(key);
                }
                Step::Depend(task, on, condition) if task < keys.len() && on < keys.len() => {
                    let wanted = match &model.0[task] {
                        it if it.is_removed => Err(DependError::Unknown),
                        it if it.outcome.is_some() => Err(DependError::HasEnded),
                        _ if model.reaches(on, task) => Err(DependError::Circle),
                        _ => Ok(()),
                    };
                    prop_assert_eq!(graph.depend(keys[task], keys[on], condition, &mut changes), wanted);
                    if wanted.is_ok() {
                        model.add(task, on, condition);
                    }
                }
                Step::End(task, outcome) if task < keys.len() => {
                    let can = !model.0[task].is_removed && model.0[task].outcome.is_none();
                    prop_assert_eq!(graph.end(keys[task], outcome, &mut changes), can);
                    if can {
                        model.0[task].outcome = Some(outcome);
                        for other in &mut model.0 {
                            for (on, condition, verdict) in &mut other.conditions {
                                if *on == task && verdict.is_none() {
                                    *verdict = Some(condition.is_met_by(Some(outcome)));
                                    other.broken |= other.outcome.is_none() && *verdict == Some(false);
                                }
                            }
                        }
                    }
                }
                Step::Restart(task) if task < keys.len() => {
                    let can = !model.0[task].is_removed && model.0[task].outcome.is_some();
                    prop_assert_eq!(graph.restart(keys[task]), can);
                    if can {
                        (model.0[task].outcome, model.0[task].broken) = (None, false);
                    }
                    continue;
                }
                Step::Remove(task) if task < keys.len() => {
                    let can = !model.0[task].is_removed && model.0[task].outcome.is_some();
                    prop_assert_eq!(graph.remove(keys[task]), can);
                    model.0[task].is_removed |= can;
                }
                Step::Depend(..) | Step::End(..) | Step::Restart(_) | Step::Remove(_) => {}
            }
            let number = |key: &TaskKey| keys.iter().position(|known| known == key).unwrap();
            let reported: Vec<_> = changes.iter().map(|change| match change {
                Change::Met(key) => (number(key), false),
                Change::Broken(key) => (number(key), true),
            }).collect();
            let unique: BTreeSet<_> = reported.iter().copied().collect();
            prop_assert_eq!(unique.len(), reported.len(), "a change is reported once");
            prop_assert_eq!(unique, model.news(&before));
            for (index, key) in keys.iter().enumerate() {
                let task = &model.0[index];
                prop_assert_eq!(graph.contains(*key), !task.is_removed);
                if !task.is_removed {
                    prop_assert_eq!(graph.outcome(*key), task.outcome);
                    prop_assert_eq!(graph.readiness(*key).map(name), Some(readiness(task)));
                }
            }
            prop_assert_eq!(graph.len(), model.0.iter().filter(|task| !task.is_removed).count());
        }
    }
}

#[test]
fn a_circle_is_refused_however_long_it_is() {
    let (mut graph, mut changes) = (Graph::default(), Vec::new());
    let first = graph.insert([], &mut changes);
    let mut last = first;
    for _ in 0..100_000 {
        last = graph.insert([(last, Condition::Success)], &mut changes);
    }
    assert_eq!(graph.depend(first, last, Condition::End, &mut changes), Err(DependError::Circle));
    assert_eq!(graph.depend(first, first, Condition::End, &mut changes), Err(DependError::Circle));
    assert_eq!(changes, [Change::Met(first)]);
}

#[test]
fn a_task_with_many_predecessors_is_met_by_the_last_one() {
    let (mut graph, mut changes) = (Graph::default(), Vec::new());
    let predecessors: Vec<_> = (0..500).map(|_| graph.insert([], &mut changes)).collect();
    let join = graph.insert(predecessors.iter().map(|&on| (on, Condition::End)), &mut changes);
    let followers: Vec<_> = (0..500).map(|_| graph.insert([(join, Condition::Success)], &mut changes)).collect();
    changes.clear();
    for (index, &predecessor) in predecessors.iter().enumerate() {
        assert_eq!(graph.unmet(join).count(), 500 - index);
        graph.end(predecessor, Outcome::Failed, &mut changes);
    }
    assert_eq!(changes, [Change::Met(join)]);
    changes.clear();
    graph.end(join, Outcome::Failed, &mut changes);
    assert_eq!(changes, followers.into_iter().map(Change::Broken).collect::<Vec<_>>());
}

#[test]
fn a_key_of_a_removed_task_names_no_other() {
    let (mut graph, mut changes) = (Graph::default(), Vec::new());
    let old = graph.insert([], &mut changes);
    assert!(!graph.remove(old), "it has not ended");
    graph.end(old, Outcome::Succeeded, &mut changes);
    assert!(graph.remove(old) && !graph.remove(old));
    let new = graph.insert([], &mut changes);
    changes.clear();
    assert!(graph.contains(new) && !graph.contains(old));
    let late = graph.insert([(old, Condition::End)], &mut changes);
    assert_eq!(changes, [Change::Broken(late)]);
    assert_eq!(graph.readiness(late), Some(Readiness::Broken(old)));
}
