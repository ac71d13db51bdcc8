//! Reads how volumes lie on each other: mounts, swap, partitions, loop devices, md and dm.
//!
//! The facts come from `/proc` and `/sys` at the start of a job. What cannot be read counts as absent: these facts only
//! make refusals earlier and clearer, while the lock and `O_EXCL` keep two users apart. Names in these tables are
//! bytes, and one that is no text must not hide the others.

use super::kernel_calls::loop_status;
use crate::shown::{Escaped, Shown};
use nix::libc::{self, dev_t};
use nix::sys::stat::{major, makedev, minor, stat};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts to open a device exclusively before it counts as in use, and the pause between two.
const CLAIM_TRIES: usize = 20;
const CLAIM_WAIT: Duration = Duration::from_millis(10);

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    /// The block device, or an anonymous number with major 0 (btrfs, tmpfs, overlay).
    device: dev_t,
    point: PathBuf,
    kind: String,
    source: PathBuf,
    /// Whether its file system is writable, through this mount or another.
    writable: bool,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        // Between the options and this mark there are any number of fields.
        let mark = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
        Some(Self {
            id: text(fields[0])?.parse().ok()?,
            device: parse_device(text(fields[2])?)?,
            point: unescape(fields[4]),
            kind: unescape(fields.get(mark + 1)?).shown().to_string(),
            source: unescape(fields.get(mark + 2)?),
            writable: fields.get(mark + 3)?.split(|&byte| byte == b',').any(|option| option == b"rw"),
        })
    }

    /// The block devices below it. File systems with anonymous numbers name one as their source; a btrfs may have more.
    fn block_devices(&self) -> Vec<dev_t> {
        if major(self.device) != 0 {
            return vec![self.device];
        }
        let Some(named) = self.source.is_absolute().then(|| block_device_at(&self.source)).flatten() else {
            return Vec::new();
        };
        btrfs_pools().into_iter().find(|pool| pool.contains(&named)).unwrap_or_else(|| vec![named])
    }

    fn is_on(&self, devices: &BTreeSet<dev_t>) -> bool {
        self.block_devices().iter().any(|device| devices.contains(device))
    }
}

/// The devices of each btrfs that is mounted.
fn btrfs_pools() -> Vec<Vec<dev_t>> {
    let pools = fs::read_dir("/sys/fs/btrfs").into_iter().flatten().flatten();
    let devices = |pool: fs::DirEntry| {
        let links = fs::read_dir(pool.path().join("devices")).into_iter().flatten().flatten();
        links.filter_map(|link| device_in(&link.path())).collect()
    };
    pools.map(devices).collect()
}

/// `8:1` as a device number.
fn parse_device(text: &str) -> Option<dev_t> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Undoes the octal escapes (`\040`) of the kernel's tables.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(text).and_then(|code| u8::from_str_radix(code, 8).ok());
        (rest, _) = match octal.filter(|_| *first == b'\\') {
            Some(byte) => (&tail[3..], bytes.push(byte)),
            None => (tail, bytes.push(*first)),
        };
    }
    OsString::from_vec(bytes).into()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The lines of a table of the kernel; none if it cannot be read.
fn table(path: &str) -> Vec<Vec<u8>> {
    let table = fs::read(path).unwrap_or_default();
    table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn mounts() -> Vec<Mount> {
    table("/proc/self/mountinfo").iter().filter_map(|line| Mount::parse(line)).collect()
}

/// The number of the block device that `path` leads to.
fn block_device_at(path: &Path) -> Option<dev_t> {
    let node = fs::metadata(path).ok()?;
    node.file_type().is_block_device().then(|| node.rdev())
}

/// A loop device that is in use.
#[derive(Clone, Debug)]
pub(super) struct Loop {
    pub device: dev_t,
    pub name: String,
    pub backing: Backing,
    /// First byte of the backing that it shows.
    pub offset: u64,
    /// Bytes of it that it shows at most.
    pub length: Option<u64>,
    /// Path of the backing file when it was attached.
    pub path: PathBuf,
}

/// Part of its backing that a loop device shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    File { device: dev_t, inode: u64 },
    Device(dev_t),
}

impl Loop {
    /// `directory` is `/sys/block/loopN`.
    fn read(directory: &Path) -> Option<Self> {
        let name = directory.file_name()?.to_str()?.to_owned();
        let attribute = |file: &str| fs::read_to_string(directory.join(file)).ok();
        let mut path = fs::read(directory.join("loop/backing_file")).ok()?;
        // One line's end is the kernel's, more are the name's.
        path.pop_if(|last| *last == b'\n');
        let path = PathBuf::from(OsString::from_vec(path));
        let device = parse_device(&attribute("dev")?)?;
        let number = |file| attribute(file).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let (offset, limit) = (number("loop/offset"), number("loop/sizelimit"));
        let backing = Self::asked(&name, device).or_else(|| Self::looked_up(&path))?;
        Some(Self { device, name, backing, offset, length: (limit > 0).then_some(limit), path })
    }

    /// By the device itself: right even if the file was moved or lies in another mount namespace, but needs rights.
    fn asked(name: &str, device: dev_t) -> Option<Backing> {
        let path = Path::new("/dev").join(name);
        let status = (block_device_at(&path)? == device).then(|| loop_status(&fs::File::open(path).ok()?).ok())??;
        Some(match status.rdevice {
            0 => Backing::File { device: status.device, inode: status.inode },
            device => Backing::Device(device),
        })
    }

    fn looked_up(path: &Path) -> Option<Backing> {
        let node = fs::metadata(path).ok()?;
        Some(match node.file_type().is_block_device() {
            true => Backing::Device(node.rdev()),
            false => Backing::File { device: node.dev(), inode: node.ino() },
        })
    }
}

fn loops() -> Vec<Loop> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"loop"))
        .filter_map(|entry| Loop::read(&entry.path()))
        .collect()
}

/// The loop device of that directory of sysfs, if it is one and in use.
pub(super) fn loop_at(directory: &Path) -> Option<Loop> {
    directory.file_name()?.as_encoded_bytes().starts_with(b"loop").then(|| Loop::read(directory))?
}

/// The loop device with this number, if it is one and in use.
pub(super) fn loop_of(device: dev_t) -> Option<Loop> {
    loops().into_iter().find(|each| each.device == device)
}

/// A partition's place on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub disk: dev_t,
    pub start_bytes: u64,
}

/// Returns the place of `device` on its disk, if it is a partition.
pub(super) fn partition_of(device: dev_t) -> Option<Partition> {
    let directory = sys_directory(device)?;
    directory.join("partition").exists().then_some(())?;
    let start: u64 = fs::read_to_string(directory.join("start")).ok()?.trim().parse().ok()?;
    // sysfs counts sectors of 512 bytes whatever the device's own are.
    Some(Partition { disk: device_in(directory.parent()?)?, start_bytes: start.checked_mul(512)? })
}

/// The devices that an md, dm or other stacked device consists of.
pub(super) fn components_of(device: dev_t) -> Vec<dev_t> {
    neighbours(device, "slaves").into_iter().map(|(_, device)| device).collect()
}

/// The block devices that the file system numbered `device` lies on. `path` is a file in it, for file systems whose
/// number is anonymous.
pub(super) fn devices_under(device: dev_t, path: Option<&Path>) -> Vec<dev_t> {
    if major(device) != 0 {
        return vec![device];
    }
    let mounts = mounts();
    let id = path.and_then(mount_id);
    let mount = mounts.iter().find(|mount| Some(mount.id) == id).or(mounts.iter().find(|m| m.device == device));
    mount.map(Mount::block_devices).unwrap_or_default()
}

/// Returns the source of the mount of an open file (`server:/export`).
pub(super) fn mount_source(file: &fs::File) -> Option<PathBuf> {
    let id = mount_id_of(file)?;
    mounts().into_iter().find(|mount| mount.id == id).map(|mount| mount.source)
}

/// The mount that a path is in. Comparing device numbers is not enough: those of btrfs subvolumes are in no table.
fn mount_id(path: &Path) -> Option<u64> {
    use nix::fcntl::{OFlag, open};
    let handle: OwnedFd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()).ok()?;
    mount_id_of(&handle)
}

fn mount_id_of(handle: &impl AsRawFd) -> Option<u64> {
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd())).ok()?;
    facts.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// File systems that the kernel fills: what is created there is no volume.
const KERNEL_FILESYSTEMS: [&str; 13] = [
    "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "mqueue", "proc", "pstore",
    "sysfs", "tracefs",
];

/// The kind of the file system that `directory` is in, if the kernel fills it. `/dev` is its, whatever it is: in a
/// container often a tmpfs.
pub(super) fn kernel_filesystem(directory: &Path) -> Option<String> {
    let id = mount_id(directory)?;
    let mount = mounts().into_iter().find(|mount| mount.id == id)?;
    let is_kernels = KERNEL_FILESYSTEMS.contains(&mount.kind.as_str()) || mount.point == Path::new("/dev");
    is_kernels.then_some(mount.kind)
}

/// Describes the user of a block device, of its partitions, or of the disk that it is a part of; `None` if there is
/// none.
pub(super) fn user_of(device: dev_t) -> Option<String> {
    let family = family(device);
    let shown = |each: &Loop| matches!(each.backing, Backing::Device(on) if family.contains(&on));
    let attached = || loops().into_iter().find(shown);
    claimant_of(&family).or_else(|| Some(format!("the loop device /dev/{} is attached to it", attached()?.name)))
}

/// Names the exclusive user of one of these devices: a mount of this namespace, the swap, a device made of it.
fn claimant_of(devices: &BTreeSet<dev_t>) -> Option<String> {
    let mounted = mounts().into_iter().find(|mount| mount.is_on(devices));
    if let Some(mount) = mounted {
        return Some(format!("it is mounted at {} ({})", mount.point.shown(), mount.kind));
    }
    if let Some(path) = swaps().into_iter().find(|path| block_device_at(path).is_some_and(|on| devices.contains(&on))) {
        return Some(format!("it is used as swap ({})", path.shown()));
    }
    let holder = devices.iter().find_map(|&each| Some(neighbours(each, "holders").first()?.0.clone()))?;
    Some(format!("it is part of the device {holder}"))
}

/// Names the user of a regular file that serves as a disk.
pub(super) fn user_of_file(device: dev_t, inode: u64) -> Option<String> {
    let is_it = |path: &Path| stat(path).is_ok_and(|found| (found.st_dev, found.st_ino) == (device, inode));
    if swaps().iter().any(|path| is_it(path)) {
        return Some(String::from("it is used as swap"));
    }
    let shown = |each: &Loop| each.backing == Backing::File { device, inode };
    loops().into_iter().find(shown).map(|each| format!("the loop device /dev/{} is attached to it", each.name))
}

/// Returns the mount point of a file system that is mounted for writing on the device, on a part of it, or on a device
/// made of it.
pub(super) fn writable_mount_of(device: dev_t) -> Option<PathBuf> {
    let above = with_above(family(device));
    let live = |mount: &Mount| mount.writable && mount.is_on(&above);
    mounts().into_iter().find(live).map(|mount| mount.point)
}

/// Names the part of a device that was opened exclusively by a user which this mount namespace does not show: the
/// device, a part of it, or a device made of it. A mount of another namespace does that, and so does a program that
/// writes to it.
pub(super) fn claimed_elsewhere(device: dev_t) -> Option<PathBuf> {
    // Not its disk: other partitions do not matter, and a claim of the whole disk claims this partition as well.
    let mut own = BTreeSet::from([device]);
    own.extend(partitions_of(device));
    let claimed = |&each: &dev_t| claimant_of(&family(each)).is_none() && is_claimed(each);
    with_above(own).into_iter().find(claimed).and_then(node_of)
}

/// Returns whether a device cannot be opened exclusively for reading. Other processes that try the same hold it for a
/// moment each.
fn is_claimed(device: dev_t) -> bool {
    let Some(path) = node_of(device) else { return false };
    let flags = libc::O_EXCL | libc::O_CLOEXEC | libc::O_NONBLOCK;
    (0..CLAIM_TRIES).all(|tries| {
        if tries > 0 {
            std::thread::sleep(CLAIM_WAIT);
        }
        let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path);
        opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    })
}

/// Returns the path of a device under its usual name.
fn node_of(device: dev_t) -> Option<PathBuf> {
    // In sysfs the separator of a name such as `cciss/c0d0` is another.
    let name = sys_directory(device)?.file_name()?.to_str()?.replace('!', "/");
    let path = Path::new("/dev").join(name);
    (block_device_at(&path)? == device).then_some(path)
}

/// These devices and all that are made of them, loop devices included.
fn with_above(mut devices: BTreeSet<dev_t>) -> BTreeSet<dev_t> {
    let loops = loops();
    let mut queue: Vec<dev_t> = devices.iter().copied().collect();
    while let Some(next) = queue.pop() {
        let holders = neighbours(next, "holders").into_iter().map(|(_, device)| device);
        let shown = loops.iter().filter(|each| each.backing == Backing::Device(next)).map(|each| each.device);
        queue.extend(holders.chain(shown).filter(|&above| devices.insert(above)));
    }
    devices
}

/// The device, its partitions, and the disk that it is a partition of.
fn family(device: dev_t) -> BTreeSet<dev_t> {
    let mut family = BTreeSet::from([device]);
    family.extend(partition_of(device).map(|partition| partition.disk));
    family.extend(partitions_of(device));
    family
}

fn partitions_of(device: dev_t) -> Vec<dev_t> {
    let children = sys_directory(device).and_then(|directory| fs::read_dir(directory).ok());
    let children = children.into_iter().flatten().flatten().map(|entry| entry.path());
    children.filter(|path| path.join("partition").exists()).filter_map(|path| device_in(&path)).collect()
}

/// Names and numbers of the devices that are linked in a subdirectory (`holders`, `slaves`).
fn neighbours(device: dev_t, subdirectory: &str) -> Vec<(String, dev_t)> {
    let directory = sys_directory(device).map(|directory| directory.join(subdirectory));
    let entries = directory.and_then(|directory| fs::read_dir(directory).ok()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((device_name(&entry.path()), device_in(&entry.path())?))).collect()
}

/// `vg-data (dm-0)` for device-mapper devices, which are known by that name, else `md0`.
fn device_name(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().shown();
    match fs::read(directory.join("dm/name")) {
        Ok(mapped) => format!("{} ({name})", Escaped::from(mapped.trim_ascii())),
        Err(_) => name.to_string(),
    }
}

fn device_in(directory: &Path) -> Option<dev_t> {
    parse_device(&fs::read_to_string(directory.join("dev")).ok()?)
}

pub(super) fn sys_directory(device: dev_t) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()
}

fn swaps() -> Vec<PathBuf> {
    table("/proc/swaps").iter().skip(1).filter_map(|line| swap(line)).collect()
}

/// The first field, which blanks follow.
fn swap(line: &[u8]) -> Option<PathBuf> {
    line.split(|byte| matches!(byte, b' ' | b'\t')).next().map(unescape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables_are_read_with_their_escapes() {
        let mount =
            Mount::parse(br"36 35 98:0 / /mnt/a\040b rw,noatime master:1 - ext4 /dev/root rw,errors=continue").unwrap();
        assert_eq!((mount.id, mount.device, mount.kind.as_str()), (36, makedev(98, 0), "ext4"));
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert!(mount.writable);
        for line in [&b""[..], b"nonsense", b"1 2 3 - x", b"36 35 98:0 / /mnt rw - ext4 /dev/root"] {
            assert_eq!(Mount::parse(line), None);
        }
    }

    #[test]
    fn names_in_tables_are_bytes() {
        let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        let line = b"36 35 0:9 / /mnt/\xff\\134\\012\\377 rw - fuse.\xfe host:/\xfd rw";
        let found = Mount::parse(line).unwrap();
        assert_eq!(bytes(&found.point), b"/mnt/\xff\\\n\xff");
        assert_eq!(bytes(&found.source), b"host:/\xfd");
        assert_eq!(found.kind, r"fuse.\xfe");
        // Mounted from nothing, under a name like the mark.
        assert_eq!(Mount::parse(b"36 35 0:9 - - rw - tmpfs  rw").unwrap().source, Path::new(""));
        let swap = swap(b"/swap\\040\xff\\040(deleted)      file\t\t1024\t\t0\t\t-2").unwrap();
        assert_eq!(bytes(&swap), b"/swap \xff (deleted)");
    }

    #[test]
    fn a_read_only_mount_of_a_writable_file_system_counts_as_writable() {
        assert!(Mount::parse(b"40 35 7:0 / /mnt ro,relatime - ext4 /dev/loop0 rw").unwrap().writable);
        assert!(!Mount::parse(b"40 35 7:0 / /mnt ro,relatime - ext4 /dev/loop0 ro").unwrap().writable);
    }

    #[test]
    fn every_line_of_this_hosts_table_is_understood() {
        assert_eq!(mounts().len(), table("/proc/self/mountinfo").len());
    }
}
