//! Names the files of journals and refuses paths that cannot hold one.

use crate::error::{Error, Operation, Result, Side};
use crate::shown::Shown;
use crate::volume::VolumeName;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a readable name in a checkpoint's file name.
const TAIL_BYTES_MAX: usize = 48;

/// The checkpoint of a copy to `destination`: always the same name for the same destination, with its readable tail in
/// front.
pub fn default_checkpoint_path(state_dir: &Path, destination: &VolumeName) -> PathBuf {
    let hash = blake3::hash(destination.as_bytes()).to_hex();
    // Only a help for the eye: the hash tells names apart.
    let text = String::from_utf8_lossy(destination.as_bytes());
    let tail = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let tail: String = tail.chars().map(|c| if is_plain(c) { c } else { '_' }).take(TAIL_BYTES_MAX).collect();
    state_dir.join(format!("{}-{}.journal", tail.trim_start_matches('.'), &hash[..16]))
}

/// Refuses a place for a checkpoint or receipt that is there but no regular file, such as `/dev/null`: it would be
/// replaced. To be asked before the first byte is written. So is a symbolic link to nothing: the link would be.
///
/// # Errors
/// `EBadRequest`, and whatever the system says.
pub(crate) fn check_place(path: &Path) -> Result<()> {
    let refused = |what: &str| {
        let path = path.shown();
        Err(Error::bad_request(format!(
            "{path} is {what}; a checkpoint or receipt needs a regular file or a free name"
        )))
    };
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => refused("not a regular file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => refused("a link to nothing"),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&error, "look at", path)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The name of a journal until it is complete.
pub(super) fn fresh_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

/// The error of a call on `path`.
pub(super) fn failed(error: &io::Error, what: impl Display, path: &Path) -> Error {
    Error::io(Side::Engine, Operation::Journal, error, format_args!("{what} {}", path.shown()))
}
