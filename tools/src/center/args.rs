//! The flags of the commands that ask a task center.

use crate::args::RawLog;
use blockhaul_control::rpc::tls::RawTls;
use blockhaul_engine::units::{parse_duration, parse_rate};
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::time::Duration;

/// Where a center is, and how it answers.
#[derive(Debug, Args)]
pub(crate) struct RawCenter {
    /// Nodes of the center, any of them; the one that leads is found by itself
    #[arg(
        long,
        value_name = "ADDR[,ADDR...]",
        env = "BLOCKHAUL_CENTER",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub(crate) center: Vec<String>,
    #[command(flatten)]
    pub(crate) tls: RawTls,
    /// JSON lines on stdout and nothing else there
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

#[derive(Debug, Args)]
pub(crate) struct RawSubmit {
    #[command(subcommand)]
    pub(crate) work: RawWork,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RawWork {
    /// Copy a volume to another one
    Copy(Box<RawCopyTask>),
    /// Do nothing for a while: tries a center without touching a volume
    Noop(RawNoopTask),
}

/// Shared by all kinds of tasks.
#[derive(Debug, Args)]
pub(crate) struct RawTask {
    /// Name of the task: letters, digits, '.', '_' and '-', at most 64; the same again is the same task [default: made up]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The only node that may run it; where paths without a node are
    #[arg(long, value_name = "N")]
    pub(crate) node: Option<String>,
    /// 0 to 9; higher goes first, and waiting counts one a minute
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) priority: u32,
    /// Failures without progress in between after which it is given up, 1 to 100; interruptions do not count [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_attempts: Option<u32>,
    /// Show the task until it has ended; exits 0 done, 1 failed, 75 cancelled
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RawCopyTask {
    /// What is read: file://NODE/PATH, a path of --node, or an NBD export (nbd://HOST:PORT/EXPORT)
    #[arg(value_name = "SRC")]
    pub(crate) source: OsString,
    /// What is written: the same kinds; a missing regular file is created
    #[arg(value_name = "DST")]
    pub(crate) destination: OsString,
    #[command(flatten)]
    pub(crate) task: RawTask,
    /// Copy at most so many bytes per second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,
    /// Read the destination back and compare digests
    #[arg(long)]
    pub(crate) verify: bool,
    /// Write over a destination that is not empty
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Whether zeros may become holes [default: auto]
    #[arg(long, value_name = "auto|never|read")]
    pub(crate) sparse: Option<String>,
    /// Whether extents may be shared with the source [default: auto]
    #[arg(long, value_name = "auto|never|always")]
    pub(crate) reflink: Option<String>,
    /// Digest of the data while it passes [default: xxh3]
    #[arg(long, value_name = "xxh3|none")]
    pub(crate) digest: Option<String>,
    /// How an earlier runner is kept off the destination [default: local for a path, lease for an export]
    #[arg(long, value_name = "local|lease|command|manual")]
    pub(crate) fence: Option<String>,
    /// Nobody changes the source while it is copied: needed for --fence lease unless its export is read-only
    #[arg(long)]
    pub(crate) source_stable: bool,
    /// Stands for the destination, where one volume has several addresses
    #[arg(long, value_name = "NAME")]
    pub(crate) dest_id: Option<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawNoopTask {
    /// For how long
    #[arg(value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) task: RawTask,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawTaskId {
    /// The task
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawRemove {
    /// The tasks
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawSet {
    /// The task
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Copy at most so many bytes per second, from now on; none lifts the limit
    #[arg(long, value_name = "RATE|none", value_parser = limit, required = true)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

/// A rate, or its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit(None)) } else { parse_rate(text).map(|rate| Limit(Some(rate))) }
}

#[derive(Debug, Args)]
pub(crate) struct RawList {
    /// Only tasks in this state, such as RUNNING
    #[arg(long, value_name = "S")]
    pub(crate) state: Option<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawDrain {
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// Ask back what it runs, too: it goes on elsewhere
    #[arg(long, conflicts_with = "undo")]
    pub(crate) now: bool,
    /// Let it have tasks again
    #[arg(long)]
    pub(crate) undo: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawFence {
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// It is powered off or cut off from every volume: nothing of it will be written any more
    #[arg(long)]
    pub(crate) confirm: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawQuery {
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_rate_or_none() {
        assert_eq!(limit("none"), Ok(Limit(None)));
        assert_eq!(limit("1MiB/s"), Ok(Limit(Some(1 << 20))));
        assert!(limit("0/s").is_err() && limit("fast").is_err());
    }
}
