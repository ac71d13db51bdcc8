//! Creates, locks, renames and removes the files of journals.
//!
//! A name never shows a half-written journal: a new one is written, synced and locked under the name with `.new` at its
//! end, then renamed, then the directory is synced. The user of a journal holds `flock(LOCK_EX)` on it from before it
//! has its name until it is closed. After locking, the name is checked again, as the file may have been replaced
//! between open and lock. All calls block and belong on the caller's thread.

use super::existing_file::{check_checkpoint, check_fresh, check_receipt, exists};
use super::path::{check_place, failed, fresh_name};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use crate::volume::filesystem::FileSystem;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for a held lock: a killed copy keeps it until its last request is done, some 100 ms.
/// Tests have no such copies, only ones that keep it.
const LOCK_GRACE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };
/// Time between two tries.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// Most times that a name may point to another file after it was locked.
const REPLACED_MAX: usize = 16;
/// Directory for large temporary files, on a disk by convention.
const DISK_DIRECTORY: &str = "/var/tmp";

/// A locked journal. Readers of it keep descriptors of their own, which do not prolong
/// the lock: it ends with this value.
#[derive(Debug)]
pub(super) struct LockedJournal(File);

impl LockedJournal {
    /// Locks `file`, which no other process holds.
    #[cfg(test)]
    pub(super) fn alone(file: File) -> Self {
        file.lock().expect("tests lock files of their own");
        Self(file)
    }
}

impl Deref for LockedJournal {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedJournal {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "journal stays locked until its last reader closes it");
        }
    }
}

/// Location of a new journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalLocation<'a> {
    /// A file that must not exist; an empty or zeroed one left by a crash does not count.
    File(&'a Path),
    /// As `File`, but another journal there is replaced (`--restart`).
    Replace(&'a Path),
    /// A file without a name, never synced: in the temporary directory, or in `/var/tmp` if that one is in memory.
    Scratch,
}

/// Creates a journal that starts with `start`, and its directories (0700) where missing. Locked and durable.
///
/// # Errors
/// `EExists` if there is a journal and `place` does not say to replace it, or something that is no journal; `EBusy` if
/// another copy holds it; whatever the system says.
pub(super) fn create(place: JournalLocation<'_>, start: &[u8]) -> Result<LockedJournal> {
    match place {
        JournalLocation::File(path) => create_named(path, false, start),
        JournalLocation::Replace(path) => create_named(path, true, start),
        JournalLocation::Scratch => create_scratch(start),
    }
}

/// Applies the refusals of [`create`], and changes nothing.
///
/// # Errors
/// As [`create`], but for those of writing.
pub(super) fn check(place: JournalLocation<'_>) -> Result<()> {
    let (path, may_replace) = match place {
        JournalLocation::File(path) => (path, false),
        JournalLocation::Replace(path) => (path, true),
        JournalLocation::Scratch => return Ok(()),
    };
    match open_locked(path) {
        Err(error) if error.code == Code::NotFound => {}
        previous => {
            let previous = previous?;
            check_checkpoint(path, &previous, may_replace)?;
        }
    }
    let fresh = fresh_name(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits());
    match lock_as(&fresh, || options.open(&fresh)) {
        Err(error) if error.code == Code::NotFound => Ok(()),
        found => {
            let found = found?;
            check_fresh(&fresh, &found)
        }
    }
}

fn create_named(path: &Path, may_replace: bool, start: &[u8]) -> Result<LockedJournal> {
    check_place(path)?;
    create_directory(directory_of(path))?;
    for _ in 0..REPLACED_MAX {
        // Held until the new file has the name: no other process can replace or remove the old file meanwhile.
        let previous = match open_locked(path) {
            Err(error) if error.code == Code::NotFound => None,
            previous => Some(previous?),
        };
        if let Some(previous) = &previous {
            check_checkpoint(path, previous, may_replace)?;
        }
        let fresh = fresh_name(path);
        let file = write_fresh(&fresh, start)?;
        let renamed = if previous.is_some() { fs::rename(&fresh, path) } else { rename_to_free_name(&fresh, path) };
        match renamed {
            Ok(()) => {
                let synced = sync_directory(directory_of(path));
                if synced.is_err() && previous.is_none() {
                    // Nothing has been touched yet: the next run shall not find an unfinished copy.
                    _ = fs::remove_file(path);
                }
                return synced.map(|()| file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => _ = fs::remove_file(&fresh),
            Err(error) => {
                _ = fs::remove_file(&fresh);
                return Err(failed(&error, "name the journal", path));
            }
        }
    }
    Err(busy(path))
}

/// A locked, written and synced file called `fresh`. One that a crash left there is used again.
fn write_fresh(fresh: &Path, start: &[u8]) -> Result<LockedJournal> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = lock_as(fresh, || options.open(fresh))?;
    check_fresh(fresh, &file)?;
    let write = || {
        file.set_len(0)?;
        file.write_all_at(start, 0)?;
        file.sync_all()
    };
    write().map_err(|error| {
        _ = fs::remove_file(fresh);
        failed(&error, "write the journal", fresh)
    })?;
    Ok(file)
}

/// Fails with `AlreadyExists` if the name was taken meanwhile.
fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system knows the flag; a link has the same refusal.
        Err(Errno::EINVAL | Errno::ENOSYS) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        result => Ok(result?),
    }
}

fn create_scratch(start: &[u8]) -> Result<LockedJournal> {
    let directory = std::env::temp_dir();
    let file = open_on_disk(&directory, Path::new(DISK_DIRECTORY))
        .and_then(|file| file.write_all_at(start, 0).map(|()| file))
        .map_err(|error| failed(&error, "create a temporary journal in", &directory))?;
    // No other process can open an unnamed file: it needs no lock.
    Ok(LockedJournal(file))
}

/// Opens an unnamed file in `preferred`, or in `other` if only `preferred` is in memory: a journal takes 64 MiB for
/// each TiB.
fn open_on_disk(preferred: &Path, other: &Path) -> io::Result<File> {
    let is_on_disk = |file: &File| FileSystem::of(file).is_ok_and(|system| !system.is_memory());
    let file = open_scratch(preferred)?;
    if is_on_disk(&file) {
        return Ok(file);
    }
    Ok(open_scratch(other).ok().filter(is_on_disk).unwrap_or(file))
}

fn open_scratch(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(OFlag::O_TMPFILE.bits()).open(directory) {
        Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EOPNOTSUPP | Errno::EISDIR)) => {
            open_unlinked(&mut options, directory)
        }
        result => result,
    }
}

/// Opens a file and removes its name at once, for file systems without `O_TMPFILE`.
fn open_unlinked(options: &mut OpenOptions, directory: &Path) -> io::Result<File> {
    let mut attempt = 0_u32;
    loop {
        let path = directory.join(format!(".blockhaul-{}-{attempt}.journal", std::process::id()));
        match options.create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
            result => return result.and_then(|file| fs::remove_file(&path).map(|()| file)),
        }
    }
}

/// Opens and locks the file that has the name `path` once the lock is held.
///
/// # Errors
/// `ENotFound`; `EBadRequest` if it is no regular file; `EBusy` if another copy holds it; whatever the system says.
pub(super) fn open_locked(path: &Path) -> Result<LockedJournal> {
    check_place(path)?;
    lock_as(path, || OpenOptions::new().read(true).write(true).open(path))
}

fn lock_as(path: &Path, open: impl Fn() -> io::Result<File>) -> Result<LockedJournal> {
    for _ in 0..REPLACED_MAX {
        let file = lock(open().map_err(|error| failed(&error, "open the journal", path))?, path)?;
        if is_named(path, &file)? {
            return Ok(file);
        }
    }
    Err(busy(path))
}

/// `flock`: held until the last descriptor of this open file is closed.
fn lock(file: File, path: &Path) -> Result<LockedJournal> {
    let deadline = Instant::now() + LOCK_GRACE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(LockedJournal(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => return Err(busy(path)),
            Err(TryLockError::Error(error)) => return Err(failed(&error, "lock the journal", path)),
        }
    }
}

fn is_named(path: &Path, file: &File) -> Result<bool> {
    let ours = file.metadata().map_err(|error| failed(&error, "look at the journal", path))?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(&error, "look at the journal", path)),
    }
}

/// Removes the journal `file` if `path` still names it.
pub(super) fn remove(path: &Path, file: &File) -> Result<()> {
    if !is_named(path, file)? {
        return Ok(());
    }
    fs::remove_file(path).map_err(|error| failed(&error, "remove the journal", path))?;
    sync_directory(directory_of(path))
}

/// Renames the synced journal `file` from `from`, if it has a name, to `to`, replacing an older receipt.
///
/// # Errors
/// `EBadRequest` and `EExists` if something else came there meanwhile: it is left alone, and so is the journal.
pub(super) fn publish(file: &File, from: Option<&Path>, to: &Path) -> Result<()> {
    check_place(to)?;
    create_directory(directory_of(to))?;
    let Some(from) = from else { return copy(file, to) };
    if is_named(to, file)? {
        return Ok(());
    }
    match take_name(from, to) {
        Err(error) if error.errno == Some(Errno::EXDEV as i32) => {
            copy(file, to)?;
            remove(from, file)
        }
        result => {
            result?;
            sync_directory(directory_of(to))?;
            sync_directory(directory_of(from))
        }
    }
}

/// Renames a finished journal to a name that is free or an older receipt's.
fn take_name(from: &Path, to: &Path) -> Result<()> {
    let previous = match open_locked(to) {
        Err(error) if error.code == Code::NotFound => None,
        previous => Some(previous?),
    };
    if let Some(previous) = &previous {
        check_receipt(to, previous)?;
    }
    let renamed = if previous.is_some() { fs::rename(from, to) } else { rename_to_free_name(from, to) };
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(to, "came there while the copy was running and is left alone"),
        _ => failed(&error, "name the receipt", to),
    })
}

fn copy(file: &File, to: &Path) -> Result<()> {
    let fresh = fresh_name(to);
    let target = write_fresh(&fresh, &[])?;
    let fill = || -> io::Result<()> {
        let (mut at, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            let count = file.read_at(&mut buffer, at)?;
            if count == 0 {
                break;
            }
            target.write_all_at(&buffer[..count], at)?;
            at += count as u64;
        }
        target.sync_all()
    };
    let filled = fill().map_err(|error| failed(&error, "write the receipt", to));
    filled.and_then(|()| take_name(&fresh, to)).inspect_err(|_| _ = fs::remove_file(&fresh))?;
    sync_directory(directory_of(to))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates missing directories from the top, each durable before the next one.
fn create_directory(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_directory(directory_of(path))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        result => result.map_err(|error| failed(&error, "create the directory", path))?,
    }
    sync_directory(directory_of(path))
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| failed(&error, "sync the directory", path))
}

fn busy(path: &Path) -> Error {
    Error::new(
        Code::Busy,
        Side::Engine,
        Operation::Journal,
        format!("another copy uses this journal: {}", path.shown()),
    )
    .advise("wait for it to end, or name another file with --checkpoint")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_file_replaced_between_open_and_lock_is_not_used() {
        let home = tempfile::TempDir::new().unwrap();
        let (path, other) = (home.path().join("journal"), home.path().join("other"));
        fs::write(&path, "old").unwrap();
        let opened = Cell::new(0);
        let file = lock_as(&path, || {
            let file = File::open(&path)?;
            if opened.replace(opened.get() + 1) == 0 {
                fs::write(&other, "new")?;
                fs::rename(&other, &path)?;
            }
            Ok(file)
        });
        assert_eq!(opened.get(), 2);
        assert_eq!(io::read_to_string(&*file.unwrap()).unwrap(), "new");
    }

    #[test]
    fn a_name_that_never_stays_is_busy() {
        let home = tempfile::TempDir::new().unwrap();
        let path = home.path().join("journal");
        let error = lock_as(&path, || {
            let file = File::create(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        });
        assert_eq!(error.unwrap_err().code, Code::Busy);
    }

    #[test]
    fn a_scratch_journal_is_on_a_disk_if_there_is_one() {
        let (memory, disk) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/var/tmp").unwrap());
        let is_in_memory = |preferred: &Path, other: &Path| {
            FileSystem::of(open_on_disk(preferred, other).unwrap()).unwrap().is_memory()
        };
        assert!(!is_in_memory(memory.path(), disk.path()));
        assert!(!is_in_memory(disk.path(), memory.path()));
        assert!(is_in_memory(memory.path(), memory.path()), "there is no other one");
        assert!(is_in_memory(memory.path(), &disk.path().join("missing")));
        assert_eq!(fs::read_dir(disk.path()).unwrap().count() + fs::read_dir(memory.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_unnamed_files_a_scratch_journal_loses_its_name_at_once() {
        let home = tempfile::TempDir::new().unwrap();
        let mut options = OpenOptions::new();
        let file = open_unlinked(options.read(true).write(true), home.path()).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
