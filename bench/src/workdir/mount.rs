//! Mounts that only this process and its children see.

use super::is_root;
use crate::executor::Failure;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::{Path, PathBuf};

/// Takes a mount name space of our own: what is mounted from now on goes with this process. Without rights nothing
/// changes, and nothing can be mounted either.
pub(crate) fn keep_to_ourselves() {
    if unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        // Mounts of others still arrive here; ours stay.
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
        fs::create_dir_all(point).map_err(|error| Failure::io("make a mount point", &error))?;
        mount(Some(what), point, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(|errno| Failure::io(format!("mount {kind}"), &errno.into()))?;
        Ok(Self(point.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Who still holds a file there must not keep the mount in sight.
        let _ = umount2(&self.0, MntFlags::empty()).or_else(|_| umount2(&self.0, MntFlags::MNT_DETACH));
    }
}
