//! Declares the command line, exactly as typed.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Measure blockhaul against rival programs and against the limits of this machine.
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
    /// Run scenarios; this is the default
    Run(RawRun),
    /// Compare two runs; exit 1 if the later one is slower
    Compare {
        /// results.json of the earlier run, or its directory
        old: PathBuf,
        /// results.json of the later run, or its directory
        new: PathBuf,
    },
    /// Run the engine for one trial (internal)
    #[command(name = crate::engine_process::COMMAND, hide = true)]
    EngineProcess { request: String },
    /// Touch and free memory before a trial (internal)
    #[command(name = crate::pretouch::COMMAND, hide = true)]
    Pretouch { bytes: usize },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RawRun {
    /// Run only these scenarios; may be repeated [default: all]
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = known)]
    pub(crate) scenario: Vec<String>,
    /// Use small sizes: all scenarios in under three minutes, too small for claims
    #[arg(long)]
    pub(crate) quick: bool,
    /// Use tiny sizes, which only show that everything works
    #[arg(long, hide = true, conflicts_with = "quick")]
    pub(crate) tiny: bool,
    /// Directory for results.json, report.html and latency files [default: copy-bench-results/TIME]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Trials of each target [default: 5, with --quick 3; latency scenarios have their own numbers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) trials: Option<u32>,
    /// Exit 1 and list the goals of the project that were missed or not measured
    #[arg(long)]
    pub(crate) check: bool,
    /// Directory on the file system to measure; volumes are created here [default: /var/tmp]
    #[arg(long, value_name = "WORKDIR")]
    pub(crate) dir: Option<PathBuf>,
    /// List the scenarios and exit
    #[arg(long)]
    pub(crate) list: bool,
}

/// Parses the name of a scenario.
fn known(name: &str) -> Result<String, String> {
    match crate::scenario::named(name) {
        Some(scenario) => Ok(scenario.name.to_owned()),
        None => Err("unknown scenario; list them with --list".to_owned()),
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
    fn the_run_subcommand_may_be_omitted() {
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
