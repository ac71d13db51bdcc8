//! Groups the warnings of a scenario for people: a warning about many targets is shown once.
//!
//! Warnings that differ only in their numbers become one with the range of the numbers: `trials scatter by 6 to 75 %`.
//! Warnings of missing targets are left out: the tables already say that they are missing.

use crate::results::{Outcome, ScenarioResult, Warning};

/// A warning and the names of its targets; no names if it is about the whole scenario.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupedWarning {
    pub targets: String,
    pub warning: Warning,
}

/// Warnings that differ only in their numbers.
struct Alike<'a> {
    targets: Vec<&'a str>,
    warnings: Vec<&'a Warning>,
}

impl ScenarioResult {
    /// Returns the warnings in the order of the results, those about the whole scenario first.
    pub(crate) fn grouped_warnings(&self) -> Vec<GroupedWarning> {
        let present = || self.targets.iter().filter(|target| !matches!(target.outcome, Outcome::Missing(_)));
        let mut all: Vec<Alike> = Vec::new();
        for target in present() {
            for warning in &target.warnings {
                match all.iter_mut().find(|alike| differ_in_numbers(alike.warnings[0], warning)) {
                    Some(alike) => {
                        alike.targets.push(&target.name);
                        alike.warnings.push(warning);
                    }
                    None => all.push(Alike { targets: vec![&target.name], warnings: vec![warning] }),
                }
            }
        }
        let targets = present().count();
        let about_all =
            self.warnings.iter().map(|warning| GroupedWarning { targets: String::new(), warning: warning.clone() });
        about_all.chain(all.iter().map(|alike| alike.gathered(targets))).collect()
    }
}

impl Alike<'_> {
    fn gathered(&self, targets: usize) -> GroupedWarning {
        let everyone = self.targets.len() == targets && targets > 1;
        let targets = if everyone { "all".to_owned() } else { self.targets.join(", ") };
        let whats: Vec<Vec<&str>> = self.warnings.iter().map(|warning| words(&warning.what)).collect();
        let what =
            (0..whats[0].len()).map(|at| range(whats.iter().map(|words| words[at]))).collect::<Vec<_>>().join(" ");
        GroupedWarning { targets, warning: Warning { what, ..self.warnings[0].clone() } }
    }
}

fn differ_in_numbers(one: &Warning, other: &Warning) -> bool {
    let (ones, others) = (words(&one.what), words(&other.what));
    let same = |(one, other): (&&str, &&str)| one == other || (number(one).is_some() && number(other).is_some());
    one.kind == other.kind
        && one.advice == other.advice
        && ones.len() == others.len()
        && ones.iter().zip(&others).all(same)
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

fn number(word: &str) -> Option<f64> {
    word.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Returns the word that all texts share at a place, or the range of the numbers there.
fn range<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    if words.iter().all(|word| word == &words[0]) {
        return words[0].to_owned();
    }
    let mut sorted = words;
    sorted.sort_by(|a, b| number(a).unwrap_or(0.0).total_cmp(&number(b).unwrap_or(0.0)));
    format!("{} to {}", sorted[0], sorted[sorted.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;

    fn scenario(whats: &[(usize, &str)]) -> ScenarioResult {
        let mut scenario = sample_results::results(1).scenarios.swap_remove(0);
        scenario.targets.iter_mut().for_each(|target| target.warnings.clear());
        for (at, what) in whats {
            let warning = Warning { kind: "noisy".into(), what: (*what).into(), advice: "wait".into() };
            scenario.targets[*at].warnings.push(warning);
        }
        scenario
    }

    fn texts(scenario: &ScenarioResult) -> Vec<(String, String)> {
        scenario.grouped_warnings().into_iter().map(|said| (said.targets, said.warning.what)).collect()
    }

    #[test]
    fn warnings_that_differ_in_numbers_become_one_with_a_range() {
        let scenario =
            scenario(&[(0, "off by 12 % here"), (2, "off by 7 % here"), (3, "off by 8.5 % here"), (4, "off")]);
        let expected = [("blockhaul, qemu-img, nbdcopy", "off by 7 to 12 % here"), ("dd", "off")];
        assert_eq!(texts(&scenario), expected.map(|(targets, what)| (targets.to_owned(), what.to_owned())));
    }

    #[test]
    fn warnings_of_other_kinds_or_advice_are_not_grouped() {
        let mut scenario = scenario(&[(0, "odd"), (1, "odd"), (2, "odd")]);
        scenario.targets[1].warnings[0].kind = "short".into();
        scenario.targets[2].warnings[0].advice = "run".into();
        assert_eq!(scenario.grouped_warnings().len(), 3);
    }

    #[test]
    fn a_warning_about_all_targets_names_none_and_missing_targets_have_none() {
        let everybody: Vec<(usize, &str)> = (0..10).map(|at| (at, "odd")).collect();
        let mut scenario = scenario(&everybody);
        scenario.warnings.push(scenario.targets[0].warnings[0].clone());
        let expected = [("", "odd"), ("all", "odd")];
        assert_eq!(texts(&scenario), expected.map(|(targets, what)| (targets.to_owned(), what.to_owned())));
    }
}
