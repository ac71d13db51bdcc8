//! Names the limit of this process, or of its host, that is behind an errno: which one, its value, and how to raise it.
//!
//! The limit is read when something has failed, so the message gives its present value. No descriptor is needed to
//! report that descriptors are used up.

use crate::shown::Shown;
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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
    /// Returns the resource that the errno of a call that starts something names as used up, if it does.
    pub(crate) fn behind_start(errno: Errno) -> Option<Self> {
        if errno == Errno::EAGAIN { Some(Self::Threads) } else { Self::behind(errno) }
    }

    /// Returns the resource that the errno of any other call names as used up, if it does.
    pub(crate) fn behind(errno: Errno) -> Option<Self> {
        match errno {
            Errno::EMFILE => Some(Self::Descriptors),
            Errno::ENFILE => Some(Self::OpenFiles),
            // A file system has a largest file, too.
            Errno::EFBIG => soft(Resource::RLIMIT_FSIZE).map(|_| Self::FileSize),
            // The engine cancels no single operations: the kernel had no thread for an operation that would have
            // blocked.
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

/// Returns the directory of the group of a line of `/proc/PID/cgroup`, if it can bound threads.
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

    #[test]
    fn groups_of_both_hierarchies_are_found() {
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        assert_eq!(group_folder(b"0::/a/\xff:b"), Some(("/sys/fs/cgroup", path(b"/a/\xff:b"))));
        assert_eq!(group_folder(b"8:pids:/c"), Some(("/sys/fs/cgroup/pids", path(b"/c"))));
        assert_eq!(group_folder(b"4:memory:/d"), None);
    }
}
