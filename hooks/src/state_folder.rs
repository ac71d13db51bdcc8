//! Owns the folder in which running hooks are recorded and have their working folders.
//!
//! ```text
//! run-12.record    the record of a running hook
//! run-12           its working folder
//! ```
//!
//! A folder is held by one process at a time, by a lock that ends with the process. So a record that was there before
//! belongs to nobody who could still take care of it. Both files of a run stay until no process of it is left.

use crate::hook::Hook;
use crate::order::HookOrder;
use crate::record::{HookRecord, boot_id};
use crate::working_folder;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::Uid;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

/// How the name of everything in the folder starts.
const PREFIX: &str = "run-";
/// How the name of a record ends.
const RECORD: &str = ".record";

/// The folder of running hooks. Clones are the same folder.
#[derive(Clone, Debug)]
pub struct HookStateFolder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    boot_id: String,
    next_run: AtomicU64,
    /// Runs of this process that are not removed yet.
    active: AtomicUsize,
    _lock: Flock<File>,
}

impl HookStateFolder {
    /// Opens the folder at `path`, which is created if only its last component is missing. What an earlier process left
    /// in it stays until [`kill_leftovers`](Self::kill_leftovers).
    ///
    /// # Errors
    /// `EBusy` if another process uses it; `EPermission` if it does not belong to us, or if others may write it; others
    /// of the system.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let what = || format!("open hook state folder {}", path.shown());
        let failed = |error: &io::Error| Error::io(Side::Engine, Operation::Open, error, what());
        let path = std::path::absolute(path).map_err(|error| failed(&error))?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&error)),
            _ => {}
        }
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(|error| failed(&error))?;
        let stat = folder.metadata().map_err(|error| failed(&error))?;
        if stat.uid() != Uid::effective().as_raw() || stat.mode() & 0o022 != 0 {
            let message = format!("{}: it must belong to this user and not be writable by others", what());
            return Err(Error::new(Code::Permission, Side::Engine, Operation::Open, message));
        }
        let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => {
                let message = format!("{}: another process uses it: wait for its end, or give another folder", what());
                Error::new(Code::Busy, Side::Engine, Operation::Lock, message)
            }
            errno => Error::os(Side::Engine, Operation::Lock, errno, what()),
        })?;
        let boot_id = boot_id().map_err(|error| {
            Error::io(Side::Engine, Operation::Start, &error, "read /proc/sys/kernel/random/boot_id")
        })?;
        let shared = Shared { path, boot_id, next_run: AtomicU64::new(1), active: AtomicUsize::new(0), _lock: lock };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the absolute path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.shared.boot_id
    }

    /// Returns the number of runs of this process that are not removed yet.
    pub(crate) fn active(&self) -> usize {
        self.shared.active.load(SeqCst)
    }

    /// Creates record and working folder of a run.
    pub(crate) fn begin(&self, hook: &Hook, order: &HookOrder) -> Result<Run> {
        loop {
            let name = format!("{PREFIX}{}", self.shared.next_run.fetch_add(1, SeqCst));
            let paths = RunPaths::new(&self.shared.path, &name);
            if let Some(run) = self.begin_at(paths, hook, order)? {
                return Ok(run);
            }
        }
    }

    /// Creates a run, unless one of this number is left over.
    fn begin_at(&self, paths: RunPaths, hook: &Hook, order: &HookOrder) -> Result<Option<Run>> {
        let failed = |error: &io::Error, path: &Path| {
            let what = format!("prepare hook {}: create {}", hook.name(), path.shown());
            Error::io(Side::Engine, Operation::Start, error, what)
        };
        match DirBuilder::new().mode(0o700).create(&paths.working_folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            created => created.map_err(|error| failed(&error, &paths.working_folder))?,
        }
        let record = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&paths.record);
        let head = HookRecord::head(&self.shared.boot_id, hook.name(), order.request());
        match record.and_then(|mut record| record.write_all(head.as_bytes()).map(|()| record)) {
            Ok(record) => {
                self.shared.active.fetch_add(1, SeqCst);
                let head_bytes = head.len() as u64;
                Ok(Some(Run { paths, record: Arc::new(record), head_bytes, folder: self.clone() }))
            }
            Err(error) => {
                let _ = fs::remove_dir(&paths.working_folder);
                if error.kind() == io::ErrorKind::AlreadyExists {
                    return Ok(None);
                }
                let _ = fs::remove_file(&paths.record);
                Err(failed(&error, &paths.record))
            }
        }
    }

    /// Returns the runs whose files are in the folder.
    pub(crate) fn runs(&self) -> io::Result<Vec<RunPaths>> {
        let mut names = std::collections::BTreeSet::new();
        for entry in fs::read_dir(&self.shared.path)? {
            let name = entry?.file_name();
            let name = name.to_str().filter(|name| name.starts_with(PREFIX));
            names.extend(name.map(|name| name.trim_end_matches(RECORD).to_owned()));
        }
        Ok(names.iter().map(|name| RunPaths::new(&self.shared.path, name)).collect())
    }
}

/// The files of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunPaths {
    pub(crate) record: PathBuf,
    pub(crate) working_folder: PathBuf,
}

impl RunPaths {
    fn new(folder: &Path, name: &str) -> Self {
        Self { record: folder.join(format!("{name}{RECORD}")), working_folder: folder.join(name) }
    }

    /// Removes the files, the record last: while something of a run is left, it is found again. A failure is logged; the
    /// files are left then.
    pub(crate) fn remove(&self) {
        if let Err(errno) = working_folder::remove(&self.working_folder) {
            let folder = self.working_folder.shown();
            tracing::warn!(%folder, error = errno.desc(), "removal of a hook's working folder failed: remove it by hand");
        }
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let record = self.record.shown();
                tracing::warn!(%record, %error, "removal of a hook's record failed: remove it by hand");
            }
            _ => {}
        }
    }
}

/// Record and working folder of a run, which are removed when it is dropped. Its owner keeps it until no process of the
/// run is left.
#[derive(Debug)]
pub(crate) struct Run {
    paths: RunPaths,
    record: Arc<File>,
    head_bytes: u64,
    folder: HookStateFolder,
}

impl Run {
    pub(crate) fn working_folder(&self) -> &Path {
        &self.paths.working_folder
    }

    /// Returns the record, to which the process of the hook appends itself.
    pub(crate) fn record(&self) -> &Arc<File> {
        &self.record
    }

    /// Tells whether the process has recorded itself, which it does last before it executes the hook.
    pub(crate) fn is_recorded(&self) -> bool {
        self.record.metadata().is_ok_and(|stat| stat.len() > self.head_bytes)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.paths.remove();
        self.folder.shared.active.fetch_sub(1, SeqCst);
    }
}
