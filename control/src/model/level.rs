//! Defines levels: what all processes of a center understand.
//!
//! | level | what is stored only from it on, as an earlier `taskd` would ignore it |
//! | --- | --- |
//! | 1 | the records of the oldest supported version; fields that a `taskd` does not know are kept |
//! | 2 | tasks that wait for others, groups, times, rules for nodes, windows |
//!
//! The level of a center is the schema in [`Meta`](super::Meta). It only grows. A `taskd` takes no role in a center of a
//! level that it does not know.

use super::{Incarnation, KindName, Record, Submission, TaskTimes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use strum::VariantArray;

/// Lowest level that this program works at.
pub(crate) const LEVEL_MIN: u32 = 1;
/// Highest level that this program knows.
pub(crate) const LEVEL: u32 = 2;

/// What the `taskd` of a node can do. A process that announces nothing is of level 1, and knows the kinds of that time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Highest level that it knows.
    pub level: u32,
    /// Kinds of tasks that it knows, by their stored names.
    pub kinds: BTreeSet<String>,
}

impl Record for Abilities {}

impl Abilities {
    /// Returns those of this program.
    #[must_use]
    pub(crate) fn of_this_program(incarnation: Incarnation) -> Self {
        let kinds = KindName::VARIANTS.iter().map(|kind| <&str>::from(kind).to_owned()).collect();
        Self { incarnation, level: LEVEL, kinds }
    }

    /// Returns those of a process that announces nothing.
    #[must_use]
    pub(crate) fn unannounced(incarnation: Incarnation) -> Self {
        let kinds = ["copy", "group", "noop", "run", "verify"].map(str::to_owned).into();
        Self { incarnation, level: LEVEL_MIN, kinds }
    }

    /// Tells whether it knows a kind of task.
    #[must_use]
    pub(crate) fn knows(&self, kind: KindName) -> bool {
        self.kinds.contains(<&str>::from(kind))
    }
}

/// Returns what of a request a `taskd` of level 1 would ignore, if there is such a thing.
pub(crate) fn beyond_first_level(submission: &Submission) -> Option<&'static str> {
    let Submission { after, group, times, placement, windows, spec, .. } = submission;
    [
        (!after.is_empty(), "--after"),
        (group.is_some() || spec.kind().group().is_some(), "a group"),
        (*times != TaskTimes::default(), "--start-at, --delay or --deadline"),
        (!placement.is_unset(), "--require, --prefer or --apart-from"),
        (!windows.is_empty(), "--window"),
    ]
    .into_iter()
    .find_map(|(is_there, what)| is_there.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NoopTask, PlacementRules, TaskId, TaskSpec};
    use blockhaul_engine::flow::graph::Condition;

    #[test]
    fn this_program_announces_every_kind_and_an_earlier_one_those_of_its_time() {
        let incarnation = || Incarnation(String::from("life"));
        let (own, earlier) = (Abilities::of_this_program(incarnation()), Abilities::unannounced(incarnation()));
        assert!(KindName::VARIANTS.iter().all(|kind| own.knows(*kind)));
        assert!(earlier.kinds.is_subset(&own.kinds) && earlier.level < own.level);
        assert_eq!(Abilities::decode(&own.encode()).unwrap(), own);
    }

    #[test]
    fn what_an_earlier_program_would_ignore_is_named() {
        let plain = || Submission::new(TaskId::new("t").unwrap(), 5, 3, TaskSpec::Noop(NoopTask::new(1, None)));
        assert_eq!(beyond_first_level(&plain()), None);
        let times = TaskTimes { delay_ms: Some(1), ..TaskTimes::default() };
        let placement = PlacementRules { apart_from: Some(String::from("vm")), ..PlacementRules::default() };
        for (submission, word) in [
            (Submission { after: vec![(TaskId::new("a").unwrap(), Condition::Success)], ..plain() }, "--after"),
            (Submission { times, ..plain() }, "--delay"),
            (Submission { placement, ..plain() }, "--apart-from"),
            (Submission { windows: vec![String::from("00:00-24:00")], ..plain() }, "--window"),
        ] {
            assert!(beyond_first_level(&submission).is_some_and(|what| what.contains(word)), "{word}");
        }
    }
}
