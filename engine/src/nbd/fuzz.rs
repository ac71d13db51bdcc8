//! Offers the entry points of the fuzz targets; not for users. Panics where a decoder breaks a promise.

use super::negotiate::{NegotiationError, WantedExport, go, greet, list};
use super::replies::ExpectedReply;
use super::replies::samples::SampleStream;
use super::replies::test_receiver::TestReceiver;
use super::{MetaContexts, ReplyStyle};
use crate::seeded_numbers::SeededNumbers;
use std::io::{self, Read, Write};

/// Reads any bytes as answers to some requests; or, if the first byte is odd, as edits of sound answers, which is how
/// fuzzing gets past magic numbers and cookies.
pub fn fuzz_replies(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    if first % 2 == 1 { edit_answers(rest) } else { read_answers(first / 2, rest) }
}

fn read_answers(kind: u8, stream: &[u8]) {
    let style = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended][usize::from(kind % 3)];
    let contexts = MetaContexts { allocation: (kind & 32 != 0).then_some(1), dirty: (kind & 64 != 0).then_some(2) };
    let mut owner = TestReceiver::new(style, contexts, 3);
    owner.ask(0, ExpectedReply::Nothing);
    owner.ask(1, ExpectedReply::Read { offset: 0, len: 600 });
    if contexts != MetaContexts::default() {
        owner.ask(2, ExpectedReply::Status { offset: 0, len: 1 << 20 });
    }
    let _ = owner.receive_all(stream, &mut SeededNumbers(u64::from(kind)));
}

/// A seed of up to eight bytes, and edits of three: a place, and bits to flip there.
fn edit_answers(data: &[u8]) {
    let (seed, edits) = data.split_at(data.len().min(8));
    let seed = seed.iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    play_spoiled(seed, |stream| {
        for edit in edits.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
            if let Some(byte) = stream.get_mut(at) {
                *byte ^= edit[2];
            }
        }
    });
}

/// Spoils sound answers as the seed says: flipped bits, other numbers in heads, cuts, copied and lost bytes.
pub fn fuzz_reply_mutation(seed: u64) {
    let mut numbers = SeededNumbers(!seed);
    play_spoiled(seed, |stream| {
        for _ in 0..=numbers.below(3) {
            mutate(stream, &mut numbers);
        }
    });
}

/// Any bytes as a server: as they are, and once more as the contents of well-formed replies to whatever is asked.
pub fn fuzz_negotiate(data: &[u8]) {
    let raw = || Scripted { data: data.to_vec(), ..Scripted::default() };
    let framed = || Scripted { is_framed: true, pending: greeting(), ..raw() };
    for peer in [raw(), framed()] {
        converse(peer.clone(), true);
        converse(peer, false);
    }
}

/// A server that answers sensibly, spoiled as the seed says.
pub fn fuzz_negotiate_mutation(seed: u64) {
    let mut numbers = SeededNumbers(seed);
    let mut data: Vec<u8> = (0..40).flat_map(|_| sensible(&mut numbers)).collect();
    for _ in 0..numbers.below(4) {
        mutate(&mut data, &mut numbers);
    }
    fuzz_negotiate(&data);
}

/// Plays a sample with its requests made and its stream spoiled, cut in two ways that must not differ in what they
/// say. The owner judges what the parser says.
fn play_spoiled(seed: u64, spoil: impl FnOnce(&mut Vec<u8>)) {
    let mut sample = SampleStream::new(seed);
    let mut ask = || {
        let mut owner = TestReceiver::new(sample.style, sample.contexts, sample.asked.len());
        for asked in 0..sample.asked.len() {
            let cookie = owner.ask(asked, sample.asked[asked].expected);
            sample.name(asked, cookie);
        }
        owner
    };
    let (mut owner, mut other) = (ask(), ask());
    spoil(&mut sample.stream);
    let said = owner.receive_all(&sample.stream, &mut SeededNumbers(seed ^ 0xc0ffee));
    assert_eq!(other.receive_all(&sample.stream, &mut SeededNumbers(!seed)), said);
    assert_eq!(other.ended, owner.ended);
}

fn mutate(bytes: &mut Vec<u8>, numbers: &mut SeededNumbers) {
    let length = bytes.len() as u64;
    // Heads of small messages stand at the front more often than not.
    let reach = if numbers.below(2) == 0 { length.min(64) } else { length };
    let at = numbers.below(reach) as usize;
    let end = (at + numbers.below(70) as usize).min(bytes.len());
    match numbers.below(7) {
        _ if bytes.is_empty() => bytes.push(1),
        0..=2 => bytes[at] ^= 1 << numbers.below(8),
        3 => bytes.truncate(at),
        4 => bytes[at] = [0, 1, 2, 0x80, 0xff][numbers.below(5) as usize],
        5 => {
            let copied = bytes[at..end].to_vec();
            let to = numbers.below(length) as usize;
            bytes.splice(to..to, copied);
        }
        _ => drop(bytes.drain(at..end)),
    }
}

fn converse(mut peer: Scripted, opens: bool) {
    let outcome = greet(&mut peer).and_then(|_| if opens { open(&mut peer) } else { listing(&mut peer) });
    if let Err(NegotiationError::Refused { message, .. } | NegotiationError::Violation(message)) = outcome {
        assert!(!message.is_empty() && !message.contains(char::is_control), "{message:?}");
    }
}

fn open(peer: &mut Scripted) -> Result<(), NegotiationError> {
    let wanted = WantedExport { export: "golden", dirty_bitmap: Some("sunday"), allocation: true };
    let negotiated = go(peer, &wanted).or_else(|_| go(peer, &WantedExport { dirty_bitmap: None, ..wanted }))?;
    let (facts, contexts) = (negotiated.facts, negotiated.contexts);
    assert!(facts.size_bytes <= i64::MAX as u64);
    assert!(facts.min_block_bytes.is_power_of_two() && facts.min_block_bytes <= 64 << 10);
    assert!(facts.preferred_block_bytes.is_power_of_two());
    assert!(facts.preferred_block_bytes >= facts.min_block_bytes.max(512));
    assert!(facts.max_payload_bytes >= facts.min_block_bytes);
    assert!(facts.max_payload_bytes.is_multiple_of(facts.min_block_bytes));
    assert!(contexts == MetaContexts::default() || negotiated.style != ReplyStyle::Simple);
    assert!(contexts.allocation.is_none() || contexts.allocation != contexts.dirty);
    Ok(())
}

fn listing(peer: &mut Scripted) -> Result<(), NegotiationError> {
    for export in list(peer)? {
        assert!(export.name.len() <= 4096);
        assert!(!export.description.is_some_and(|words| words.contains(char::is_control)));
    }
    Ok(())
}

/// A peer that sends `data`, or makes replies of it.
#[derive(Clone, Debug, Default)]
struct Scripted {
    data: Vec<u8>,
    is_framed: bool,
    /// Bytes that were generated and not read yet.
    pending: Vec<u8>,
}

fn greeting() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\0\x03".to_vec()
}

impl Read for Scripted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = if self.is_framed { &mut self.pending } else { &mut self.data };
        let len = into.len().min(from.len());
        into[..len].copy_from_slice(&from[..len]);
        from.drain(..len);
        Ok(len)
    }
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Client flags are no option.
        if self.is_framed && bytes.len() >= 16 {
            let option = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes"));
            self.answer(option);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Scripted {
    /// Replies of one byte for the type, one for the length, and data: up to one that ends the option.
    fn answer(&mut self, option: u32) {
        loop {
            let [kind, len, ..] = self.data[..] else { return };
            let len = usize::from(len).min(self.data.len() - 2);
            let data: Vec<u8> = self.data.drain(..len + 2).skip(2).collect();
            let kind = u32::from(kind & 0x7f) | u32::from(kind & 0x80) << 24;
            self.pending.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
            self.pending.extend([option, kind, len as u32].map(u32::to_be_bytes).concat());
            self.pending.extend(data);
            if kind == 1 || kind >= 1 << 31 {
                return;
            }
        }
    }
}

/// A reply as [`Scripted::answer`] takes it, such as a client may wait for.
fn sensible(numbers: &mut SeededNumbers) -> Vec<u8> {
    let info = |kind: u16, numbers: &[u8]| [&kind.to_be_bytes(), numbers].concat();
    let size = numbers.next() >> numbers.below(64);
    let (kind, data) = match numbers.below(10) {
        0 => (2, b"\0\0\0\x06goldenkept for good".to_vec()),
        1 => (3, info(0, &[&size.to_be_bytes()[..], &[0, 1]].concat())),
        2 => (3, info(3, &[1 << numbers.below(20), 4096, 32 << 20].map(u32::to_be_bytes).concat())),
        3 => (3, info(2, b"kept for good")),
        4 => (4, b"\0\0\0\x01base:allocation".to_vec()),
        5 => (4, b"\0\0\0\x02qemu:dirty-bitmap:sunday".to_vec()),
        6 => (0x80 | numbers.below(12) as u8, b"no\x1b".to_vec()),
        _ => (1, Vec::new()),
    };
    [&[kind, data.len() as u8], &data[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn mutated_replies_keep_the_invariants(seed: u64) {
            fuzz_reply_mutation(seed);
        }

        #[test]
        fn mutated_handshakes_keep_the_invariants(seed: u64) {
            fuzz_negotiate_mutation(seed);
        }

        #[test]
        fn any_bytes_keep_the_invariants(data: Vec<u8>) {
            fuzz_replies(&data);
            fuzz_negotiate(&data);
        }
    }
}
