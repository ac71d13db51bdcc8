//! Keeps the beginning and the end of what a hook writes, in bounded memory.

use crate::limits::{OUTPUT_FIRST_BYTES, OUTPUT_LAST_BYTES, OUTPUT_TAIL_BYTES};
use blockhaul_engine::shown::Escaped;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a hook has written to standard output and standard error, in the order in which it was written: its first 6,000
/// bytes and its last 6,000 bytes. The bytes are foreign: escape them before they are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookOutput {
    first: Vec<u8>,
    last: VecDeque<u8>,
    dropped_bytes: u64,
}

impl HookOutput {
    /// Adds what was read.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let room = OUTPUT_FIRST_BYTES - self.first.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.first.extend_from_slice(first);
        let kept = &rest[rest.len().saturating_sub(OUTPUT_LAST_BYTES)..];
        let overflow = (self.last.len() + kept.len()).saturating_sub(OUTPUT_LAST_BYTES);
        self.last.drain(..overflow);
        self.last.extend(kept);
        self.dropped_bytes += (rest.len() - kept.len() + overflow) as u64;
    }

    /// Returns the first bytes of the output: all of it, if there are no others.
    #[must_use]
    pub fn first(&self) -> &[u8] {
        &self.first
    }

    /// Returns the last bytes that are not among the first ones.
    #[must_use]
    pub fn last(&self) -> Vec<u8> {
        self.last.iter().copied().collect()
    }

    /// Returns the number of bytes between the first and the last ones, which were not kept.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Returns the last 400 bytes of the output.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        let from_first = OUTPUT_TAIL_BYTES.saturating_sub(self.last.len()).min(self.first.len());
        let from_last = self.last.len().saturating_sub(OUTPUT_TAIL_BYTES);
        let first = &self.first[self.first.len() - from_first..];
        first.iter().chain(self.last.range(from_last..)).copied().collect()
    }

    /// Returns the last 400 bytes of the output for a message: escaped, and without the newline at the end.
    #[must_use]
    pub fn shown_tail(&self) -> String {
        Escaped::from(self.tail().trim_ascii_end()).to_string()
    }
}

/// First bytes of the output of a hook that runs, for readers on other threads.
#[derive(Debug, Default)]
pub(crate) struct FirstOutput(Mutex<Vec<u8>>);

impl FirstOutput {
    /// Takes what is new in the output.
    pub(crate) fn update(&self, output: &HookOutput) {
        let mut first = self.first();
        let known = first.len();
        first.extend_from_slice(&output.first[known..]);
    }

    /// Returns what was written from this position on.
    pub(crate) fn from(&self, from: usize) -> Vec<u8> {
        self.first().get(from..).unwrap_or_default().to_vec()
    }

    fn first(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn output(pieces: &[Vec<u8>]) -> HookOutput {
        let mut output = HookOutput::default();
        pieces.iter().for_each(|piece| output.add(piece));
        output
    }

    #[test]
    fn little_output_is_kept_whole() {
        let output = output(&[b"one\n".to_vec(), b"\x1b[2Jtwo\n".to_vec()]);
        assert_eq!((output.first(), output.last().len(), output.dropped_bytes()), (&b"one\n\x1b[2Jtwo\n"[..], 0, 0));
        assert_eq!(output.shown_tail(), r"one\n\x1b[2Jtwo");
        assert_eq!(HookOutput::default().shown_tail(), "");
    }

    #[test]
    fn what_was_written_first_is_there_while_more_is_written() {
        let (first, mut output) = (FirstOutput::default(), HookOutput::default());
        output.add(b"one");
        first.update(&output);
        assert_eq!((first.from(0), first.from(2), first.from(9)), (b"one".to_vec(), b"e".to_vec(), Vec::new()));
        output.add(&[b'x'; 2 * OUTPUT_FIRST_BYTES]);
        first.update(&output);
        first.update(&output);
        assert_eq!((first.from(0).len(), &first.from(0)[..4]), (OUTPUT_FIRST_BYTES, &b"onex"[..]));
    }

    proptest! {
        /// The whole output, cut in any way, is the model.
        #[test]
        fn first_dropped_and_last_make_up_the_whole(sizes in proptest::collection::vec(0usize..9000, 0..8)) {
            let mut byte = 0u8;
            let mut piece = |size: usize| -> Vec<u8> {
                (0..size).map(|_| { byte = byte.wrapping_mul(31).wrapping_add(7); byte }).collect()
            };
            let pieces: Vec<Vec<u8>> = sizes.iter().map(|size| piece(*size)).collect();
            let whole = pieces.concat();
            let output = output(&pieces);
            let first = whole.len().min(OUTPUT_FIRST_BYTES);
            let last = (whole.len() - first).min(OUTPUT_LAST_BYTES);
            prop_assert_eq!(output.first(), &whole[..first]);
            prop_assert_eq!(output.last(), &whole[whole.len() - last..]);
            prop_assert_eq!(output.dropped_bytes(), (whole.len() - first - last) as u64);
            prop_assert_eq!(output.tail(), &whole[whole.len() - whole.len().min(OUTPUT_TAIL_BYTES)..]);
        }
    }
}
