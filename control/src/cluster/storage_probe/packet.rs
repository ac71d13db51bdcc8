//! Encodes and decodes the packets of the storage probe: a probe, and the same bytes back.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0-3 | `BHC1` |
//! | 4 | 1: a probe, 2: its answer |
//! | 5-7 | zero |
//! | 8-23 | nonce: random, of this probe only |
//!
//! An answer is as long as its probe, so a forged sender address amplifies nothing.

use uuid::Uuid;

/// Length of a packet in bytes.
pub(super) const LENGTH: usize = 24;

const MAGIC: &[u8; 4] = b"BHC1";

/// Random number by which the answer to a probe is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Nonce([u8; 16]);

impl Nonce {
    /// Returns a nonce that cannot be guessed.
    pub(super) fn fresh() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }
}

/// Well-formed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Asks for an answer.
    Probe(Nonce),
    /// Answers the probe with this nonce.
    Answer(Nonce),
}

impl Packet {
    pub(super) fn encode(self) -> [u8; LENGTH] {
        let (kind, Nonce(nonce)) = match self {
            Self::Probe(nonce) => (1, nonce),
            Self::Answer(nonce) => (2, nonce),
        };
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = kind;
        bytes[8..].copy_from_slice(&nonce);
        bytes
    }

    /// Decodes a packet; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, nonce) = bytes.split_at_checked(8)?;
        let nonce = Nonce(nonce.try_into().ok()?);
        match head.strip_prefix(MAGIC)? {
            [1, 0, 0, 0] => Some(Self::Probe(nonce)),
            [2, 0, 0, 0] => Some(Self::Answer(nonce)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_has_the_bytes_of_the_table() {
        let nonce = Nonce(*b"0123456789abcdef");
        assert_eq!(&Packet::Probe(nonce).encode(), b"BHC1\x01\0\0\x000123456789abcdef");
        assert_eq!(&Packet::Answer(nonce).encode(), b"BHC1\x02\0\0\x000123456789abcdef");
    }

    proptest! {
        #[test]
        fn malformed_packets_are_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(&packet.encode()[..], &bytes[..]);
            }
            let probe = Packet::Probe(Nonce::fresh());
            prop_assert_eq!(Packet::decode(&probe.encode()), Some(probe));
            prop_assert!(bytes.is_empty() || Packet::decode(&[&probe.encode()[..], &bytes].concat()).is_none());
        }
    }
}
