//! Holds the flags that say how much is printed on stderr, which all commands share.

use clap::{ArgAction, Args};

/// Directive that every filter of `-v` starts with: libraries stay at warnings.
const LIBRARIES: &str = "warn";

#[derive(Debug, Default, Args)]
pub(crate) struct RawLog {
    /// Filter of the log on stderr, as in RUST_LOG: warn, debug, blockhaul_engine=trace [default: $RUST_LOG or warn]
    #[arg(long = "log", value_name = "FILTER", conflicts_with_all = ["verbose", "quiet"])]
    pub(crate) filter: Option<String>,
    /// Log more on stderr: -v what is done, -vv details, -vvv everything
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// Print only errors: no warnings, no progress, no summary
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl RawLog {
    /// Returns the filter that the flags ask for; `None` if they say nothing.
    pub(crate) fn directives(&self) -> Option<String> {
        let Self { filter, verbose, quiet } = self;
        let level = match verbose {
            0 if *quiet => return Some(String::from("error")),
            0 => return filter.clone(),
            1 => "info",
            2 => "debug",
            _ => "trace",
        };
        // All crates of the project have names that begin so.
        Some(format!("{LIBRARIES},blockhaul={level}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        log: RawLog,
    }

    fn directives(flags: &[&str]) -> Option<String> {
        let line = Line::try_parse_from(["blockhaul"].iter().chain(flags));
        line.unwrap_or_else(|error| panic!("{flags:?}: {error}")).log.directives()
    }

    #[test]
    fn flags_become_a_filter() {
        assert_eq!(directives(&[]), None);
        for (flags, filter) in [
            (&["--log", "h2=trace"][..], "h2=trace"),
            (&["-q"], "error"),
            (&["-v"], "warn,blockhaul=info"),
            (&["-vv"], "warn,blockhaul=debug"),
            (&["-v", "--verbose", "-v", "-v"], "warn,blockhaul=trace"),
        ] {
            assert_eq!(directives(flags).as_deref(), Some(filter), "{flags:?}");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for flags in [["-v", "-q"], ["-v", "--log=warn"], ["--quiet", "--log=warn"]] {
            assert!(Line::try_parse_from(["blockhaul"].iter().chain(&flags)).is_err(), "{flags:?}");
        }
    }
}
