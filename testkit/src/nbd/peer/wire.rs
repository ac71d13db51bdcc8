//! Defines the numbers of the NBD protocol, from its specification.
//!
//! The program has its own definitions, so that a mistake in one of them shows.

pub const GREETING: u64 = 0x4e42_444d_4147_4943;
pub const OPTION: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST: u32 = 0x2560_9513;
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
pub const CHUNK: u32 = 0x668e_33ef;

/// Fixed newstyle, and no 124 zeros after an old-fashioned choice.
pub const HANDSHAKE_FLAGS: u16 = 3;
/// Client flag NO_ZEROES.
pub const NO_ZEROES: u32 = 2;

pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const SET_META_CONTEXT: u32 = 10;
}

pub mod answer {
    pub const ACK: u32 = 1;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const UNSUPPORTED: u32 = (1 << 31) + 1;
}

/// Transmission flags.
pub mod can {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const FLUSH: u16 = 1 << 2;
    pub const FUA: u16 = 1 << 3;
    pub const ZERO: u16 = 1 << 6;
    pub const MULTI_CONN: u16 = 1 << 8;
    /// Flags that most servers offer, without consistency between connections.
    pub const USUAL: u16 = HAS_FLAGS | FLUSH | FUA | ZERO;
}

/// Kinds of chunks, and the flag of the last one of a reply.
pub mod chunk {
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const DATA: u16 = 1;
    pub const HOLE: u16 = 2;
    pub const STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
    pub const ERROR_AT: u16 = (1 << 15) + 2;
}

pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
