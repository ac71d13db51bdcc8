//! Finds the names by which a local destination is claimed. They stay the same however its path is spelled.
//!
//! | destination | names, its own first |
//! | --- | --- |
//! | file | `file:NODE:MAJOR:MINOR:INODE`, then as a missing one |
//! | file that does not exist | `name:NODE:MAJOR:MINOR:INODE/NAME`, of its folder |
//! | block device with a world-wide name | `wwn:WWN`, with `-part1` and so on of a partition |
//! | other block device | `device:NODE:MAJOR:MINOR` |
//! | export behind a unix socket | `unix:NODE:URI`, with the socket's real path |
//! | export of a host | its URI |
//!
//! A file has both names, as the task that creates it has claimed it by the second one.

use super::{Found, Policy};
use crate::model::NodeId;
use blockhaul_engine::error::{Result, Side};
use blockhaul_engine::shown::Shown;
use nix::sys::stat::{major, minor};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Returns the identities of the local destination `path` on `node`.
///
/// # Errors
/// As [`Policy::open_destination`], which it comes before; changes nothing.
pub(crate) fn identities(policy: &Policy, node: &NodeId, path: &Path) -> Result<Vec<String>> {
    match policy.find(path, Side::Destination)? {
        Some(found) if found.stat.file_type().is_block_device() => Ok(vec![device(node, found.stat.rdev())]),
        Some(found) => {
            let own = format!("file:{node}:{}:{}", number(found.stat.dev()), found.stat.ino());
            // By its real path: a link to it in another folder is the same file.
            let by_name = policy.find_folder(&found.real, Side::Destination);
            Ok(std::iter::once(own).chain(by_name.ok().map(|(folder, name)| entry(node, &folder, name))).collect())
        }
        None => {
            let (folder, name) = policy.find_folder(path, Side::Destination)?;
            Ok(vec![entry(node, &folder, name)])
        }
    }
}

fn entry(node: &NodeId, folder: &Found, name: &std::ffi::OsStr) -> String {
    format!("name:{node}:{}:{}/{}", number(folder.stat.dev()), folder.stat.ino(), name.shown())
}

fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

fn device(node: &NodeId, rdev: u64) -> String {
    let sysfs = PathBuf::from(format!("/sys/dev/block/{}", number(rdev)));
    world_wide_name(&sysfs).unwrap_or_else(|| format!("device:{node}:{}", number(rdev)))
}

/// Returns the device's world-wide name, by its folder in sysfs. A partition has its disk's, and its own number.
pub(super) fn world_wide_name(sysfs: &Path) -> Option<String> {
    let read = |path: &Path| Some(std::fs::read_to_string(path).ok()?.split_whitespace().collect::<Vec<_>>().join("_"));
    let said = |folder: &Path| {
        let texts = ["device/wwid", "wwid"].iter().filter_map(|name| read(&folder.join(name)));
        texts.into_iter().find(|text| !text.is_empty())
    };
    match read(&sysfs.join("partition")) {
        Some(partition) => {
            let disk = std::fs::canonicalize(sysfs).ok()?;
            Some(format!("wwn:{}-part{partition}", said(disk.parent()?)?))
        }
        None => Some(format!("wwn:{}", said(sysfs)?)),
    }
}
