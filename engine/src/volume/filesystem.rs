//! Asks a file system for its kind and block size, and derives what no probe can tell.

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use std::os::fd::AsFd;

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// `NFS_SUPER_MAGIC`, `CIFS_SUPER_MAGIC`, `SMB2_SUPER_MAGIC`, `CEPH_SUPER_MAGIC`.
const SERVERS: [(i64, &str); 4] =
    [(0x6969, "nfs"), (0xff53_4d42, "cifs"), (0xfe53_4d42, "smb"), (CEPH_SUPER_MAGIC, "ceph")];
const CEPH_SUPER_MAGIC: i64 = 0x00c3_6400;
const ZFS_SUPER_MAGIC: i64 = 0x2fc1_2fc1;
const BCACHEFS_SUPER_MAGIC: i64 = 0xca45_1a4e;

/// The file system of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem {
    kind: FsType,
    /// Bytes of an allocation unit.
    pub block_bytes: u64,
}

impl FileSystem {
    /// Asks the file system of `file`.
    pub(crate) fn of(file: impl AsFd) -> Result<Self, Errno> {
        let stat = fstatfs(file)?;
        let block_bytes = u64::try_from(stat.block_size()).unwrap_or(0).max(512);
        Ok(Self { kind: stat.filesystem_type(), block_bytes })
    }

    /// Returns whether files live in memory only: there is no device to bypass the cache to.
    pub(crate) fn is_memory(self) -> bool {
        self.kind == TMPFS_MAGIC || self.magic() == RAMFS_MAGIC
    }

    /// Its id, where that is made of something that lies in it. Others make it from the number of the device below (xfs
    /// does), or have none.
    pub(super) fn lasting_id(self, file: impl AsFd) -> Option<u64> {
        let is_kept = [EXT4_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC].contains(&self.kind)
            || [ZFS_SUPER_MAGIC, BCACHEFS_SUPER_MAGIC, CEPH_SUPER_MAGIC].contains(&self.magic());
        is_kept.then(|| fstatvfs(file).ok())?.map(|stat| stat.filesystem_id()).filter(|&id| id != 0)
    }

    /// Returns whether a server keeps its files, which is known by what was mounted.
    pub(super) fn is_remote(self) -> bool {
        SERVERS.iter().any(|&(magic, _)| magic == self.magic())
    }

    /// Returns whether no other host changes its files while it is mounted here.
    pub(super) fn has_its_device_alone(self) -> bool {
        [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&self.kind)
    }

    /// Returns whether both are of one kind. Only the kernel knows whether they are the same one.
    pub(crate) fn same_kind(self, other: Self) -> bool {
        self.kind == other.kind
    }

    /// Returns its usual name, or the magic number in hexadecimal digits.
    pub(crate) fn name(self) -> String {
        let known = [
            (EXT4_SUPER_MAGIC.0, "ext4"),
            (XFS_SUPER_MAGIC.0, "xfs"),
            (BTRFS_SUPER_MAGIC.0, "btrfs"),
            (TMPFS_MAGIC.0, "tmpfs"),
            (RAMFS_MAGIC, "ramfs"),
            (libc::OVERLAYFS_SUPER_MAGIC, "overlay"),
        ];
        let found = known.iter().chain(&SERVERS).find(|&&(magic, _)| magic == self.magic());
        found.map_or_else(|| format!("{:#x}", self.magic()), |&(_, name)| name.to_owned())
    }

    fn magic(self) -> i64 {
        self.kind.0
    }
}
