//! Reports what this host offers the engine, and what to change where it offers less: the facts behind `doctor`.
//!
//! Everything is asked of the kernel, not derived from versions: containers, security modules and limits take away what
//! a version promises. Trials use a file without a name, so nothing is left behind. Nothing here fails: what cannot be
//! found out is absent from the report.

use crate::error::Side;
use crate::extent::ByteRange;
use crate::limits::ARENA_BYTES_PER_CORE;
use crate::shown::Shown;
use crate::units::format_size;
use crate::volume::filesystem::FileSystem;
use crate::volume::{Descriptor, clone_range, open_unnamed, write_without_waiting};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Whence, lseek};
use serde::{Serialize, Serializer};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Capabilities of a host.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    /// Kernel release, such as `6.12.48-amd64`.
    pub kernel: String,
    /// CPUs that this process may run on.
    pub cpus_usable: usize,
    /// Whether rings can be had, and why not.
    pub io_uring: IoUring,
    /// Bytes that this user may lock, which rings and registered buffers count against; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// `always`, `madvise` or `never`; `None` where the kernel has no transparent huge pages.
    pub huge_pages: Option<String>,
    /// The paths asked for, in their order.
    pub paths: Vec<PathReport>,
    /// Missing capabilities, and what to do about them. Empty on a host that lacks nothing.
    pub remedies: Vec<Remedy>,
}

/// Whether the kernel gives rings to this process.
#[derive(Clone, Debug, Serialize)]
pub struct IoUring {
    /// Whether a trial ring could be set up.
    pub available: bool,
    /// Errno of the trial.
    pub errno: Option<i32>,
    /// The errno in words.
    pub error: Option<String>,
    /// The sysctl `kernel.io_uring_disabled`: 0 for all processes, 1 for privileged processes and members of
    /// `kernel.io_uring_group`, 2 for none; `None` on kernels without it (before 6.6).
    pub disabled: Option<u32>,
    /// `off`, `strict` or `filter`: whether system calls of this process are filtered.
    pub seccomp: Option<String>,
}

/// Capabilities of the file system of a path.
#[derive(Clone, Debug, Serialize)]
pub struct PathReport {
    /// As asked for; in JSON as it is shown.
    #[serde(serialize_with = "serialize_shown")]
    pub path: PathBuf,
    /// Reason why no feature could be tried.
    pub error: Option<String>,
    /// Type of the file system, such as `ext4`.
    pub filesystem: Option<String>,
    /// Alignment of direct I/O in bytes; `None` without direct I/O.
    pub direct_align_bytes: Option<u32>,
    /// Whether space can be reserved.
    pub fallocate: Option<bool>,
    /// Whether the space of ranges can be released (punched).
    pub punch_hole: Option<bool>,
    /// Whether ranges can be zeroed and stay reserved.
    pub zero_range: Option<bool>,
    /// Whether files can share extents.
    pub reflink: Option<bool>,
    /// Whether the file system reports holes.
    pub seek_hole: Option<bool>,
    /// Whether buffered writes can start without waiting, that is without a kernel thread.
    pub nowait: Option<bool>,
}

/// A lack, what it costs, and what ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The missing capability.
    pub lack: String,
    /// The engine's fallback, and its price.
    pub effect: String,
    /// Advice on what to change.
    pub remedy: String,
}

fn serialize_shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.shown())
}

/// Examines this host, and the file systems of `paths` (directories, or files and devices in them).
#[must_use]
pub fn examine(paths: &[PathBuf]) -> HostReport {
    let mut report = HostReport {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpus_usable: std::thread::available_parallelism().map_or(1, usize::from),
        io_uring: examine_io_uring(),
        memlock_bytes: memlock_bytes(),
        huge_pages: huge_pages(),
        paths: paths.iter().map(|path| examine_path(path)).collect(),
        remedies: Vec::new(),
    };
    report.remedies = remedies(&report);
    report
}

fn examine_io_uring() -> IoUring {
    let trial = io_uring::IoUring::new(8).err();
    let errno = trial.as_ref().and_then(std::io::Error::raw_os_error);
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    IoUring {
        available: trial.is_none(),
        errno,
        error: trial.map(|error| error.to_string()),
        disabled: disabled.ok().and_then(|text| text.trim().parse().ok()),
        seccomp: seccomp(),
    }
}

fn seccomp() -> Option<String> {
    // The name of the process stands there, too, which may be no text.
    let status = fs::read("/proc/self/status").ok()?;
    let status = String::from_utf8_lossy(&status);
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim();
    Some(match mode {
        "0" => "off".into(),
        "1" => "strict".into(),
        "2" => "filter".into(),
        other => other.into(),
    })
}

fn memlock_bytes() -> Option<u64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::sys::resource::RLIM_INFINITY).then_some(soft)
}

/// The word in brackets: `always [madvise] never`.
fn huge_pages() -> Option<String> {
    let choices = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = choices.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn examine_path(path: &Path) -> PathReport {
    let mut report = PathReport {
        path: path.to_owned(),
        error: None,
        filesystem: None,
        direct_align_bytes: None,
        fallocate: None,
        punch_hole: None,
        zero_range: None,
        reflink: None,
        seek_hole: None,
        nowait: None,
    };
    if let Err(error) = try_path(path, &mut report) {
        report.error = Some(error.to_string());
    }
    report
}

/// The directory of a path, or the path itself if it is one.
fn directory_of(path: &Path) -> std::io::Result<PathBuf> {
    let path = fs::canonicalize(path)?;
    let parent = path.parent().map(Path::to_owned);
    Ok(if path.is_dir() { path } else { parent.unwrap_or_else(|| "/".into()) })
}

fn try_path(path: &Path, report: &mut PathReport) -> std::io::Result<()> {
    let directory = directory_of(path)?;
    let filesystem = FileSystem::of(File::open(&directory)?)?;
    report.filesystem = Some(filesystem.name());
    let file = open_unnamed(&directory)?;
    report.direct_align_bytes = direct_align(&directory)?;
    report.fallocate = Some(reserve(&file, FallocateFlags::empty()));
    file.write_all_at(&[1; TRIAL_BYTES], 0)?;
    report.punch_hole =
        Some(reserve(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE));
    report.zero_range = Some(reserve(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE));
    report.seek_hole = Some(tells_holes(&file)?);
    report.reflink = Some(shares(&directory)?);
    report.nowait = Some(goes_without_waiting(&file)?);
    Ok(())
}

/// Bytes of the trial file: whole blocks of every file system.
const TRIAL_BYTES: usize = 64 << 10;

fn direct_align(directory: &Path) -> std::io::Result<Option<u32>> {
    let Ok(mut descriptor) = Descriptor::new(open_unnamed(directory)?, "trial".into(), Side::Caller) else {
        return Ok(None);
    };
    Ok(descriptor.bypass_cache().is_ok().then(|| descriptor.align_bytes()))
}

fn reserve(file: &File, mode: FallocateFlags) -> bool {
    fallocate(file, mode, 0, TRIAL_BYTES as i64).is_ok()
}

/// Returns whether the hole before data far into an otherwise empty file is found.
fn tells_holes(file: &File) -> std::io::Result<bool> {
    file.set_len(0)?;
    file.write_all_at(&[1], 16 * TRIAL_BYTES as u64)?;
    match lseek(file, 0, Whence::SeekData) {
        Ok(data) => Ok(data > 0),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn shares(directory: &Path) -> std::io::Result<bool> {
    let (from, to) = (open_unnamed(directory)?, open_unnamed(directory)?);
    from.write_all_at(&[1; TRIAL_BYTES], 0)?;
    Ok(clone_range(&to, from.as_raw_fd(), ByteRange::new(0, TRIAL_BYTES as u64)).is_ok())
}

/// A few tries: a write that must set a new modification time waits for that, whatever the file system can.
fn goes_without_waiting(file: &File) -> std::io::Result<bool> {
    for _ in 0..4 {
        file.write_all_at(&[1; 4096], 0)?;
        if write_without_waiting(file, &[1; 4096], 0).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remedies(report: &HostReport) -> Vec<Remedy> {
    let mut remedies = Vec::new();
    remedies.extend(io_uring_remedy(&report.io_uring));
    remedies.extend(report.io_uring.available.then(|| memlock_remedy(report)).flatten());
    remedies.extend(huge_page_remedy(report.huge_pages.as_deref()));
    remedies.extend(report.paths.iter().flat_map(path_remedies));
    remedies
}

fn remedy(lack: impl Into<String>, effect: impl Into<String>, remedy: impl Into<String>) -> Remedy {
    Remedy { lack: lack.into(), effect: effect.into(), remedy: remedy.into() }
}

fn io_uring_remedy(state: &IoUring) -> Option<Remedy> {
    if state.available {
        return None;
    }
    let error = state.error.as_deref().unwrap_or("unknown error");
    let advice = match (state.errno.map(Errno::from_raw), state.disabled, state.seccomp.as_deref()) {
        (_, Some(2), _) => "set the sysctl kernel.io_uring_disabled to 0, or to 1 and run privileged",
        (_, Some(1), _) => {
            "run as a member of the group in the sysctl kernel.io_uring_group, with CAP_SYS_ADMIN, or set the sysctl \
             kernel.io_uring_disabled to 0"
        }
        (Some(Errno::ENOSYS), _, None | Some("off")) => "run a kernel that is built with CONFIG_IO_URING",
        (Some(Errno::ENOMEM), _, _) => "raise the memory that may be locked (ulimit -l, LimitMEMLOCK=)",
        (Some(Errno::EMFILE | Errno::ENFILE), _, _) => "raise the number of open files (ulimit -n, LimitNOFILE=)",
        (_, _, Some("filter" | "strict")) => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
        }
        _ => "look for a security module (SELinux, AppArmor) that denies it",
    };
    Some(remedy(
        format!("io_uring is denied: {error}"),
        "copies run on a pool of pread/pwrite threads, with more CPU per byte",
        advice,
    ))
}

fn memlock_remedy(report: &HostReport) -> Option<Remedy> {
    let wanted = ARENA_BYTES_PER_CORE.saturating_mul(report.cpus_usable as u64).saturating_add(1 << 20);
    let limit = report.memlock_bytes.filter(|&limit| limit < wanted && !nix::unistd::geteuid().is_root())?;
    Some(remedy(
        format!("only {} may be locked", format_size(limit)),
        "buffers stay unregistered; many rings of one user may fail to start",
        format!("raise it to {} (ulimit -l, or LimitMEMLOCK= of the service)", format_size(wanted)),
    ))
}

fn huge_page_remedy(setting: Option<&str>) -> Option<Remedy> {
    let lack = match setting {
        Some("always" | "madvise") => return None,
        Some(_) => "transparent huge pages are switched off",
        None => "the kernel has no transparent huge pages",
    };
    Some(remedy(
        lack,
        "buffers are made of 4 KiB pages: about five times the CPU per direct operation",
        "write madvise to /sys/kernel/mm/transparent_hugepage/enabled",
    ))
}

fn path_remedies(report: &PathReport) -> Vec<Remedy> {
    let path = report.path.shown();
    if let Some(error) = &report.error {
        let lack = format!("{path} could not be tried: {error}");
        return vec![remedy(lack, "what its file system can is unknown", "name a directory that you may write to")];
    }
    let filesystem = report.filesystem.as_deref().unwrap_or("its file system");
    let elsewhere = "keep volumes on ext4, xfs or btrfs where that matters";
    let lacks = [
        (
            report.direct_align_bytes.is_none(),
            "direct I/O",
            "copies pass through the page cache and push other data out of it",
        ),
        (report.fallocate == Some(false), "fallocate", "files grow block by block, and a full one is noticed late"),
        (report.punch_hole == Some(false), "hole punching", "zeros over old data are written out"),
        (report.seek_hole == Some(false), "SEEK_HOLE", "holes are read like data"),
    ];
    let lacking = lacks.into_iter().filter(|(is_lacking, ..)| *is_lacking);
    lacking.map(|(_, what, effect)| remedy(format!("{path} ({filesystem}) has no {what}"), effect, elsewhere)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::support::{Mounted, need};

    #[test]
    fn file_systems_are_distinguished_by_their_features() {
        let test = "file_systems_are_distinguished_by_their_features";
        for (kind, mib, direct, reflink, zero_range) in [
            ("ext4", 16, true, false, true),
            ("xfs", 320, true, true, true),
            ("btrfs", 320, true, true, true),
            ("tmpfs", 16, false, false, false),
        ] {
            let mounted = need!(test, Mounted::fresh(kind, mib));
            let before: Vec<_> = fs::read_dir(mounted.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
            let report = examine(&[mounted.path()]).paths.remove(0);
            assert_eq!((report.error.as_deref(), report.filesystem.as_deref()), (None, Some(kind)));
            assert_eq!(report.direct_align_bytes.is_some(), direct, "{kind}");
            assert_eq!((report.reflink, report.zero_range), (Some(reflink), Some(zero_range)), "{kind}");
            assert_eq!((report.fallocate, report.punch_hole, report.seek_hole), (Some(true), Some(true), Some(true)));
            let after: Vec<_> = fs::read_dir(mounted.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
            assert_eq!(before, after, "nothing is left behind");
            assert_eq!(path_remedies(&report).len(), usize::from(!direct), "{kind}");
        }
    }

    #[test]
    fn this_host_is_described_in_full() {
        let report = examine(&[std::env::temp_dir(), "/no/such/path".into()]);
        assert!(!report.kernel.is_empty() && report.cpus_usable > 0);
        assert_eq!(report.io_uring.available, report.io_uring.errno.is_none());
        assert_eq!(report.paths.len(), 2);
        assert!(report.remedies.iter().any(|it| it.lack.contains("/no/such/path")));
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["io_uring"]["available"].is_boolean() && json["paths"][0]["filesystem"].is_string());
    }

    #[test]
    fn each_way_of_denying_rings_has_its_own_remedy() {
        let denied = |errno: Errno, disabled, seccomp: &str| {
            let (errno, error) = (Some(errno as i32), Some(errno.desc().to_owned()));
            let state = IoUring { available: false, errno, error, disabled, seccomp: Some(seccomp.into()) };
            io_uring_remedy(&state).unwrap().remedy
        };
        assert!(denied(Errno::EPERM, Some(2), "off").contains("kernel.io_uring_disabled to 0"));
        assert!(denied(Errno::EPERM, Some(1), "off").contains("io_uring_group"));
        assert!(denied(Errno::EPERM, Some(0), "filter").contains("seccomp"));
        assert!(denied(Errno::ENOSYS, None, "off").contains("CONFIG_IO_URING"));
        assert!(denied(Errno::ENOMEM, Some(0), "off").contains("ulimit -l"));
    }
}
