//! Computes the digest of requests, by which a group is recognised that is not made from a file.

use super::wire;
use prost::Message;

/// Returns the BLAKE3 of the requests of a group's members, in hexadecimal digits. Fields that are not set do not count, so
/// that a later version computes the same.
#[must_use]
pub fn digest(members: &[wire::SubmitRequest]) -> String {
    let mut hasher = blake3::Hasher::new();
    for member in members {
        hasher.update(&member.encode_length_delimited_to_vec());
    }
    hasher.finalize().to_hex().to_string()
}
