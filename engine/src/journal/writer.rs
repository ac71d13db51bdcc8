//! Carries out what an [`Appender`] plans, in the order that makes a record count.

use super::append::{Appender, Commit};
use super::disk::JournalDisk;
use super::{FinishRecord, Run};
use crate::error::{Error, Operation, Result, Side};
use std::io;

/// Last write to a journal's file.
pub(super) enum FinalWrite {
    /// As it is: it is going to be removed.
    Leave,
    /// With its last commit slot synced.
    Commit,
    /// As a receipt.
    Finish(FinishRecord),
}

/// Carries out commits, and stops for good at the first error.
pub(super) struct JournalWriter {
    name: String,
    disk: JournalDisk,
    appender: Appender,
    synced_end: u64,
    /// Scratch journals die with the process and are never synced.
    is_synced: bool,
    failure: Option<Error>,
}

impl JournalWriter {
    /// Creates the writer of a journal whose file ends where `appender` continues. Without `is_synced` it never syncs.
    pub(super) fn new(name: String, disk: JournalDisk, appender: Appender, is_synced: bool) -> Self {
        Self { name, disk, synced_end: appender.end(), appender, is_synced, failure: None }
    }

    /// The file's end as far as it counts.
    pub(super) fn synced_end(&self) -> u64 {
        self.synced_end
    }

    /// Records a batch.
    ///
    /// # Errors
    /// The first one there was.
    pub(super) async fn append(&mut self, runs: Vec<Run>) -> Result<()> {
        self.check()?;
        // An invalid batch changes nothing in the file, but the state of the job is wrong from here on.
        let commits = self.appender.append(runs);
        let commits = commits.map_err(|error| self.fail(error))?;
        for commit in commits {
            self.carry_out(commit).await?;
        }
        Ok(())
    }

    /// The last call before [`JournalWriter::close`].
    ///
    /// # Errors
    /// The first one there was.
    pub(super) async fn end(&mut self, ending: FinalWrite) -> Result<()> {
        self.check()?;
        match ending {
            FinalWrite::Leave => Ok(()),
            FinalWrite::Commit => self.sync().await,
            FinalWrite::Finish(finish) => {
                let commit = self.appender.finish(&finish);
                self.carry_out(commit).await?;
                self.sync().await
            }
        }
    }

    /// The order that `docs/format.md` gives its reasons for.
    async fn carry_out(&mut self, commit: Commit) -> Result<()> {
        let written = self.disk.write(commit.record.bytes, commit.record.offset).await;
        self.settle(written)?;
        self.sync().await?;
        self.synced_end = commit.end;
        let written = self.disk.write(commit.slot.bytes, commit.slot.offset).await;
        self.settle(written)
    }

    async fn sync(&mut self) -> Result<()> {
        if !self.is_synced {
            return Ok(());
        }
        let synced = self.disk.sync().await;
        self.settle(synced)
    }

    /// Closes the file before it returns.
    pub(super) async fn close(self) {
        self.disk.close().await;
    }

    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn settle(&mut self, result: io::Result<()>) -> Result<()> {
        result.map_err(|error| self.fail(journal_error(&error, &self.name).maybe_applied()))
    }

    fn fail(&mut self, error: Error) -> Error {
        self.failure = Some(error.clone());
        error
    }
}

/// An error of the system while the journal `name` was written.
pub(super) fn journal_error(error: &io::Error, name: &str) -> Error {
    Error::io(Side::Engine, Operation::Journal, error, format_args!("write the journal {name}"))
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Script, Step};
    use super::super::samples::{header, leaves};
    use super::*;
    use std::rc::Rc;

    /// Two appends and an ending, on a disk whose call `failing` (from 0) fails; what was done, and how the calls
    /// ended.
    fn steps(ending: FinalWrite, is_synced: bool, failing: Option<usize>) -> (Vec<Step>, Vec<bool>) {
        let (appender, _) = Appender::create(&header(40 * 4096, 4096)).unwrap();
        let script = Rc::new(Script::new(failing));
        let mut writer =
            JournalWriter::new("scripted".into(), JournalDisk::Scripted(Rc::clone(&script)), appender, is_synced);
        let mut results = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for index in 0..2 {
                let end = writer.synced_end();
                let result = writer.append(vec![leaves(index, 1, 4096)]).await;
                assert!(result.is_err() || writer.synced_end() > end);
                results.push(result.is_ok());
            }
            results.push(writer.end(ending).await.is_ok());
            writer.close().await;
        });
        (script.steps(), results)
    }

    const END: FinishRecord = FinishRecord { root: None, finished_ns: 0 };
    const RECORD: [Step; 3] = [Step::Record, Step::Sync, Step::Slot];

    #[test]
    fn a_record_is_synced_before_its_slot_is_written() {
        let two = [RECORD, RECORD].concat();
        let committed = [&two[..], &[Step::Sync]].concat();
        let finished = [&two[..], &RECORD, &[Step::Sync]].concat();
        assert_eq!(steps(FinalWrite::Leave, true, None).0, two);
        assert_eq!(steps(FinalWrite::Commit, true, None).0, committed);
        assert_eq!(steps(FinalWrite::Finish(END), true, None).0, finished);
        let unsynced: Vec<_> = finished.into_iter().filter(|&step| step != Step::Sync).collect();
        assert_eq!(steps(FinalWrite::Finish(END), false, None).0, unsynced);
    }

    #[test]
    fn nothing_is_written_after_an_error() {
        let (all, _) = steps(FinalWrite::Finish(END), true, None);
        for failing in 0..all.len() {
            let (steps, results) = steps(FinalWrite::Finish(END), true, Some(failing));
            assert_eq!(steps, all[..=failing]);
            assert_eq!(results, [failing >= 3, failing >= 6, false]);
        }
    }
}
