//! Decodes damaged journals, as the fuzz targets do it, on a fixed set of seeds.

use blockhaul_engine::error::Code;
use blockhaul_engine::journal::{JournalReader, JournalState, fuzz};

#[test]
fn mutated_journals_are_refused_or_have_fewer_ranges() {
    (0..3_000).for_each(fuzz::fuzz_mutation);
}

#[test]
fn sound_journals_survive_the_fuzzer() {
    (0..300).map(fuzz::sample_journal).for_each(|journal| fuzz::fuzz_journal(&journal));
}

#[test]
fn a_journal_is_described_by_its_reader() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("journal");
    for seed in 0..50 {
        std::fs::write(&path, fuzz::sample_journal(seed)).unwrap();
        let reader = JournalReader::open(&path).unwrap();
        assert_eq!(reader.end(), std::fs::metadata(&path).unwrap().len());
        assert_eq!(reader.state() == JournalState::Finished, reader.finish().is_some());
        assert!(reader.durable().bytes() <= reader.header().size_bytes);
        assert!(reader.records() > 0 || reader.recorded_runs() == 0);
    }
    std::fs::remove_file(&path).unwrap();
    let error = JournalReader::open(&path).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    std::fs::write(&path, "something else that is long enough").unwrap();
    let error = JournalReader::open(&path).unwrap_err();
    assert_eq!(error.code, Code::CheckpointCorrupt);
    assert!(error.message.contains(path.to_str().unwrap()) && error.message.contains("--restart"), "{error}");
}
