//! Tells whether two volumes are, or overlap on, the same bytes.
//!
//! Each volume has _exact_ regions, whose bytes are its own (itself, the part of the disk that a partition is, the part
//! of the file that a loop device shows), and _hosting_ regions, which merely host it (the device under its file
//! system, the components of an md or dm device). Two volumes clash if an exact region of one meets any region of the
//! other. Two files on one disk do not clash: both are only hosted there.

use super::Volume;
use super::inode::{Inode, InodeKind};
use super::topology::{Backing, components_of, devices_under, loop_of, partition_of};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::ByteRange;
use crate::shown::Shown;
use std::path::{Path, PathBuf};

/// Deepest stack that is followed: loops on files on loops.
const DEPTH_MAX: usize = 16;

/// Volume or file that a region is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RegionOf {
    /// A block device, by number.
    Device(u64),
    /// A file, by the number of its file system and its inode.
    File(u64, u64),
}

/// Bytes of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    region_of: RegionOf,
    range: ByteRange,
}

impl Region {
    fn meets(&self, other: &Self) -> bool {
        self.region_of == other.region_of && self.range.intersect(other.range).is_some()
    }
}

/// Everything a volume lies on.
#[derive(Debug, Default)]
struct VolumeRegions {
    exact: Vec<Region>,
    hosting: Vec<Region>,
}

impl VolumeRegions {
    fn of(inode: &Inode) -> Self {
        let mut regions = Self::default();
        match inode.kind() {
            InodeKind::Device => regions.descend_device(inode.rdev(), ByteRange::new(0, u64::MAX), true, 0),
            InodeKind::File => {
                regions.descend_file(
                    inode.device(),
                    inode.number(),
                    Some(inode.reach()),
                    ByteRange::new(0, u64::MAX),
                    true,
                    0,
                );
            }
        }
        regions
    }

    /// Returns the region of an open file or device.
    fn of_volume(volume: &dyn Volume) -> Option<Self> {
        let reach = PathBuf::from(format!("/proc/self/fd/{}", volume.file().0));
        Inode::reached(volume.name().as_path(), reach, Side::Engine).ok().map(|inode| Self::of(&inode))
    }

    fn push(&mut self, region: Region, exactly: bool) {
        if exactly { self.exact.push(region) } else { self.hosting.push(region) }
    }

    fn descend_file(
        &mut self,
        device: u64,
        inode: u64,
        path: Option<&Path>,
        range: ByteRange,
        exactly: bool,
        depth: usize,
    ) {
        self.push(Region { region_of: RegionOf::File(device, inode), range }, exactly);
        for below in devices_under(device, path) {
            self.descend_device(below, ByteRange::new(0, u64::MAX), false, depth + 1);
        }
    }

    fn descend_device(&mut self, device: u64, range: ByteRange, exactly: bool, depth: usize) {
        self.push(Region { region_of: RegionOf::Device(device), range }, exactly);
        if depth > DEPTH_MAX {
            return;
        }
        if let Some(partition) = partition_of(device) {
            self.descend_device(
                partition.disk,
                shift(range, partition.start_bytes, size_of(device)),
                exactly,
                depth + 1,
            );
        }
        if let Some(shown) = loop_of(device) {
            let range = shift(range, shown.offset, shown.length.or(size_of(device)));
            match shown.backing {
                Backing::Device(below) => self.descend_device(below, range, exactly, depth + 1),
                Backing::File { device, inode } => {
                    self.descend_file(device, inode, Some(&shown.path), range, exactly, depth + 1);
                }
            }
        }
        for component in components_of(device) {
            self.descend_device(component, ByteRange::new(0, u64::MAX), false, depth + 1);
        }
    }

    fn meets(&self, other: &Self) -> bool {
        meet(&self.exact, &other.exact) || meet(&self.exact, &other.hosting) || meet(&self.hosting, &other.exact)
    }
}

fn meet(some: &[Region], others: &[Region]) -> bool {
    some.iter().any(|one| others.iter().any(|two| one.meets(two)))
}

/// Translates a range to the layer below, where the device starts at `offset` and has `length` bytes.
fn shift(range: ByteRange, offset: u64, length: Option<u64>) -> ByteRange {
    let end = range.end().min(length.unwrap_or(u64::MAX));
    ByteRange::new(offset.saturating_add(range.start().min(end)), offset.saturating_add(end))
}

/// Size of a device in bytes, from sysfs, which needs no rights on the device.
fn size_of(device: u64) -> Option<u64> {
    use nix::sys::stat::{major, minor};
    let text = std::fs::read_to_string(format!("/sys/dev/block/{}:{}/size", major(device), minor(device))).ok()?;
    text.trim().parse::<u64>().ok()?.checked_mul(512)
}

/// Returns whether some bytes of both are the same, however they are reached. A file and the device below its file
/// system share none, unless the device itself is what is written to as `one`.
pub(super) fn share_bytes(one: &Inode, other: &Inode) -> bool {
    let (writer, other) = (VolumeRegions::of(one), VolumeRegions::of(other));
    match one.kind() {
        InodeKind::Device => writer.meets(&other),
        InodeKind::File => meet(&writer.exact, &other.exact),
    }
}

/// Refuses two volumes that share bytes.
///
/// # Errors
/// `ESameVolume`, naming both.
pub(super) fn refuse_same(source: &Inode, destination: &Inode) -> Result<()> {
    if !VolumeRegions::of(source).meets(&VolumeRegions::of(destination)) {
        return Ok(());
    }
    let (from, to) = (source.path().shown(), destination.path().shown());
    let message = format!("{from} and {to} are, or lie on, the same volume: copying would destroy the source");
    Err(Error::new(Code::SameVolume, Side::Caller, Operation::Open, message).advise("name another destination"))
}

/// Refuses a source that lies under a file that is to be created in `directory`.
///
/// # Errors
/// `ESameVolume`, naming both.
pub(super) fn refuse_source_under(source: &Inode, destination: &Path, directory: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Ok(stat) = std::fs::metadata(directory) else { return Ok(()) };
    let mut hosting = VolumeRegions::default();
    hosting.descend_file(stat.dev(), stat.ino(), Some(directory), ByteRange::new(0, u64::MAX), false, 0);
    if !VolumeRegions::of(source).meets(&hosting) {
        return Ok(());
    }
    let (from, to) = (source.path().shown(), destination.shown());
    let message = format!("{to} would lie on a file system on {from}: the copy would change its own source");
    Err(Error::new(Code::SameVolume, Side::Caller, Operation::Open, message).advise("name another destination"))
}

/// Refuses a file of our own at `path` that is one of the volumes, or that one of them lies on (the file behind a loop
/// device): it would be replaced. `flag` has named it.
///
/// # Errors
/// `EBadRequest`, naming both.
pub fn refuse_file_of(path: &Path, flag: &str, volumes: [&dyn Volume; 2]) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let is_volume = |volume: &dyn Volume| {
        let (path, name) = (path.shown(), volume.name());
        let message = format!("{flag} {path} is the volume {name} itself, or holds its bytes; name another file");
        Err(Error::bad_request(message))
    };
    let Ok(stat) = std::fs::metadata(path) else {
        // A destination that a copy would create has its name only.
        let place = place_of(path);
        let has_name = |volume: &&dyn Volume| place.is_some() && place_of(volume.name().as_path()) == place;
        return volumes.into_iter().find(has_name).map_or(Ok(()), is_volume);
    };
    // Only the file itself counts: what its file system lies on may well be copied while it is mounted.
    let whole = Region { region_of: RegionOf::File(stat.dev(), stat.ino()), range: ByteRange::new(0, u64::MAX) };
    let file = VolumeRegions { exact: vec![whole], hosting: Vec::new() };
    let lies_on_it =
        |volume: &&dyn Volume| VolumeRegions::of_volume(*volume).is_some_and(|regions| regions.meets(&file));
    volumes.into_iter().find(lies_on_it).map_or(Ok(()), is_volume)
}

/// The directory of a path as it is found, and the last part of the path.
fn place_of(path: &Path) -> Option<(std::path::PathBuf, &std::ffi::OsStr)> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some((directory.canonicalize().ok()?, path.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(exact: &[(RegionOf, u64, u64)], hosting: &[RegionOf]) -> VolumeRegions {
        let region = |region_of, start, end| Region { region_of, range: ByteRange::new(start, end) };
        VolumeRegions {
            exact: exact.iter().map(|&(region_of, start, end)| region(region_of, start, end)).collect(),
            hosting: hosting.iter().map(|&region_of| region(region_of, 0, u64::MAX)).collect(),
        }
    }

    #[test]
    fn only_exact_regions_overlap() {
        let disk = RegionOf::Device(1);
        let file = |inode| regions(&[(RegionOf::File(1, inode), 0, u64::MAX)], &[disk]);
        assert!(!file(1).meets(&file(2)), "two files on one disk");
        assert!(file(1).meets(&file(1)), "one file");
        let whole = regions(&[(disk, 0, u64::MAX)], &[]);
        assert!(whole.meets(&file(1)) && file(1).meets(&whole), "a file and the disk under it");
    }

    #[test]
    fn partitions_overlap_by_their_ranges() {
        let part = |start, end| regions(&[(RegionOf::Device(1), start, end)], &[]);
        assert!(!part(0, 4096).meets(&part(4096, 8192)));
        assert!(part(0, 4097).meets(&part(4096, 8192)));
        assert_eq!(shift(ByteRange::new(0, u64::MAX), 512, Some(1024)), ByteRange::new(512, 1536));
    }
}
