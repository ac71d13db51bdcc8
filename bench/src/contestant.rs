//! Who takes part in a scenario, and what exactly it is asked to do.

use crate::results::{Doubt, Kind, Step};
use crate::volume::Pair;

/// One way of doing a scenario's work, ready to be started any number of times.
#[derive(Clone, Debug)]
pub(crate) struct Contestant {
    /// Stable within the scenario.
    pub name: String,
    pub kind: Kind,
    pub step: Option<Step>,
    pub work: Work,
    /// What it copies, at the same time if there are several.
    pub pairs: Vec<Pair>,
    /// Whether its destination should hold the source's bytes afterwards.
    pub compared: Compared,
    /// Why its numbers are not quite like the others'.
    pub doubts: Vec<Doubt>,
}

/// Whether bytes are compared after a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// They must be equal.
    Yes,
    /// It does not copy, or its destination keeps nothing.
    No,
}

/// What is started.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// These, at the same time.
    Commands { commands: Vec<Invocation>, told: Told },
    /// Nothing: the program or facility is not here, in words.
    Missing(String),
}

/// Programs that run one after the other until one fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// Each with its arguments; never through a shell.
    pub steps: Vec<Vec<String>>,
}

/// What a program's standard output says about the trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing that counts: it is timed from outside.
    Nothing,
    /// The report of fio, in JSON. Its own clock counts: it does much before and after the work.
    Fio,
    /// The answer of the engine's process. Its own clock counts: a library's user starts the engine once.
    Engine,
    /// The events of `blockhaul --json`. Timed from outside.
    Blockhaul,
}

impl Invocation {
    /// One program.
    pub(crate) fn new<T: Into<String>>(words: impl IntoIterator<Item = T>) -> Self {
        Self { steps: vec![words.into_iter().map(Into::into).collect()] }
    }

    /// And then this one.
    pub(crate) fn then<T: Into<String>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.steps.push(words.into_iter().map(Into::into).collect());
        self
    }

    /// As one would type it, where programs are on the path.
    pub(crate) fn line(&self) -> String {
        let name = |word: &String| word.rsplit('/').next().map(str::to_owned).unwrap_or_default();
        let step = |step: &Vec<String>| {
            let words = step.iter().enumerate().map(|(at, word)| if at == 0 { name(word) } else { word.clone() });
            words.collect::<Vec<_>>().join(" ")
        };
        self.steps.iter().map(step).collect::<Vec<_>>().join(" && ")
    }
}

impl Contestant {
    /// The command line of its first copy, without the folders of this run.
    pub(crate) fn command(&self) -> String {
        match &self.work {
            Work::Missing(_) => String::new(),
            Work::Commands { commands, .. } => {
                let line = commands.first().map(Invocation::line).unwrap_or_default();
                let line = self.pairs.first().map_or(line.clone(), |pair| pair.shorten(&line));
                if commands.len() > 1 { format!("{} at once: {line}", commands.len()) } else { line }
            }
        }
    }

    /// With one more reason to distrust it.
    pub(crate) fn doubted(mut self, doubt: Doubt) -> Self {
        self.doubts.push(doubt);
        self
    }

    /// Under another name, for variants.
    pub(crate) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// As a step of a series that has the name it has now.
    pub(crate) fn at(mut self, at: u64) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a place on a chart")]
        let step = Step { series: self.name.clone(), at: at as f64 };
        self.name = format!("{}@{at}", self.name);
        self.step = Some(step);
        self
    }

    /// Not compared afterwards.
    pub(crate) fn uncompared(mut self) -> Self {
        self.compared = Compared::No;
        self
    }
}
