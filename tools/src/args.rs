//! Declares the command line: names, defaults and help.
//!
//! Each command has one raw structure. It checks single values (a size is a size) and which flags exclude each other.
//! The code that resolves a request destructures the raw structure in full, so that a new flag does not compile until
//! it is handled.

use crate::center::args::{
    RawCancel, RawDrain, RawFence, RawList, RawLogs, RawMove, RawNode, RawRemove, RawRetry, RawRunners, RawSchedule,
    RawSet, RawStatus, RawSubmit, RawTaskId, RawWatch,
};
use crate::completion::Program;
use crate::log_args::RawLog;
use blockhaul_engine::spec::{DigestKind, Direct, PathChoice, Reflink, Sparse};
use blockhaul_engine::units::{parse_duration, parse_rate, parse_size};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const SIZES: &str = "Sizes are bytes (4096) or binary units (64KiB, 1MiB), rates are sizes per second (200MiB/s), \
durations carry their unit (500ms, 10s).\n\nExit codes: 0 done; 1 failed; 2 usage; 3 volumes differ; 75 interrupted \
or cancelled, resumable.";

const COMPLETIONS: &str = "The script of blockhaul calls it for each completion: names of tasks, nodes and schedules \
come from the center of --center or $BLOCKHAUL_CENTER, if it answers within a second.

  bash: source <(blockhaul completions bash)   # in ~/.bashrc
  zsh:  source <(blockhaul completions zsh)    # in ~/.zshrc, after compinit
  fish: blockhaul completions fish | source    # in ~/.config/fish/config.fish";

const VERIFY_USAGE: &str =
    "blockhaul verify [OPTIONS] SRC DST\n       blockhaul verify [OPTIONS] --receipt FILE VOLUME";

/// Copy storage volumes block by block through io_uring, resumably and never silently wrong.
#[derive(Debug, Parser)]
#[command(name = "blockhaul", version, after_help = SIZES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Copy a volume
    Copy(Box<RawCopy>),
    /// Compare two volumes, or a volume with a receipt
    Verify(RawVerify),
    /// Run the copies, comparisons and hooks of a file, several at once and in order; run again, resume
    Batch(RawBatch),
    /// List the extents of a volume
    Map(RawMap),
    /// Show a checkpoint or receipt
    Inspect(RawInspect),
    /// Examine this host and suggest changes
    Doctor(RawDoctor),
    /// Submit a task to a task center
    Submit(Box<RawSubmit>),
    /// Submit a task again that has ended without success, as ID~2; of a group, what has not succeeded and its clean-up
    Retry(RawRetry),
    /// Show a task
    Get(RawTaskId),
    /// Show the last transitions of a task: what it became, when, why, and who asked for it
    Events(RawTaskId),
    /// Follow a task until it ends (exits 0 succeeded, 1 failed or skipped, 75 cancelled), or all tasks
    Watch(RawWatch),
    /// Show the log of an attempt: how it went, what failed, and what a hook has written
    Logs(RawLogs),
    /// Cancel a task; of a group, all members but its clean-up
    Cancel(RawCancel),
    /// Pause a copy and free its slot
    Pause(RawTaskId),
    /// Resume a paused copy
    Resume(RawTaskId),
    /// Remove tasks that have ended and free their IDs
    Remove(RawRemove),
    /// Change the limit, priority, attempts, start or deadline of a task
    Set(RawSet),
    /// Have a copy or comparison run on another node; that counts as no failure
    Move(RawMove),
    /// List tasks
    List(RawList),
    /// Submit tasks again and again: at given times, or when a node boots
    Schedule(Box<RawSchedule>),
    /// List the nodes of a task center
    Runners(RawRunners),
    /// Let a node have tasks again that failed several in a row
    Include(RawNode),
    /// Stop assigning tasks to a node; also works for a node that is down
    Drain(RawDrain),
    /// Confirm that a lost node cannot write, so that its tasks resume on other nodes
    Fence(RawFence),
    /// Show the status of a task center, or its settings
    Center(Box<RawStatus>),
    /// Print the script that completes command lines in a shell
    Completions(RawCompletions),
    /// Write files of a package
    #[command(subcommand, hide = true)]
    Generate(RawGenerate),
}

/// What a source that is a disk image or compressed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SourceFormat {
    /// Its own bytes.
    Raw,
    /// The disk inside of an image.
    Auto,
}

#[derive(Debug, Args)]
#[command(after_help = SIZES)]
pub(crate) struct RawCopy {
    /// Source: a regular file, a block device or an NBD export (nbd://HOST:PORT/EXPORT,
    /// nbd+unix:///EXPORT?socket=PATH; nbds for TLS)
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub(crate) source: OsString,
    /// Destination: the same kinds; a missing regular file is created
    #[arg(value_name = "DST", value_hint = ValueHint::AnyPath)]
    pub(crate) destination: OsString,

    /// What to copy of a disk image or a compressed file: its own bytes (raw), or the disk inside of an image (auto)
    /// [default: such a source is refused]
    #[arg(long, value_name = "raw|auto", hide_possible_values = true)]
    pub(crate) format: Option<SourceFormat>,
    #[command(flatten)]
    pub(crate) engine: RawEngine,
    #[command(flatten)]
    pub(crate) network: RawNetwork,
    /// Copy only what changed according to this dirty bitmap of the source (an NBD export of qemu), over an older copy
    #[arg(long, value_name = "BITMAP")]
    pub(crate) changed_since: Option<String>,
    /// Limit the rate of the copy
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,
    /// Keep the p90 latency of other readers of the same devices below this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) protect: Option<Duration>,
    /// Whether zeros may become holes; read: find zeros by reading, ignore the source's map of holes
    #[arg(long, value_name = "auto|never|read", default_value = "auto",
        value_parser = one_of(Sparse::ALL, Sparse::as_str), hide_possible_values = true)]
    pub(crate) sparse: Sparse,
    /// Whether extents may be shared with the source
    #[arg(long, value_name = "auto|never|always", default_value = "auto",
        value_parser = one_of(Reflink::ALL, Reflink::as_str), hide_possible_values = true)]
    pub(crate) reflink: Reflink,
    /// Whether to bypass the page cache
    #[arg(long, value_name = "auto|yes|no", default_value = "auto",
        value_parser = one_of(Direct::ALL, Direct::as_str), hide_possible_values = true)]
    pub(crate) direct: Direct,
    /// How operations reach the kernel
    #[arg(long, value_name = "auto|ring|inline|threads", default_value = "auto",
        value_parser = one_of(PathChoice::ALL, PathChoice::as_str), hide_possible_values = true)]
    pub(crate) path: PathChoice,

    /// Keep the checkpoint in this file [default: in the state directory, named after the destination]
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Record a checkpoint after this many bytes or this much time, whichever comes first; may be given once for each
    /// [default: 256MiB and 1s]
    #[arg(long, value_name = "SIZE|DURATION", value_parser = CheckpointInterval::parse)]
    pub(crate) checkpoint_every: Vec<CheckpointInterval>,
    /// Keep no checkpoint: the copy cannot be resumed
    #[arg(long, conflicts_with_all = ["checkpoint", "resume", "restart"])]
    pub(crate) no_checkpoint: bool,
    /// Resume from the checkpoint of an earlier run; start from the beginning if there is none
    #[arg(long)]
    pub(crate) resume: bool,
    /// Discard the checkpoint of an earlier run and start from the beginning
    #[arg(long, conflicts_with = "resume")]
    pub(crate) restart: bool,
    /// Directory for checkpoints [default: $STATE_DIRECTORY, $XDG_STATE_HOME/blockhaul or ~/.local/state/blockhaul]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Read the destination back, bypassing the cache, and compare digests
    #[arg(long)]
    pub(crate) verify: bool,
    /// Digest of the copied data
    #[arg(long, value_name = "xxh3|none", default_value = "xxh3",
        value_parser = one_of(DigestKind::ALL, DigestKind::as_str), hide_possible_values = true)]
    pub(crate) digest: DigestKind,
    /// Keep the finished journal in this file for `blockhaul verify --receipt`; replaces only an older receipt
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<PathBuf>,
    /// Do not flush at the end; the report says durable 0
    #[arg(long)]
    pub(crate) no_sync: bool,

    /// Overwrite a destination that is not empty
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// How long to wait for a destination that another copy uses [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) lock_wait: Option<Duration>,
    /// Copy a source device even if it is mounted read-write
    #[arg(long)]
    pub(crate) allow_live_source: bool,
    /// Check the copy and print the plan; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) output: RawOutput,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

/// Shared by the commands that move or read every byte.
#[derive(Debug, Args)]
pub(crate) struct RawEngine {
    /// Unit of I/O and of cancellation: a power of two from 4KiB to 64MiB, reduced to the server's limit [default:
    /// chosen by the engine]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) block_size: Option<u64>,
    /// Blocks in flight per core, 1 to 256 [default: chosen by the engine]
    #[arg(long, value_name = "N")]
    pub(crate) depth: Option<usize>,
    /// Worker threads, each pinned to a core [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<usize>,
    /// Upper bound for all buffers together [default: chosen by the engine]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
}

/// Shared by the commands that may reach servers.
#[derive(Debug, Args)]
pub(crate) struct RawNetwork {
    /// How long to retry a lost connection [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) retry_for: Option<Duration>,
    /// How long to wait for an answer before a connection counts as lost [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) request_timeout: Option<Duration>,
    /// Maximum number of connections to each server [default: one per core, up to 4]
    #[arg(long, value_name = "N")]
    pub(crate) connections: Option<usize>,
}

#[derive(Debug, Args)]
#[command(after_help = SIZES, override_usage = VERIFY_USAGE)]
pub(crate) struct RawVerify {
    /// SRC and DST, or with --receipt the one volume to check
    #[arg(value_name = "VOLUME", required = true, num_args = 1..=2, value_hint = ValueHint::AnyPath)]
    pub(crate) volumes: Vec<OsString>,
    /// Compare with this receipt instead of a source
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) engine: RawEngine,
    #[command(flatten)]
    pub(crate) network: RawNetwork,
    /// Limit the read rate
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,
    /// Whether to bypass the page cache
    #[arg(long, value_name = "auto|yes|no", default_value = "auto",
        value_parser = one_of(Direct::ALL, Direct::as_str), hide_possible_values = true)]
    pub(crate) direct: Direct,
    /// Whether holes of both volumes count as equal (auto) or are read
    #[arg(long, value_name = "auto|read", default_value = "auto",
        value_parser = one_of(Sparse::ALL, Sparse::as_str), hide_possible_values = true)]
    pub(crate) sparse: Sparse,
    #[command(flatten)]
    pub(crate) output: RawOutput,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

#[derive(Debug, Args)]
#[command(after_help = SIZES)]
pub(crate) struct RawBatch {
    /// Batch file: TOML, or JSON of the same shape (docs/batches.md)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) engine: RawEngine,
    #[command(flatten)]
    pub(crate) network: RawNetwork,
    /// Members that run at once, 1 to 256 [default: the file's `parallel`, else 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) parallel: Option<u16>,
    /// Name of this host's node in the file [default: the host's name]
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Folder of the hooks that members run; only root or this user may write it and all folders above it
    #[arg(long, value_name = "DIR")]
    pub(crate) hooks_dir: Option<PathBuf>,
    /// Directory for the batch's state and checkpoints [default: as for copy]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Overwrite destinations that are not empty
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Forget an earlier run, discard its checkpoints and run every member from the beginning
    #[arg(long)]
    pub(crate) restart: bool,
    /// End an interrupted batch: cancel what has not ended and run its clean-up
    #[arg(long, conflicts_with = "restart")]
    pub(crate) cancel: bool,
    /// Check every member and print the plans; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: RawOutput,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

#[derive(Debug, Args)]
pub(crate) struct RawMap {
    /// Volume to list; for a server without an export name (nbd://HOST/), its exports
    #[arg(value_name = "VOLUME", value_hint = ValueHint::AnyPath)]
    pub(crate) volume: OsString,
    /// Print one JSON object per extent or export
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

#[derive(Debug, Args)]
pub(crate) struct RawInspect {
    /// Checkpoint or receipt
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

#[derive(Debug, Args)]
pub(crate) struct RawDoctor {
    /// Files, devices or directories to examine
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) log: RawLog,
}

#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS)]
pub(crate) struct RawCompletions {
    /// Shell of the script
    #[arg(value_name = "bash|zsh|fish", hide_possible_values = true)]
    pub(crate) shell: ShellName,
    /// Program whose command lines are completed
    #[arg(value_name = "blockhaul|taskd", default_value = "blockhaul", hide_possible_values = true)]
    pub(crate) program: Program,
}

/// Shell that completes command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ShellName {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RawGenerate {
    /// Write the manual pages of all commands and of taskd
    Man {
        /// Folder for the pages; it must exist
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Print a configuration file of taskd that explains all settings
    Config,
}

/// Output of a job.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct RawOutput {
    /// Print only JSON lines on stdout: progress every 250 ms, the report last
    #[arg(long)]
    pub(crate) json: bool,
    /// Show a progress bar on stderr; auto: on a terminal
    #[arg(long, value_name = "auto|bar|none", default_value = "auto", hide_possible_values = true)]
    pub(crate) progress: ProgressBarMode,
}

/// Use of a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProgressBarMode {
    /// On a terminal, unless `--json` is given.
    Auto,
    /// Always.
    Bar,
    /// Never.
    None,
}

/// One bound of a checkpoint interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointInterval {
    Bytes(u64),
    Time(Duration),
}

impl CheckpointInterval {
    /// A size (`64MiB`) or a duration (`10s`); more than nothing.
    fn parse(text: &str) -> Result<Self, String> {
        match parse_size(text).map(Self::Bytes).or_else(|_| parse_duration(text).map(Self::Time)) {
            Ok(Self::Bytes(0)) => Err("the checkpoint interval must be more than 0 bytes".to_owned()),
            Ok(Self::Time(Duration::ZERO)) => Err("the checkpoint interval must be more than 0 s".to_owned()),
            Ok(interval) => Ok(interval),
            Err(_) => Err(format!("'{text}' is not a size (64MiB) or duration (500ms, 10s)")),
        }
    }
}

/// The spellings of one of the engine's closed sets.
fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|&value| name(value)))
        .try_map(move |text| all.iter().copied().find(|&value| name(value) == text).ok_or("invalid value"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_interval_is_a_size_or_a_duration() {
        assert_eq!(CheckpointInterval::parse("64MiB"), Ok(CheckpointInterval::Bytes(64 << 20)));
        assert_eq!(CheckpointInterval::parse("5M"), Ok(CheckpointInterval::Bytes(5 << 20)));
        assert_eq!(CheckpointInterval::parse("5m"), Ok(CheckpointInterval::Time(Duration::from_secs(300))));
        assert_eq!(CheckpointInterval::parse("500ms"), Ok(CheckpointInterval::Time(Duration::from_millis(500))));
        for text in ["", "0", "0s", "soon", "1 s"] {
            assert!(CheckpointInterval::parse(text).is_err(), "{text}");
        }
    }
}
