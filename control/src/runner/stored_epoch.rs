//! Stores the highest epoch under which a local destination was written, beside its content.
//!
//! The coordination service can lose its history, and would then grant lower epochs again. A destination must not be
//! written under a grant that is older than its last one. A file has the extended attribute `user.blockhaul.epoch`, a
//! decimal number. Devices, and files of file systems without such attributes, have a record in the state directory.
//! The stored epoch also shows whether a destination is the one that earlier attempts have written: the durable bytes
//! of a task's record count only for that one.
//!
//! A runner that checks signed orders also stores a digest of the order that last wrote the destination, as
//! `user.blockhaul.order` or as a record `order-...` in the state directory. The digest holds the epoch of that grant, and is
//! ignored if the stored epoch is another one.
//!
//! What always holds: the stored epoch never falls, and is durable before the first write under its grant.

use super::node_state::replace;
use crate::model::Epoch;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use xattr::FileExt;

/// Extended attribute of destination files.
const ATTRIBUTE: &str = "user.blockhaul.epoch";
/// Extended attribute of destination files that a signed order has written: the epoch, a space, and the mark of the order.
const MARK: &str = "user.blockhaul.order";

/// Stored epochs of destinations.
#[derive(Debug)]
pub(super) struct StoredEpochs {
    folder: PathBuf,
}

impl StoredEpochs {
    /// Creates the folder `devices` of the state directory, which holds records.
    pub(super) fn new(state_dir: &Path) -> Result<Self> {
        let folder = state_dir.join("devices");
        std::fs::create_dir_all(&folder).map_err(|error| failed(&error, "create", &folder))?;
        Ok(Self { folder })
    }

    /// Returns the stored epoch of a destination; `None` if it has none.
    ///
    /// # Errors
    /// The error of reading it; `EFenced` if the stored text is not an epoch.
    pub(super) fn read(&self, file: &File) -> Result<Option<Epoch>> {
        let text = match self.attribute(file, ATTRIBUTE)? {
            Some(attribute) => attribute,
            None => self.record(file)?,
        };
        text.map(|text| parse(&text)).transpose()
    }

    /// Returns the stored epoch of a destination that may be written under `epoch`.
    ///
    /// # Errors
    /// `EFenced` if the destination was written under a later grant; errors as of [`StoredEpochs::read`].
    pub(super) fn check(&self, file: &File, epoch: Epoch) -> Result<Option<Epoch>> {
        match self.read(file)? {
            Some(stored) if stored > epoch => {
                let message = format!("the destination was written under epoch {stored}, later than {epoch}");
                tracing::error!(%stored, %epoch, "destination was written under a later grant: not writing");
                Err(fenced(message).advise(format!(
                    "if the task center was set up again, remove the attribute {ATTRIBUTE} of the file, or of a device its \
                     record in devices/ of the state directory"
                )))
            }
            stored => Ok(stored),
        }
    }

    /// Stores durably that a destination is written under `epoch`.
    ///
    /// # Errors
    /// As [`StoredEpochs::check`]; the error of writing the epoch.
    pub(super) fn raise(&self, file: &File, epoch: Epoch) -> Result<()> {
        if self.check(file, epoch)? == Some(epoch) { Ok(()) } else { self.store(file, epoch) }
    }

    /// Marks a destination, durably, as written under `epoch` by the order of this mark.
    ///
    /// # Errors
    /// The error of writing the mark.
    pub(super) fn mark(&self, file: &File, epoch: Epoch, mark: &str) -> Result<()> {
        let text = format!("{epoch} {mark}");
        if self.attribute(file, MARK)?.is_none() {
            return replace(&self.folder, &format!("order-{}", name(file)?), &format!("{text} {}\n", instance(file)?));
        }
        set_attribute(file, MARK, &text)
    }

    /// Tells whether the destination was written last by the order of this mark: nothing that a record says shows that.
    pub(super) fn is_marked(&self, file: &File, mark: &str) -> bool {
        let Ok(Some(epoch)) = self.read(file) else { return false };
        let found = match self.attribute(file, MARK) {
            Ok(Some(attribute)) => attribute,
            Ok(None) => self.marked_record(file),
            Err(_) => None,
        };
        found.is_some_and(|found| found == format!("{epoch} {mark}"))
    }

    /// Returns the mark in the state directory, unless it is that of an earlier device of the same number.
    fn marked_record(&self, file: &File) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join(format!("order-{}", name(file).ok()?))).ok()?;
        let (mark, of) = text.trim_end().rsplit_once(' ')?;
        (of == instance(file).ok()?).then(|| mark.to_owned())
    }

    fn store(&self, file: &File, epoch: Epoch) -> Result<()> {
        if self.attribute(file, ATTRIBUTE)?.is_none() {
            let text = format!("{epoch} {}\n", instance(file)?);
            return replace(&self.folder, &name(file)?, &text);
        }
        set_attribute(file, ATTRIBUTE, &epoch.to_string())
    }

    /// Returns an attribute of a file: `None` where attributes are not supported, `Some(None)` where there is none.
    fn attribute(&self, file: &File, name: &str) -> Result<Option<Option<String>>> {
        if stat(file)?.file_type().is_block_device() {
            return Ok(None);
        }
        match file.get_xattr(name) {
            Ok(value) => Ok(Some(value.map(|value| String::from_utf8_lossy(&value).into_owned()))),
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
            Err(error) => {
                let what = format!("read the attribute {name} of the destination");
                Err(Error::io(Side::Destination, Operation::Open, &error, what))
            }
        }
    }

    /// Returns the epoch of the record in the state directory. Ignores the record of an earlier device of the same
    /// number.
    fn record(&self, file: &File) -> Result<Option<String>> {
        let path = self.folder.join(name(file)?);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error, "read", &path)),
        };
        let (epoch, of) = text.trim_end().split_once(' ').unwrap_or((text.trim_end(), ""));
        Ok((of == instance(file)?).then(|| epoch.to_owned()))
    }
}

fn set_attribute(file: &File, name: &str, text: &str) -> Result<()> {
    let stored = file.set_xattr(name, text.as_bytes()).and_then(|()| file.sync_all());
    stored.map_err(|error| {
        let what = format!("store the attribute {name} of the destination");
        Error::io(Side::Destination, Operation::Open, &error, what)
    })
}

fn parse(text: &str) -> Result<Epoch> {
    text.trim().parse().map(Epoch).map_err(|_| {
        let shown: String = text.chars().take(40).collect();
        fenced(format!("invalid epoch '{}' stored at the destination", shown.escape_debug()))
            .advise(format!("find out who wrote it, then remove {ATTRIBUTE}"))
    })
}

fn fenced(message: String) -> Error {
    Error::new(Code::Fenced, Side::Destination, Operation::Open, message)
}

fn stat(file: &File) -> Result<std::fs::Metadata> {
    file.metadata().map_err(|error| Error::io(Side::Destination, Operation::Stat, &error, "look at the destination"))
}

/// Returns the name of a destination's record.
fn name(file: &File) -> Result<String> {
    let stat = stat(file)?;
    let number = |device| format!("{}-{}", major(device), minor(device));
    Ok(match stat.file_type().is_block_device() {
        true => format!("device-{}", number(stat.rdev())),
        false => format!("file-{}-{}", number(stat.dev()), stat.ino()),
    })
}

/// Returns text that differs between two devices that get the same number in turn, by the kernel's count of devices.
fn instance(file: &File) -> Result<String> {
    let stat = stat(file)?;
    if !stat.file_type().is_block_device() {
        return Ok(String::from("-"));
    }
    let path = format!("/sys/dev/block/{}:{}/diskseq", major(stat.rdev()), minor(stat.rdev()));
    let counted = std::fs::read_to_string(path).unwrap_or_default();
    Ok(format!("{}-{}", super::boot_id(), counted.trim()))
}

fn failed(error: &std::io::Error, verb: &str, path: &Path) -> Error {
    Error::io(Side::Engine, Operation::Journal, error, format!("{verb} {}", path.shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_epoch_only_rises_and_belongs_to_its_file() {
        let root = tempfile::tempdir().unwrap();
        let epochs = StoredEpochs::new(root.path()).unwrap();
        let path = root.path().join("volume");
        let file = File::create_new(&path).unwrap();
        assert_eq!(epochs.read(&file).unwrap(), None);
        epochs.raise(&file, Epoch(7)).unwrap();
        epochs.raise(&file, Epoch(7)).unwrap();
        assert_eq!(epochs.raise(&file, Epoch(6)).unwrap_err().code, Code::Fenced);
        epochs.raise(&file, Epoch(1 << 40)).unwrap();
        let again = File::open(&path).unwrap();
        assert_eq!(epochs.read(&again).unwrap(), Some(Epoch(1 << 40)));
        assert_eq!(file.metadata().unwrap().len(), 0, "nothing was written into the volume");

        std::fs::remove_file(&path).unwrap();
        let replaced = File::create_new(&path).unwrap();
        assert_eq!(epochs.read(&replaced).unwrap(), None, "another file of that name");
    }

    #[test]
    fn a_malformed_epoch_prevents_writes() {
        let root = tempfile::tempdir().unwrap();
        let epochs = StoredEpochs::new(root.path()).unwrap();
        let file = File::create_new(root.path().join("volume")).unwrap();
        for bad in ["", "x", "12 13", "99999999999999999999"] {
            file.set_xattr(ATTRIBUTE, bad.as_bytes()).unwrap();
            assert_eq!(epochs.raise(&file, Epoch(i64::MAX)).unwrap_err().code, Code::Fenced, "{bad:?}");
        }
    }

    #[test]
    fn without_attributes_the_state_directory_holds_the_epoch() {
        let root = tempfile::tempdir().unwrap();
        let epochs = StoredEpochs::new(root.path()).unwrap();
        // Files of /proc have no attributes, and keep their inode numbers while they are open.
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(epochs.read(&file).unwrap(), None);
        epochs.raise(&file, Epoch(7)).unwrap();
        assert_eq!(epochs.read(&file).unwrap(), Some(Epoch(7)));
        assert_eq!(epochs.raise(&file, Epoch(6)).unwrap_err().code, Code::Fenced);
        assert_eq!(std::fs::read_dir(root.path().join("devices")).unwrap().count(), 1);
    }
}
