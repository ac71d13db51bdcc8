//! Runs programs of a node's administrator ("hooks"), each with its whole process tree under control.
//!
//! A hook is an executable file in a folder that only the administrator can write. It runs at least once for a task, so
//! it must be idempotent, and two runs of it never overlap: a run is over when no process of it is left. The crate knows
//! nothing of tasks but the names that it puts into the environment, and needs no async runtime: a hook is supervised
//! by a thread of its own.
//!
//! ```
//! use blockhaul_hooks::{HookEvent, HookFolder, HookHandle, HookName, HookOrder, HookOutcome, HookRequest};
//! use blockhaul_hooks::{HookStateFolder, become_subreaper};
//! use std::sync::mpsc;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let Some(scratch) = blockhaul_testkit::safe_dir::SafeDir::new() else { return Ok(()) };
//! # let (hooks_path, state_path) = (scratch.path("hooks"), scratch.path("state"));
//! # scratch.executable("hooks/freeze-vm", "#!/bin/sh\necho frozen $BLOCKHAUL_ARG_VM\n");
//! let subreaper = become_subreaper()?;
//! let state = HookStateFolder::open(state_path)?;
//! state.kill_leftovers(Duration::from_secs(60))?;
//! let folder = HookFolder::open(hooks_path)?;
//!
//! let hook = folder.hook(&HookName::parse("freeze-vm")?)?;
//! let request = HookRequest {
//!     arguments: vec!["VM=42"].into_iter().map(blockhaul_hooks::HookArgument::parse).collect::<Result<_, _>>()?,
//!     ..HookRequest::new("task-1", "node-1", 1, 712)
//! };
//! let (events, received) = mpsc::channel();
//! let handle = HookHandle::start(subreaper, hook, HookOrder::try_from(request)?, &state, move |event| {
//!     let _ = events.send(event);
//! })?;
//!
//! let HookEvent::Ended(report) = received.recv()? else { unreachable!("the end comes first") };
//! assert_eq!(report.outcome, HookOutcome::Succeeded);
//! assert_eq!(report.output.first(), b"frozen 42\n");
//! assert_eq!(received.recv()?, HookEvent::Gone);
//! drop(handle);
//! # Ok(())
//! # }
//! ```
//!
//! # What a hook gets
//!
//! | | |
//! | --- | --- |
//! | environment | the variables below, and nothing else |
//! | standard input | the input of its order, or nothing |
//! | standard output and error | one pipe: the first and the last 6,000 bytes are kept |
//! | working folder | private, empty, removed afterwards |
//! | descriptors | none but these, and one of the hook's own file |
//! | session | its own, without a terminal; default signals, umask 077 |
//!
//! The variables are `PATH`, `LANG=C.UTF-8`, `BLOCKHAUL_TASK`, `BLOCKHAUL_NODE`, `BLOCKHAUL_ATTEMPT`, `BLOCKHAUL_EPOCH`,
//! `BLOCKHAUL_GROUP` where there is one, and `BLOCKHAUL_ARG_K` for each argument `K`.
//!
//! # How a run ends
//!
//! When the first process exits, its exit code decides. Whatever else of the tree still runs then gets SIGTERM, and
//! SIGKILL a second later, before the end is reported: a service that shall outlive the hook has to be started by a
//! service manager (`systemd-run`). At a stop or a timeout the whole tree gets SIGTERM, and SIGKILL after a grace. A
//! process that waits for a device cannot be killed: it is reported, and waited for.
//!
//! One kind of process escapes: one that has left its parents and the session and has replaced its environment, all
//! before it was seen once. The processes are looked at every two seconds while a hook runs.
//!
//! When the program that runs hooks ends, the kernel kills the first process of each. What that has started itself is
//! killed by [`HookStateFolder::kill_leftovers`] when the program starts again.

mod limits;
mod name;
mod trust;
mod overlap;
mod folder;
mod hook;
mod order;
mod record;
mod working_folder;
mod state_folder;
mod process;
mod mark;
mod subreaper;
mod process_tree;
mod launch;
mod start_failure;
mod first_process;
mod output;
mod life;
mod outcome;
mod stop_request;
mod supervisor;
mod handle;
mod leftovers;

pub use folder::HookFolder;
pub use handle::{HookEvent, HookHandle};
pub use hook::Hook;
pub use leftovers::Leftover;
pub use name::HookName;
pub use order::{HOOK_GRACE, HOOK_GRACE_OF_NODE_STOP, HOOK_TIMEOUT, HookArgument, HookOrder, HookRequest};
pub use outcome::{HookOutcome, HookReport};
pub use output::HookOutput;
pub use overlap::overlap;
pub use state_folder::HookStateFolder;
pub use subreaper::{Subreaper, become_subreaper};
