//! Builds the content of volumes, and reads the numbers of a report.

use crate::scratch::{MIB, Outcome, noise};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Returns data, and zeros that become holes or not, in unaligned pieces; the same for one seed.
pub fn mixed(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = noise(length, seed);
    let mut random = SeededRandom::new(seed);
    let mut at = 0;
    while at < length {
        let piece = usize::try_from(random.below(MIB as u64)).expect("below a MiB") + 1;
        let end = (at + piece).min(length);
        if random.below(3) == 0 {
            bytes[at..end].fill(0);
        }
        at = end;
    }
    bytes
}

/// Writes `bytes` so that every other aligned run of zeros is a hole.
pub fn write_sparse(path: &Path, bytes: &[u8]) {
    const UNIT: usize = 64 << 10;
    let file = File::create(path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
    file.set_len(bytes.len() as u64).expect("it is a file");
    for (index, piece) in bytes.chunks(UNIT).enumerate() {
        if index % 2 == 0 || piece.iter().any(|&byte| byte != 0) {
            file.write_all_at(piece, (index * UNIT) as u64).expect("there is room for the source");
        }
    }
    file.sync_all().expect("the source can be flushed");
}

/// Compares without printing megabytes.
pub fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: the sizes differ");
    if found != wanted {
        let at = found.iter().zip(wanted).position(|(found, wanted)| found != wanted).expect("they differ");
        panic!("{what}: byte {at} of {} is {:#04x}, not {:#04x}", wanted.len(), found[at], wanted[at]);
    }
}

impl Outcome {
    /// Returns a field of the report's `bytes`.
    pub fn bytes(&self, field: &str) -> u64 {
        let value = &self.report()["bytes"][field];
        value.as_u64().unwrap_or_else(|| panic!("bytes.{field} is {value}"))
    }
}

/// Random numbers from a seed.
#[derive(Clone, Debug)]
pub struct SeededRandom(u64);

impl SeededRandom {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number from 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// Returns the number of iterations: the environment variable `variable`, else `default`.
pub fn iterations(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => default,
    }
}
