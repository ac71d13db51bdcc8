//! Speaks NBD, as the public specification has it (fixed newstyle, `NBD_OPT_GO`, structured and extended replies, block
//! status).
//!
//! ```text
//! uri -> dial (tls, negotiate) -> Session -> ExportConnections -- one NbdConnection per worker --> channel (codec, replies)
//! ```
//! Everything up to a session blocks, and runs on threads of jobs or on a thread of its own. Moving data does not
//! block, and runs in the workers' rings. `codec` and `replies` are the protocol without I/O: bytes in, events out.

pub(crate) mod codec;
mod connect;
#[cfg(test)]
mod blocking_client_tests;
mod blocking_client;
pub(crate) mod dial;
#[cfg(test)]
mod dial_support;
#[cfg(test)]
mod dial_tests;
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod connection_revoker;
pub(crate) mod export_connections;
pub(crate) mod negotiate;
#[cfg(test)]
mod negotiate_tests;
mod tls_relay;
#[cfg(test)]
mod tls_relay_tests;
pub(crate) mod replies;
pub(crate) mod block_status;
mod wait_bound;
mod bounded_stream;
#[cfg(test)]
pub(crate) mod support;
pub(crate) mod tls;
#[cfg(test)]
mod tls_tests;
pub(crate) mod uri;

pub use dial::list_exports;
pub use negotiate::ListedExport;
pub use uri::NbdUri;

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Framing of a server's replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    /// 16 bytes, then the payload of a read.
    Simple,
    /// Chunks of 20 bytes and a payload.
    Structured,
    /// Chunks of 32 bytes and a payload; requests of 32 bytes with 64-bit lengths.
    Extended,
}

/// Transmission flags of an export, as sent by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportFlags(pub u16);

impl ExportFlags {
    pub(crate) fn is_read_only(self) -> bool {
        self.has(1)
    }

    pub(crate) fn can_flush(self) -> bool {
        self.has(2)
    }

    pub(crate) fn can_fua(self) -> bool {
        self.has(3)
    }

    pub(crate) fn can_zero(self) -> bool {
        self.has(6)
    }

    /// A flush on one connection covers what all connections have written, and what one wrote the others read.
    pub(crate) fn can_multi_conn(self) -> bool {
        self.has(8)
    }

    pub(crate) fn can_fast_zero(self) -> bool {
        self.has(11)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }
}

/// Facts about an export, from its server. If they differ between two connections, the export has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportFacts {
    /// Bytes of the export.
    pub size_bytes: u64,
    /// Capabilities.
    pub flags: ExportFlags,
    /// Requests start and end at multiples of this: a power of two from 1 to 64 KiB. 1 where the server does not say
    /// (Linux servers take any byte).
    pub min_block_bytes: u32,
    /// Block that the server prefers: a power of two of at least 512. 4096 where it does not say.
    pub preferred_block_bytes: u32,
    /// Bytes of payload of one read or write at most: at least `min_block_bytes`. 32 MiB where it does not say.
    pub max_payload_bytes: u32,
}

/// Metadata contexts of one connection, by the number that the server has given them on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MetaContexts {
    /// `base:allocation`: which ranges are holes, which read as zeros.
    pub allocation: Option<u32>,
    /// `qemu:dirty-bitmap:NAME`: which ranges have changed.
    pub dirty: Option<u32>,
}

/// An idle connection in its transmission phase.
#[derive(Debug)]
pub(crate) struct Session {
    /// A stream socket, blocking, close-on-exec. Behind TLS: the plain end of a pair.
    pub socket: Arc<OwnedFd>,
    pub facts: ExportFacts,
    pub style: ReplyStyle,
    pub contexts: MetaContexts,
    /// Whether it is a TCP socket of its own (not a unix socket, not one end of a pair): what zero-copy sends need.
    pub is_tcp: bool,
}
