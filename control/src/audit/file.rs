//! Writes the file of the audit log, and rotates it.
//!
//! ```text
//! STATE_DIR/audit.jsonl         the newest lines
//!           audit.1.jsonl ...   earlier ones, up to audit.7.jsonl, the oldest
//! ```
//! What always holds: a line starts at the beginning of a line, also after a crash or a full disk has cut the last one
//! short. What was written is on stable storage a second later; after a failure to get it there, a line counts as written
//! only when it is. A file that was removed is not written to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time after which written lines are flushed: what a loss of power may take.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Bytes at which a file is rotated.
    pub(super) file_bytes_max: u64,
    /// Number of files.
    pub(super) files_max: usize,
}

impl Default for Sizes {
    /// Keeps 128 MiB: about 200,000 changes.
    fn default() -> Self {
        Self { file_bytes_max: 16 << 20, files_max: 8 }
    }
}

/// File of an audit log. It is opened when it is needed.
#[derive(Debug)]
pub(super) struct AuditFile {
    path: PathBuf,
    sizes: Sizes,
    open: Option<File>,
    /// When the first line was written that is not flushed.
    unsynced_since: Option<Instant>,
    /// Whether the last flush has failed.
    is_doubtful: bool,
}

impl AuditFile {
    /// Creates the writer of a file. Touches nothing.
    pub(super) fn new(path: PathBuf, sizes: Sizes) -> Self {
        Self { path, sizes, open: None, unsynced_since: None, is_doubtful: false }
    }

    /// Returns its path.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Writes whole lines. After an error none of them counts as written.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.write(lines);
        if written.is_err() {
            // Opened again, its last line is looked at.
            self.open = None;
        }
        written
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.make_room(lines.len() as u64)?;
        let mut file = self.file()?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(lines) {
            // What does not succeed here is repaired when the file is opened again.
            let _ = file.set_len(before);
            return Err(error);
        }
        let since = *self.unsynced_since.get_or_insert_with(Instant::now);
        if self.is_doubtful || since.elapsed() >= SYNC_AFTER { self.sync() } else { Ok(()) }
    }

    /// Returns the time until written lines have to be flushed; `None`: all of them are.
    pub(super) fn sync_due(&self) -> Option<Duration> {
        self.unsynced_since.map(|since| SYNC_AFTER.saturating_sub(since.elapsed()))
    }

    /// Flushes what was written.
    ///
    /// # Errors
    /// Those of the system; what was written since the last flush may be lost.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced_since.take().is_none() {
            return Ok(());
        }
        let synced = self.open.as_ref().map_or(Ok(()), File::sync_data);
        // What cannot be flushed by its kind has no storage to reach.
        let synced = synced.or_else(|error| if error.kind() == ErrorKind::InvalidInput { Ok(()) } else { Err(error) });
        self.is_doubtful = synced.is_err();
        if synced.is_err() {
            self.open = None;
        }
        synced
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.open.as_ref().is_some_and(|file| file.metadata().is_ok_and(|now| now.nlink() == 0)) {
            self.open = None;
        }
        let file = match self.open.take() {
            Some(file) => file,
            None => self.open_file()?,
        };
        Ok(self.open.insert(file))
    }

    /// Opens the file, and ends its last line if that was cut short.
    fn open_file(&self) -> io::Result<File> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        let found = file.metadata()?;
        if found.is_file() && found.len() > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, found.len() - 1)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        // The name of a new file is flushed here, its content with the lines.
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(file)
    }

    /// Starts a new file if these bytes do not fit into this one.
    fn make_room(&mut self, more: u64) -> io::Result<()> {
        let length = self.file()?.metadata()?.len();
        if length == 0 || length + more <= self.sizes.file_bytes_max {
            return Ok(());
        }
        self.sync()?;
        self.open = None;
        for number in (1..self.sizes.files_max.saturating_sub(1)).rev() {
            match fs::rename(self.earlier(number), self.earlier(number + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => (),
            }
        }
        fs::rename(&self.path, self.earlier(1))
    }

    /// Returns the path of an earlier file.
    fn earlier(&self, number: usize) -> PathBuf {
        self.path.with_extension(format!("{number}.jsonl"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn file(sizes: Sizes) -> (TempDir, AuditFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        (folder, AuditFile::new(path, sizes))
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_oldest_lines_go_and_no_line_is_cut_in_two() {
        let (folder, mut file) = file(Sizes { file_bytes_max: 30, files_max: 3 });
        for number in 0..20 {
            file.append(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        assert_eq!(names(&folder), ["audit.1.jsonl", "audit.2.jsonl", "audit.jsonl"]);
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let all = ["audit.2.jsonl", "audit.1.jsonl", "audit.jsonl"].map(read).concat();
        let expected: String = (12..20).map(|number| format!("line {number:04}\n")).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_line_that_does_not_fit_any_file_has_one_of_its_own() {
        let (folder, mut file) = file(Sizes { file_bytes_max: 4, files_max: 2 });
        file.append(b"longer\n").unwrap();
        file.append(b"longest\n").unwrap();
        assert_eq!(fs::read(folder.path().join("audit.jsonl")).unwrap(), b"longest\n");
        assert_eq!(fs::read(folder.path().join("audit.1.jsonl")).unwrap(), b"longer\n");
    }

    #[test]
    fn a_last_line_that_was_cut_short_is_ended() {
        let (folder, mut audit) = file(Sizes::default());
        let path = folder.path().join("audit.jsonl");
        fs::write(&path, b"whole\ncut sho").unwrap();
        audit.append(b"next\n").unwrap();
        audit.append(b"last\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole\ncut sho\nnext\nlast\n");
        let mut reopened = AuditFile::new(path.clone(), Sizes::default());
        reopened.append(b"after\n").unwrap();
        assert!(fs::read(&path).unwrap().ends_with(b"last\nafter\n"), "a whole one stays as it is");
    }

    #[test]
    fn a_file_that_was_removed_is_made_anew() {
        let (folder, mut file) = file(Sizes::default());
        file.append(b"gone\n").unwrap();
        fs::remove_file(folder.path().join("audit.jsonl")).unwrap();
        file.append(b"here\n").unwrap();
        assert_eq!(fs::read(folder.path().join("audit.jsonl")).unwrap(), b"here\n");
    }

    #[test]
    fn what_cannot_be_written_is_an_error_until_it_can() {
        let (folder, mut file) = file(Sizes::default());
        let path = folder.path().join("audit.jsonl");
        fs::create_dir(&path).unwrap();
        assert!(file.append(b"line\n").is_err(), "a folder is there");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        for _ in 0..3 {
            let error = file.append(b"line\n").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
        fs::remove_file(&path).unwrap();
        file.append(b"line\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"line\n");
    }

    #[test]
    fn what_was_written_is_due_until_it_is_flushed() {
        let (_folder, mut file) = file(Sizes::default());
        assert_eq!(file.sync_due(), None);
        file.append(b"line\n").unwrap();
        assert!(file.sync_due().is_some_and(|wait| wait <= SYNC_AFTER));
        file.sync().unwrap();
        assert_eq!(file.sync_due(), None);
    }
}
