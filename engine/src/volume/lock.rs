//! Locks destinations: at most one copy writes a volume, and a killed copy's late writes are waited for.
//!
//! Operations in flight hold the open file, and the kernel gives up `flock` and `O_EXCL` only with the last holder. So
//! no earlier write can take effect once the lock is held, even if its writer was killed. This requires that no code
//! unlocks explicitly: only closing the descriptor releases the lock.

use super::inode::{Inode, InodeKind};
use super::topology::{user_of, user_of_file};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use nix::errno::Errno;
use nix::fcntl::FlockArg;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two tries. Short against the 80 ms for which a killed copy's writes go on landing.
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// Bounds the wait for another copy's lock by a time and by a cancel.
pub(crate) struct LockWait<'a> {
    deadline: Instant,
    wait: Duration,
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> LockWait<'a> {
    /// Waits for `wait` from now on, unless `cancelled`.
    pub(crate) fn new(wait: Duration, cancelled: &'a dyn Fn() -> bool) -> Self {
        let now = Instant::now();
        // A wait past the end of time is one without end: a century is.
        let deadline = now.checked_add(wait).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400));
        Self { deadline, wait, cancelled }
    }

    /// Returns whether the job was cancelled.
    pub(super) fn cancelled(&self) -> &'a dyn Fn() -> bool {
        self.cancelled
    }

    /// Sleeps until the next try.
    ///
    /// # Errors
    /// `busy` with advice when the time is up, `ECancelled` when the job was cancelled.
    pub(crate) fn retry(&self, busy: Error) -> Result<()> {
        if (self.cancelled)() {
            let message = "cancelled while waiting for the destination's lock";
            return Err(Error::new(Code::Cancelled, Side::Caller, Operation::Lock, message));
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let waited = format!("waited for {:?}: wait for its end, or longer with --lock-wait", self.wait);
            return Err(busy.advise(waited));
        }
        std::thread::sleep(RETRY_EVERY.min(left));
        Ok(())
    }
}

fn busy(path: &Path, errno: Errno, who: &str) -> Error {
    let message = format!("the destination {} is in use: {who}", path.shown());
    Error { errno: Some(errno as i32), ..Error::new(Code::Busy, Side::Destination, Operation::Lock, message) }
}

/// Refuses a destination whose user will not release it soon.
///
/// # Errors
/// `EBusy`, naming the user.
pub(super) fn refuse_claimed(inode: &Inode) -> Result<()> {
    let (user, advice) = match inode.kind() {
        InodeKind::Device => (user_of(inode.rdev()), "unmount or detach that first"),
        InodeKind::File => (user_of_file(inode.device(), inode.number()), "detach that first"),
    };
    match user {
        None => Ok(()),
        Some(who) => Err(Error { retryable: false, ..busy(inode.path(), Errno::EBUSY, &who) }.advise(advice)),
    }
}

/// Locks an open file.
///
/// # Errors
/// `EBusy` if another process keeps it for too long, `ECancelled`.
pub(super) fn lock_file(file: &File, path: &Path, lock_wait: &LockWait<'_>) -> Result<()> {
    loop {
        // The guard that replaces this function unlocks when it is dropped, which may be before the last write landed.
        #[allow(deprecated, reason = "the lock must end with the last operation in flight, not with a value")]
        match nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno @ Errno::EWOULDBLOCK) => {
                lock_wait.retry(busy(path, errno, "another copy, or the last writes of one, holds its lock"))?;
            }
            Err(errno) => {
                let what = format!("lock {}", path.shown());
                return Err(Error::os(Side::Destination, Operation::Lock, errno, what));
            }
        }
    }
}

/// Opens a device for this copy alone.
///
/// # Errors
/// `EBusy` if another process keeps it for too long, `ECancelled`, or why it cannot be opened.
pub(super) fn open_device(inode: &Inode, lock_wait: &LockWait<'_>) -> Result<File> {
    let path = inode.path();
    loop {
        let flags = libc::O_EXCL | libc::O_CLOEXEC | libc::O_NONBLOCK;
        match OpenOptions::new().read(true).write(true).custom_flags(flags).open(inode.reach()) {
            Ok(file) => return Ok(file),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                refuse_claimed(inode)?;
                lock_wait.retry(busy(path, Errno::EBUSY, "another copy or program opened it exclusively"))?;
            }
            Err(e) => {
                return Err(Error::io(Side::Destination, Operation::Open, &e, format!("open {}", path.shown())));
            }
        }
    }
}
