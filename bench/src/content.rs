//! Fills volumes with data made from a seed, and compares them.
//!
//! Both bypass the page cache where the file system can, so that neither warms it for the next trial. All sizes and
//! offsets are multiples of [`ALIGN_BYTES`].

use crate::interrupt::Interrupt;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest alignment of memory, offsets and lengths that direct I/O requires.
pub(crate) const ALIGN_BYTES: usize = 4096;
/// Bytes of a read or write.
const CHUNK_BYTES: usize = 1 << 20;
/// Comparing threads: enough to keep a disk busy.
const THREADS: usize = 4;

/// Memory aligned for direct I/O.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Allocates `len` zero bytes.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES);
        Self { memory, start, len }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Opens with direct I/O, or with buffered I/O if the file system has no direct I/O.
///
/// # Errors
/// As `open`.
pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    match options.clone().custom_flags(OFlag::O_DIRECT.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path),
        opened => opened,
    }
}

/// Creates a file of `len` bytes with incompressible data in the ranges `data` and holes elsewhere. The data depends
/// only on the seed.
///
/// # Errors
/// As writing a file; `Interrupted` if the run was interrupted.
pub(crate) fn create(
    path: &Path,
    len: u64,
    data: impl IntoIterator<Item = Range<u64>>,
    seed: u64,
    interrupt: &Interrupt,
) -> io::Result<()> {
    let file = open(path, OpenOptions::new().write(true).create(true).truncate(false))?;
    file.set_len(len)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = AlignedBuffer::new(CHUNK_BYTES);
    for chunk in data.into_iter().flat_map(|range| chunks(&range)) {
        stop_if(interrupt)?;
        let bytes = &mut buffer.bytes()[..length(&chunk)];
        random.fill(bytes);
        file.write_all_at(bytes, chunk.start)?;
    }
    file.sync_all()
}

/// Compares the first `len` bytes of two files. Returns the approximate offset of the first difference, `None` if there
/// is none.
///
/// # Errors
/// As reading files; `Interrupted` if the run was interrupted.
pub(crate) fn first_difference(one: &Path, other: &Path, len: u64, interrupt: &Interrupt) -> io::Result<Option<u64>> {
    let [one, other] = [one, other].map(|path| open(path, OpenOptions::new().read(true)));
    let (one, other) = (one?, other?);
    let mut data = [data_of(&one, len)?, data_of(&other, len)?].concat();
    let chunks: Vec<Range<u64>> = union(&mut data).iter().flat_map(chunks).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Ok(None)));
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(chunks.len()) {
            scope.spawn(|| {
                let outcome = compare(&one, &other, &chunks, &next, interrupt);
                if let Ok(mut found) = found.lock()
                    && !matches!((&*found, &outcome), (_, Ok(None)) | (Err(_), _))
                {
                    *found = outcome;
                }
            });
        }
    });
    found.into_inner().map_err(|_| io::Error::other("a verifying thread panicked"))?
}

/// Compares chunks until none is left or two differ.
fn compare(
    one: &File,
    other: &File,
    chunks: &[Range<u64>],
    next: &AtomicUsize,
    interrupt: &Interrupt,
) -> io::Result<Option<u64>> {
    let mut buffers = [AlignedBuffer::new(CHUNK_BYTES), AlignedBuffer::new(CHUNK_BYTES)];
    while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
        stop_if(interrupt)?;
        let [left, right] = &mut buffers;
        let (left, right) = (&mut left.bytes()[..length(chunk)], &mut right.bytes()[..length(chunk)]);
        one.read_exact_at(left, chunk.start)?;
        other.read_exact_at(right, chunk.start)?;
        if left != right {
            next.store(chunks.len(), Ordering::Relaxed);
            return Ok(Some(chunk.start));
        }
    }
    Ok(None)
}

/// Returns the data ranges of a file up to `len`; the whole file if they are unknown.
fn data_of(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    if !file.metadata()?.is_file() {
        return Ok(std::iter::once(0..len).collect());
    }
    let seek = |from: u64, whence| lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence).map(|at| at as u64);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < len {
        match seek(at, Whence::SeekData) {
            Ok(start) => {
                at = seek(start, Whence::SeekHole).map_err(io::Error::from)?;
                found.push(start.min(len)..at.min(len));
            }
            Err(nix::errno::Errno::ENXIO) => break,
            Err(_) => return Ok(std::iter::once(0..len).collect()),
        }
    }
    Ok(found)
}

/// Sorts ranges and merges those that touch.
fn union(ranges: &mut [Range<u64>]) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges.iter() {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range.clone()),
        }
    }
    joined
}

fn chunks(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(CHUNK_BYTES).map(move |start| start..(start + CHUNK_BYTES as u64).min(end))
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
}

fn stop_if(interrupt: &Interrupt) -> io::Result<()> {
    interrupt.check().map_err(|_| io::ErrorKind::Interrupted.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }

    #[test]
    fn a_seed_repeats_its_bytes_and_another_seed_gives_other_bytes() {
        let folder = folder();
        let make = |name: &str, seed| {
            let path = folder.path().join(name);
            create(&path, 8 << 20, [0..1 << 20, 4 << 20..5 << 20], seed, &Interrupt::default()).unwrap();
            fs::read(path).unwrap()
        };
        let (one, same, other) = (make("one", 1), make("same", 1), make("other", 2));
        assert!(one == same && one != other && one.len() == 8 << 20);
        assert!(one[1 << 20..4 << 20].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn holes_equal_zeros_and_a_single_byte_is_found() {
        let folder = folder();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        create(&one, 64 << 20, std::iter::once(32 << 20..33 << 20), 1, &Interrupt::default()).unwrap();
        let content = fs::read(&one).unwrap();
        fs::write(&other, &content).unwrap();
        assert_eq!(first_difference(&one, &other, 64 << 20, &Interrupt::default()).unwrap(), None);
        OpenOptions::new().write(true).open(&other).unwrap().write_all_at(&[1], 20 << 20).unwrap();
        assert_eq!(first_difference(&one, &other, 64 << 20, &Interrupt::default()).unwrap(), Some(20 << 20));
        assert_eq!(first_difference(&one, &other, 16 << 20, &Interrupt::default()).unwrap(), None);
    }

    #[test]
    fn a_stopped_run_does_not_call_files_equal() {
        let folder = folder();
        let path = folder.path().join("one");
        create(&path, 4 << 20, std::iter::once(0..4 << 20), 1, &Interrupt::default()).unwrap();
        let interrupt = Interrupt::default();
        interrupt.set();
        assert_eq!(first_difference(&path, &path, 4 << 20, &interrupt).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn ranges_join_where_they_touch() {
        assert_eq!(union(&mut [8..9, 0..4, 4..5, 2..3]), [0..5, 8..9]);
    }
}
