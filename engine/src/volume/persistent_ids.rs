//! Reads the IDs that a device or a file system keeps however it is numbered: world-wide names, serials, UUIDs, the
//! file behind a loop device.
//!
//! Within one boot the sequence number that the kernel gives to each medium is added. Not every host, device and file
//! system tells all of them, and an upgraded kernel may tell more than the one before. So each ID has a tag, and only
//! IDs with the same tag are compared.

use super::identity::IdentityMatch;
use super::{filesystem, kernel_calls, topology};
use crate::shown::Escaped;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Deepest stack of loop devices that is followed.
const DEPTH_MAX: usize = 4;
/// Longest value of one id; what is longer is not taken.
const VALUE_BYTES_MAX: usize = 128;
/// Most bytes of all ids as text.
pub(crate) const IDS_BYTES_MAX: usize = 1024;
/// A tag that can only tell volumes apart: another partition of one disk is another volume, but every disk has a first
/// one.
const PARTITION: &str = "partition";
/// Files with the ids of a device, below its directory in sysfs, and their tags.
const ATTRIBUTES: [(&str, &str); 7] = [
    ("wwid", "wwid"),
    ("device/wwid", "wwid"),
    ("serial", "serial"),
    ("device/serial", "serial"),
    ("device/cid", "cid"),
    ("dm/uuid", "dm"),
    ("md/uuid", "md"),
];

/// Persistent ids of a volume. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeIds {
    /// `tag=value` in lines.
    pub(crate) lasting: String,
    /// Boot id of the host; 0: unknown.
    pub(crate) boot_id: u128,
    /// Disk sequence number of the medium within this boot; 0: unknown, or no device.
    pub(crate) disk_sequence: u64,
}

impl VolumeIds {
    /// Creates a set of ids by their tags. The first of two with one tag counts.
    pub(crate) fn of<'a>(ids: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut all = Self::default();
        ids.into_iter().for_each(|(tag, value)| all.push(tag, &value));
        all
    }

    /// Returns the IDs that stay, in words; empty if none are known.
    #[must_use]
    pub fn lasting(&self) -> &str {
        &self.lasting
    }

    /// Reads the ids of a block device.
    pub(super) fn of_device(number: u64) -> Self {
        let mut ids = Self { boot_id: boot_id(), ..Self::default() };
        ids.add_device(number, "", 0);
        ids
    }

    /// Reads the ids of the file system of an open file.
    pub(super) fn of_file(file: &File) -> Self {
        let mut ids = Self::default();
        ids.add_file_system(file, "");
        ids
    }

    fn push(&mut self, tag: &str, value: &str) {
        let value: String = value.trim().chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        let fits = (1..=VALUE_BYTES_MAX).contains(&value.len())
            && self.lasting.len() + tag.len() + value.len() + 2 <= IDS_BYTES_MAX;
        if fits && self.get(tag).is_none() {
            if !self.lasting.is_empty() {
                self.lasting.push('\n');
            }
            self.lasting.extend([tag, "=", &value]);
        }
    }

    fn get(&self, tag: &str) -> Option<&str> {
        self.lasting.lines().find_map(|line| line.strip_prefix(tag)?.strip_prefix('='))
    }

    /// `under` goes in front of each tag: `loop-` for what is under a loop device.
    fn add_device(&mut self, number: u64, under: &str, depth: usize) {
        let Some(directory) = topology::sys_directory(number) else { return };
        let partition = topology::partition_of(number);
        // Everything but its place a partition has from its disk.
        let disk = partition.and_then(|_| directory.parent().map(Path::to_owned)).unwrap_or_else(|| directory.clone());
        if depth == 0 {
            self.disk_sequence = read(&disk.join("diskseq")).and_then(|text| text.parse().ok()).unwrap_or(0);
        }
        for (file, tag) in ATTRIBUTES {
            if let Some(value) = read(&disk.join(file)).filter(|value| !is_nil(value)) {
                self.push(&format!("{under}{tag}"), &value);
            }
        }
        if let Some(partition) = partition {
            let index = read(&directory.join("partition")).unwrap_or_default();
            self.push(&format!("{under}{PARTITION}"), &format!("{index} at {}", partition.start_bytes));
        }
        if depth < DEPTH_MAX
            && let Some(shown) = topology::loop_at(&disk)
        {
            self.add_backing(&shown, &format!("{under}loop-"), depth);
        }
    }

    /// Identifies a loop device by the part of the backing file that it shows, whatever its own number.
    fn add_backing(&mut self, shown: &topology::Loop, under: &str, depth: usize) {
        let part = format!("{} {}", shown.offset, shown.length.unwrap_or(0));
        match shown.backing {
            topology::Backing::Device(number) => {
                self.push(&format!("{under}{PARTITION}"), &part);
                self.add_device(number, under, depth + 1);
            }
            topology::Backing::File { device, inode } => {
                let Some(file) = open_backing(&shown.path, device, inode) else { return };
                let born = file.metadata().ok().and_then(|stat| super::file::born_ns(&stat));
                self.push(&format!("{under}file"), &format!("{inode} {} {part}", born.unwrap_or(0)));
                self.add_file_system(&file, under);
            }
        }
    }

    fn add_file_system(&mut self, file: &File, under: &str) {
        if let Some(uuid) =
            kernel_calls::file_system_uuid(file).ok().map(|uuid| hex(&uuid)).filter(|uuid| !is_nil(uuid))
        {
            self.push(&format!("{under}uuid"), &uuid);
        }
        let Ok(found) = filesystem::FileSystem::of(file) else { return };
        if let Some(id) = found.lasting_id(file) {
            self.push(&format!("{under}fsid"), &format!("{id:016x}"));
        }
        if found.is_remote()
            && let Some(source) = topology::mount_source(file)
        {
            self.push(
                &format!("{under}mount"),
                &format!("{} {}", found.name(), text(source.into_os_string().into_vec())),
            );
        }
    }

    /// Returns whether both are of one device or file system.
    pub(super) fn compare_identity(&self, now: &Self) -> IdentityMatch {
        let mut known = false;
        for line in self.lasting.lines() {
            let Some((tag, was)) = line.split_once('=') else { continue };
            match now.get(tag) {
                None => {}
                Some(is) if is != was => {
                    return IdentityMatch::Other(format!("its {tag} was '{was}' and is '{is}' now"));
                }
                Some(_) => known |= !tag.ends_with(PARTITION),
            }
        }
        let is_same_medium =
            (self.boot_id, self.disk_sequence) == (now.boot_id, now.disk_sequence) && self.boot_id != 0;
        // Another sequence number is no proof of another disk: a medium that is attached again gets a new one.
        if known || (is_same_medium && self.disk_sequence != 0) { IdentityMatch::Same } else { IdentityMatch::Unknown }
    }
}

/// The file behind a loop device, if it is still where it was.
fn open_backing(path: &Path, device: u64, inode: u64) -> Option<File> {
    let flags = nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let stat = file.metadata().ok()?;
    ((stat.dev(), stat.ino()) == (device, inode)).then_some(file)
}

fn read(path: &PathBuf) -> Option<String> {
    fs::read(path).ok().map(|value| text(value).trim().to_owned()).filter(|text| !text.is_empty())
}

/// An id as it is, or, where it is no text, as it is shown: journals keep ids, so text is never changed.
fn text(value: Vec<u8>) -> String {
    String::from_utf8(value).unwrap_or_else(|no_text| Escaped::from(no_text.as_bytes().trim_ascii()).to_string())
}

/// Returns whether an id is all zeros, as devices without an id report it.
fn is_nil(value: &str) -> bool {
    value.chars().all(|char| "0-.: ".contains(char))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the boot id of this host; 0 if unknown.
fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}
