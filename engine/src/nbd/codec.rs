//! Encodes the requests of the transmission phase, and names the numbers that both sides know. Big-endian, no I/O.
//!
//! ```text
//! compact   magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u32     28 bytes
//! extended  magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u64     32 bytes
//! ```
//! A write is followed by its payload. The reply has the same cookie.

use super::ReplyStyle;
use nix::errno::Errno;

/// Bytes of the longest request, without its payload.
pub(crate) const REQUEST_BYTES_MAX: usize = 32;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// Magic numbers that replies start with.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Command of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    /// Disconnect: has no reply, the server closes the connection.
    Disconnect = 2,
    Flush = 3,
    WriteZeroes = 6,
    BlockStatus = 7,
}

/// Flags of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandFlags(pub u16);

impl CommandFlags {
    pub(crate) const NONE: Self = Self(0);
    /// Answer only when the data is durable.
    pub(crate) const FUA: Self = Self(1);
    /// Zeros that take space.
    pub(crate) const NO_HOLE: Self = Self(1 << 1);
    /// Zeros only if that is faster than writing them; else ENOTSUP.
    pub(crate) const FAST_ZERO: Self = Self(1 << 4);
    /// The length counts payload that follows. Extended headers only, where [`RequestHeader::encode`] sets it on
    /// writes.
    pub(crate) const PAYLOAD_LEN: Self = Self(1 << 5);
}

impl std::ops::BitOr for CommandFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One request. Offset and length in bytes of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub command: Command,
    pub flags: CommandFlags,
    pub cookie: u64,
    pub offset: u64,
    pub len: u64,
}

impl RequestHeader {
    /// Writes the request to the front of `into` and returns its bytes: 28, or 32 when extended. A payload is the
    /// caller's to send.
    ///
    /// # Panics
    /// If `into` is too short, or `len` needs more than 32 bits without extended headers.
    pub(crate) fn encode(self, style: ReplyStyle, into: &mut [u8]) -> usize {
        let is_extended = style == ReplyStyle::Extended;
        let has_payload = self.command == Command::Write;
        let flags = if is_extended && has_payload { self.flags | CommandFlags::PAYLOAD_LEN } else { self.flags };
        let magic = if is_extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        into[0..4].copy_from_slice(&magic.to_be_bytes());
        into[4..6].copy_from_slice(&flags.0.to_be_bytes());
        into[6..8].copy_from_slice(&(self.command as u16).to_be_bytes());
        into[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        into[16..24].copy_from_slice(&self.offset.to_be_bytes());
        if is_extended {
            into[24..32].copy_from_slice(&self.len.to_be_bytes());
            return 32;
        }
        let len = u32::try_from(self.len).expect("requests are split at 32 bits where headers are not extended");
        into[24..28].copy_from_slice(&len.to_be_bytes());
        28
    }
}

/// The errno of this host for an error number of the protocol. Numbers that the protocol does not know are EINVAL,
/// as it has it.
pub(crate) fn errno(nbd_error: u32) -> Errno {
    match nbd_error {
        1 => Errno::EPERM,
        5 => Errno::EIO,
        12 => Errno::ENOMEM,
        28 => Errno::ENOSPC,
        75 => Errno::EOVERFLOW,
        95 => Errno::EOPNOTSUPP,
        108 => Errno::ESHUTDOWN,
        _ => Errno::EINVAL,
    }
}

/// A big-endian number at `at`.
///
/// # Panics
/// If `bytes` end before it.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// As [`u16_at`].
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// As [`u16_at`].
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: RequestHeader = RequestHeader {
        command: Command::Write,
        flags: CommandFlags::FUA,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1122_3344_5566_7788,
        len: 0x10_0000,
    };

    #[test]
    fn a_compact_request_is_28_bytes() {
        let mut bytes = [0xee; REQUEST_BYTES_MAX];
        assert_eq!(WRITE.encode(ReplyStyle::Structured, &mut bytes), 28);
        let wanted =
            b"\x25\x60\x95\x13\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\x11\x22\x33\x44\x55\x66\x77\x88\0\x10\0\0";
        assert_eq!(&bytes[..28], wanted);
        assert_eq!(bytes[28..], [0xee; 4], "nothing is written past its end");
    }

    #[test]
    fn an_extended_write_says_that_its_length_is_payload() {
        let mut bytes = [0; REQUEST_BYTES_MAX];
        assert_eq!(WRITE.encode(ReplyStyle::Extended, &mut bytes), 32);
        assert_eq!(bytes[..8], *b"\x21\xe4\x1c\x71\0\x21\0\x01");
        assert_eq!(bytes[24..], 0x10_0000_u64.to_be_bytes());
    }

    #[test]
    fn an_extended_zero_request_takes_64_bits_and_no_payload() {
        let zero = RequestHeader { command: Command::WriteZeroes, flags: CommandFlags::NO_HOLE, len: 1 << 40, ..WRITE };
        let mut bytes = [0; REQUEST_BYTES_MAX];
        assert_eq!(zero.encode(ReplyStyle::Extended, &mut bytes), 32);
        assert_eq!(bytes[4..8], *b"\0\x02\0\x06");
        assert_eq!(bytes[24..], (1_u64 << 40).to_be_bytes());
    }

    #[test]
    fn errors_are_the_protocols_and_all_others_mean_einval() {
        let known = [(1, Errno::EPERM), (5, Errno::EIO), (22, Errno::EINVAL), (28, Errno::ENOSPC)];
        for (number, wanted) in known.into_iter().chain([(95, Errno::ENOTSUP), (108, Errno::ESHUTDOWN)]) {
            assert_eq!(errno(number), wanted);
        }
        assert_eq!([errno(0), errno(4), errno(u32::MAX)], [Errno::EINVAL; 3]);
    }
}
