//! The doubts of a scenario, gathered for people: the same one about many targets is said once.
//!
//! Doubts of one kind that differ in numbers only become one with the range of the numbers: `trials scatter by 6 to 75 %`.
//! A target that is missing has no number to doubt; that it is missing is said where its numbers would be.

use crate::results::{Doubt, Outcome, Scenario};

/// A doubt and the targets that it is about: nobody's if it is about the scenario.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doubted {
    pub whose: String,
    pub doubt: Doubt,
}

/// Doubts that differ in numbers only.
struct Alike<'a> {
    whose: Vec<&'a str>,
    doubts: Vec<&'a Doubt>,
}

impl Scenario {
    /// Its doubts, those about all of it first, in the order of the results.
    pub(crate) fn doubted(&self) -> Vec<Doubted> {
        let present = || self.targets.iter().filter(|target| !matches!(target.outcome, Outcome::Missing(_)));
        let mut all: Vec<Alike> = Vec::new();
        for target in present() {
            for doubt in &target.doubts {
                match all.iter_mut().find(|alike| differ_in_numbers(alike.doubts[0], doubt)) {
                    Some(alike) => {
                        alike.whose.push(&target.name);
                        alike.doubts.push(doubt);
                    }
                    None => all.push(Alike { whose: vec![&target.name], doubts: vec![doubt] }),
                }
            }
        }
        let targets = present().count();
        let about_all = self.doubts.iter().map(|doubt| Doubted { whose: String::new(), doubt: doubt.clone() });
        about_all.chain(all.iter().map(|alike| alike.gathered(targets))).collect()
    }
}

impl Alike<'_> {
    fn gathered(&self, targets: usize) -> Doubted {
        let everyone = self.whose.len() == targets && targets > 1;
        let whose = if everyone { "all".to_owned() } else { self.whose.join(", ") };
        let whats: Vec<Vec<&str>> = self.doubts.iter().map(|doubt| words(&doubt.what)).collect();
        let what =
            (0..whats[0].len()).map(|at| range(whats.iter().map(|words| words[at]))).collect::<Vec<_>>().join(" ");
        Doubted { whose, doubt: Doubt { what, ..self.doubts[0].clone() } }
    }
}

fn differ_in_numbers(one: &Doubt, other: &Doubt) -> bool {
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

/// The word that all of them are, or the least and the greatest of the numbers.
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
    use crate::samples;

    fn scenario(whats: &[(usize, &str)]) -> Scenario {
        let mut scenario = samples::results(1).scenarios.swap_remove(0);
        scenario.targets.iter_mut().for_each(|target| target.doubts.clear());
        for (at, what) in whats {
            let doubt = Doubt { kind: "noisy".into(), what: (*what).into(), advice: "wait".into() };
            scenario.targets[*at].doubts.push(doubt);
        }
        scenario
    }

    fn told(scenario: &Scenario) -> Vec<(String, String)> {
        scenario.doubted().into_iter().map(|said| (said.whose, said.doubt.what)).collect()
    }

    #[test]
    fn doubts_that_differ_in_numbers_become_one_with_a_range() {
        let scenario =
            scenario(&[(0, "off by 12 % here"), (2, "off by 7 % here"), (3, "off by 8.5 % here"), (4, "off")]);
        let expected = [("blockhaul, qemu-img, nbdcopy", "off by 7 to 12 % here"), ("dd", "off")];
        assert_eq!(told(&scenario), expected.map(|(whose, what)| (whose.to_owned(), what.to_owned())));
    }

    #[test]
    fn other_kinds_and_other_advice_stay_apart() {
        let mut scenario = scenario(&[(0, "odd"), (1, "odd"), (2, "odd")]);
        scenario.targets[1].doubts[0].kind = "short".into();
        scenario.targets[2].doubts[0].advice = "run".into();
        assert_eq!(scenario.doubted().len(), 3);
    }

    #[test]
    fn a_doubt_about_everybody_names_nobody_and_the_absent_are_spared() {
        let everybody: Vec<(usize, &str)> = (0..10).map(|at| (at, "odd")).collect();
        let mut scenario = scenario(&everybody);
        scenario.doubts.push(scenario.targets[0].doubts[0].clone());
        let expected = [("", "odd"), ("all", "odd")];
        assert_eq!(told(&scenario), expected.map(|(whose, what)| (whose.to_owned(), what.to_owned())));
    }
}
