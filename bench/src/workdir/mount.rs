//! Mounts file systems that only this process and its children see.

use super::is_root;
use crate::trial_executor::Failure;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::{Path, PathBuf};

/// Creates a mount namespace for this process: mounts made from now on end with the process. Does nothing without
/// rights; mounting then fails as well.
pub(crate) fn keep_to_ourselves() {
    if unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        // Mounts of other processes still propagate to this namespace, but not from it.
        let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>);
    }
}

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// # Errors
    /// Without rights, or as `mount`.
    pub(crate) fn make(what: &Path, point: &Path, kind: &'static str) -> Result<Self, Failure> {
        if !is_root() {
            return Err(Failure::Failed("mounting needs root".to_owned()));
        }
        fs::create_dir_all(point).map_err(|error| Failure::io("create a mount point", &error))?;
        mount(Some(what), point, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(|errno| Failure::io(format!("mount {kind}"), &errno.into()))?;
        Ok(Self(point.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A file that is still open must not keep the mount visible.
        let _ = umount2(&self.0, MntFlags::empty()).or_else(|_| umount2(&self.0, MntFlags::MNT_DETACH));
    }
}
