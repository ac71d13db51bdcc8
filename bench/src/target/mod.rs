//! Defines the targets of a scenario: the engine, the `blockhaul` command, rival programs and the limits of the device
//! and of the harness.
//!
//! Each file turns a [`Workload`] into the command line that does it best. Flags follow what the authors of each
//! program recommend and what was measured. Every destination ends on stable storage, and its space is reserved first
//! where the program can do that.

pub(crate) mod blockhaul;
pub(crate) mod cp;
pub(crate) mod dd;
pub(crate) mod ddrescue;
pub(crate) mod baselines;
pub(crate) mod nbdcopy;
pub(crate) mod qemu_img;
mod workload;

use crate::results::{Kind, Step, Warning};
use crate::volume::VolumePair;

pub(crate) use workload::{Caching, Workload};

/// One way of doing a scenario's work. It can be run any number of times.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Stable within the scenario.
    pub name: String,
    pub kind: Kind,
    pub step: Option<Step>,
    pub work: TrialWork,
    /// What it copies; several pairs are copied at the same time.
    pub pairs: Vec<VolumePair>,
    /// Whether the destination is compared with the source after each trial.
    pub verification: Verification,
    /// Known reasons why its numbers are not fully comparable.
    pub warnings: Vec<Warning>,
}

/// How the destination of a trial is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verification {
    /// Its bytes must equal the source's.
    ByteForByte,
    /// Not at all: the target does not copy, or its destination keeps no data.
    None,
}

/// What a trial starts.
#[derive(Clone, Debug)]
pub(crate) enum TrialWork {
    /// These commands, at the same time.
    Commands { commands: Vec<Invocation>, format: OutputFormat },
    /// Nothing: a program or facility is missing; says which and how to get it.
    Missing(String),
}

/// Programs that run one after another until one fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// Each program with its arguments, started without a shell.
    pub steps: Vec<Vec<String>>,
}

/// How the standard output of a target is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    /// Not read; the trial is timed from outside.
    Ignored,
    /// fio's JSON report. Its own clock counts, because fio does much before and after the work.
    FioJson,
    /// Report of the engine process. Its own clock counts, because users of the library start the engine once.
    EngineReport,
    /// Events of `blockhaul --json`. The trial is timed from outside.
    BlockhaulJson,
}

impl Invocation {
    /// Returns an invocation of one program.
    pub(crate) fn new<T: Into<String>>(words: impl IntoIterator<Item = T>) -> Self {
        Self { steps: vec![words.into_iter().map(Into::into).collect()] }
    }

    /// Adds a program that runs after the others.
    pub(crate) fn then<T: Into<String>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.steps.push(words.into_iter().map(Into::into).collect());
        self
    }

    /// Returns the shell command a user would type, with programs found on `PATH`.
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
    /// Returns a target that is verified, without warnings and outside of any series.
    pub(crate) fn new(name: &str, kind: Kind, work: TrialWork, pairs: &[VolumePair]) -> Self {
        let (name, pairs) = (name.to_owned(), pairs.to_vec());
        Self { name, kind, step: None, work, pairs, verification: Verification::ByteForByte, warnings: Vec::new() }
    }

    /// Sets how its output is read.
    pub(crate) fn with_output(mut self, output: OutputFormat) -> Self {
        if let TrialWork::Commands { format, .. } = &mut self.work {
            *format = output;
        }
        self
    }

    /// Returns the command line of the first copy, with placeholders for the paths of this run.
    pub(crate) fn command(&self) -> String {
        match &self.work {
            TrialWork::Missing(_) => String::new(),
            TrialWork::Commands { commands, .. } => {
                let line = commands.first().map(Invocation::command_line).unwrap_or_default();
                let line = self.pairs.first().map_or(line.clone(), |pair| pair.with_placeholders(&line));
                if commands.len() > 1 { format!("{} at once: {line}", commands.len()) } else { line }
            }
        }
    }

    /// Adds a warning.
    pub(crate) fn with_warning(mut self, warning: Warning) -> Self {
        self.warnings.push(warning);
        self
    }

    /// Renames the target, for variants.
    pub(crate) fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Makes the target a step of the series that carries its current name.
    pub(crate) fn at_step(mut self, at: u64) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a place on a chart")]
        let step = Step { series: self.name.clone(), at: at as f64 };
        self.name = format!("{}@{at}", self.name);
        self.step = Some(step);
        self
    }

    /// Turns verification off.
    pub(crate) fn unverified(mut self) -> Self {
        self.verification = Verification::None;
        self
    }
}
