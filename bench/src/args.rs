//! The flags, exactly as they are typed.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Measures blockhaul against its rivals and against the limit of this machine, in one run.
#[derive(Debug, Parser)]
#[command(name = "copy-bench", version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 a goal was missed, a target of ours failed, or a run is slower; 2 usage; \
                        130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RawRun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure; the same as without a command
    Run(RawRun),
    /// Say whether a later run is slower than an earlier one: exit 1 if it is
    Compare {
        /// results.json of the earlier run, or its folder
        old: PathBuf,
        /// The same of the later run
        new: PathBuf,
    },
    /// Carry out one request: what a run starts for the engine's trials
    #[command(name = crate::engine_process::COMMAND, hide = true)]
    EngineProcess { request: String },
    /// Touch and free so much memory: what a run starts before its first trial
    #[command(name = crate::warm_up::COMMAND, hide = true)]
    WarmUp { bytes: usize },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RawRun {
    /// Only these, by name; may be given several times [default: all]
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = known)]
    pub(crate) scenario: Vec<String>,
    /// Small sizes: under three minutes for everything; for a look, not for claims
    #[arg(long)]
    pub(crate) quick: bool,
    /// Tiny sizes, which only show that everything works
    #[arg(long, hide = true, conflicts_with = "quick")]
    pub(crate) tiny: bool,
    /// Where results.json, report.html and the latencies go [default: copy-bench-results/ and the time]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Trials of each target [default: 5; 3 with --quick; scenarios of latencies have their own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) trials: Option<u32>,
    /// Exit 1 with a list if a goal of the project is missed, or could not be measured
    #[arg(long)]
    pub(crate) check: bool,
    /// Where volumes are made: the file system that is measured [default: /var/tmp]
    #[arg(long, value_name = "WORKDIR")]
    pub(crate) dir: Option<PathBuf>,
    /// List the scenarios, and measure nothing
    #[arg(long)]
    pub(crate) list: bool,
}

/// The name of a scenario.
fn known(name: &str) -> Result<String, String> {
    match crate::scenario::named(name) {
        Some(scenario) => Ok(scenario.name.to_owned()),
        None => Err("there is no such scenario: see --list".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_may_be_left_out() {
        for words in [
            &["copy-bench", "--scenario", "tmpfs", "--quick"][..],
            &["copy-bench", "run", "--scenario", "tmpfs", "--quick"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            let run = match cli.command {
                Some(Command::Run(run)) => run,
                _ => cli.run,
            };
            assert!(run.quick && run.scenario == ["tmpfs"]);
        }
        assert!(Cli::try_parse_from(["copy-bench", "--scenario", "no-such"]).is_err());
        assert!(Cli::try_parse_from(["copy-bench", "--trials", "0"]).is_err());
    }
}
