//! Makes up journals from a seed, for tests and fuzz targets.
#![cfg_attr(not(test), allow(dead_code, reason = "fuzz targets need only half of it"))]

use super::append::{Appender, Commit, FileWrite};
use super::{Content, FinishRecord, Header, LeafDigest, Run};
use crate::extent::ByteRange;
use crate::seeded_numbers::SeededNumbers;
use crate::spec::DigestKind;
use crate::volume::{Identity, VolumeIds, VolumeKind};

/// A copy from a file without birth time to a device.
pub(crate) fn header(size_bytes: u64, leaf_bytes: u32) -> Header {
    let source = Identity {
        name: "/volumes/source.img".into(),
        kind: VolumeKind::File,
        device: 0xfd01,
        inode: 131_073,
        born_ns: None,
        size_bytes,
        modified_ns: -1,
        changed_ns: 1_700_000_000_000_000_001,
        ids: VolumeIds::of([("uuid", "0123456789abcdef".to_owned())]),
    };
    let destination = Identity {
        name: "/dev/größe".into(),
        kind: VolumeKind::Device,
        born_ns: Some(1_600_000_000_000_000_002),
        modified_ns: 0,
        changed_ns: 0,
        ids: VolumeIds { boot_id: 0x0102_0304, disk_sequence: 0x0506, ..VolumeIds::of([("wwid", "naa.5".to_owned())]) },
        ..source.clone()
    };
    let started_ns = 1_800_000_000_000_000_003;
    Header { source, destination, size_bytes, leaf_bytes, digest: DigestKind::Xxh3, started_ns }
}

/// The digest that samples give leaf `index`.
pub(crate) fn leaf(index: u64) -> LeafDigest {
    LeafDigest::from(index + 1) << 64 | LeafDigest::from(!index)
}

/// A run of `count` whole leaves of data, from leaf `first` on.
pub(crate) fn leaves(first: u64, count: u64, leaf_bytes: u64) -> Run {
    let range = ByteRange::at(first * leaf_bytes, count * leaf_bytes);
    Run { range, content: Content::Leaves((first..first + count).map(leaf).collect()) }
}

/// A journal as the list of what was written to it.
#[derive(Clone, Debug)]
pub(crate) struct SampleJournal {
    pub header: Header,
    /// The runs of each commit; the finish has none.
    pub batches: Vec<Vec<Run>>,
    pub start: FileWrite,
    pub commits: Vec<Commit>,
    pub finish: Option<FinishRecord>,
}

impl SampleJournal {
    /// Up to six batches over up to 64 leaves, some recorded twice, some finished.
    pub(crate) fn new(seed: u64) -> Self {
        let mut numbers = SeededNumbers(seed);
        let header = header(numbers.below(64 * 4096) + 1, 4096);
        let (mut appender, start) = Appender::create(&header).expect("samples are in range");
        let (mut batches, mut commits) = (Vec::new(), Vec::new());
        for _ in 0..numbers.below(7) {
            let batch = batch(&mut numbers, &header);
            commits.extend(appender.append(batch.clone()).expect("samples are in order"));
            batches.push(batch);
        }
        let finish = (numbers.below(2) == 1).then(|| FinishRecord {
            root: (numbers.below(2) == 1).then_some([7; 32]),
            finished_ns: numbers.next().cast_signed(),
        });
        if let Some(finish) = &finish {
            commits.push(appender.finish(finish));
            batches.push(Vec::new());
        }
        Self { header, batches, start, commits, finish }
    }

    /// The file once everything was written.
    pub(crate) fn file(&self) -> Vec<u8> {
        let mut file = Vec::new();
        apply(&mut file, &self.start);
        for commit in &self.commits {
            apply(&mut file, &commit.record);
            apply(&mut file, &commit.slot);
        }
        file
    }

    /// Leaf by leaf, what the first `commits` say.
    pub(crate) fn model(&self, commits: usize) -> Vec<Option<Content>> {
        let leaf_bytes = u64::from(self.header.leaf_bytes);
        let mut model = vec![None; self.header.size_bytes.div_ceil(leaf_bytes) as usize];
        for run in self.batches[..commits].iter().flatten() {
            for piece in run.range.split(leaf_bytes) {
                model[(piece.start() / leaf_bytes) as usize] = Some(run.cut(piece, leaf_bytes).content);
            }
        }
        model
    }
}

/// At least one run, ascending, with gaps.
fn batch(numbers: &mut SeededNumbers, header: &Header) -> Vec<Run> {
    let leaf_bytes = u64::from(header.leaf_bytes);
    let end = header.size_bytes.div_ceil(leaf_bytes);
    let (mut at, mut batch) = (numbers.below(end), Vec::new());
    while at < end {
        let count = numbers.below((end - at).min(9)) + 1;
        let stop = ((at + count) * leaf_bytes).min(header.size_bytes);
        let content = match numbers.below(4) {
            0 => Content::Zeros,
            1 => Content::Undigested,
            // A leaf recorded again has another digest, so that a test can tell.
            _ => Content::Leaves((0..count).map(|_| LeafDigest::from(numbers.next())).collect()),
        };
        batch.push(Run { range: ByteRange::new(at * leaf_bytes, stop), content });
        at += count + numbers.below(8);
    }
    batch
}

/// Puts bytes into a file in memory.
pub(crate) fn apply(file: &mut Vec<u8>, write: &FileWrite) {
    let start = write.offset as usize;
    let end = start + write.bytes.len();
    file.resize(file.len().max(end), 0);
    file[start..end].copy_from_slice(&write.bytes);
}
