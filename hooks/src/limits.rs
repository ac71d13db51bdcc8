//! Lists every bound of hooks, with its reason.

use std::time::Duration;

/// Longest name of a hook: names are shown in tables and in every message.
pub(crate) const NAME_BYTES_MAX: usize = 64;
/// Longest name of a task, group or node. All three are environment variables and lines of a record.
pub(crate) const IDENTIFIER_BYTES_MAX: usize = 255;
/// Longest name of an argument.
pub(crate) const ARGUMENT_NAME_BYTES_MAX: usize = 32;
/// Most bytes of all arguments, each counted as `K=V`: they are stored in the record of a task.
pub(crate) const ARGUMENTS_BYTES_MAX: usize = 1 << 10;
/// Most bytes of input. An empty pipe takes one page at once, so that nobody has to wait for the hook to read.
pub(crate) const INPUT_BYTES_MAX: usize = 4 << 10;

/// Longest time limit of a hook: it must not overflow a clock.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(1_000 * 24 * 3600);
/// Longest time from SIGTERM to SIGKILL.
pub(crate) const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time from SIGTERM to SIGKILL for processes that a hook has left behind. The hook has done its work then, and its
/// end waits for them.
pub(crate) const LEFT_BEHIND_GRACE: Duration = Duration::from_secs(1);
/// Time after SIGKILL at which a process counts as surviving. Only a process that waits for a device, without any
/// signal being looked at, lives so long.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(10);

/// First wait between two looks at the processes of a hook that is being ended; doubled up to the longest one.
pub(crate) const ENDING_LOOK_MIN: Duration = Duration::from_millis(2);
/// Longest wait between two such looks.
pub(crate) const ENDING_LOOK_MAX: Duration = Duration::from_millis(100);
/// Time between two looks at the processes of a hook that runs, and of one that survives SIGKILL. A descendant that is
/// seen once is known from then on, whatever it does to its environment and its session. A look reads one small file
/// per process of the host.
pub(crate) const RUNNING_LOOK: Duration = Duration::from_secs(2);

/// Bytes of output that are kept from its beginning.
pub(crate) const OUTPUT_FIRST_BYTES: usize = 6_000;
/// Bytes of output that are kept from its end.
pub(crate) const OUTPUT_LAST_BYTES: usize = 6_000;
/// Bytes of the end of the output that go into records and messages.
pub(crate) const OUTPUT_TAIL_BYTES: usize = 400;
/// Bytes read from the output at once: what a pipe holds.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// Reads of the output in a row, after which a stop and the time limit are looked at again.
pub(crate) const READS_PER_TURN: usize = 16;

/// Bytes that are read of the environment of a process. It begins with what the hook was started with.
pub(crate) const ENVIRONMENT_BYTES_MAX: u64 = 256 << 10;
/// Largest record of a running hook: twice what its longest names need.
pub(crate) const RECORD_BYTES_MAX: u64 = 4 << 10;
/// Bytes that are read of the first line of a hook, to name its interpreter: more than the kernel takes of it.
pub(crate) const INTERPRETER_LINE_BYTES: usize = 256;

const _: () = assert!(OUTPUT_TAIL_BYTES <= OUTPUT_LAST_BYTES);
const _: () = assert!(3 * IDENTIFIER_BYTES_MAX + NAME_BYTES_MAX + 1024 < RECORD_BYTES_MAX as usize);
