//! Names the limit of this process, or of its host, that is behind an errno: which one, its value, and how to raise it.
//!
//! Asked when something has failed, so what it says is the limit as it is now. It needs no descriptor to say that they
//! are used up.

use crate::error::{Error, Operation, Result, Side};
use crate::shown::Shown;
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Descriptors that an asynchronous runtime opens, signals included, and some more: other threads open theirs meanwhile.
pub const RUNTIME_DESCRIPTORS: usize = 12;

/// A resource that was used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// Descriptors of this process.
    Descriptors,
    /// Open files of the host.
    OpenFiles,
    /// The size of a file that this process may write.
    FileSize,
    /// Threads, its own or those of the kernel that work for it.
    Threads,
    /// Memory.
    Memory,
}

impl Exhausted {
    /// What an errno says was used up, if it says so.
    pub(crate) fn behind(errno: Errno, operation: Operation) -> Option<Self> {
        match errno {
            Errno::EMFILE => Some(Self::Descriptors),
            Errno::ENFILE => Some(Self::OpenFiles),
            // A file system has a largest file, too.
            Errno::EFBIG => soft(Resource::RLIMIT_FSIZE).map(|_| Self::FileSize),
            Errno::EAGAIN if operation == Operation::Start => Some(Self::Threads),
            // Nobody cancels single operations: the kernel has had no thread for one that would have blocked.
            Errno::ECANCELED => Some(Self::Threads),
            Errno::ENOMEM => Some(Self::Memory),
            _ => None,
        }
    }

    /// The limits that there are, with their values and what raises them.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Descriptors => limit(Resource::RLIMIT_NOFILE, "may have", "descriptors open (ulimit -n): raise that"),
            Self::OpenFiles => {
                format!(
                    "this host may have {} files open (sysctl fs.file-max): raise that",
                    number("/proc/sys/fs/file-max")
                )
            }
            Self::FileSize => {
                let bytes = value(soft(Resource::RLIMIT_FSIZE));
                format!("the file size limit of this process (ulimit -f) is {bytes} bytes: raise it")
            }
            Self::Threads => format!(
                "{}, {}, and the host {} (sysctl kernel.threads-max): raise what is too low, or use fewer --cores",
                limit(Resource::RLIMIT_NPROC, "of a user who is not root may have", "threads (ulimit -u)"),
                group_limit(),
                number("/proc/sys/kernel/threads-max"),
            ),
            Self::Memory => format!(
                "{} and have {} bytes of address space (ulimit -v): raise what is too low, or use a lower --memory",
                limit(Resource::RLIMIT_MEMLOCK, "may lock", "bytes of memory (ulimit -l)"),
                value(soft(Resource::RLIMIT_AS)),
            ),
        }
    }
}

/// Makes sure that so many descriptors are to be had, for a library that panics when they are not.
///
/// # Errors
/// `EOverloaded`, naming the limit.
pub fn require_descriptors(count: usize, what: &str) -> Result<()> {
    let failed = |errno| Error::os(Side::Engine, Operation::Start, errno, what);
    let some = fs::File::open("/").map_err(|error| Error::io(Side::Engine, Operation::Start, &error, what))?;
    let more: nix::Result<Vec<OwnedFd>> = (1..count).map(|_| nix::unistd::dup(&some)).collect();
    more.map(drop).map_err(failed)
}

/// Makes sure that so many more threads are to be had at once, for a library that panics when they are not.
///
/// # Errors
/// `EOverloaded`, naming the limits.
pub fn require_threads(count: usize, what: &str) -> Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // Nobody ends before the last one has started.
        let _closed = gate.lock();
        (0..count).try_for_each(|_| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()));
            thread.map(drop).map_err(|error| Error::io(Side::Engine, Operation::Start, &error, what))
        })
    })
}

fn soft(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY)
}

fn value(limit: Option<u64>) -> String {
    limit.map_or_else(|| String::from("unlimited"), |limit| limit.to_string())
}

fn limit(resource: Resource, may: &str, what: &str) -> String {
    format!("this process {may} {} {what}", value(soft(resource)))
}

fn number(file: &str) -> String {
    fs::read_to_string(file).map_or_else(|_| String::from("few"), |text| text.trim().to_owned())
}

/// The lowest bound on threads of the control groups that this process is in.
fn group_limit() -> String {
    let groups = fs::read("/proc/self/cgroup").unwrap_or_default();
    let bounds = groups.split(|&byte| byte == b'\n').filter_map(group_folder).flat_map(|(root, group)| {
        let group = group.strip_prefix("/").unwrap_or(group);
        let parents: Vec<PathBuf> = group.ancestors().map(|part| Path::new(root).join(part)).collect();
        parents.into_iter().filter_map(|folder| {
            let bound: u64 = fs::read_to_string(folder.join("pids.max")).ok()?.trim().parse().ok()?;
            Some((bound, folder))
        })
    });
    match bounds.min() {
        Some((bound, folder)) => format!("its control group {} {bound} (pids.max)", folder.shown()),
        None => String::from("its control group any number"),
    }
}

/// Where the group of one line of `/proc/PID/cgroup` is found, if it can bound threads.
fn group_folder(line: &[u8]) -> Option<(&'static str, &Path)> {
    let path = |group| Path::new(OsStr::from_bytes(group));
    match line.splitn(3, |&byte| byte == b':').collect::<Vec<_>>()[..] {
        [_, b"", group] => Some(("/sys/fs/cgroup", path(group))),
        [_, b"pids", group] => Some(("/sys/fs/cgroup/pids", path(group))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn what_is_used_up_is_named_with_its_value() {
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let os = |errno, operation| Error::os(Side::Destination, operation, errno, "do it");
        let error = os(Errno::EMFILE, Operation::Open);
        assert_eq!(error.code, Code::Overloaded);
        assert!(error.message.contains(&descriptors.to_string()) && error.message.contains("ulimit -n"), "{error}");
        for (errno, operation, word) in [
            (Errno::ENFILE, Operation::Open, "fs.file-max"),
            (Errno::EAGAIN, Operation::Start, "ulimit -u"),
            (Errno::EAGAIN, Operation::Start, "control group"),
            (Errno::ECANCELED, Operation::Write, "kernel.threads-max"),
            (Errno::ENOMEM, Operation::Start, "ulimit -l"),
            (Errno::ENOMEM, Operation::Start, "ulimit -v"),
        ] {
            let error = os(errno, operation);
            assert_eq!(error.code, Code::Overloaded, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
        assert_eq!(os(Errno::EAGAIN, Operation::Read).code, Code::Io);
    }

    #[test]
    fn groups_of_both_hierarchies_are_found() {
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        assert_eq!(group_folder(b"0::/a/\xff:b"), Some(("/sys/fs/cgroup", path(b"/a/\xff:b"))));
        assert_eq!(group_folder(b"8:pids:/c"), Some(("/sys/fs/cgroup/pids", path(b"/c"))));
        assert_eq!(group_folder(b"4:memory:/d"), None);
    }

    #[test]
    fn descriptors_that_are_there_are_given_back() {
        require_descriptors(8, "start").unwrap();
        let error = require_descriptors(1 << 24, "start").unwrap_err();
        assert_eq!((error.code, error.errno), (Code::Overloaded, Some(Errno::EMFILE as i32)));
        require_descriptors(8, "start").unwrap();
    }
}
