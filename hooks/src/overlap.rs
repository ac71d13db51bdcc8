//! Tells whether two folders overlap, under whatever names.
//!
//! A folder in which tasks may write must not overlap the folder of hooks: a task could write a hook. Folders are
//! compared by device and inode, so that links and bind mounts on the way to them are seen through. What is mounted
//! somewhere below a folder is not searched.

use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::errno::Errno;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Device and inode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity(pub(crate) u64, pub(crate) u64);

/// Tells whether one of two folders lies in the other, or both are the same one. They need not exist yet.
///
/// # Errors
/// Those of the system, when one of them cannot be looked up.
pub fn overlap(first: impl AsRef<Path>, second: impl AsRef<Path>) -> Result<bool> {
    let (first, second) = (Lineage::of(first.as_ref())?, Lineage::of(second.as_ref())?);
    Ok(first.contains(&second) || second.contains(&first))
}

/// A folder as far as it exists, with all folders above it.
struct Lineage {
    /// The lowest folder that exists comes first, `/` last.
    existing: Vec<FileIdentity>,
    /// What of the path does not exist below the first one.
    missing: PathBuf,
}

impl Lineage {
    fn of(path: &Path) -> Result<Self> {
        Self::look_up(path).map_err(|error| {
            Error::io(Side::Engine, Operation::Stat, &error, format!("look up folder {}", path.shown()))
        })
    }

    fn look_up(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        for folder in path.ancestors() {
            match folder.canonicalize() {
                Ok(resolved) => {
                    let existing = resolved.ancestors().map(identity).collect::<io::Result<_>>()?;
                    let missing = path.strip_prefix(folder).expect("it is an ancestor").to_owned();
                    return Ok(Self { existing, missing });
                }
                Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::NotFound))
    }

    fn contains(&self, other: &Self) -> bool {
        let lowest = self.existing.first();
        if self.missing.as_os_str().is_empty() {
            return other.existing.iter().any(|folder| Some(folder) == lowest);
        }
        other.existing.first() == lowest && other.missing.starts_with(&self.missing)
    }
}

fn identity(folder: &Path) -> io::Result<FileIdentity> {
    let stat = fs::metadata(folder)?;
    Ok(FileIdentity(stat.dev(), stat.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_overlap_by_what_they_are_and_not_by_name() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("srv/hooks/sub")).unwrap();
        fs::create_dir_all(path("srv/hooks-2")).unwrap();
        std::os::unix::fs::symlink(path("srv"), path("alias")).unwrap();
        for (first, second, expected) in [
            ("srv/hooks", "srv/hooks", true),
            ("srv/hooks", "srv", true),
            ("srv/hooks", "srv/hooks/sub", true),
            ("srv/hooks", "alias/hooks/sub", true),
            ("srv/hooks", "alias/../srv", true),
            ("srv/hooks", "alias", true),
            ("srv/hooks", "srv/hooks-2", false),
            ("srv/hooks", "srv/hooks/new/one", true),
            ("srv/hooks", "srv/new", false),
            ("srv/new", "srv", true),
            ("srv/new", "alias/new/one", true),
            ("srv/new", "srv/new-2", false),
        ] {
            assert_eq!(overlap(path(first), path(second)).unwrap(), expected, "{first} {second}");
            assert_eq!(overlap(path(second), path(first)).unwrap(), expected, "{second} {first}");
        }
        assert!(overlap("/", path("srv/hooks")).unwrap());
    }
}
