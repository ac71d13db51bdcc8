//! Which volume it is, and whether it is still the same: what a checkpoint stores about both sides.

use super::VolumeKind;

/// Facts that tell one volume from another and one state of it from a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Absolute path, or canonical URI of an export.
    pub name: String,
    /// File, device or export.
    pub kind: VolumeKind,
    /// File: the device number of its file system. Device: its own device number. Export: 0.
    pub device: u64,
    /// Inode of the file or of the device node. Export: 0.
    pub inode: u64,
    /// When the inode was created, in ns since the epoch; `None` where the file system does not say. Tells a file from
    /// a later one that was given the same inode number.
    pub born_ns: Option<i64>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// File: last change of the content, in ns since the epoch. Device and export: 0, as neither says.
    pub modified_ns: i64,
    /// File: last change of the inode, in ns since the epoch. Device and export: 0.
    pub changed_ns: i64,
}
