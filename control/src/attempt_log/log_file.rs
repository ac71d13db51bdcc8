//! Writes and reads the files of one log: its beginning and its end, in bounded space.
//!
//! ```text
//!  bytes of the log   0 ------- head ------- 64 KiB      dropped      | tail | tail | ... | last 192 KiB
//!  files              TASK@ASSIGNED@0                    TASK@ASSIGNED@START, 64 KiB each
//! ```
//! A file is named after the first byte that is in it, so the number of dropped bytes is the gap between two files, and
//! nothing else has to be stored. When the newest file is full, the next one is begun, and the oldest tail is removed if the
//! others have enough. Of the oldest tail only what belongs to the last 192 KiB is read.
//! A process that dies between the two leaves a file too many, which the next process removes.

use super::name::LogName;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the beginning that are kept.
pub(super) const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Bytes of the end that are kept.
pub(super) const TAIL_BYTES_MAX: u64 = 192 << 10;
/// Bytes of one file; that of the beginning is one.
const SEGMENT_BYTES_MAX: u64 = HEAD_BYTES_MAX;
/// Size in which a file system gives space, for the sum of all logs.
const BLOCK_BYTES: u64 = 4096;

const _: () = assert!(super::LINE_BYTES_MAX as u64 <= SEGMENT_BYTES_MAX);

/// One file of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Position of its first byte in the log.
    pub start: u64,
    pub bytes: u64,
}

impl Segment {
    pub(super) fn end(self) -> u64 {
        self.start + self.bytes
    }
}

/// Returns the space that files of a log occupy.
pub(super) fn disk_bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES).sum()
}

/// Removes from a list of files in their order what has no place any more, and returns that.
pub(super) fn surplus(segments: &mut Vec<Segment>) -> Vec<Segment> {
    let mut surplus = Vec::new();
    let later_bytes = |segments: &[Segment]| segments.iter().skip(2).map(|segment| segment.bytes).sum::<u64>();
    while later_bytes(segments) >= TAIL_BYTES_MAX {
        surplus.push(segments.remove(1));
    }
    surplus
}

/// Log that is being written.
#[derive(Debug)]
pub(super) struct BoundedLog {
    folder: PathBuf,
    name: LogName,
    segments: Vec<Segment>,
    /// File of the last segment.
    file: Option<File>,
}

impl BoundedLog {
    /// Creates a log without files.
    pub(super) fn new(folder: PathBuf, name: LogName) -> Self {
        Self { folder, name, segments: Vec::new(), file: None }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Appends a line of at most [`LINE_BYTES_MAX`](super::LINE_BYTES_MAX) bytes. If that fails, the log is as before.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = line.len() as u64;
        let room = self.segments.last().map_or(0, |last| SEGMENT_BYTES_MAX.saturating_sub(last.bytes));
        if self.file.is_none() || room < bytes {
            self.begin_segment()?;
        }
        let (Some(file), Some(last)) = (&self.file, self.segments.last_mut()) else {
            unreachable!("a segment has just been begun")
        };
        if let Err(error) = file.write_all_at(line, last.bytes) {
            // A part of the line may be there. The next line is written over it, if this fails as well.
            let _ = file.set_len(last.bytes);
            return Err(error);
        }
        last.bytes += bytes;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let start = self.segments.last().map_or(0, |last| last.end());
        let path = self.name.path(&self.folder, start);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        self.file = Some(file);
        self.segments.push(Segment { start, bytes: 0 });
        for old in surplus(&mut self.segments) {
            // A file that stays is removed by the next process.
            let _ = std::fs::remove_file(self.name.path(&self.folder, old.start));
        }
        Ok(())
    }
}

/// Reads at most `max` bytes of a log from `offset`, or from the first kept byte after it: whole lines, if there is the end
/// of one. Returns where they begin. Without bytes there is nothing after `offset`.
pub(super) fn read(
    folder: &Path,
    name: &LogName,
    segments: &[Segment],
    offset: u64,
    max: usize,
) -> io::Result<(u64, Vec<u8>)> {
    let end = segments.last().map_or(0, |last| last.end());
    let head_end = segments.first().filter(|first| first.start == 0).map_or(0, |head| head.end());
    // The files have more than is kept, by how full they happen to be.
    let tail_start = end.saturating_sub(TAIL_BYTES_MAX).max(head_end);
    let from = if (head_end..tail_start).contains(&offset) { tail_start } else { offset };
    let Some(segment) = segments.iter().find(|segment| segment.end() > from) else { return Ok((offset, Vec::new())) };
    let begin = from.max(segment.start);
    let wanted = usize::try_from(segment.end() - begin).unwrap_or(max).min(max);
    let file = File::open(name.path(folder, segment.start))?;
    let mut text = vec![0; wanted];
    file.read_exact_at(&mut text, begin - segment.start)?;
    if let Some(last) = text.iter().rposition(|byte| *byte == b'\n') {
        text.truncate(last + 1);
    }
    if begin == offset || begin == segment.start {
        return Ok((begin, text));
    }
    // It begins inside of a line, which is passed over if it is not the only one.
    let rest = text.iter().position(|byte| *byte == b'\n').map_or(0, |first| first + 1) % text.len();
    Ok((begin + rest as u64, text.split_off(rest)))
}
