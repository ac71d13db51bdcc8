//! Goal: a volume with data never counts as empty, and the check reads little. Method: volumes made up of a few bytes,
//! with and without a map.

use super::*;
use std::cell::Cell;
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;

/// Zeros but for a few bytes.
struct MadeUp {
    size: u64,
    unit: u64,
    bytes: BTreeMap<u64, u8>,
    ones: ByteRange,
    /// Data, in order; `None` for a volume without a map.
    data: Option<Vec<ByteRange>>,
    read: Cell<u64>,
    asked: Cell<usize>,
}

impl MadeUp {
    fn new(size: u64) -> Self {
        let (bytes, ones) = (BTreeMap::new(), ByteRange::new(0, 0));
        Self { size, unit: 4096, bytes, ones, data: None, read: Cell::new(0), asked: Cell::new(0) }
    }

    fn with(mut self, at: u64, bytes: &[u8]) -> Self {
        self.bytes.extend((at..).zip(bytes.iter().copied()));
        self
    }

    fn mapped(mut self, data: &[(u64, u64)]) -> Self {
        self.data = Some(data.iter().map(|&(at, len)| ByteRange::at(at, len)).collect());
        self
    }

    fn found(&self) -> Option<Occupied> {
        let found = occupied(self).unwrap();
        let bound = 12 * MIB + (SAMPLES_EVEN + SAMPLES_UNEVEN) * self.unit;
        assert!(self.read.get() <= bound && self.asked.get() <= MAP_PARTS_MAX, "bounded");
        found
    }

    fn words(&self) -> String {
        self.found().map_or("nothing".to_owned(), |found| found.to_string())
    }
}

impl ProbeTarget for MadeUp {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn unit_bytes(&self) -> u64 {
        self.unit
    }

    fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        assert!(range.start().is_multiple_of(self.unit) && range.end() <= self.size);
        assert!(range.end().is_multiple_of(self.unit) || range.end() == self.size);
        self.read.set(self.read.get() + range.len());
        let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
        let at = |byte: u64| usize::try_from(byte - range.start()).unwrap();
        if let Some(ones) = self.ones.intersect(range) {
            bytes[at(ones.start())..at(ones.end())].fill(1);
        }
        for (&byte, &value) in self.bytes.range(range.start()..range.end()) {
            bytes[at(byte)] = value;
        }
        Ok(bytes)
    }

    fn map(&self, within: ByteRange) -> Result<Option<Vec<Extent>>> {
        let Some(data) = &self.data else { return Ok(None) };
        self.asked.set(self.asked.get() + 1);
        let at = within.start();
        let next = data.iter().find(|range| range.end() > at).copied();
        let (end, kind) = match next {
            Some(range) if range.start() <= at => (range.end(), ExtentKind::Data),
            Some(range) => (range.start(), ExtentKind::Hole),
            None => (self.size, ExtentKind::Hole),
        };
        Ok(Some(vec![Extent { range: ByteRange::new(at, end.min(self.size)), kind }]))
    }
}

#[test]
fn zeros_of_any_size_count_as_empty() {
    for size in [0, 1, 512, 4096, 5000, MIB, 4 * MIB, 4 * MIB + 1, 256 * MIB, 8 << 40, u64::MAX >> 2] {
        assert_eq!(MadeUp::new(size).found(), None, "{size} bytes without a map");
        assert_eq!(MadeUp::new(size).mapped(&[]).found(), None, "{size} bytes of holes");
        assert_eq!(MadeUp::new(size).mapped(&[(0, size)]).found(), None, "{size} bytes, all allocated");
        assert_eq!(MadeUp { unit: 65536, ..MadeUp::new(size) }.found(), None, "{size} bytes, large blocks");
    }
}

#[test]
fn a_stretch_of_data_is_found_at_any_offset() {
    let size = 256 * MIB;
    for at in (0..255).map(|part| part * MIB + 4711) {
        let stretch = MadeUp { ones: ByteRange::at(at, MIB), ..MadeUp::new(size) };
        assert!(stretch.found().is_some(), "1 MiB at {at}");
    }
    assert_eq!(MadeUp::new(size).with(50 * MIB, &[1; 512]).words(), "data at byte 52428800 (50.0 MiB)");
    assert_eq!(MadeUp::new(size).with(size - 1, &[1]).words(), "data at byte 268435455 (256.0 MiB)");
    assert_eq!(MadeUp::new(5000).with(4999, &[1]).words(), "data at byte 4999");
}

#[test]
fn a_map_gives_the_exact_answer() {
    let size = 8 << 40;
    let byte = MadeUp::new(size).with((3 << 40) + 5, &[1]);
    assert_eq!(byte.mapped(&[(3 << 40, 65536)]).words(), "data at byte 3298534883333 (3.0 TiB)");
    assert_eq!(MadeUp::new(size).mapped(&[(3 << 40, 65536)]).found(), None, "allocated, and zeros all the same");
    let much = MadeUp::new(size).mapped(&[(0, 4096), (3 << 40, 64 * MIB)]);
    assert_eq!(much.words(), "allocated space at byte 0");
    let crowded: Vec<_> = (0..10_000).map(|index| (index * (64 << 10), 512)).collect();
    assert_eq!(MadeUp::new(size).mapped(&crowded).found(), None, "zeros in many places");
    let one = MadeUp::new(size).with((100 * (64 << 10)) + 9, &[1]).mapped(&crowded);
    assert_eq!(one.words(), "data at byte 6553609 (6.3 MiB)", "as far as the map was read");
}

#[test]
fn signatures_are_named() {
    for signature in SIGNATURES {
        for size in [300 * MIB, (300 << 30) + 1536] {
            let Some(at) = signature.at.byte(size) else { continue };
            let found = MadeUp::new(size).with(at, signature.magic).found().expect("a signature");
            assert_eq!((found.what, found.at), (signature.what, at));
        }
    }
    for label in ZFS_LABELS {
        let at = label.byte(256 * MIB).unwrap();
        let pool = MadeUp::new(256 * MIB).with(at + (130 << 10), &0x00ba_b10c_u64.to_le_bytes());
        assert_eq!(pool.found().unwrap().what, "a member of a ZFS pool");
    }
    let boot_code = MadeUp::new(64 * MIB).with(0, &[0xeb, 0x3c]).with(1080, b"\x53\xef");
    assert_eq!(boot_code.words(), "an ext2, ext3 or ext4 file system at byte 1080");
}
