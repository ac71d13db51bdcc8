//! Reads a journal: everything is checked once, front to back, before any of it is used.
//!
//! Memory holds one record at a time and an index of spans, never the digests: [`JournalReader::runs`] reads them again
//! from the file, each under its own checksum. What is committed must be whole. Behind it one record may be missing its
//! end, as a crash leaves it, and is dropped. `docs/format.md` gives the rules and why they are safe.

use super::bytes::{JournalBytes, ReadAt};
use super::format::{CommitSlot, Geometry, HEADER_OFFSET, LeadSector, SECTOR_BYTES, SLOT_OFFSETS, decode_header};
use super::record::{
    RECORD_BYTES_MAX, RECORD_HEAD_BYTES, RECORD_TAIL_BYTES, RecordHead, RecordKind, RunHead, decode_finish, is_torn,
    walk_runs,
};
use super::run_span::{RunSpan, SPANS_MAX, SpanIndex, SpanLookup};
use super::runs::Runs;
use super::sampled_leaves::SampledLeaves;
use super::{FinishRecord, Header, JournalState, Run};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, RangeSet};
use crate::shown::Shown;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A journal that was read and found whole.
pub struct JournalReader {
    store: JournalBytes,
    header: Header,
    lead: LeadSector,
    finish: Option<FinishRecord>,
    durable: RangeSet,
    /// Index of a part of the copy: see [`SpanIndex`].
    spans: Mutex<SpanIndex>,
    spans_max: usize,
    picks: SampledLeaves,
    records: u64,
    runs: u64,
    end: u64,
    slot_sequence: u64,
}

impl JournalReader {
    /// Reads the checkpoint or receipt at `path`. It is not locked: a journal in use may have grown since.
    ///
    /// # Errors
    /// `ENotFound` if there is no file, `EBadRequest` if it is no regular file, `ECheckpointCorrupt` if it is empty,
    /// damaged or no journal, `ECheckpointMismatch` if another version wrote it, and whatever the system says.
    pub fn open(path: &Path) -> Result<Self> {
        super::check_place(path)?;
        let name = path.shown().to_string();
        let file = File::open(path).map_err(|error| {
            Error::io(Side::Engine, Operation::Journal, &error, format_args!("open the journal {name}"))
        })?;
        Self::from_store(Box::new(file), name, None)
    }

    /// As [`JournalReader::open`], of a file that is open; `path` is only its name.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    pub(crate) fn of_file(file: File, path: &Path) -> Result<Self> {
        Self::from_store(Box::new(file), path.shown().to_string(), None)
    }

    /// As [`JournalReader::open`], from memory.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::from_store(Box::new(bytes), "in memory".into(), None)
    }

    /// Reads at most the first `limit` bytes: what is behind them does not count yet.
    pub(super) fn from_store(bytes: Box<dyn ReadAt>, name: String, limit: Option<u64>) -> Result<Self> {
        let store = JournalBytes::new(bytes, name);
        if store.size_bytes()? == 0 {
            let message = format!("the file {} is empty: no journal in it", store.name);
            let error = Error::new(Code::CheckpointCorrupt, Side::Engine, Operation::Journal, message);
            return Err(error.advise("start over with --restart, or remove it"));
        }
        let (lead, header, slot) = read_start(&store)?;
        // Read after the slots: a journal in use grows before its slots are updated.
        let size = store.size_bytes()?;
        let picks = SampledLeaves::new(header.leaf_bytes.into(), header.started_ns.cast_unsigned());
        let mut reader = Self {
            store,
            header,
            lead,
            finish: None,
            durable: RangeSet::new(),
            spans: Mutex::new(SpanIndex::starting_at(0, SPANS_MAX)),
            spans_max: SPANS_MAX,
            picks,
            records: 0,
            runs: 0,
            end: lead.records_start(),
            slot_sequence: slot.sequence,
        };
        reader.scan(&slot, limit.map_or(size, |limit| limit.min(size)))?;
        Ok(reader)
    }

    /// Returns what was recorded about the job when it started.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Checkpoint or receipt.
    #[must_use]
    pub fn state(&self) -> JournalState {
        if self.finish.is_some() { JournalState::Finished } else { JournalState::Unfinished }
    }

    /// The bytes of the destination that are durable.
    #[must_use]
    pub fn durable(&self) -> &RangeSet {
        &self.durable
    }

    /// Returns how the job ended; `None` for a checkpoint.
    #[must_use]
    pub fn finish(&self) -> Option<&FinishRecord> {
        self.finish.as_ref()
    }

    /// Number of records, the finish record included.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Number of runs recorded, those recorded again included.
    #[must_use]
    pub fn recorded_runs(&self) -> u64 {
        self.runs
    }

    /// Bytes of the file that count. What follows was lost in a crash.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The recorded runs inside `within`, grown to whole leaves, in the order of offsets and without overlaps: where
    /// something was recorded twice the later record wins. Reads the file again; ends after an error.
    pub fn runs(&self, within: ByteRange) -> impl Iterator<Item = Result<Run>> + '_ {
        let geometry = Geometry::of(&self.header);
        let whole = ByteRange::new(0, geometry.size_bytes);
        let within = within.intersect(whole).unwrap_or(ByteRange::new(0, 0));
        let within = within.align_out(geometry.leaf_bytes, geometry.size_bytes);
        Runs::new(self, &self.store, geometry, within, self.end)
    }

    /// Indexes the records from byte `start` of the copy on, as far as an index reaches.
    fn index(&self, start: u64) -> Result<SpanIndex> {
        let mut index = SpanIndex::starting_at(start, self.spans_max);
        let (mut at, mut sequence) = (self.lead.records_start(), 0);
        while at < self.end {
            let LoadedRecord::Whole(record) = self.load(at, sequence, self.end)? else {
                return Err(self.store.corrupt(at, 0, "a record is not what it was a moment ago"));
            };
            let walked = record.walk_spans(&self.header, |_| (), |span| index.overlay(span));
            walked.map_err(|what| self.store.corrupt(at, record.head.record_bytes(), what))?;
            (at, sequence) = (record.end(), sequence + 1);
        }
        Ok(index)
    }

    /// Single leaves by which its volumes can be known again, the most telling first. Reads the file again.
    pub(crate) fn telling_leaves(&self) -> impl Iterator<Item = Result<Run>> + '_ {
        // Of one byte the run is the leaf that it is in.
        self.picks.offsets().into_iter().filter_map(|offset| self.runs(ByteRange::at(offset, 1)).next())
    }

    /// The root digest over every leaf; `None` where bytes are missing or were not digested. Reads the file again.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    pub fn root(&self) -> Result<Option<[u8; 32]>> {
        let mut hasher = super::RootHasher::new(&self.header);
        for run in self.runs(ByteRange::new(0, self.header.size_bytes)) {
            hasher.push(&run?);
        }
        Ok(hasher.finish())
    }

    pub(super) fn slot_sequence(&self) -> u64 {
        self.slot_sequence
    }

    fn scan(&mut self, slot: &CommitSlot, limit: u64) -> Result<()> {
        if slot.committed_bytes < self.lead.records_start() || slot.committed_bytes > limit {
            return Err(self.store.corrupt(limit, 0, "the file is shorter than what was committed"));
        }
        while let Some(record) = self.next_record(slot.committed_bytes, limit)? {
            self.accept(&record)?;
        }
        match (slot.state, self.finish) {
            (JournalState::Finished, Some(_)) if self.end == slot.committed_bytes => Ok(()),
            (JournalState::Unfinished, Some(_)) if self.end > slot.committed_bytes => Ok(()),
            (JournalState::Unfinished, None) => Ok(()),
            _ => Err(self.store.corrupt(slot.offset(), SECTOR_BYTES as u64, "the commit slot contradicts the records")),
        }
    }

    /// The next record, or `None` at the end or before a dropped one.
    fn next_record(&self, committed: u64, limit: u64) -> Result<Option<Record>> {
        if self.end == limit {
            return Ok(None);
        }
        if self.finish.is_some() {
            return Err(self.store.corrupt(self.end, limit - self.end, "something follows the finish record"));
        }
        let is_committed = self.end < committed;
        match self.load(self.end, self.records, limit)? {
            LoadedRecord::Whole(record) if is_committed && record.end() > committed => {
                Err(self.store.corrupt(record.at, record.head.record_bytes(), "a record is committed in part"))
            }
            LoadedRecord::Whole(record) => Ok(Some(record)),
            LoadedRecord::Incomplete if is_committed => {
                Err(self.store.corrupt(self.end, limit - self.end, "a committed record is incomplete"))
            }
            LoadedRecord::Incomplete => Ok(None),
            LoadedRecord::Damaged { end, .. } if !is_committed && end == limit && self.is_torn(end)? => Ok(None),
            LoadedRecord::Damaged { end, what } => Err(self.store.corrupt(self.end, end - self.end, what)),
        }
    }

    /// The record at `at`, which is to have this sequence number.
    fn load(&self, at: u64, sequence: u64, limit: u64) -> Result<LoadedRecord> {
        let rest = limit - at;
        if rest < RECORD_HEAD_BYTES as u64 {
            return Ok(LoadedRecord::Incomplete);
        }
        let corrupt = |what| self.store.corrupt(at, RECORD_HEAD_BYTES as u64, what);
        let Some(head) = RecordHead::decode(&self.store.read_array(at)?).map_err(corrupt)? else {
            // Its length is unknown: everything up to the end counts as damaged.
            return Ok(LoadedRecord::Damaged { end: limit, what: "the checksum of a record's head is wrong" });
        };
        if head.sequence != sequence {
            return Err(corrupt("a record is out of sequence"));
        }
        if head.record_bytes() > rest {
            return Ok(LoadedRecord::Incomplete);
        }
        let mut payload = vec![0; head.payload_bytes as usize + RECORD_TAIL_BYTES];
        self.store.read(&mut payload, at + RECORD_HEAD_BYTES as u64)?;
        let crc = payload.split_off(head.payload_bytes as usize);
        if crc != crc32c::crc32c(&payload).to_le_bytes() {
            return Ok(LoadedRecord::Damaged {
                end: at + head.record_bytes(),
                what: "the checksum of a record is wrong",
            });
        }
        Ok(LoadedRecord::Whole(Record { at, head, payload }))
    }

    /// Returns whether what lies between the last record and `end` can be what a power cut leaves of one record.
    fn is_torn(&self, end: u64) -> Result<bool> {
        let length = end - self.end;
        if length > RECORD_BYTES_MAX as u64 {
            return Ok(false);
        }
        let mut append = vec![0; length as usize];
        self.store.read(&mut append, self.end)?;
        Ok(is_torn(&append, self.end))
    }

    fn accept(&mut self, record: &Record) -> Result<()> {
        let what = match record.head.kind {
            RecordKind::Runs => self.accept_runs(record).err(),
            RecordKind::Finish => {
                self.finish = decode_finish(&record.payload);
                self.finish.is_none().then_some("a field of the finish record is out of its range")
            }
        };
        if let Some(what) = what {
            return Err(self.store.corrupt(record.at, record.head.record_bytes(), what));
        }
        self.records += 1;
        self.end = record.end();
        Ok(())
    }

    fn accept_runs(&mut self, record: &Record) -> Result<(), &'static str> {
        let spans = self.spans.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (durable, picks) = (&mut self.durable, &mut self.picks);
        let close = |span: RunSpan| {
            spans.overlay(span);
            durable.insert(span.range);
        };
        record.walk_spans(&self.header, |run| picks.add(run.range, run.is_zeros()), close)?;
        self.runs += u64::from(record.head.runs);
        Ok(())
    }
}

impl SpanLookup for JournalReader {
    /// Reads the records again if the index does not reach there.
    fn first_span(&self, within: ByteRange) -> Result<Option<RunSpan>> {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = within.start();
        while at < within.end() {
            let known = spans.known();
            if !(known.start() <= at && at < known.end()) {
                *spans = self.index(at)?;
            }
            let part = ByteRange::new(at, within.end().min(spans.known().end()));
            if let Some(span) = spans.first_in(part) {
                return Ok(Some(span));
            }
            at = part.end();
        }
        Ok(None)
    }
}

impl fmt::Debug for JournalReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalReader")
            .field("name", &self.store.name)
            .field("state", &self.state())
            .field("records", &self.records)
            .field("spans_max", &self.spans_max)
            .field("durable_bytes", &self.durable.bytes())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Lead sector, header and the newest slot.
fn read_start(store: &JournalBytes) -> Result<(LeadSector, Header, CommitSlot)> {
    let damaged = |damage| store.damaged(damage);
    let lead = LeadSector::decode(&store.read_array(0)?).map_err(damaged)?;
    let [first, second] = SLOT_OFFSETS;
    let slots =
        [CommitSlot::decode(&store.read_array(first)?, first), CommitSlot::decode(&store.read_array(second)?, second)];
    let mut body = vec![0; lead.header_bytes as usize];
    store.read(&mut body, HEADER_OFFSET)?;
    let header = decode_header(lead, &body).map_err(damaged)?;
    let newest = slots.into_iter().flatten().max_by_key(|slot| slot.sequence);
    let slot = newest.ok_or_else(|| store.corrupt(first, 2 * SECTOR_BYTES as u64, "both commit slots are damaged"))?;
    Ok((lead, header, slot))
}

/// A record whose checksums are right.
struct Record {
    at: u64,
    head: RecordHead,
    payload: Vec<u8>,
}

impl Record {
    fn end(&self) -> u64 {
        self.at + self.head.record_bytes()
    }

    /// Calls `run_found` with every run of it and `each` with every span, in order. The finish record has none.
    fn walk_spans(
        &self,
        header: &Header,
        mut run_found: impl FnMut(&RunHead),
        mut each: impl FnMut(RunSpan),
    ) -> Result<(), &'static str> {
        if self.head.kind == RecordKind::Finish {
            return Ok(());
        }
        let first = self.at + RECORD_HEAD_BYTES as u64;
        let mut open: Option<RunSpan> = None;
        walk_runs(&self.payload, self.head.runs, &Geometry::of(header), |run, at| {
            run_found(&run);
            open = Some(match open {
                Some(span) if span.range.end() == run.range.start() => {
                    RunSpan { range: ByteRange::new(span.range.start(), run.range.end()), ..span }
                }
                other => {
                    other.into_iter().for_each(&mut each);
                    RunSpan { range: run.range, position: first + at as u64 }
                }
            });
        })?;
        open.into_iter().for_each(each);
        Ok(())
    }
}

/// The bytes at the place of a record.
enum LoadedRecord {
    Whole(Record),
    /// The file ends before the record does.
    Incomplete,
    /// The record's bytes up to `end` exist, but are damaged.
    Damaged {
        end: u64,
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::super::append::Appender;
    use super::super::samples::{SampleJournal, header};
    use super::super::{Content, JournalReader};
    use super::*;

    /// Each leaf with what it holds.
    fn leaves(reader: &JournalReader) -> Vec<(u64, Content)> {
        let leaf = u64::from(reader.header().leaf_bytes);
        let whole = ByteRange::new(0, reader.header().size_bytes);
        let runs = reader.runs(whole).map(|run| run.unwrap());
        runs.flat_map(|run| {
            run.range.split(leaf).map(move |piece| (piece.start(), run.cut(piece, leaf).content)).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn spans_that_do_not_fit_the_index_are_read_again() {
        for seed in 0..40 {
            let sample = SampleJournal::new(seed);
            let whole = leaves(&JournalReader::from_bytes(sample.file()).unwrap());
            for most in 1..4 {
                let mut reader = JournalReader::from_bytes(sample.file()).unwrap();
                reader.spans_max = most;
                let forgetful = SpanIndex::starting_at(u64::MAX, most);
                *reader.spans.get_mut().unwrap() = forgetful;
                assert_eq!(leaves(&reader), whole, "seed {seed}, {most} spans");
            }
        }
    }

    /// 32 stretches grow side by side, as on many cores: no two neighbours are of one record.
    #[test]
    fn the_index_of_eight_terabytes_is_bounded_and_misses_nothing() {
        const PIECE: u64 = 8 << 20;
        const RECORDS: u64 = 32_768;
        let header = Header { digest: crate::spec::DigestKind::None, ..header(8 << 40, 1 << 20) };
        let (mut appender, start) = Appender::create(&header).unwrap();
        let mut file = start.bytes;
        for record in 0..RECORDS {
            let piece = |stretch: u64| Run {
                range: ByteRange::at((stretch * RECORDS + record) * PIECE, PIECE),
                content: Content::Undigested,
            };
            for commit in appender.append((0..32).map(piece).collect()).unwrap() {
                file.extend(&commit.record.bytes);
            }
        }
        let reader = JournalReader::from_bytes(file).unwrap();
        assert_eq!(reader.durable().bytes(), 8 << 40);
        let mut at = 0;
        for run in reader.runs(ByteRange::new(0, 8 << 40)) {
            let range = run.unwrap().range;
            assert_eq!(range.start(), at);
            at = range.end();
            assert!(reader.spans.lock().unwrap().len() <= SPANS_MAX);
        }
        assert_eq!(at, 8 << 40);
    }
}
