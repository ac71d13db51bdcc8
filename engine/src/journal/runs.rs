//! Reads the runs of a journal again from its file, in the order of offsets.

use super::Run;
use super::bytes::JournalBytes;
use super::format::Geometry;
use super::record::{RUN_HEAD_BYTES, RunHead};
use super::run_span::{RunSpan, SpanLookup};
use crate::error::{Error, Result};
use crate::extent::ByteRange;

/// Bytes read at a time: many runs are short.
const WINDOW_BYTES: u64 = 32 << 10;

/// Iterates over the runs of a part of the copy, each cut to its span. Ends after the first error.
pub(super) struct Runs<'a> {
    spans: &'a dyn SpanLookup,
    store: &'a JournalBytes,
    geometry: Geometry,
    /// The range whose spans were not looked up yet.
    rest: ByteRange,
    /// Rest of the span being read, and the position of its next run.
    current: Option<RunSpan>,
    window: ReadWindow,
}

impl<'a> Runs<'a> {
    /// `within` is made of whole leaves; the journal ends at byte `end` of its file.
    pub(super) fn new(
        spans: &'a dyn SpanLookup,
        store: &'a JournalBytes,
        geometry: Geometry,
        within: ByteRange,
        end: u64,
    ) -> Self {
        let window = ReadWindow { bytes: Vec::new(), start: 0, end };
        Self { spans, store, geometry, rest: within, current: None, window }
    }

    fn next_span(&mut self) -> Result<Option<RunSpan>> {
        let span = self.spans.first_span(self.rest)?;
        let end = span.map_or(self.rest.end(), |span| span.range.end());
        self.rest = ByteRange::new(end, self.rest.end());
        Ok(span)
    }

    fn end_after(&mut self, error: Error) -> Error {
        self.rest = ByteRange::new(self.rest.end(), self.rest.end());
        error
    }

    /// The next run of `span` that has bytes in it, whole, and where the one after it lies.
    fn next_in(&mut self, span: RunSpan) -> Result<(Run, u64)> {
        let mut at = span.position;
        loop {
            let store = self.store;
            let corrupt = |what| store.corrupt(at, RUN_HEAD_BYTES as u64, what);
            let head = self.window.take(store, at, RUN_HEAD_BYTES)?;
            let head = RunHead::decode(head, &self.geometry).map_err(corrupt)?;
            let after = at + head.run_bytes() as u64;
            if head.range.end() <= span.range.start() {
                at = after;
                continue;
            }
            let bytes = self.window.take(store, at, head.run_bytes())?;
            if !head.checksum_matches(bytes) || head.range.start() > span.range.start() {
                return Err(corrupt("a run is not what it was a moment ago"));
            }
            return Ok((head.with_digests(&bytes[RUN_HEAD_BYTES..]), after));
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let span = match self.current.take().map_or_else(|| self.next_span(), |span| Ok(Some(span))) {
            Ok(span) => span?,
            Err(error) => return Some(Err(self.end_after(error))),
        };
        match self.next_in(span) {
            Ok((run, position)) => {
                let end = run.range.end().min(span.range.end());
                let piece = run.cut(ByteRange::new(span.range.start(), end), self.geometry.leaf_bytes);
                let rest = ByteRange::new(end, span.range.end());
                self.current = (!rest.is_empty()).then_some(RunSpan { range: rest, position });
                Some(Ok(piece))
            }
            Err(error) => Some(Err(self.end_after(error))),
        }
    }
}

/// Bytes of the file around where the reading is.
struct ReadWindow {
    bytes: Vec<u8>,
    start: u64,
    /// Offset at which reading ends.
    end: u64,
}

impl ReadWindow {
    /// `length` bytes at `at`.
    fn take(&mut self, store: &JournalBytes, at: u64, length: usize) -> Result<&[u8]> {
        let is_inside = self.start <= at && at + length as u64 <= self.start + self.bytes.len() as u64;
        if !is_inside {
            let ahead = WINDOW_BYTES.min(self.end.saturating_sub(at)).max(length as u64);
            self.bytes.resize(ahead as usize, 0);
            self.start = at;
            // Emptied first, so that a failed read leaves nothing that looks like a window.
            let mut bytes = std::mem::take(&mut self.bytes);
            store.read(&mut bytes, at)?;
            self.bytes = bytes;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + length])
    }
}
