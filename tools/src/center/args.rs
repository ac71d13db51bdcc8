//! Declares the flags of the commands that call a task center.

use crate::completion::center::{groups, nodes, schedules, tasks};
use crate::log_args::RawLog;
use blockhaul_control::model::{Position, parse_label};
use blockhaul_control::rpc::tls::RawTls;
use blockhaul_control::rpc::wire;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::units::{parse_duration, parse_rate};
use clap::{Args, Subcommand, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Addresses of a center, and the form of the output.
#[derive(Debug, Args)]
pub(crate) struct RawCenter {
    /// Addresses of any nodes of the center; the leader is found automatically
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
    /// Print only JSON lines on stdout
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
    /// Copy a volume
    Copy(Box<RawCopyTask>),
    /// Compare two volumes, or a volume with a receipt
    Verify(RawVerifyTask),
    /// Run a hook: a program in the hooks folder of a node
    Run(Box<RawRunTask>),
    /// Submit the members of a batch file as a group: one task that ends with its last member
    Batch(RawBatchTask),
    /// Do nothing for a while, to test a center
    Noop(RawNoopTask),
}

/// Shared by all kinds of tasks.
#[derive(Debug, Args)]
pub(crate) struct RawTask {
    /// ID of the task: at most 64 letters, digits, '.', '_' and '-'; submitting an ID again is the same task [default:
    /// random]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The only node that may run the task; paths without a node are on this one
    #[arg(long, value_name = "N", add = nodes())]
    pub(crate) node: Option<String>,
    /// Priority from 0 to 9; higher runs first, and each minute of waiting adds one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) priority: u32,
    /// Fail the task after this many failures without progress, 1 to 100; interruptions do not count [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_attempts: Option<u32>,
    /// Start only when this task has succeeded, failed or ended in any way [default: success]; skip the task, without an
    /// attempt, once that cannot happen any more; may be repeated
    #[arg(long, value_name = "ID[:success|:failure|:end]", add = tasks())]
    pub(crate) after: Vec<String>,
    #[command(flatten)]
    pub(crate) times: RawTimes,
    #[command(flatten)]
    pub(crate) placement: RawPlacement,
    /// Start only inside of this window, such as 'mon-fri 22:00-06:00 Europe/Berlin'; copies and comparisons also pause
    /// outside of it; may be repeated
    #[arg(long, value_name = "WINDOW")]
    pub(crate) window: Vec<String>,
    /// Follow the task until it ends; exits 0 succeeded, 1 failed or skipped, 75 cancelled
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) signing: RawSigning,
    /// Submit nothing: have up to eight nodes that could run the task now check it, and show what each would do
    #[arg(long, conflicts_with = "wait")]
    pub(crate) check: bool,
}

/// By which key a task is signed, for a center with --order-keys.
#[derive(Debug, Default, Args)]
pub(crate) struct RawSigning {
    /// Sign the task with this private key (Ed25519, PKCS #8 in PEM), for a center that runs only what is signed
    #[arg(long, value_name = "KEY")]
    pub(crate) sign: Option<PathBuf>,
    /// Let no attempt start later than so long after now, at most 7d [default: 1d]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "sign")]
    pub(crate) not_after: Option<Duration>,
}

/// Where a task may run.
#[derive(Debug, Args)]
pub(crate) struct RawPlacement {
    /// Run the task only on nodes with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) require: Vec<(String, String)>,
    /// Of the nodes that may run the task, take one with this label, if there is one; may be repeated: the most labels win
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) prefer: Vec<(String, String)>,
    /// Never run two tasks with the same KEY on one node at once
    #[arg(long, value_name = "KEY")]
    pub(crate) apart_from: Option<String>,
}

impl RawPlacement {
    /// Returns the rules of a request; `None` if there are none.
    pub(crate) fn wire(self) -> Option<wire::Placement> {
        let Self { require, prefer, apart_from } = self;
        let rules = wire::Placement {
            require: require.into_iter().collect(),
            prefer: prefer.into_iter().collect(),
            apart_from: apart_from.unwrap_or_default(),
        };
        (rules != wire::Placement::default()).then_some(rules)
    }
}

/// When a task may start, and by when it has to have ended.
#[derive(Debug, Args)]
pub(crate) struct RawTimes {
    /// Start at this time or later, such as 2026-01-31T22:00:00Z
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    pub(crate) start_at: Option<Timestamp>,
    /// Start no sooner than so long after the submission
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) delay: Option<Duration>,
    /// Stop what has not ended so long after the submission; it fails with ETimeout
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct RawCopyTask {
    /// Source: file://NODE/PATH, a path on --node, or an NBD export (nbd://HOST:PORT/EXPORT)
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub(crate) source: OsString,
    /// Destination: the same kinds; a missing regular file is created
    #[arg(value_name = "DST", value_hint = ValueHint::AnyPath)]
    pub(crate) destination: OsString,
    #[command(flatten)]
    pub(crate) task: RawTask,
    /// Limit the rate of the copy
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,
    /// Read the destination back and compare digests
    #[arg(long)]
    pub(crate) verify: bool,
    /// Overwrite a destination that is not empty
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Whether zeros may become holes [default: auto]
    #[arg(long, value_name = "auto|never|read")]
    pub(crate) sparse: Option<String>,
    /// Whether extents may be shared with the source [default: auto]
    #[arg(long, value_name = "auto|never|always")]
    pub(crate) reflink: Option<String>,
    /// Digest of the copied data [default: xxh3]
    #[arg(long, value_name = "xxh3|none")]
    pub(crate) digest: Option<String>,
    /// How to keep an earlier runner from writing to the destination [default: local for a path, lease for an export]
    #[arg(long, value_name = "local|lease|command|manual")]
    pub(crate) fence: Option<String>,
    /// Promise that the source does not change meanwhile; required for --fence lease unless its export is read-only
    #[arg(long)]
    pub(crate) source_stable: bool,
    /// Identify the destination by this name, if one volume has several addresses
    #[arg(long, value_name = "NAME")]
    pub(crate) dest_id: Option<String>,
    /// Run this hook on the copy's node before the copy, once all that the copy needs is free; makes the task a group
    #[arg(long, value_name = "HOOK")]
    pub(crate) before: Option<String>,
    /// Run this hook on the copy's node after the copy has ended, in whatever way; makes the task a group
    #[arg(long, value_name = "HOOK")]
    pub(crate) finally: Option<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawVerifyTask {
    /// What should be there, and what is checked; with --receipt only what is checked. Named as those of a copy
    #[arg(value_name = "VOLUME", num_args = 1..=2, required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) volumes: Vec<OsString>,
    /// Compare with the receipt of a finished copy: file://NODE/PATH, or a path of --node
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<OsString>,
    #[command(flatten)]
    pub(crate) task: RawTask,
    /// Read at most so many bytes per second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawRunTask {
    /// Hook to run: the name of a file in the folder of --hooks-dir of the node's taskd
    #[arg(value_name = "HOOK")]
    pub(crate) hook: String,
    #[command(flatten)]
    pub(crate) task: RawTask,
    /// Pass an argument to the hook, as BLOCKHAUL_ARG_K in its environment; may be repeated, 1 KiB in all
    #[arg(long, value_name = "K=V")]
    pub(crate) arg: Vec<String>,
    /// Give the hook this file, of at most 4 KiB of text, as its standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// End the hook after this time [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Fail the task instead of running the hook again, whatever interrupts it once it has begun
    #[arg(long)]
    pub(crate) at_most_once: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawNoopTask {
    /// Duration of the task
    #[arg(value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) task: RawTask,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawBatchTask {
    /// TOML or JSON file that describes the members
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// ID of the group; its members are ID.MEMBER [default: the file's name and a digest of its content]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Priority of all members, from 0 to 9; higher runs first, and each minute of waiting adds one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) priority: u32,
    /// Fail a member after this many failures without progress, 1 to 100; interruptions do not count [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_attempts: Option<u32>,
    #[command(flatten)]
    pub(crate) times: RawTimes,
    /// Follow the group until it ends; exits 0 succeeded, 1 failed, 75 cancelled
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) signing: RawSigning,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawTaskId {
    /// Task ID
    #[arg(value_name = "ID", add = tasks())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawWatch {
    /// Task ID
    #[arg(value_name = "ID", required_unless_present = "all", add = tasks())]
    pub(crate) id: Option<String>,
    /// Follow all tasks instead: all of them as they are, then each change of any of them, without end
    #[arg(long, conflicts_with = "id")]
    pub(crate) all: bool,
    /// Go on after this position, with which the last line began; starts with all tasks if the center cannot
    #[arg(long, value_name = "EPOCH:N", value_parser = Position::parse, requires = "all", conflicts_with = "id")]
    pub(crate) since: Option<Position>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawLogs {
    /// Task ID
    #[arg(value_name = "ID", add = tasks())]
    pub(crate) id: String,
    /// Number of the attempt, from 1, as `get` lists them [default: the last one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
    /// Go on until the attempt has ended; wait for a task without an attempt, and for a node that is away
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawRetry {
    /// ID of a task that has ended without success
    #[arg(value_name = "ID", add = tasks())]
    pub(crate) id: String,
    /// Follow the new task until it ends; exits 0 succeeded, 1 failed or skipped, 75 cancelled
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) signing: RawSigning,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawCancel {
    /// Task ID
    #[arg(value_name = "ID", add = tasks())]
    pub(crate) id: String,
    /// Of a group: also cancel its clean-up, which otherwise runs
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawRemove {
    /// Task IDs
    #[arg(value_name = "ID", required_unless_present = "older_than", add = tasks())]
    pub(crate) ids: Vec<String>,
    /// Remove all tasks that ended so long ago and that no other task needs
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "ids")]
    pub(crate) older_than: Option<Duration>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawSet {
    /// Task ID
    #[arg(value_name = "ID", add = tasks())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) changes: RawChanges,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

/// What is to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct RawChanges {
    /// Limit the rate of the copy from now on; none removes the limit
    #[arg(long, value_name = "RATE|none", value_parser = or_none(parse_rate))]
    pub(crate) limit: Option<Setting<u64>>,
    /// Priority from 0 to 9; higher runs first, and each minute of waiting adds one
    #[arg(long, value_name = "N")]
    pub(crate) priority: Option<u32>,
    /// Fail the task after this many failures without progress, 1 to 100
    #[arg(long, value_name = "N")]
    pub(crate) max_attempts: Option<u32>,
    /// Start at this time or later, such as 2026-01-31T22:00:00Z, none: at once; not of a task that has started
    #[arg(long, value_name = "TIME|none", value_parser = or_none(Timestamp::parse))]
    pub(crate) start_at: Option<Setting<Timestamp>>,
    /// Stop the task if it has not ended so long after its submission; none removes the deadline
    #[arg(long, value_name = "DURATION|none", value_parser = or_none(parse_duration))]
    pub(crate) deadline: Option<Setting<Duration>>,
}

/// New value of a setting, or its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting<T>(pub(crate) Option<T>);

/// Returns a parser that also takes `none`.
fn or_none<T, E>(parse: impl Fn(&str) -> Result<T, E> + Clone) -> impl Fn(&str) -> Result<Setting<T>, E> + Clone {
    move |text| if text == "none" { Ok(Setting(None)) } else { parse(text).map(|value| Setting(Some(value))) }
}

#[derive(Debug, Args)]
pub(crate) struct RawMove {
    /// ID of a copy or of a comparison
    #[arg(value_name = "ID", add = tasks())]
    pub(crate) id: String,
    /// Node that is to run it [default: any other one than now]
    #[arg(long, value_name = "NODE", add = nodes())]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawList {
    /// List only tasks in this state, such as RUNNING
    #[arg(long, value_name = "S")]
    pub(crate) state: Option<String>,
    /// List only the members of this group
    #[arg(long, value_name = "ID", add = groups())]
    pub(crate) group: Option<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawNode {
    /// Node ID
    #[arg(value_name = "NODE", add = nodes())]
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawDrain {
    /// Node ID
    #[arg(value_name = "NODE", required_unless_present = "idle", add = nodes())]
    pub(crate) node: Option<String>,
    /// Also move its running tasks to other nodes
    #[arg(long, conflicts_with = "undo")]
    pub(crate) now: bool,
    /// Assign tasks to the node again
    #[arg(long)]
    pub(crate) undo: bool,
    /// Drain up to N nodes that hold no task, instead of NODE; fewer if there are no more, or max-drained says so
    #[arg(long, value_name = "N", conflicts_with_all = ["node", "now", "undo"],
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) idle: Option<u32>,
    /// Undo the drain after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, conflicts_with = "undo")]
    pub(crate) lasts: Option<Duration>,
    /// Return when the node holds no task any more
    #[arg(long, conflicts_with = "undo")]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawFence {
    /// Node ID
    #[arg(value_name = "NODE", add = nodes())]
    pub(crate) node: String,
    /// Confirm that the node is powered off or cut off from all volumes
    #[arg(long)]
    pub(crate) confirm: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct RawStatus {
    #[command(subcommand)]
    pub(crate) command: Option<RawSettingsCommand>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RawSettingsCommand {
    /// Show the settings of the center
    Get(RawGetSettings),
    /// Change settings of the center: all of them, or none
    Set(RawSetSettings),
}

#[derive(Debug, Args)]
pub(crate) struct RawGetSettings {
    /// Show only this setting
    #[arg(value_name = "KEY")]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawSetSettings {
    /// Settings: bandwidth=RATES|none, lost-grace=DURATION, max-drained=N|none, notify=HOOK|none,
    /// placement=spread|fill, slots=N|none, slots.copy=N|none, slots.run=N|none, slots.verify=N|none
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub(crate) settings: Vec<String>,
    /// Change them only if they have this version
    #[arg(long, value_name = "N")]
    pub(crate) if_version: Option<u32>,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawSchedule {
    #[command(subcommand)]
    pub(crate) command: RawScheduleCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RawScheduleCommand {
    /// Add a schedule: it submits a task again and again
    Add(Box<RawScheduleAdd>),
    /// List all schedules
    List(RawQuery),
    /// Show a schedule, with its next instants
    Get(RawScheduleGet),
    /// Keep a schedule from submitting tasks; what is due meanwhile does not count
    Pause(RawScheduleName),
    /// Let a paused schedule submit tasks again
    Resume(RawScheduleName),
    /// Have a schedule submit a task now
    Run(RawScheduleRun),
    /// Delete a schedule; its tasks stay
    Remove(RawScheduleRemove),
}

#[derive(Debug, Args)]
pub(crate) struct RawScheduleAdd {
    /// Name of the schedule: at most 40 letters, digits, '.', '_' and '-'; its tasks are named NAME.20260131T020000Z
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) trigger: RawTrigger,
    /// Instant that those of --every count from [default: when the schedule is added]
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    pub(crate) from: Option<Timestamp>,
    /// Time zone of --cron, and of %Y %m %d %H %M %S %j in paths and export names
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub(crate) tz: String,
    /// Whether instants that nobody was there for fire once, late, or never
    #[arg(long, value_name = "once|none", default_value = "once", value_parser = ["once", "none"])]
    pub(crate) catch_up: String,
    /// Keep the records of so many ended tasks of the schedule
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) keep: u32,
    /// Replace another schedule of that name
    #[arg(long)]
    pub(crate) replace: bool,
    /// Replace the schedule of that name only if it has this version
    #[arg(long, value_name = "N")]
    pub(crate) if_version: Option<u32>,
    /// Cancel the live task of the schedule that is replaced
    #[arg(long)]
    pub(crate) cancel_live: bool,
    #[command(flatten)]
    pub(crate) signing: RawSigning,
    #[command(subcommand)]
    pub(crate) work: RawWork,
}

/// When a schedule fires.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RawTrigger {
    /// Fire at the times of a cron expression: five fields, or six with seconds first
    #[arg(long, value_name = "EXPR")]
    pub(crate) cron: Option<String>,
    /// Fire again and again, from 1 s to 1,000 days apart
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) every: Option<Duration>,
    /// Fire once, at this time, such as 2026-01-31T22:00:00Z
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    pub(crate) at: Option<Timestamp>,
    /// Fire each time this node has booted
    #[arg(long, value_name = "NODE", add = nodes())]
    pub(crate) on_boot: Option<String>,
    /// Fire once, when this node has booted the next time
    #[arg(long, value_name = "NODE", add = nodes())]
    pub(crate) next_boot: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RawScheduleName {
    /// Name of the schedule
    #[arg(value_name = "NAME", add = schedules())]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawScheduleGet {
    /// Name of the schedule
    #[arg(value_name = "NAME", add = schedules())]
    pub(crate) name: String,
    /// Wait until the schedule has ended: it has no instant left, and its last task has ended
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawScheduleRun {
    /// Name of the schedule
    #[arg(value_name = "NAME", add = schedules())]
    pub(crate) name: String,
    /// Instead, decide again on the instants from this time on; repairs a schedule whose last instant is in the future
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    pub(crate) refire_from: Option<Timestamp>,
    #[command(flatten)]
    pub(crate) signing: RawSigning,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawScheduleRemove {
    /// Name of the schedule
    #[arg(value_name = "NAME", add = schedules())]
    pub(crate) name: String,
    /// Also cancel its live task
    #[arg(long)]
    pub(crate) cancel_live: bool,
    #[command(flatten)]
    pub(crate) center: RawCenter,
}

#[derive(Debug, Args)]
pub(crate) struct RawRunners {
    /// Also show since when each node is idle, its last task, its starts, and why its taskd last ended
    #[arg(long)]
    pub(crate) wide: bool,
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
        let limit = or_none(parse_rate);
        assert_eq!(limit("none"), Ok(Setting(None)));
        assert_eq!(limit("1MiB/s"), Ok(Setting(Some(1 << 20))));
        assert!(limit("0/s").is_err() && limit("fast").is_err());
    }
}
