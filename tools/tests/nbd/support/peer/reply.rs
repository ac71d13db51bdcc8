//! Builds replies byte by byte, correct ones and wrong ones.

use super::wire::{self, chunk};

/// The number that `base:allocation` has here.
pub(crate) const ALLOCATION: u32 = 7;

/// A simple reply, with the payload of a read.
pub(crate) fn simple(cookie: u64, error: u32, payload: &[u8]) -> Vec<u8> {
    simple_with(wire::SIMPLE_REPLY, cookie, error, payload)
}

/// As [`simple`], with any magic.
pub(crate) fn simple_with(magic: u32, cookie: u64, error: u32, payload: &[u8]) -> Vec<u8> {
    [&magic.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes(), payload].concat()
}

/// A chunk of a structured reply.
pub(crate) fn chunk(cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    chunk_claiming(cookie, flags, kind, u32::try_from(payload.len()).expect("payloads are short"), payload)
}

/// As [`chunk`], with a length that need not be the payload's.
pub(crate) fn chunk_claiming(cookie: u64, flags: u16, kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
    let head = [&wire::CHUNK.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

/// Data of a read, from `offset` of the export on.
pub(crate) fn data(cookie: u64, flags: u16, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(cookie, flags, chunk::DATA, &[&offset.to_be_bytes(), bytes].concat())
}

/// A hole of a read.
pub(crate) fn hole(cookie: u64, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    chunk(cookie, flags, chunk::HOLE, &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat())
}

/// The last chunk of a reply that has nothing more to say.
pub(crate) fn done(cookie: u64) -> Vec<u8> {
    chunk(cookie, chunk::DONE, chunk::NONE, &[])
}

/// The last chunk of a reply: what went wrong.
pub(crate) fn error(cookie: u64, error: u32, message: &str) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("it is short");
    chunk(
        cookie,
        chunk::DONE,
        chunk::ERROR,
        &[&error.to_be_bytes()[..], &length.to_be_bytes(), message.as_bytes()].concat(),
    )
}

/// An error at one place of a read; the reply goes on.
pub(crate) fn error_at(cookie: u64, flags: u16, error: u32, offset: u64) -> Vec<u8> {
    let payload = [&error.to_be_bytes()[..], &0_u16.to_be_bytes(), &offset.to_be_bytes()].concat();
    chunk(cookie, flags, chunk::ERROR_AT, &payload)
}

/// Block status: lengths and flags, under a context's number.
pub(crate) fn status(cookie: u64, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let pairs = extents.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat());
    let payload: Vec<u8> = context.to_be_bytes().into_iter().chain(pairs).collect();
    chunk(cookie, chunk::DONE, chunk::STATUS, &payload)
}
