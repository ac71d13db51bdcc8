//! Who is measured: the engine twice, what people would use instead, and the limits of device and harness.
//!
//! A target turns a workload into the command line that does it best. Flags follow what each program's authors recommend
//! and what was measured; a destination always ends on stable storage, and preallocated where the program can.

pub(crate) mod blockhaul;
pub(crate) mod cp;
pub(crate) mod dd;
pub(crate) mod ddrescue;
pub(crate) mod limits;
pub(crate) mod nbdcopy;
pub(crate) mod qemu_img;
mod workload;

use crate::results::{Kind, Step, Warning};
use crate::volume::VolumePair;

pub(crate) use workload::{Caching, Workload};

/// One way of doing a scenario's work, ready to be started any number of times.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Stable within the scenario.
    pub name: String,
    pub kind: Kind,
    pub step: Option<Step>,
    pub work: Work,
    /// What it copies, at the same time if there are several.
    pub pairs: Vec<VolumePair>,
    /// Whether its destination should hold the source's bytes afterwards.
    pub verification: Verification,
    /// Why its numbers are not quite like the others'.
    pub warnings: Vec<Warning>,
}

/// Whether bytes are verification after a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verification {
    /// They must be equal.
    ByteForByte,
    /// It does not copy, or its destination keeps nothing.
    None,
}

/// What is started.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// These, at the same time.
    Commands { commands: Vec<Invocation>, format: OutputFormat },
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
pub(crate) enum OutputFormat {
    /// Nothing that counts: it is timed from outside.
    Ignored,
    /// The report of fio, in JSON. Its own clock counts: it does much before and after the work.
    FioJson,
    /// The answer of the engine's process. Its own clock counts: a library's user starts the engine once.
    EngineReport,
    /// The events of `blockhaul --json`. Timed from outside.
    BlockhaulJson,
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
    pub(crate) fn command_line(&self) -> String {
        let name = |word: &String| word.rsplit('/').next().map(str::to_owned).unwrap_or_default();
        let step = |step: &Vec<String>| {
            let words = step.iter().enumerate().map(|(at, word)| if at == 0 { name(word) } else { word.clone() });
            words.collect::<Vec<_>>().join(" ")
        };
        self.steps.iter().map(step).collect::<Vec<_>>().join(" && ")
    }
}

impl Target {
    /// The command line of its first copy, without the folders of this run.
    pub(crate) fn command(&self) -> String {
        match &self.work {
            Work::Missing(_) => String::new(),
            Work::Commands { commands, .. } => {
                let line = commands.first().map(Invocation::command_line).unwrap_or_default();
                let line = self.pairs.first().map_or(line.clone(), |pair| pair.with_placeholders(&line));
                if commands.len() > 1 { format!("{} at once: {line}", commands.len()) } else { line }
            }
        }
    }

    /// With one more reason to distrust it.
    pub(crate) fn with_warning(mut self, warning: Warning) -> Self {
        self.warnings.push(warning);
        self
    }

    /// Under another name, for variants.
    pub(crate) fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// As a step of a series that has the name it has now.
    pub(crate) fn at_step(mut self, at: u64) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a place on a chart")]
        let step = Step { series: self.name.clone(), at: at as f64 };
        self.name = format!("{}@{at}", self.name);
        self.step = Some(step);
        self
    }

    /// Not verification afterwards.
    pub(crate) fn unverified(mut self) -> Self {
        self.verification = Verification::None;
        self
    }
}
