//! Examines a block between its read and its write: which parts are zeros, and the digest of the leaf.
//!
//! A block is examined in _granules_ (1/64 of it, at least 4 KiB), so that the answer is one 64-bit mask. Runs of zero
//! granules shorter than 64 KiB are treated as data: skipping them would cost more than writing them.

use crate::journal::LeafDigest;
use crate::limits::BLOCK_BYTES_MIN;
use twox_hash::XxHash3_128;

/// Zero runs shorter than this are written as data.
const ZERO_RUN_BYTES_MIN: u32 = 64 << 10;
/// One fold of the zero test: four cache lines, enough for the compiler to keep wide registers busy.
const FOLD_BYTES: usize = 256;

/// Bytes of a part of a block: `start..start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSpan {
    pub start: u32,
    pub len: u32,
}

impl BlockSpan {
    pub(crate) fn end(self) -> u32 {
        self.start + self.len
    }
}

/// Mask of the granules of a block that hold data; bit 0 is the first granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataMap {
    mask: u64,
    granule: u32,
    /// Bytes of the block that count; the last granule may be shorter.
    len: u32,
}

impl DataMap {
    /// Everything is data.
    pub(crate) fn all(len: u32, block_bytes: u32) -> Self {
        let granule = granule_bytes(block_bytes);
        Self { mask: low_bits(len.div_ceil(granule)), granule, len }
    }

    /// Examines `bytes`, the content of a block of `block_bytes`.
    pub(crate) fn examine(bytes: &[u8], block_bytes: u32) -> Self {
        let granule = granule_bytes(block_bytes);
        let mask = bytes
            .chunks(granule as usize)
            .enumerate()
            .fold(0, |mask, (index, chunk)| mask | (u64::from(!is_zero(chunk)) << index));
        let len = u32::try_from(bytes.len()).expect("a block is at most 64 MiB");
        Self { mask, granule, len }.without_short_zero_runs()
    }

    /// Returns whether the block holds zeros only.
    pub(crate) fn is_zero(self) -> bool {
        self.mask == 0
    }

    /// The next run of data at or after byte `from`, which is a multiple of the granule or the end.
    pub(crate) fn next_data(self, from: u32) -> Option<BlockSpan> {
        let skipped = from.div_ceil(self.granule);
        let rest = self.mask.checked_shr(skipped).unwrap_or(0);
        if rest == 0 {
            return None;
        }
        let first = skipped + rest.trailing_zeros();
        let count = (self.mask >> first).trailing_ones();
        let start = first * self.granule;
        Some(BlockSpan { start, len: (count * self.granule).min(self.len - start) })
    }

    /// The runs of zeros, in order.
    pub(crate) fn zero_runs(self) -> impl Iterator<Item = BlockSpan> {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.len {
                let data = self.next_data(at).unwrap_or(BlockSpan { start: self.len, len: 0 });
                let zeros = BlockSpan { start: at, len: data.start - at };
                at = data.end();
                if zeros.len > 0 {
                    return Some(zeros);
                }
            }
            None
        })
    }

    fn without_short_zero_runs(mut self) -> Self {
        let short: u64 =
            self.zero_runs().filter(|run| run.len < ZERO_RUN_BYTES_MIN && run.len < self.len).fold(0, |mask, run| {
                let first = run.start / self.granule;
                mask | (low_bits(run.len.div_ceil(self.granule)) << first)
            });
        // A block of nothing but short zero runs cannot be: a zero block has one run, as long as itself.
        self.mask |= short;
        self
    }
}

/// The digest of a leaf: XXH3-128 over all of its bytes.
pub(crate) fn leaf_digest(bytes: &[u8]) -> LeafDigest {
    XxHash3_128::oneshot(bytes)
}

/// Returns whether every byte is zero. Leaves at the first 256 bytes that hold anything.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (folds, rest) = bytes.as_chunks::<FOLD_BYTES>();
    folds.iter().all(|fold| fold.as_chunks::<16>().0.iter().fold(0, |any, word| any | u128::from_ne_bytes(*word)) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

fn granule_bytes(block_bytes: u32) -> u32 {
    (block_bytes / u64::BITS).max(BLOCK_BYTES_MIN)
}

/// A mask of the lowest `count` bits, at most 64.
fn low_bits(count: u32) -> u64 {
    assert!(count <= u64::BITS, "a block has at most 64 granules");
    u64::MAX.checked_shr(u64::BITS - count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u32 = 1 << 20;

    #[test]
    fn a_block_of_zeros_is_zero_whatever_its_length() {
        for len in [1, 255, 256, 4095, 4097, 70_000, BLOCK as usize] {
            let mut bytes = vec![0; len];
            assert!(DataMap::examine(&bytes, BLOCK).is_zero(), "{len}");
            bytes[len - 1] = 1;
            assert!(!DataMap::examine(&bytes, BLOCK).is_zero(), "{len}");
        }
    }

    #[test]
    fn short_zero_runs_are_data_and_long_ones_are_not() {
        let mut bytes = vec![1; BLOCK as usize];
        bytes[32 << 10..64 << 10].fill(0);
        bytes[256 << 10..384 << 10].fill(0);
        let map = DataMap::examine(&bytes, BLOCK);
        assert_eq!(map.zero_runs().collect::<Vec<_>>(), [BlockSpan { start: 256 << 10, len: 128 << 10 }]);
        assert_eq!(map.next_data(0), Some(BlockSpan { start: 0, len: 256 << 10 }));
        assert_eq!(map.next_data(256 << 10), Some(BlockSpan { start: 384 << 10, len: BLOCK - (384 << 10) }));
        assert_eq!(map.next_data(BLOCK), None);
    }

    proptest! {
        #[test]
        fn data_and_zero_runs_partition_the_block(
            len in 1_u32..300_000,
            ones in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            block in prop::sample::select(vec![512_u32 << 10, 1 << 20, 4 << 20]),
        ) {
            let mut bytes = vec![0_u8; len as usize];
            for one in ones {
                *one.get_mut(&mut bytes) = 7;
            }
            let map = DataMap::examine(&bytes, block);
            for zeros in map.zero_runs() {
                prop_assert!(is_zero(&bytes[zeros.start as usize..zeros.end() as usize]));
            }
            let mut at = 0;
            let mut data = 0;
            while let Some(span) = map.next_data(at) {
                data += span.len;
                at = span.end();
            }
            prop_assert_eq!(data + map.zero_runs().map(|run| run.len).sum::<u32>(), len);
        }
    }
}
