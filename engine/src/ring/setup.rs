//! Sets up an io_uring instance as well as the kernel, the container and the limits allow.
//!
//! Features of the kernel are found by trying them, best first, never by its version. Optional features (setup flags,
//! queue length, registered memory) are dropped step by step. A missing requirement (permission, waiting with a
//! timeout, the four operations) is a [`SetupError`], upon which the engine falls back to threads.

use crate::error::{Code, Error, Operation, Side};
use crate::exhausted::Exhausted;
use crate::limits::HUGE_PAGE_BYTES;
use io_uring::{Builder, IoUring, Probe, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::borrow::Cow;
use std::fmt;
use std::thread::sleep;
use std::time::Duration;

/// Submission entries at most: more than any worker has slots, in a ring of 36 KiB.
const ENTRIES_MAX: u32 = 256;
/// Submission entries at least, when locked memory is short. The ring then takes more system calls, nothing else.
const ENTRIES_MIN: u32 = 16;
/// Completion entries per submission entry: so many that the completion queue never overflows.
const COMPLETIONS_PER_ENTRY: u32 = 4;
/// Delay after which the memory of a closed ring no longer counts against the limit.
const UNCHARGE_WAIT: Duration = Duration::from_millis(5);
/// The largest buffer that the kernel lets one register.
const REGISTERED_BYTES_MAX: usize = 1 << 30;
/// Locked memory that is left to other rings of the user.
const MEMLOCK_RESERVE_BYTES: usize = 256 << 10;
/// Bit of the capability that lifts the limit on locked memory.
const CAP_IPC_LOCK: u32 = 14;

/// Reason why no ring can be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetupError {
    /// The host does not let this process use io_uring.
    Denied(Errno),
    /// The kernel is too old: it lacks the ability named.
    Lacking(&'static str),
    /// A resource is used up.
    Exhausted(Errno),
}

impl SetupError {
    fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES | Errno::ENOSYS => Self::Denied(errno),
            Errno::EINVAL => Self::Lacking("its basic setup"),
            _ => Self::Exhausted(errno),
        }
    }

    /// Returns what the user can change.
    fn remedy(self) -> Cow<'static, str> {
        match self {
            Self::Denied(Errno::ENOSYS) => "run on a kernel built with CONFIG_IO_URING".into(),
            Self::Denied(_) => "set sysctl kernel.io_uring_disabled=0, or allow io_uring_setup, io_uring_enter and \
                 io_uring_register in the container's seccomp profile"
                .into(),
            Self::Lacking(_) => "run on Linux 5.11 or later".into(),
            Self::Exhausted(errno) => match Exhausted::behind_start(errno) {
                Some(exhausted) => exhausted.describe().into(),
                None => "try again later".into(),
            },
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(errno) => write!(f, "io_uring is denied: {errno}")?,
            Self::Lacking(what) => write!(f, "the kernel's io_uring lacks {what}")?,
            Self::Exhausted(errno) => write!(f, "no resources for io_uring: {errno}")?,
        }
        write!(f, "; {}", self.remedy())
    }
}

impl std::error::Error for SetupError {}

impl From<SetupError> for Error {
    fn from(error: SetupError) -> Self {
        let (code, errno) = match error {
            SetupError::Denied(errno) => (Code::Unsupported, Some(errno as i32)),
            SetupError::Lacking(_) => (Code::Unsupported, None),
            SetupError::Exhausted(errno) => (Code::Overloaded, Some(errno as i32)),
        };
        Self { errno, ..Self::new(code, Side::Engine, Operation::Start, error.to_string()) }
    }
}

/// The lengths of a ring's queues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queues {
    /// Submission entries, a power of two.
    pub(super) submission: u32,
    /// Completion entries per submission entry, at least 1.
    pub(super) completions_per_entry: u32,
}

impl Queues {
    /// Returns the lengths for a worker with this number of slots.
    pub(super) fn for_slots(slots: usize) -> Self {
        let slots = u32::try_from(slots).unwrap_or(ENTRIES_MAX).clamp(1, ENTRIES_MAX / 2);
        Self { submission: (2 * slots).next_power_of_two(), completions_per_entry: COMPLETIONS_PER_ENTRY }
    }
}

/// Flags, best first. SUBMIT_ALL: one bad operation does not stop a batch. DEFER_TASKRUN: completions are processed
/// when we wait, not when they interrupt us; TASKRUN_FLAG lets us see that there are some without a system call. The
/// length of the completion queue is requested on every rung: a kernel without that is too old anyway.
const LADDER: [fn(&mut Builder) -> &mut Builder; 5] = [
    |flags| defer(flags).setup_no_sqarray(),
    defer,
    |flags| cooperate(flags).setup_single_issuer(),
    cooperate,
    |flags| flags,
];

fn defer(flags: &mut Builder) -> &mut Builder {
    flags.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all()
}

fn cooperate(flags: &mut Builder) -> &mut Builder {
    flags.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all()
}

/// Makes the best ring that the host allows.
///
/// # Errors
/// See [`SetupError`].
pub(super) fn build(queues: Queues) -> Result<IoUring, SetupError> {
    let (mut rung, mut entries, mut waited) = (0, queues.submission, false);
    loop {
        let error = match attempt(rung, entries, queues.completions_per_entry) {
            Ok(ring) => return able(ring),
            Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        };
        match error {
            Errno::EINVAL if rung + 1 < LADDER.len() => rung += 1,
            Errno::ENOMEM if !waited => {
                sleep(UNCHARGE_WAIT);
                waited = true;
            }
            Errno::ENOMEM if entries > ENTRIES_MIN => entries /= 2,
            errno => return Err(SetupError::from_errno(errno)),
        }
    }
}

fn attempt(rung: usize, entries: u32, completions_per_entry: u32) -> std::io::Result<IoUring> {
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
    LADDER[rung](&mut builder);
    builder.dontfork().setup_cqsize(entries * completions_per_entry).build(entries)
}

/// Refuses a ring that lacks a requirement.
fn able(ring: IoUring) -> Result<IoUring, SetupError> {
    if !ring.params().is_feature_ext_arg() {
        return Err(SetupError::Lacking("waiting with a timeout"));
    }
    if !ring.params().is_feature_nodrop() {
        return Err(SetupError::Lacking("keeping completions when their queue is full"));
    }
    let mut probe = Probe::new();
    if let Err(error) = ring.submitter().register_probe(&mut probe) {
        // Only registering may be denied. Every kernel with the features above has the operations.
        tracing::debug!(%error, "cannot ask io_uring which operations it has");
        return Ok(ring);
    }
    let needed = [
        (opcode::Read::CODE, "read"),
        (opcode::Write::CODE, "write"),
        (opcode::Fsync::CODE, "fsync"),
        (opcode::Fallocate::CODE, "fallocate"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(SetupError::Lacking(name)),
        None => Ok(ring),
    }
}

/// Returns how much of an arena may be registered without using up the memory that the user may lock: whole huge pages,
/// as a huge page is charged whole.
pub(super) fn registrable_bytes(arena_bytes: usize) -> usize {
    let bytes = arena_bytes.min(REGISTERED_BYTES_MAX);
    if may_lock_any() {
        return bytes;
    }
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
    bytes.min(limit.saturating_sub(MEMLOCK_RESERVE_BYTES)) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
}

fn may_lock_any() -> bool {
    // The file also has the name of the thread, which need not be UTF-8.
    let status = std::fs::read("/proc/thread-self/status").unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_hold_two_operations_per_slot_up_to_a_bound() {
        for (slots, entries) in [(1, 2), (8, 16), (9, 32), (128, 256), (256, 256)] {
            assert_eq!(Queues::for_slots(slots).submission, entries);
        }
    }

    #[test]
    fn a_denial_names_errno_and_remedy() {
        let error = Error::from(SetupError::from_errno(Errno::EPERM));
        assert_eq!((error.code, error.errno), (Code::Unsupported, Some(Errno::EPERM as i32)));
        assert!(error.message.contains("EPERM") && error.message.contains("kernel.io_uring_disabled"));
    }

    #[test]
    fn every_rung_makes_a_ring_that_the_kernel_takes_or_calls_invalid() {
        let denied = attempt(LADDER.len() - 1, 8, 4).is_err();
        for rung in 0..LADDER.len() {
            match attempt(rung, 8, 4) {
                Ok(ring) => assert_eq!(ring.params().cq_entries(), 32),
                Err(error) => assert!(denied || error.raw_os_error() == Some(Errno::EINVAL as i32), "{error}"),
            }
        }
    }
}
