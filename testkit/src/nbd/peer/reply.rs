//! Builds correct and wrong replies byte by byte.

use super::wire::{self, chunk};

/// Context ID of `base:allocation` at this peer.
pub const ALLOCATION: u32 = 7;

/// Builds a simple reply, with the payload of a read.
pub fn simple(cookie: u64, error: u32, payload: &[u8]) -> Vec<u8> {
    simple_with(wire::SIMPLE_REPLY, cookie, error, payload)
}

/// As [`simple`], with any magic.
pub fn simple_with(magic: u32, cookie: u64, error: u32, payload: &[u8]) -> Vec<u8> {
    [&magic.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes(), payload].concat()
}

/// Builds a chunk of a structured reply.
pub fn chunk(cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    chunk_claiming(cookie, flags, kind, u32::try_from(payload.len()).expect("payloads are short"), payload)
}

/// As [`chunk`](fn@chunk), with any length in its header.
pub fn chunk_claiming(cookie: u64, flags: u16, kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
    let head = [&wire::CHUNK.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

/// Builds a data chunk of a read, at `offset` of the export.
pub fn data(cookie: u64, flags: u16, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(cookie, flags, chunk::DATA, &[&offset.to_be_bytes(), bytes].concat())
}

/// Builds a hole chunk of a read.
pub fn hole(cookie: u64, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    chunk(cookie, flags, chunk::HOLE, &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat())
}

/// Builds an empty last chunk.
pub fn done(cookie: u64) -> Vec<u8> {
    chunk(cookie, chunk::DONE, chunk::NONE, &[])
}

/// Builds an error as the last chunk.
pub fn error(cookie: u64, error: u32, message: &str) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("it is short");
    chunk(
        cookie,
        chunk::DONE,
        chunk::ERROR,
        &[&error.to_be_bytes()[..], &length.to_be_bytes(), message.as_bytes()].concat(),
    )
}

/// Builds an error at an offset of a read.
pub fn error_at(cookie: u64, flags: u16, error: u32, offset: u64) -> Vec<u8> {
    let payload = [&error.to_be_bytes()[..], &0_u16.to_be_bytes(), &offset.to_be_bytes()].concat();
    chunk(cookie, flags, chunk::ERROR_AT, &payload)
}

/// Builds a block status chunk: lengths and flags of a context.
pub fn status(cookie: u64, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let pairs = extents.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat());
    let payload: Vec<u8> = context.to_be_bytes().into_iter().chain(pairs).collect();
    chunk(cookie, chunk::DONE, chunk::STATUS, &payload)
}
