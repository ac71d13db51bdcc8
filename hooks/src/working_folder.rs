//! Removes the working folder of a hook, whatever the hook has made of it.
//!
//! A hook may nest folders deeper than a path can say or a stack can hold. So a folder that is not empty is moved up to
//! the top, under a new name, before it is emptied: no path is longer than one component, two descriptors are enough,
//! and every folder is moved once. Links are removed, never followed. A mounted file system is not entered: it may hold
//! anything, and is left in place with the folder, until somebody unmounts it.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::libc::mode_t;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Mode with which a folder can be emptied.
const OWNERS: mode_t = 0o700;
/// Names taken from a folder before it is read again: a bound on memory for folders with millions of entries.
const NAMES_AT_ONCE: usize = 1_000;

/// Removes the folder at `path` with all that is in it. A folder that does not exist is removed already.
///
/// # Errors
/// Those of the system: a mounted file system (`EBUSY`, `EXDEV`), an immutable file (`EPERM`).
pub(crate) fn remove(path: &Path) -> nix::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let parent = open(parent, flags, Mode::empty())?;
    let top = match open_folder(parent.as_fd(), name, BENEATH) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let top_name = |number: u64| OsString::from(format!(".removing-{number}"));
    let mut next_name = 0;
    let mut failure = None;
    loop {
        let names = names(&top)?;
        let mut has_progress = false;
        for name in &names {
            // Unlinked or, if it is a folder, emptied into the top folder and removed.
            let removed = remove_entry(top.as_fd(), name).or_else(|errno| match errno {
                Errno::ENOTEMPTY | Errno::EEXIST => flatten(top.as_fd(), name, &mut || {
                    next_name += 1;
                    top_name(next_name)
                }),
                errno => Err(errno),
            });
            match removed {
                Ok(()) => has_progress = true,
                Err(errno) => failure = Some(errno),
            }
        }
        if !has_progress {
            break;
        }
    }
    match failure {
        Some(errno) if !names(&top)?.is_empty() => Err(errno),
        _ => unlinkat(&parent, name, UnlinkatFlags::RemoveDir),
    }
}

/// Removes the folder `name` of `top` after its folders have been moved to `top`.
fn flatten(top: BorrowedFd<'_>, name: &OsStr, new_name: &mut dyn FnMut() -> OsString) -> nix::Result<()> {
    let folder = open_folder(top, name, BENEATH)?;
    loop {
        let names = names(&folder)?;
        if names.is_empty() {
            return unlinkat(top, name, UnlinkatFlags::RemoveDir);
        }
        for name in &names {
            match remove_entry(folder.as_fd(), name) {
                Ok(()) => continue,
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            // A folder that moves must be writable itself. The descriptor is dropped before the next one is opened.
            drop(open_folder(folder.as_fd(), name.as_os_str(), BENEATH)?);
            loop {
                let moved = new_name();
                match renameat(&folder, name.as_os_str(), top, moved.as_os_str()) {
                    Ok(()) => break,
                    // The hook has made a folder of this name.
                    Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
}

/// Removes a file, a link or an empty folder.
fn remove_entry(folder: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(folder, name, UnlinkatFlags::RemoveDir),
        removed => removed,
    }
}

/// What is opened lies in the same file system, and no link leads to it.
const BENEATH: ResolveFlag =
    ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_NO_XDEV);

/// Opens a folder and makes it writable for its owner.
fn open_folder<P: ?Sized + nix::NixPath>(at: BorrowedFd<'_>, path: &P, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = |flags| openat2(at, path, OpenHow::new().flags(flags).resolve(resolve));
    // A folder that its owner cannot read is opened without reading it, to change its mode.
    let handle = open(flags | OFlag::O_PATH)?;
    fchmodat(AT_FDCWD, opened_path(&handle).as_str(), Mode::from_bits_truncate(OWNERS), FchmodatFlags::FollowSymlink)?;
    open(flags | OFlag::O_RDONLY)
}

/// Returns some names of a folder; none only if it is empty.
fn names(folder: &OwnedFd) -> nix::Result<Vec<OsString>> {
    let listed = fs::read_dir(opened_path(folder))
        .and_then(|entries| entries.take(NAMES_AT_ONCE).map(|entry| entry.map(|entry| entry.file_name())).collect());
    listed.map_err(|error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Returns the path that leads to what is opened, whatever its name.
fn opened_path(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// Levels of folders: too many for a path (4,096 bytes), and for a descriptor per level.
    const LEVELS: usize = 1_200;

    fn nest(top: &Path, levels: usize) {
        let mut folder = fs::File::open(top).map(OwnedFd::from).unwrap();
        for _ in 0..levels {
            nix::sys::stat::mkdirat(&folder, "deep", Mode::from_bits_truncate(0o755)).unwrap();
            let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            folder = nix::fcntl::openat(&folder, "deep", flags, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn deep_read_only_and_oddly_named_folders_are_removed_and_links_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (outside, top) = (root.path().join("outside"), root.path().join("top"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::create_dir(&top).unwrap();
        nest(&top, LEVELS);
        fs::create_dir_all(top.join(".removing-1/sub/sub")).unwrap();
        fs::create_dir_all(top.join("locked/sub/sub")).unwrap();
        symlink(&outside, top.join("link")).unwrap();
        symlink(&outside, top.join("locked/sub/link")).unwrap();
        symlink("..", top.join("locked/sub/up")).unwrap();
        fs::write(top.join("locked/sub/file"), "gone").unwrap();
        for folder in ["locked/sub/sub", "locked/sub", "locked"] {
            fs::set_permissions(top.join(folder), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
        remove(&top).unwrap();
    }

    #[test]
    fn many_entries_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        for number in 0..3 * NAMES_AT_ONCE {
            fs::write(top.join(number.to_string()), "").unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (outside, top) = (root.path().join("outside"), root.path().join("top"));
        fs::create_dir_all(outside.join("kept")).unwrap();
        symlink(&outside, &top).unwrap();
        assert!(remove(&top).is_err());
        assert!(outside.join("kept").is_dir());
    }
}
