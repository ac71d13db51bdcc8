//! Finds and creates the default directory for checkpoints.
//!
//! Finding it has no side effects; [`prepare`] creates it.

use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{AccessFlags, access};
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const ADVICE: &str = "use another directory (--state-dir), a file (--checkpoint), or no checkpoint (--no-checkpoint)";

/// Returns the state directory, which need not exist yet. `variable` reads the environment.
///
/// # Errors
/// `EPermission` if neither a flag nor the environment names one.
pub(crate) fn locate(flag: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    blockhaul_control::state_dir::locate(flag, variable).ok_or_else(|| {
        let message = format!("no state directory for the checkpoint: HOME is not set; {ADVICE}");
        Error::new(Code::Permission, Side::Caller, Operation::Journal, message)
    })
}

/// Creates the directory if it is missing (mode 0700) and checks that files can be created in it.
///
/// # Errors
/// `EPermission`, naming the flags that help.
pub(crate) fn prepare(directory: &Path) -> Result<()> {
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    created
        .map_err(|error| refusal("create", directory, Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    writable(directory).map_err(|errno| refusal("write to", directory, errno))
}

/// Checks as [`prepare`], but creates nothing: for a missing directory the nearest existing parent is checked.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn examine(directory: &Path) -> Result<()> {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let action = if absolute.is_dir() { "write to" } else { "create" };
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists());
    existing.map_or(Ok(()), writable).map_err(|errno| refusal(action, directory, errno))
}

fn refusal(action: &str, directory: &Path, errno: Errno) -> Error {
    let what = format!("{action} the state directory {}", directory.shown());
    Error::os(Side::Caller, Operation::Journal, errno, what).with_code(Code::Permission).advise(ADVICE)
}

fn writable(directory: &Path) -> std::result::Result<(), Errno> {
    if !directory.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK)
}

/// Returns the absolute path of a destination, which identifies its checkpoint. Links in the directory part are
/// resolved, so that all paths of a file give one result. A link in the last part is kept, because
/// `/dev/disk/by-id/...` outlives the device number it points to.
pub(crate) fn absolute_destination(destination: &Path) -> PathBuf {
    let absolute = std::path::absolute(destination).unwrap_or_else(|_| destination.to_owned());
    match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn without_any_the_error_names_the_flags() {
        let error = locate(None, environment(&[("XDG_STATE_HOME", "relative"), ("STATE_DIRECTORY", "")])).unwrap_err();
        assert_eq!(error.code, Code::Permission);
        for flag in ["--state-dir", "--checkpoint", "--no-checkpoint"] {
            assert!(error.message.contains(flag), "{error}");
        }
    }

    #[test]
    fn preparing_creates_it_and_examining_does_not() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("a/b");
        examine(&missing).unwrap();
        assert!(!missing.exists());
        prepare(&missing).unwrap();
        assert!(missing.is_dir());
        std::fs::write(scratch.path().join("file"), "x").unwrap();
        let error = prepare(&scratch.path().join("file")).unwrap_err();
        assert_eq!(error.code, Code::Permission);
        assert!(error.message.contains("--state-dir"), "{error}");
    }

    #[test]
    fn every_spelling_of_a_file_has_one_key() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        std::os::unix::fs::symlink(root.join("d"), root.join("link")).unwrap();
        for spelling in ["d/x", "link/x", "d/../d/x", "./d/x"] {
            assert_eq!(absolute_destination(&root.join(spelling)), root.join("d/x"), "{spelling}");
        }
    }
}
