//! Negotiates as a peer: fixed newstyle, GO with block sizes, structured replies and `base:allocation` where they are
//! offered, and nothing else. The script of the test may replace every answer.

use super::reply::ALLOCATION;
use super::wire::{self, answer, can, option};
use super::{Offer, PeerScript, Reaction, take};
use std::io::{self, Read, Write};

/// Result of a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreed {
    /// Transmission begins.
    Yes { structured: bool },
    /// The client or the script has ended the connection.
    No,
}

/// Negotiates on a fresh connection.
///
/// # Errors
/// The client has closed the connection.
pub(super) fn negotiate(
    stream: &mut (impl Read + Write),
    offer: &Offer,
    size: u64,
    script: &PeerScript,
) -> io::Result<Agreed> {
    let right =
        [&wire::GREETING.to_be_bytes()[..], &wire::OPTION.to_be_bytes(), &wire::HANDSHAKE_FLAGS.to_be_bytes()].concat();
    stream.write_all(script.greeting.as_ref().unwrap_or(&right))?;
    let client_flags = u32::from_be_bytes(take(stream)?);
    let mut structured = false;
    loop {
        let magic = u64::from_be_bytes(take(stream)?);
        if magic != wire::OPTION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an option begins with {magic:#x}")));
        }
        let chosen = u32::from_be_bytes(take(stream)?);
        let length = u32::from_be_bytes(take(stream)?);
        let mut details = vec![0; length as usize];
        stream.read_exact(&mut details)?;
        if chosen == option::EXPORT_NAME {
            stream.write_all(&export_name_reply(offer, size, client_flags))?;
            return Ok(Agreed::Yes { structured });
        }
        let (correct, begins) = correct_answer(chosen, &details, offer, size);
        let reaction = script.on_option.as_ref().map_or(Reaction::Correct, |script| script(chosen, &correct));
        match reaction {
            Reaction::Correct => stream.write_all(&correct)?,
            Reaction::CorrectTwice => stream.write_all(&[&correct[..], &correct].concat())?,
            Reaction::Replace(bytes) => {
                stream.write_all(&bytes)?;
                continue;
            }
            Reaction::ReplaceAndClose(bytes) => {
                stream.write_all(&bytes)?;
                return Ok(Agreed::No);
            }
            Reaction::NoReply => continue,
            Reaction::Close => return Ok(Agreed::No),
        }
        structured |= chosen == option::STRUCTURED_REPLY && offer.structured;
        if chosen == option::ABORT {
            return Ok(Agreed::No);
        }
        if begins {
            return Ok(Agreed::Yes { structured });
        }
    }
}

/// Returns the correct reply to an option, and whether transmission begins after it.
fn correct_answer(chosen: u32, details: &[u8], offer: &Offer, size: u64) -> (Vec<u8>, bool) {
    let ack = option_reply(chosen, answer::ACK, &[]);
    match chosen {
        option::ABORT => (ack, false),
        option::STRUCTURED_REPLY if offer.structured => (ack, false),
        option::GO | option::INFO => {
            let facts = [&0_u16.to_be_bytes()[..], &size.to_be_bytes(), &offer.flags().to_be_bytes()].concat();
            let mut replies = option_reply(chosen, answer::INFO, &facts);
            if let Some((least, preferred, most)) = offer.blocks {
                let sizes = [least, preferred, most].map(u32::to_be_bytes).concat();
                replies.extend(option_reply(chosen, answer::INFO, &[&3_u16.to_be_bytes()[..], &sizes].concat()));
            }
            replies.extend(ack);
            (replies, chosen == option::GO)
        }
        option::SET_META_CONTEXT if offer.structured => {
            let wanted = b"base:allocation";
            let mut replies = Vec::new();
            if details.windows(wanted.len()).any(|bytes| bytes == wanted) {
                let context = [&ALLOCATION.to_be_bytes()[..], wanted].concat();
                replies = option_reply(chosen, answer::META_CONTEXT, &context);
            }
            replies.extend(ack);
            (replies, false)
        }
        _ => (option_reply(chosen, answer::UNSUPPORTED, &[]), false),
    }
}

/// Builds a reply to an option.
pub fn option_reply(chosen: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    option_reply_with(wire::OPTION_REPLY, chosen, kind, payload)
}

/// As [`option_reply`], with any magic.
pub fn option_reply_with(magic: u64, chosen: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are short");
    [&magic.to_be_bytes()[..], &chosen.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

fn export_name_reply(offer: &Offer, size: u64, client_flags: u32) -> Vec<u8> {
    let mut reply = [&size.to_be_bytes()[..], &offer.flags().to_be_bytes()].concat();
    if client_flags & wire::NO_ZEROES == 0 {
        reply.extend([0; 124]);
    }
    reply
}

impl Offer {
    /// Returns the transmission flags.
    pub fn flags(&self) -> u16 {
        let multi_conn = if self.multi_conn { can::MULTI_CONN } else { 0 };
        can::USUAL | multi_conn | self.further_flags
    }
}
