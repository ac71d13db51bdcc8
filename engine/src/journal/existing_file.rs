//! Classifies the file at the path of a new journal: nothing of worth, a journal, or a foreign file.
//!
//! A foreign file is never replaced, whatever the flags say: a receipt or checkpoint that names a disk image by mistake
//! would destroy the image. The check is made before the first byte of a copy and again when the name is taken.

use super::JournalState;
use super::format::{CommitSlot, HEADER_BYTES_MAX, HEADER_OFFSET, MAGIC, SECTOR_BYTES, SLOT_MAGIC, SLOT_OFFSETS};
use super::path::{check_place, failed, fresh_name};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The longest start of a journal, before its first record.
const START_BYTES_MAX: usize = HEADER_OFFSET as usize + HEADER_BYTES_MAX;

/// Kind of a file that already has the name of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExistingFile {
    /// Empty, or the zeros that a crash left of a new journal.
    Leftover,
    /// A journal, however damaged.
    Journal(JournalState),
    /// Anything else.
    Foreign,
}

impl ExistingFile {
    fn of(file: &File, path: &Path) -> Result<Self> {
        let start = read_start(file).map_err(|error| failed(&error, "read the journal", path))?;
        Ok(Self::decode(&start))
    }

    /// `start` is one byte longer than the start of a journal, if the file is.
    fn decode(start: &[u8]) -> Self {
        if start.len() <= START_BYTES_MAX && start.iter().all(|&byte| byte == 0) {
            return Self::Leftover;
        }
        let at = |offset: u64| start.get(offset as usize..).unwrap_or_default();
        let slots = || SLOT_OFFSETS.into_iter().map(|offset| (offset, at(offset)));
        // Any of the three magics is enough.
        if !at(0).starts_with(&MAGIC) && !slots().any(|(_, slot)| slot.starts_with(&SLOT_MAGIC)) {
            return Self::Foreign;
        }
        let decoded = |(offset, slot): (u64, &[u8])| CommitSlot::decode(slot.first_chunk::<SECTOR_BYTES>()?, offset);
        let newest = slots().filter_map(decoded).max_by_key(|slot| slot.sequence);
        Self::Journal(newest.map_or(JournalState::Unfinished, |slot| slot.state))
    }
}

fn read_start(file: &File) -> io::Result<Vec<u8>> {
    let mut start = vec![0; START_BYTES_MAX + 1];
    let mut filled = 0;
    while filled < start.len() {
        match file.read_at(&mut start[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    start.truncate(filled);
    Ok(start)
}

/// Permits replacing a checkpoint if `may_replace`, a leftover of a crash always, and any other file never.
///
/// # Errors
/// `EExists`.
pub(super) fn check_checkpoint(path: &Path, file: &File, may_replace: bool) -> Result<()> {
    match (ExistingFile::of(file, path)?, may_replace) {
        (ExistingFile::Leftover, _) | (ExistingFile::Journal(_), true) => Ok(()),
        (ExistingFile::Journal(_), false) => Err(exists(path, "is the journal of an earlier copy")
            .advise("continue it with --resume, start over with --restart, or name another with --checkpoint")),
        (ExistingFile::Foreign, _) => Err(foreign(path)),
    }
}

/// An older receipt may be replaced, what a crash left as well, and anything else never.
///
/// # Errors
/// `EExists`.
pub(super) fn check_receipt(path: &Path, file: &File) -> Result<()> {
    match ExistingFile::of(file, path)? {
        ExistingFile::Leftover | ExistingFile::Journal(JournalState::Finished) => Ok(()),
        ExistingFile::Journal(JournalState::Unfinished) => Err(exists(path, "is the checkpoint of an unfinished copy")
            .advise("finish that copy with --resume, or name another file with --receipt")),
        ExistingFile::Foreign => Err(foreign(path)),
    }
}

/// Refuses a foreign file under the temporary name. What a crash left there of a journal may be replaced.
///
/// # Errors
/// `EExists`.
pub(super) fn check_fresh(path: &Path, file: &File) -> Result<()> {
    if ExistingFile::of(file, path)? == ExistingFile::Foreign { Err(foreign(path)) } else { Ok(()) }
}

/// Refuses a place for a receipt that a finished copy could not use: to be asked before the first byte.
///
/// # Errors
/// `EBadRequest` for what is no regular file, `EExists` for one that is neither empty nor an older receipt, and
/// whatever the system says.
pub fn refuse_receipt(path: &Path) -> Result<()> {
    refuse_by(path, check_receipt)?;
    refuse_by(&fresh_name(path), check_fresh)
}

fn refuse_by(path: &Path, check: impl Fn(&Path, &File) -> Result<()>) -> Result<()> {
    check_place(path)?;
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => check(path, &file.map_err(|error| failed(&error, "open", path))?),
    }
}

fn foreign(path: &Path) -> Error {
    exists(path, "is no journal and is left alone").advise("remove it or name another file")
}

pub(super) fn exists(path: &Path, what: &str) -> Error {
    let message = format!("{} {what}", path.shown());
    Error::new(Code::Exists, Side::Engine, Operation::Journal, message)
}

#[cfg(test)]
mod tests {
    use super::super::samples::SampleJournal;
    use super::*;

    #[test]
    fn a_journal_is_known_by_any_of_its_magics_and_its_state_by_the_newest_slot() {
        for seed in 0..50 {
            let sample = SampleJournal::new(seed);
            let file = sample.file();
            let state = if sample.finish.is_some() { JournalState::Finished } else { JournalState::Unfinished };
            assert_eq!(ExistingFile::decode(&file), ExistingFile::Journal(state), "seed {seed}");
            let mut damaged = file.clone();
            damaged[3] ^= 8;
            assert_eq!(ExistingFile::decode(&damaged), ExistingFile::Journal(state), "seed {seed}");
            damaged[SLOT_OFFSETS[0] as usize + 1] ^= 8;
            damaged[SLOT_OFFSETS[1] as usize + 1] ^= 8;
            assert_eq!(ExistingFile::decode(&damaged), ExistingFile::Foreign, "seed {seed}");
        }
    }

    #[test]
    fn only_a_few_zeros_count_as_a_leftover() {
        for (start, found) in [
            (vec![], ExistingFile::Leftover),
            (vec![0; 100], ExistingFile::Leftover),
            (vec![0; START_BYTES_MAX], ExistingFile::Leftover),
            (vec![0; START_BYTES_MAX + 1], ExistingFile::Foreign),
            (b"my thesis".to_vec(), ExistingFile::Foreign),
            ([vec![0; 5000], vec![1]].concat(), ExistingFile::Foreign),
        ] {
            assert_eq!(ExistingFile::decode(&start), found, "{} bytes", start.len());
        }
    }
}
