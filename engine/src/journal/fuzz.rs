//! Offers the entry points of the fuzz targets; not for users. Panics where the decoder breaks a promise.

use super::JournalReader;
use super::format::{HEADER_OFFSET, SEAL_OFFSET, SECTOR_BYTES};
use super::record::{RECORD_HEAD_BYTES, RECORD_HEAD_CRC_OFFSET, RUN_HEAD_BYTES};
use super::samples::SampleJournal;
use crate::error::Code;
use crate::extent::{ByteRange, RangeSet};
use crate::seeded_numbers::SeededNumbers;

/// Reads any bytes as a journal, as they are and once more with every checksum put right, which is how fuzzing gets
/// past them.
pub fn fuzz_journal(data: &[u8]) {
    read(data.to_vec());
    read(with_right_checksums(data));
}

/// A well-formed journal, unfinished or finished.
#[must_use]
pub fn sample_journal(seed: u64) -> Vec<u8> {
    SampleJournal::new(seed).file()
}

/// Spoils [`sample_journal`] of the seed: flipped bits, cuts, zeroed sectors, copied and inserted bytes. Reads the
/// result as [`fuzz_journal`] does, and checks that the spoiled journal says no more than the sound one.
pub fn fuzz_mutation(seed: u64) {
    let sound = sample_journal(seed);
    let mut spoiled = sound.clone();
    let mut numbers = SeededNumbers(!seed);
    for _ in 0..=numbers.below(3) {
        mutate(&mut spoiled, &mut numbers);
    }
    let recorded = read(sound).expect("the sample is sound");
    if let Some(durable) = read(spoiled.clone()) {
        assert!(durable.iter().all(|range| recorded.contains(range)), "seed {seed}: a range was made up");
    }
    read(with_right_checksums(&spoiled));
}

fn mutate(bytes: &mut Vec<u8>, numbers: &mut SeededNumbers) {
    let length = bytes.len() as u64;
    let at = numbers.below(length) as usize;
    let end = (at + numbers.below(700) as usize).min(bytes.len());
    match numbers.below(6) {
        _ if bytes.is_empty() => bytes.push(1),
        0 | 1 => bytes[at] ^= 1 << numbers.below(8),
        2 => bytes.truncate(at),
        3 => bytes[at..end].fill(0),
        4 => {
            let copied = bytes[at..end].to_vec();
            let to = numbers.below(length) as usize;
            bytes.splice(to..to, copied);
        }
        _ => bytes.extend((0..numbers.below(700)).map(|_| numbers.next() as u8).collect::<Vec<_>>()),
    }
}

/// The durable ranges, if the bytes are a journal.
fn read(bytes: Vec<u8>) -> Option<RangeSet> {
    let length = bytes.len() as u64;
    let reader = match JournalReader::from_bytes(bytes) {
        Ok(reader) => reader,
        Err(error) => {
            let is_refusal = matches!(error.code, Code::CheckpointCorrupt | Code::CheckpointMismatch);
            assert!(is_refusal, "{error}");
            return None;
        }
    };
    assert!(reader.end() <= length);
    let size = reader.header().size_bytes;
    check_runs(&reader, ByteRange::new(0, size));
    check_runs(&reader, ByteRange::new(size / 3, size / 3 * 2));
    reader.root().expect("every run was just read");
    Some(reader.durable().clone())
}

/// Runs come in order, once, and make up the durable ranges inside `within`.
fn check_runs(reader: &JournalReader, within: ByteRange) {
    let (mut end, mut seen) = (0, RangeSet::new());
    for run in reader.runs(within) {
        let range = run.expect("it was read before").range;
        assert!(!range.is_empty());
        assert!(range.start() >= end);
        assert!(reader.durable().contains(range));
        (end, _) = (range.end(), seen.insert(range));
    }
    let wanted: RangeSet = reader.durable().iter().filter_map(|range| range.intersect(within)).collect();
    assert!(wanted.iter().all(|range| seen.contains(range)));
}

/// Lead sector, slots, header and as many records as can be followed.
fn with_right_checksums(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let u32_at = |bytes: &[u8], at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
    if bytes.len() < HEADER_OFFSET as usize {
        return bytes;
    }
    let header_end = HEADER_OFFSET as usize + u32_at(&bytes, 12);
    if let Some(header) = bytes.get(HEADER_OFFSET as usize..header_end) {
        let crc = crc32c::crc32c(header);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    }
    for sector in bytes.chunks_mut(SECTOR_BYTES).take(3) {
        seal(sector, SEAL_OFFSET);
    }
    let mut at = header_end;
    while bytes.len() >= at + RECORD_HEAD_BYTES {
        seal(&mut bytes[at..at + RECORD_HEAD_BYTES], RECORD_HEAD_CRC_OFFSET);
        let payload_at = at + RECORD_HEAD_BYTES;
        let payload_end = payload_at + u32_at(&bytes, at + 16);
        let Some(payload) = bytes.get_mut(payload_at..payload_end) else { break };
        seal_runs(payload);
        let crc = crc32c::crc32c(payload);
        let Some(tail) = bytes.get_mut(payload_end..payload_end + 4) else { break };
        tail.copy_from_slice(&crc.to_le_bytes());
        at = payload_end + 4;
    }
    bytes
}

/// Follows the runs as far as their digests can be guessed: leaves of 4 KiB.
fn seal_runs(payload: &mut [u8]) {
    let mut at = 0;
    while payload.len() >= at + RUN_HEAD_BYTES {
        let length = u64::from_le_bytes(payload[at + 8..at + 16].try_into().expect("eight bytes"));
        let leaves = if payload[at + 16] == 1 { length.div_ceil(4096) } else { 0 };
        let end = (leaves < 1 << 16).then_some(at + RUN_HEAD_BYTES + leaves as usize * 16);
        let Some(run) = end.and_then(|end| payload.get_mut(at..end)) else { break };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&run[..20]), &run[RUN_HEAD_BYTES..]);
        run[20..RUN_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        at += run.len();
    }
}

fn seal(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
