//! Tests journals after crashes and damage, on a file in memory.
//!
//! Goal: the reader forgets at most what was never committed, and never makes anything up.

use super::append::{Appender, Commit};
use super::bytes::ReadAt;
use super::format::{HEADER_OFFSET, SECTOR_BYTES, SLOT_OFFSETS};
use super::samples::{SampleJournal, apply, header, leaf, leaves};
use super::*;
use crate::error::{Code, Result};
use crate::seeded_numbers::SeededNumbers;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// Leaf by leaf, what a reader says; checks on the way that runs are in order and agree with the durable set.
fn contents(reader: &JournalReader) -> Vec<Option<Content>> {
    let header = reader.header();
    let leaf_bytes = u64::from(header.leaf_bytes);
    let mut contents = vec![None; header.size_bytes.div_ceil(leaf_bytes) as usize];
    let (mut end, mut bytes) = (0, 0);
    for run in reader.runs(ByteRange::new(0, header.size_bytes)) {
        let run = run.unwrap();
        assert!(run.range.start() >= end && reader.durable().contains(run.range));
        (end, bytes) = (run.range.end(), bytes + run.range.len());
        for piece in run.range.split(leaf_bytes) {
            contents[(piece.start() / leaf_bytes) as usize] = Some(run.cut(piece, leaf_bytes).content);
        }
    }
    assert_eq!(bytes, reader.durable().bytes());
    contents
}

fn read(file: &[u8]) -> Result<JournalReader> {
    JournalReader::from_bytes(file.to_vec())
}

fn is_refused(file: &[u8]) -> bool {
    let code = read(file).map_err(|error| error.code);
    code.err() == Some(Code::CheckpointCorrupt)
}

/// The file after the first `commits` and the slots of the first `slots` of them.
fn file_after(sample: &SampleJournal, commits: usize, slots: usize) -> Vec<u8> {
    let mut file = Vec::new();
    apply(&mut file, &sample.start);
    sample.commits[..commits].iter().for_each(|commit| apply(&mut file, &commit.record));
    sample.commits[..slots].iter().for_each(|commit| apply(&mut file, &commit.slot));
    file
}

/// A journal with two committed batches and, if wanted, its end.
fn two_batches(finish: Option<&FinishRecord>) -> (Vec<u8>, Appender) {
    let (mut appender, start) = Appender::create(&header(40 * 4096, 4096)).unwrap();
    let mut file = start.bytes;
    let zeros = Run { range: ByteRange::new(20 * 4096, 40 * 4096), content: Content::Zeros };
    let mut commits = appender.append(vec![leaves(0, 10, 4096)]).unwrap();
    commits.extend(appender.append(vec![leaves(10, 10, 4096), zeros]).unwrap());
    commits.extend(finish.map(|finish| appender.finish(finish)));
    for Commit { record, slot, .. } in &commits {
        apply(&mut file, record);
        apply(&mut file, slot);
    }
    (file, appender)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn recorded_runs_are_read_back(seed: u64) {
        let sample = SampleJournal::new(seed);
        let reader = read(&sample.file()).unwrap();
        prop_assert_eq!(reader.header(), &sample.header);
        prop_assert_eq!(reader.finish(), sample.finish.as_ref());
        prop_assert_eq!(reader.state() == JournalState::Finished, sample.finish.is_some());
        prop_assert_eq!(reader.records(), sample.commits.len() as u64);
        prop_assert_eq!(reader.end(), sample.file().len() as u64);
        prop_assert_eq!(contents(&reader), sample.model(sample.commits.len()));
    }

    #[test]
    fn a_part_of_a_journal_is_the_whole_trimmed_to_whole_leaves(seed: u64, from in 0_u64..300_000, length in 0_u64..300_000) {
        let reader = read(&SampleJournal::new(seed).file()).unwrap();
        let size = reader.header().size_bytes;
        let within = ByteRange::new(from.min(size), (from + length).min(size)).align_out(4096, size);
        let whole: Vec<Run> = reader.runs(ByteRange::new(0, size)).map(Result::unwrap).collect();
        let cut = |run: &Run| run.range.intersect(within).map(|piece| run.cut(piece, 4096));
        let expected: Vec<Run> = whole.iter().filter_map(cut).collect();
        let part: Vec<Run> = reader.runs(ByteRange::at(from, length)).map(Result::unwrap).collect();
        prop_assert_eq!(part, if from < size && length > 0 { expected } else { vec![] });
    }

    #[test]
    fn a_kill_at_any_byte_loses_only_the_record_in_progress(seed: u64, cut: prop::sample::Index) {
        // The page cache survives a kill: every write before the last one is whole.
        let sample = SampleJournal::new(seed);
        for (done, commit) in sample.commits.iter().enumerate() {
            let mut file = file_after(&sample, done, done);
            let taken = cut.index(commit.record.bytes.len());
            file.extend(&commit.record.bytes[..taken]);
            let reader = read(&file).unwrap();
            prop_assert_eq!(contents(&reader), sample.model(done));
            prop_assert_eq!(reader.end(), commit.record.offset);
            prop_assert_eq!(reader.state(), JournalState::Unfinished);
            let mut file = file_after(&sample, done + 1, done);
            prop_assert_eq!(contents(&read(&file).unwrap()), sample.model(done + 1));
            // A slot torn in its middle leaves the other one.
            let torn = &commit.slot.bytes[..cut.index(SECTOR_BYTES)];
            file[commit.slot.offset as usize..][..torn.len()].copy_from_slice(torn);
            prop_assert_eq!(contents(&read(&file).unwrap()), sample.model(done + 1));
        }
    }

    #[test]
    fn a_power_cut_loses_only_the_record_in_progress(seed: u64, lost: u64, keep_slot: bool) {
        // The record under way reached the disk in part; the slot before it may have, or not.
        let sample = SampleJournal::new(seed);
        for (done, commit) in sample.commits.iter().enumerate() {
            let mut file = file_after(&sample, done + 1, if keep_slot { done } else { done.saturating_sub(1) });
            let mut numbers = SeededNumbers(lost);
            let (start, end) = (commit.record.offset as usize, file.len());
            let is_lost: Vec<bool> = (start / SECTOR_BYTES..=end / SECTOR_BYTES).map(|_| numbers.below(2) == 1).collect();
            for (at, byte) in file.iter_mut().enumerate().skip(start) {
                if is_lost[at / SECTOR_BYTES - start / SECTOR_BYTES] {
                    *byte = 0;
                }
            }
            let reader = read(&file).unwrap();
            let all = contents(&reader);
            prop_assert!(all == sample.model(done) || all == sample.model(done + 1));
            prop_assert!(reader.end() >= commit.record.offset);
        }
    }

    #[test]
    fn a_flipped_bit_is_refused_or_changes_nothing(seed: u64, at: prop::sample::Index, bit in 0_u32..8) {
        let sample = SampleJournal::new(seed);
        let mut file = sample.file();
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        let is_slot = SLOT_OFFSETS.iter().any(|&slot| (slot..slot + SECTOR_BYTES as u64).contains(&(at as u64)));
        match read(&file) {
            Err(error) => prop_assert_eq!(error.code, Code::CheckpointCorrupt),
            Ok(reader) => {
                prop_assert!(is_slot, "byte {}", at);
                prop_assert_eq!(contents(&reader), sample.model(sample.commits.len()));
                prop_assert_eq!(reader.finish(), sample.finish.as_ref());
            }
        }
    }

    #[test]
    fn a_cut_below_what_is_committed_is_refused(seed: u64, at: prop::sample::Index) {
        let file = SampleJournal::new(seed).file();
        prop_assert!(is_refused(&file[..at.index(file.len())]));
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        fuzz::fuzz_journal(&bytes);
    }

    #[test]
    fn a_checkpoint_can_be_extended_after_any_crash(seed: u64, cut: prop::sample::Index) {
        let sample = SampleJournal::new(seed);
        let Some(commit) = sample.commits.first().filter(|_| sample.commits.len() > 1) else { return Ok(()) };
        let mut file = file_after(&sample, 0, 0);
        file.extend(&commit.record.bytes[..cut.index(commit.record.bytes.len() + 1)]);
        let reader = read(&file).unwrap();
        file.truncate(reader.end() as usize);
        let mut appender = Appender::resume(&reader);
        for commit in appender.append(sample.batches[0].clone()).unwrap() {
            apply(&mut file, &commit.record);
            apply(&mut file, &commit.slot);
        }
        prop_assert_eq!(contents(&read(&file).unwrap()), sample.model(1));
    }
}

#[test]
fn every_flipped_bit_of_a_receipt_is_detected() {
    let (file, _) = two_batches(Some(&FinishRecord { root: Some([9; 32]), finished_ns: 5 }));
    let intact = read(&file).unwrap();
    for bit in 0..file.len() * 8 {
        let mut file = file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        match read(&file) {
            Err(error) => assert_eq!(error.code, Code::CheckpointCorrupt, "bit {bit}"),
            Ok(reader) => {
                assert!((512..1536).contains(&(bit / 8)), "bit {bit}");
                assert_eq!((reader.finish(), contents(&reader)), (intact.finish(), contents(&intact)), "bit {bit}");
            }
        }
    }
}

#[test]
fn both_slots_damaged_is_corrupt() {
    let (mut file, _) = two_batches(None);
    for slot in SLOT_OFFSETS {
        file[slot as usize + 20] ^= 1;
    }
    let error = read(&file).unwrap_err();
    assert_eq!(error.code, Code::CheckpointCorrupt);
    assert_eq!(error.offset, Some(SLOT_OFFSETS[0]));
    assert!(error.message.contains("--restart") && error.message.contains("in memory"), "{error}");
}

#[test]
fn every_cut_of_a_receipt_is_refused() {
    let (file, _) = two_batches(Some(&FinishRecord { root: None, finished_ns: 0 }));
    assert!((0..file.len()).all(|length| is_refused(&file[..length])));
}

#[test]
fn bytes_after_the_end_of_a_receipt_are_refused() {
    let (file, _) = two_batches(Some(&FinishRecord { root: None, finished_ns: 0 }));
    for rest in [&[0_u8][..], &[0; 600], &[1], &[1; 600]] {
        assert!(is_refused(&[&file, rest].concat()));
    }
}

#[test]
fn behind_the_commit_zeros_are_dropped_and_garbage_is_refused() {
    let (file, mut appender) = two_batches(None);
    for zeros in [1, 31, 32, 512, 5000] {
        let reader = read(&[&file[..], &vec![0; zeros]].concat()).unwrap();
        assert_eq!(reader.end(), file.len() as u64);
    }
    assert!(is_refused(&[&file[..], &[0xff; 400]].concat()));
    assert!(is_refused(&[&file[..], &vec![0; record::RECORD_BYTES_MAX + 1]].concat()));
    let mut record = appender.append(vec![leaves(0, 30, 4096)]).unwrap().remove(0).record.bytes;
    record[100] ^= 1;
    assert!(is_refused(&[&file[..], &record].concat()));
    record[100] ^= 1;
    assert!(read(&[&file[..], &record].concat()).is_ok());
    assert!(is_refused(&[&file[..], &record, &record].concat()), "the same sequence twice");
}

#[test]
fn a_whole_finish_record_counts_before_its_slot_is_written() {
    let (file, mut appender) = two_batches(None);
    let finish = FinishRecord { root: Some([3; 32]), finished_ns: -4 };
    let record = appender.finish(&finish).record.bytes;
    for taken in 0..record.len() {
        assert_eq!(read(&[&file, &record[..taken]].concat()).unwrap().state(), JournalState::Unfinished);
    }
    assert_eq!(read(&[&file, &record[..]].concat()).unwrap().finish(), Some(&finish));
}

#[test]
fn a_slot_that_claims_an_end_without_one_is_refused() {
    let (mut file, _) = two_batches(None);
    for offset in SLOT_OFFSETS {
        let sector = file[offset as usize..][..SECTOR_BYTES].try_into().unwrap();
        let slot = format::CommitSlot::decode(&sector, offset).unwrap();
        let slot = format::CommitSlot { state: JournalState::Finished, ..slot };
        file[offset as usize..][..SECTOR_BYTES].copy_from_slice(&slot.encode());
    }
    assert!(is_refused(&file));
}

#[test]
fn a_slot_that_ends_inside_a_record_is_refused() {
    let (mut file, _) = two_batches(None);
    let whole = file.len() as u64;
    for committed_bytes in [whole - 1, whole + 1, whole - 36, HEADER_OFFSET, 0, u64::MAX] {
        let slot = format::CommitSlot { sequence: 9, committed_bytes, state: JournalState::Unfinished };
        file[slot.offset() as usize..][..SECTOR_BYTES].copy_from_slice(&slot.encode());
        assert!(is_refused(&file), "{committed_bytes}");
    }
}

#[test]
fn a_torn_record_with_another_behind_it_is_refused() {
    let (file, mut appender) = two_batches(None);
    let mut torn = appender.append(vec![leaves(0, 40, 4096)]).unwrap().remove(0).record.bytes;
    let next = appender.append(vec![leaves(0, 1, 4096)]).unwrap().remove(0).record.bytes;
    torn[40..].fill(0);
    assert_eq!(read(&[&file[..], &torn].concat()).unwrap().end(), file.len() as u64);
    assert!(is_refused(&[&file[..], &torn, &next].concat()));
}

#[test]
fn invalid_fields_under_right_checksums_are_refused() {
    let (file, appender) = two_batches(None);
    let zeros = |start, end| Run { range: ByteRange::new(start, end), content: Content::Zeros };
    let short = Run { range: ByteRange::new(0, 8192), content: Content::Leaves(vec![1]) };
    let payload = |runs: &[Run]| {
        let mut payload = Vec::new();
        runs.iter().for_each(|run| record::encode_run(run, &mut payload));
        payload
    };
    let sound = payload(&[zeros(0, 4096), zeros(8192, 12_288)]);
    let mut unknown = sound[..20].to_vec();
    unknown[16] = 3;
    unknown.extend(crc32c::crc32c(&unknown).to_le_bytes());
    let accepts = |kind, runs, payload: &[u8]| {
        let record = record::encode_record(kind, 2, runs, payload);
        let file = [&file[..], &record].concat();
        assert_eq!(file.len() as u64, appender.end() + record.len() as u64);
        !is_refused(&file)
    };
    assert!(accepts(record::RecordKind::Runs, 2, &sound));
    let refused = [
        (1, sound.clone()),
        (3, sound.clone()),
        (2, payload(&[zeros(8192, 12_288), zeros(0, 4096)])),
        (2, payload(&[zeros(0, 8192), zeros(4096, 12_288)])),
        (1, payload(&[zeros(0, 0)])),
        (1, payload(&[zeros(1, 4096)])),
        (1, payload(&[zeros(0, 4097)])),
        (1, payload(&[zeros(36 * 4096, 41 * 4096)])),
        (1, payload(&[short])),
        (1, unknown),
        (0, vec![]),
    ];
    for (index, (runs, payload)) in refused.into_iter().enumerate() {
        assert!(!accepts(record::RecordKind::Runs, runs, &payload), "payload {index}");
    }
    let end = record::encode_finish(&FinishRecord { root: None, finished_ns: 0 });
    assert!(accepts(record::RecordKind::Finish, 0, &end));
    assert!(!accepts(record::RecordKind::Finish, 1, &end));
    assert!(!accepts(record::RecordKind::Finish, 0, &end[1..]));
    assert!(!accepts(record::RecordKind::Finish, 0, &[2; record::FINISH_BYTES]));
}

/// A file that rots after it was checked.
#[derive(Clone)]
struct DecayingFile(Arc<Mutex<Vec<u8>>>);

impl ReadAt for DecayingFile {
    fn size_bytes(&self) -> std::io::Result<u64> {
        self.0.lock().unwrap().size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.lock().unwrap().read_exact_at(buffer, offset)
    }
}

#[test]
fn a_record_that_rots_after_the_check_is_detected_when_it_is_read_again() {
    let (file, _) = two_batches(None);
    let bytes = DecayingFile(Arc::new(Mutex::new(file.clone())));
    let reader = JournalReader::from_store(Box::new(bytes.clone()), "rotting".into(), None).unwrap();
    let whole = ByteRange::new(0, reader.header().size_bytes);
    let digest = samples::leaf(12).to_le_bytes();
    let at = file.windows(16).position(|window| window == digest).unwrap();
    bytes.0.lock().unwrap()[at] ^= 1;
    let runs: Vec<_> = reader.runs(whole).collect();
    assert_eq!(runs[0], Ok(leaves(0, 10, 4096)));
    assert_eq!(runs[1].as_ref().unwrap_err().code, Code::CheckpointCorrupt);
    assert_eq!(runs.len(), 2, "nothing comes after an error");
    assert!(reader.root().is_err());
    bytes.0.lock().unwrap().truncate(at);
    assert_eq!(reader.runs(whole).last().unwrap().unwrap_err().code, Code::CheckpointCorrupt);
}

#[test]
fn another_version_is_a_mismatch_and_another_file_is_corrupt() {
    let (mut file, _) = two_batches(None);
    file[8..12].copy_from_slice(&1_u32.to_le_bytes());
    assert!(is_refused(&file), "the checksum is looked at first");
    let sector = format::seal(file[..SECTOR_BYTES].try_into().unwrap());
    file[..SECTOR_BYTES].copy_from_slice(&sector);
    let error = read(&file).unwrap_err();
    assert_eq!(error.code, Code::CheckpointMismatch);
    assert!(error.message.contains("version 1"), "{error}");
    assert!(is_refused(&[7; 5000]) && is_refused(&[0; 5000]) && is_refused(&[0; 100]));
    assert_eq!(read(&[]).unwrap_err().code, Code::CheckpointCorrupt);
}

#[test]
fn names_of_every_length_fit() {
    for length in [0, 1, 4096] {
        let mut header = header(1, 4096);
        header.source.name = "n".repeat(length).into();
        let (appender, start) = Appender::create(&header).unwrap();
        assert_eq!(appender.end(), start.bytes.len() as u64);
        assert!(start.bytes.len() as u64 <= HEADER_OFFSET + format::HEADER_BYTES_MAX as u64);
        assert_eq!(read(&start.bytes).unwrap().header(), &header);
    }
    let mut header = header(1, 4096);
    header.source.name = "n".repeat(4097).into();
    assert_eq!(Appender::create(&header).unwrap_err().code, Code::BadRequest);
}

#[test]
fn the_later_record_wins() {
    let (file, mut appender) = two_batches(None);
    let again = Run { range: ByteRange::new(5 * 4096, 25 * 4096), content: Content::Leaves(vec![1; 20]) };
    let record = appender.append(vec![again]).unwrap().remove(0).record;
    let reader = read(&[&file[..], &record.bytes].concat()).unwrap();
    let model = contents(&reader);
    let expect = |index: u64| match index {
        0..5 => Content::Leaves(vec![leaf(index)]),
        5..25 => Content::Leaves(vec![1]),
        _ => Content::Zeros,
    };
    assert!((0..40).all(|index| model[index as usize] == Some(expect(index))));
    assert_eq!((reader.records(), reader.recorded_runs()), (3, 4));
}

#[test]
fn a_journal_without_digests_samples_no_leaf() {
    let mut bare = header(40 * 4096, 4096);
    bare.digest = crate::spec::DigestKind::None;
    let (mut appender, start) = Appender::create(&bare).unwrap();
    assert!(appender.append(vec![leaves(0, 1, 4096)]).is_err());
    let (_, mut digesting) = (0, Appender::create(&header(40 * 4096, 4096)).unwrap().0);
    let record = digesting.append(vec![leaves(0, 1, 4096)]).unwrap().remove(0).record;
    assert!(is_refused(&[&start.bytes[..], &record.bytes].concat()));
}

mod root {
    use super::*;

    fn root(size_bytes: u64, runs: &[Run]) -> Option<[u8; 32]> {
        let mut hasher = RootHasher::new(&header(size_bytes, 4096));
        runs.iter().for_each(|run| hasher.push(run));
        hasher.finish()
    }

    fn zeros(start: u64, end: u64) -> Run {
        Run { range: ByteRange::new(start, end), content: Content::Zeros }
    }

    proptest! {
        #[test]
        fn the_root_does_not_depend_on_the_cut_into_runs(
            kinds in prop::collection::vec(any::<bool>(), 1..40),
            cuts in prop::collection::vec(any::<bool>(), 40),
            tail in 1_u64..=4096,
        ) {
            let size = (kinds.len() as u64 - 1) * 4096 + tail;
            let single: Vec<Run> = kinds.iter().enumerate().map(|(index, &is_data)| {
                let start = index as u64 * 4096;
                let content = if is_data { Content::Leaves(vec![leaf(index as u64)]) } else { Content::Zeros };
                Run { range: ByteRange::new(start, (start + 4096).min(size)), content }
            }).collect();
            let mut joined: Vec<Run> = Vec::new();
            for (run, &is_cut) in single.iter().zip(&cuts) {
                match (joined.last_mut(), &run.content) {
                    (Some(Run { range, content: Content::Zeros }), Content::Zeros) if !is_cut => {
                        *range = ByteRange::new(range.start(), run.range.end());
                    }
                    (Some(Run { range, content: Content::Leaves(all) }), Content::Leaves(leaf)) if !is_cut => {
                        *range = ByteRange::new(range.start(), run.range.end());
                        all.extend(leaf);
                    }
                    _ => joined.push(run.clone()),
                }
            }
            prop_assert_eq!(root(size, &single), root(size, &joined));
            prop_assert!(root(size, &single).is_some());
            let mut other = single.clone();
            let last = other.last_mut().unwrap();
            last.content = if last.content == Content::Zeros { Content::Leaves(vec![0]) } else { Content::Zeros };
            prop_assert_ne!(root(size, &single), root(size, &other));
        }
    }

    #[test]
    fn the_root_is_that_of_the_documented_sequence() {
        let mut sequence = b"blockhaul root 1".to_vec();
        sequence.extend((4 * 4096_u64 + 1).to_le_bytes());
        sequence.extend(4096_u32.to_le_bytes());
        sequence.extend(
            [&[0][..], &2_u64.to_le_bytes(), &[1], &leaf(2).to_le_bytes(), &[0], &2_u64.to_le_bytes()].concat(),
        );
        let runs = [zeros(0, 4096), zeros(4096, 8192), leaves(2, 1, 4096), zeros(3 * 4096, 4 * 4096 + 1)];
        assert_eq!(root(4 * 4096 + 1, &runs), Some(*blake3::hash(&sequence).as_bytes()));
        assert!(root(0, &[]).is_some());
    }

    #[test]
    fn there_is_no_root_if_a_byte_is_missing_or_not_digested() {
        let undigested = Run { range: ByteRange::new(0, 8192), content: Content::Undigested };
        assert_eq!(root(8192, &[undigested]), None);
        assert_eq!(root(8192, &[zeros(0, 4096)]), None);
        assert_eq!(root(8192, &[zeros(4096, 8192)]), None);
        assert_eq!(root(8192, &[zeros(4096, 8192), zeros(0, 4096), zeros(4096, 8192)]), None);
        assert_eq!(root(8192, &[Run { content: Content::Leaves(vec![1]), ..zeros(0, 8192) }]), None);
        assert!(root(8192, &[zeros(0, 8192)]).is_some());
    }

    #[test]
    fn a_reader_computes_the_root() {
        let (file, _) = two_batches(None);
        let all = [leaves(0, 20, 4096), zeros(20 * 4096, 40 * 4096)];
        assert_eq!(read(&file).unwrap().root().unwrap(), root(40 * 4096, &all));
    }
}
