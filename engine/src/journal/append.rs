//! Plans the writes of a journal, without I/O.
//!
//! An [`Appender`] knows where the file ends and which record and slot come next. Its caller carries a [`Commit`] out
//! in this order and stops at the first error: write the record, sync, write the slot. The record counts once the sync
//! has returned. The journal thread and the simulation carry out the same plans.

use super::format::{self, CommitSlot, Geometry};
use super::read::JournalReader;
use super::record::{
    LEAVES_PER_RUN_MAX, PAYLOAD_BYTES_MAX, RecordKind, encode_finish, encode_record, encode_run, encoded_run_bytes,
};
use super::{Content, FinishRecord, Header, JournalState, Run};
use crate::error::{Error, Operation, Result};
use crate::extent::ByteRange;

/// Bytes for a place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileWrite {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes to write.
    pub bytes: Vec<u8>,
}

/// The writes of one record: write `record`, sync, write `slot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Counts once it is synced.
    pub record: FileWrite,
    /// Write of the commit slot. Synced with the next record: with an older slot a reader checks the record itself.
    pub slot: FileWrite,
    /// The file's end once the record counts.
    pub end: u64,
}

/// Position of the next record.
#[derive(Clone, Debug)]
pub(crate) struct Appender {
    geometry: Geometry,
    end: u64,
    record_sequence: u64,
    slot_sequence: u64,
}

impl Appender {
    /// A new journal, and everything that must be written and synced before it has a name.
    ///
    /// # Errors
    /// `EBadRequest` if the header cannot be recorded.
    pub(crate) fn create(header: &Header) -> Result<(Self, FileWrite)> {
        let bytes = format::encode_start(header).map_err(Error::bad_request)?;
        let appender =
            Self { geometry: Geometry::of(header), end: bytes.len() as u64, record_sequence: 0, slot_sequence: 1 };
        Ok((appender, FileWrite { offset: 0, bytes }))
    }

    /// Creates an appender that continues after the last record of `reader`.
    pub(crate) fn resume(reader: &JournalReader) -> Self {
        Self {
            geometry: Geometry::of(reader.header()),
            end: reader.end(),
            record_sequence: reader.records(),
            slot_sequence: reader.slot_sequence() + 1,
        }
    }

    /// The file's end once everything planned so far counts.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Plans the records for a batch of runs, in any order: usually one, more where the batch is longer than a record.
    ///
    /// # Errors
    /// `EInternal` if the runs overlap, lie outside of the copy, or are not made of whole leaves with their digests.
    pub(crate) fn append(&mut self, mut runs: Vec<Run>) -> Result<Vec<Commit>> {
        runs.sort_unstable_by_key(|run| run.range.start());
        self.check(&runs)?;
        let leaf_bytes = self.geometry.leaf_bytes;
        let (mut commits, mut payload, mut count) = (Vec::new(), Vec::new(), 0);
        for piece in runs.into_iter().flat_map(|run| split(run, leaf_bytes)) {
            if payload.len() + encoded_run_bytes(&piece) > PAYLOAD_BYTES_MAX {
                commits.push(self.commit(RecordKind::Runs, count, &payload));
                (payload, count) = (Vec::new(), 0);
            }
            encode_run(&piece, &mut payload);
            count += 1;
        }
        if count > 0 {
            commits.push(self.commit(RecordKind::Runs, count, &payload));
        }
        Ok(commits)
    }

    /// Plans the finish record. Nothing may be appended afterwards.
    pub(crate) fn finish(&mut self, finish: &FinishRecord) -> Commit {
        self.commit(RecordKind::Finish, 0, &encode_finish(finish))
    }

    fn check(&self, runs: &[Run]) -> Result<()> {
        let is_sound = |run: &Run| {
            self.geometry.admits(run.range)
                && match &run.content {
                    Content::Leaves(leaves) => {
                        self.geometry.digest == crate::spec::DigestKind::Xxh3
                            && leaves.len() as u64 == self.geometry.leaves(run.range)
                    }
                    Content::Zeros | Content::Undigested => true,
                }
        };
        let refused = runs
            .iter()
            .find(|run| !is_sound(run))
            .or_else(|| runs.windows(2).find(|pair| pair[0].range.end() > pair[1].range.start()).map(|pair| &pair[1]));
        refused.map_or(Ok(()), |run| {
            Err(Error::internal(Operation::Journal, format!("the run {:?} cannot be recorded", run.range)))
        })
    }

    fn commit(&mut self, kind: RecordKind, runs: u32, payload: &[u8]) -> Commit {
        let record = FileWrite { offset: self.end, bytes: encode_record(kind, self.record_sequence, runs, payload) };
        self.end += record.bytes.len() as u64;
        let state = match kind {
            RecordKind::Runs => JournalState::Unfinished,
            RecordKind::Finish => JournalState::Finished,
        };
        let slot = CommitSlot { sequence: self.slot_sequence, committed_bytes: self.end, state };
        self.record_sequence += 1;
        self.slot_sequence += 1;
        Commit { record, slot: FileWrite { offset: slot.offset(), bytes: slot.encode().to_vec() }, end: self.end }
    }
}

/// Cuts a run so that each piece fits a record.
fn split(run: Run, leaf_bytes: u64) -> Vec<Run> {
    match &run.content {
        Content::Leaves(leaves) if leaves.len() > LEAVES_PER_RUN_MAX => {
            let piece_bytes = LEAVES_PER_RUN_MAX as u64 * leaf_bytes;
            let starts = (run.range.start()..run.range.end()).step_by(piece_bytes as usize);
            let piece =
                |start: u64| run.cut(ByteRange::new(start, (start + piece_bytes).min(run.range.end())), leaf_bytes);
            starts.map(piece).collect()
        }
        _ => vec![run],
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{header, leaves};
    use super::*;

    #[test]
    fn a_batch_longer_than_a_record_takes_several() {
        let count = 2 * LEAVES_PER_RUN_MAX as u64 + 10;
        let header = header(count * 4096 + 1, 4096);
        let (mut appender, start) = Appender::create(&header).unwrap();
        let commits = appender.append(vec![leaves(0, count, 4096)]).unwrap();
        assert_eq!(commits.len(), 3);
        assert!(commits.iter().all(|commit| commit.record.bytes.len() <= super::super::record::RECORD_BYTES_MAX));
        let mut file = start.bytes;
        for commit in &commits {
            assert_eq!(commit.record.offset, file.len() as u64);
            file.extend(&commit.record.bytes);
        }
        let reader = JournalReader::from_bytes(file).unwrap();
        let digests: usize = reader
            .runs(ByteRange::new(0, header.size_bytes))
            .map(|run| match run.unwrap().content {
                Content::Leaves(leaves) => leaves.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(digests as u64, count);
        assert_eq!(reader.durable().bytes(), count * 4096);
    }

    #[test]
    fn invalid_runs_are_refused() {
        let header = header(100_000, 4096);
        let (mut appender, _) = Appender::create(&header).unwrap();
        let zeros = |start, end| Run { range: ByteRange::new(start, end), content: Content::Zeros };
        let short = Run { range: ByteRange::new(0, 8192), content: Content::Leaves(vec![1]) };
        for batch in [
            vec![zeros(1, 4096)],
            vec![zeros(0, 4095)],
            vec![zeros(0, 0)],
            vec![zeros(98_304, 100_001)],
            vec![zeros(4096, 12_288), zeros(0, 8192)],
            vec![short],
        ] {
            let end = appender.end();
            assert!(appender.append(batch).is_err());
            assert_eq!(appender.end(), end);
        }
        assert_eq!(appender.append(vec![]).unwrap(), []);
        assert_eq!(appender.append(vec![zeros(98_304, 100_000), zeros(0, 4096)]).unwrap().len(), 1);
    }
}
