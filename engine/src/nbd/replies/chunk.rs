//! Decodes the headers of replies, and checks what may follow each kind of chunk.
//!
//! ```text
//! simple      magic u32 | error u32          | cookie u64                            16 bytes
//! structured  magic u32 | flags u16 | type u16 | cookie u64 | length u32             20 bytes
//! extended    magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u64  32 bytes
//!
//! data        offset u64, bytes                      status      context u32, (length u32, flags u32)...
//! hole        offset u64, length u32                 status ext  context u32, count u32, (length u64, flags u64)...
//! error       error u32, length u16, message         error offset  as error, then offset u64
//! ```

use super::{ExpectedReply, ProtocolViolation};
use crate::nbd::ReplyStyle;
use crate::nbd::codec::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, u16_at, u32_at, u64_at};

/// Bytes of a magic number: what tells the length of a head.
pub(super) const MAGIC_BYTES: usize = 4;
/// Bytes of the longest head.
pub(super) const HEAD_BYTES_MAX: usize = 32;

/// Bytes of a status chunk: more descriptors than servers should ever send (2^20), and their context.
const STATUS_BYTES_MAX: u64 = 8 + (16 << 20);
/// Bytes of an error chunk: the longest message that its length can tell, and fields that are not known yet.
const ERROR_BYTES_MAX: u64 = 128 << 10;

const FLAG_DONE: u16 = 1;
const TYPE_ERROR: u16 = 1 << 15;

/// Bytes of the head that starts with this magic number.
pub(super) fn head_bytes(style: ReplyStyle, magic: u32) -> Result<usize, ProtocolViolation> {
    match (style, magic) {
        (ReplyStyle::Simple | ReplyStyle::Structured, SIMPLE_REPLY_MAGIC) => Ok(16),
        (ReplyStyle::Structured, STRUCTURED_REPLY_MAGIC) => Ok(20),
        (ReplyStyle::Extended, EXTENDED_REPLY_MAGIC) => Ok(HEAD_BYTES_MAX),
        _ => Err(ProtocolViolation("wrong magic number in a reply")),
    }
}

/// Bytes that can be taken before the payload of a read can start: a head and an offset.
pub(super) fn before_payload(style: ReplyStyle) -> usize {
    match style {
        ReplyStyle::Simple => 16,
        ReplyStyle::Structured => 20 + 8,
        ReplyStyle::Extended => HEAD_BYTES_MAX + 8,
    }
}

/// A whole head.
#[derive(Clone, Copy, Debug)]
pub(super) enum Head {
    Simple { error: u32, cookie: u64 },
    Chunk { cookie: u64, offset: Option<u64>, kind: u16, len: u64, is_last: bool },
}

impl Head {
    /// Decodes a head of exactly [`head_bytes`] bytes.
    pub(super) fn decode(bytes: &[u8]) -> Self {
        let cookie = u64_at(bytes, 8);
        let (offset, len) = match bytes.len() {
            16 => return Self::Simple { error: u32_at(bytes, 4), cookie },
            20 => (None, u64::from(u32_at(bytes, 16))),
            _ => (Some(u64_at(bytes, 16)), u64_at(bytes, 24)),
        };
        let is_last = u16_at(bytes, 4) & FLAG_DONE != 0;
        Self::Chunk { cookie, offset, kind: u16_at(bytes, 6), len, is_last }
    }
}

/// Kind of a chunk's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkKind {
    None,
    Data,
    Hole,
    Status {
        is_wide: bool,
    },
    Error,
    ErrorOffset,
    /// An error of an unknown type.
    OtherError,
}

impl ChunkKind {
    /// The kind, if it may answer such a request and may have that length.
    pub(super) fn check(
        number: u16,
        len: u64,
        style: ReplyStyle,
        expected: ExpectedReply,
    ) -> Result<Self, ProtocolViolation> {
        let kind = match (number, style) {
            (0, _) => Self::None,
            (1, _) => Self::Data,
            (2, _) => Self::Hole,
            (5, ReplyStyle::Structured) => Self::Status { is_wide: false },
            (6, ReplyStyle::Extended) => Self::Status { is_wide: true },
            (0x8001, _) => Self::Error,
            (0x8002, _) => Self::ErrorOffset,
            (number, _) if number & TYPE_ERROR != 0 => Self::OtherError,
            _ => return Err(ProtocolViolation("a chunk of an unknown type")),
        };
        match (kind, expected) {
            (Self::Data | Self::Hole, ExpectedReply::Nothing | ExpectedReply::Status { .. })
            | (Self::Status { .. }, ExpectedReply::Nothing | ExpectedReply::Read { .. }) => {
                Err(ProtocolViolation("a chunk that does not answer the request"))
            }
            _ => kind.with_length(len),
        }
    }

    fn with_length(self, len: u64) -> Result<Self, ProtocolViolation> {
        let is_right = match self {
            Self::None => len == 0,
            Self::Data => len > 8,
            Self::Hole => len == 12,
            Self::Status { is_wide: false } => len > 4 && (len - 4).is_multiple_of(8) && len <= STATUS_BYTES_MAX,
            Self::Status { is_wide: true } => len > 8 && (len - 8).is_multiple_of(16) && len <= STATUS_BYTES_MAX,
            Self::Error | Self::ErrorOffset | Self::OtherError => {
                (self.prefix_bytes() as u64 + self.suffix_bytes()..=ERROR_BYTES_MAX).contains(&len)
            }
        };
        is_right.then_some(self).ok_or(ProtocolViolation("a chunk whose length does not fit its type"))
    }

    /// Bytes at the start of the payload that say what follows.
    pub(super) fn prefix_bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Data | Self::Status { is_wide: true } => 8,
            Self::Hole => 12,
            Self::Status { is_wide: false } => 4,
            Self::Error | Self::ErrorOffset | Self::OtherError => 6,
        }
    }

    /// Bytes that follow the message of an error.
    pub(super) fn suffix_bytes(self) -> u64 {
        if self == Self::ErrorOffset { 8 } else { 0 }
    }
}
