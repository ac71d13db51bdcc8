//! Holds the flag of the log, which all commands share, exactly as it is typed.

use clap::Args;

#[derive(Debug, Default, Args)]
pub(crate) struct RawLog {
    /// Filter of the log on stderr, as in RUST_LOG: warn, debug, blockhaul_engine=trace [default: $RUST_LOG or warn]
    #[arg(long = "log", value_name = "FILTER")]
    pub(crate) filter: Option<String>,
}
