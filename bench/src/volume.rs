//! Defines the volumes of a scenario, resets them before a trial and verifies copies after it.

use crate::content;
use crate::interrupt::Interrupt;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A volume of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// A regular file. As a destination it is absent before each trial.
    File(PathBuf),
    /// A block device. As a destination it is zeroed and allocated before each trial.
    Device(PathBuf),
    /// An export, and the file behind it if its bytes can be read there. As a destination that file is zeroed and
    /// allocated before each trial.
    Export { uri: String, backing: Option<PathBuf> },
}

/// A source and a destination of the same size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumePair {
    pub source: Volume,
    pub destination: Volume,
    /// Size of each in bytes, including holes.
    pub bytes: u64,
    /// Directory for journals and map files, emptied before each trial.
    pub state: PathBuf,
}

impl Volume {
    /// Returns the path or URI that programs take.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File(path) | Self::Device(path) => path.display().to_string(),
            Self::Export { uri, .. } => uri.clone(),
        }
    }

    /// Returns whether a copy creates the volume.
    pub(crate) fn is_created(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Returns whether the volume is behind a server.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Self::Export { .. })
    }

    /// Returns the path at which the bytes can be read.
    fn readable_path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Device(path) => Some(path),
            Self::Export { backing, .. } => backing.as_deref(),
        }
    }

    /// Resets a destination before a trial.
    fn clear(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::File(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()),
            },
            Self::Device(path) | Self::Export { backing: Some(path), .. } => zero(path, bytes),
            Self::Export { backing: None, .. } => Ok(()),
        }
    }

    /// Drops the volume from the page cache.
    fn drop_cache(&self) -> io::Result<()> {
        let Some(path) = self.readable_path().filter(|path| path.exists()) else { return Ok(()) };
        let file = File::open(path)?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
    }
}

/// Zeroes a file or device and keeps its space allocated.
fn zero(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let len = i64::try_from(bytes).map_err(io::Error::other)?;
    let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, flags, 0, len).map_err(io::Error::from)?;
    file.sync_all()
}

impl VolumePair {
    /// Resets the pair before a trial: destination blank, caches cold, no state of earlier trials.
    ///
    /// # Errors
    /// The first step that failed, and why.
    pub(crate) fn reset(&self) -> Result<(), String> {
        let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        self.destination.clear(self.bytes).map_err(say("clear the destination"))?;
        self.source.drop_cache().map_err(say("drop the source from the cache"))?;
        self.destination.drop_cache().map_err(say("drop the destination from the cache"))?;
        match fs::remove_dir_all(&self.state) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(say("clear the state")(error)),
            _ => {}
        }
        fs::create_dir_all(&self.state).map_err(say("create the state directory"))
    }

    /// Compares all bytes of source and destination.
    ///
    /// # Errors
    /// A volume cannot be read.
    pub(crate) fn verify(&self, interrupt: &Interrupt) -> Result<VerifyOutcome, String> {
        let (Some(source), Some(destination)) = (self.source.readable_path(), self.destination.readable_path()) else {
            return Ok(VerifyOutcome::NotReadable);
        };
        if let Volume::File(path) = &self.destination {
            let len = fs::metadata(path).map_err(|error| format!("stat the destination: {error}"))?.len();
            if len != self.bytes {
                return Ok(VerifyOutcome::Differs(format!(
                    "the destination has {len} bytes instead of {}",
                    self.bytes
                )));
            }
        }
        match content::first_difference(source, destination, self.bytes, interrupt) {
            Ok(None) => Ok(VerifyOutcome::Equal),
            Ok(Some(offset)) => Ok(VerifyOutcome::Differs(format!("wrong bytes near offset {offset}"))),
            Err(error) => Err(format!("verify the destination: {error}")),
        }
    }

    /// Replaces the paths of a command line by SRC, DST and STATE.
    pub(crate) fn with_placeholders(&self, line: &str) -> String {
        let state = self.state.display().to_string();
        line.replace(&self.source.name(), "SRC").replace(&self.destination.name(), "DST").replace(&state, "STATE")
    }
}

/// Result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VerifyOutcome {
    Equal,
    /// The bytes or sizes differ, with the place.
    Differs(String),
    /// The bytes of one side cannot be read.
    NotReadable,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(folder: &Path) -> VolumePair {
        let [source, destination] = ["source", "destination"].map(|name| Volume::File(folder.join(name)));
        VolumePair { source, destination, bytes: 1 << 20, state: folder.join("state") }
    }

    #[test]
    fn a_reset_leaves_no_destination_and_no_state() {
        let folder = tempfile::tempdir().unwrap();
        let pair = pair(folder.path());
        fs::write(folder.path().join("source"), vec![1; 1 << 20]).unwrap();
        pair.reset().unwrap();
        fs::write(folder.path().join("destination"), "old").unwrap();
        fs::write(pair.state.join("journal"), "old").unwrap();
        pair.reset().unwrap();
        assert!(!folder.path().join("destination").exists() && fs::read_dir(&pair.state).unwrap().next().is_none());
    }

    #[test]
    fn wrong_bytes_and_wrong_lengths_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let pair = pair(folder.path());
        fs::write(folder.path().join("source"), vec![1; 1 << 20]).unwrap();
        let mut content = vec![1; 1 << 20];
        let compare = |content: &[u8]| {
            fs::write(folder.path().join("destination"), content).unwrap();
            pair.verify(&Interrupt::default()).unwrap()
        };
        assert_eq!(compare(&content), VerifyOutcome::Equal);
        assert!(matches!(compare(&content[1..]), VerifyOutcome::Differs(_)));
        content[(1 << 20) - 1] = 2;
        assert!(matches!(compare(&content), VerifyOutcome::Differs(_)));
    }

    #[test]
    fn a_blank_destination_keeps_its_length() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("backing");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        Volume::Export { uri: String::new(), backing: Some(path.clone()) }.clear(1 << 20).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; 1 << 20]);
    }
}
