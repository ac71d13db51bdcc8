//! Tracks one NBD session in use: its requests, and the send and the receive in flight.
//!
//! A request is in `requests` from its send to its answer. The ring has its block until the completion. A session is
//! closed only when the ring has returned all of its memory.

use super::nbd_request::{NbdRequest, RequestKind};
use crate::buffer::Block;
use crate::limits::TICK;
use crate::nbd::Session;
use crate::nbd::export_connections::ExportConnections;
use crate::nbd::replies::Replies;
use crate::ring::{FileId, Instant, Op, Transfer};
use nix::errno::Errno;
use std::os::fd::AsRawFd;

/// A session in use.
#[derive(Debug)]
pub(super) struct ActiveSession {
    /// The socket; `None` once it is broken and closed.
    pub session: Option<Session>,
    pub generation: u64,
    pub replies: Replies,
    /// Requests that are sent and not answered, by their index in `replies`.
    pub requests: Vec<Option<NbdRequest>>,
    pub sending: Option<SendInFlight>,
    /// Zero-copy sends whose memory the network still reads.
    pub lent: Vec<SendInFlight>,
    pub receiving: Option<ReceiveInFlight>,
    /// For sends that do not wait: whether the socket is full, and whether the ring waits for room in it.
    pub full: bool,
    pub asks_for_room: bool,
    pub broken: bool,
    /// Whether the server has sent a complete reply on this session.
    pub heard: bool,
    /// Whether a request was answered since the last check, and the last check at which one was.
    pub answers: bool,
    pub answered: Instant,
    /// Latest time at which a request was sent that is answered by now.
    pub newest_answered: Instant,
    pub zero_copy: bool,
    pub next_look: Instant,
}

/// Headers and at most one payload that are being sent.
#[derive(Debug)]
pub(super) struct SendInFlight {
    /// Address of its heads, which identifies it.
    pub outbox_at: usize,
    pub head_len: u32,
    /// The request of the payload: index, first byte in its block, length.
    pub body: Option<(usize, u32, u32)>,
    pub sent: u32,
    pub since: Instant,
    pub in_ring: bool,
    /// Whether the request was answered before the kernel returned its block.
    pub answered: Option<(NbdRequest, Result<(), Errno>)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ReceiveInFlight {
    Head,
    Body { index: usize, since: Instant },
}

impl SendInFlight {
    pub(super) fn is_sent(&self) -> bool {
        self.sent >= self.head_len + self.body.map_or(0, |(_, _, len)| len)
    }

    /// Returns whether the send has the payload of the unanswered request at that index.
    pub(super) fn holds(&self, index: usize) -> bool {
        self.answered.is_none() && self.body.is_some_and(|(of, ..)| of == index)
    }
}

impl ActiveSession {
    pub(super) fn new(session: Session, generation: u64, slots: usize, now: Instant) -> Self {
        Self {
            replies: Replies::new(session.style, session.contexts, slots),
            zero_copy: session.is_tcp,
            session: Some(session),
            generation,
            requests: std::iter::repeat_with(|| None).take(slots).collect(),
            sending: None,
            lent: Vec::new(),
            receiving: None,
            full: false,
            asks_for_room: false,
            broken: false,
            heard: false,
            answers: false,
            answered: now,
            newest_answered: Instant::ZERO,
            next_look: now + TICK,
        }
    }

    pub(super) fn session(&self) -> &Session {
        self.session.as_ref().expect("only a broken connection is closed, and nothing is asked of it")
    }

    pub(super) fn file(&self) -> FileId {
        FileId(self.session().socket.as_raw_fd())
    }

    /// Returns the payload of the send in flight to its request.
    pub(super) fn put_back(&mut self, payload: Option<Block>) {
        let Some(sending) = &mut self.sending else { return };
        let (Some(block), Some((index, ..))) = (payload, sending.body) else { return };
        match &mut sending.answered {
            Some((request, _)) => request.block = Some(block),
            None => self.requests[index].as_mut().expect("it was not answered yet").block = Some(block),
        }
    }

    /// Returns the send of the bytes that a short send has left.
    pub(super) fn rest_of_send(&mut self, outboxes: &mut Vec<Block>, waits: bool) -> Option<Op> {
        let file = self.file();
        let sending = self.sending.as_mut()?;
        sending.in_ring = true;
        let payload = |requests: &mut Vec<Option<NbdRequest>>, answered: &mut Option<(NbdRequest, _)>, index: usize| {
            let request = answered.as_mut().map(|(request, _)| request).or(requests[index].as_mut());
            request.and_then(|request| request.block.take()).expect("the ring has given it back")
        };
        let head_left = sending.head_len.saturating_sub(sending.sent);
        if head_left > 0 {
            let at = outboxes.iter().position(|block| block.as_ptr() as usize == sending.outbox_at)?;
            let head = Transfer { block: outboxes.swap_remove(at), start: sending.sent, len: head_left };
            let body = sending.body.map(|(index, start, len)| Transfer {
                block: payload(&mut self.requests, &mut sending.answered, index),
                start,
                len,
            });
            return Some(Op::Send { file, head, body, zero_copy: false, waits });
        }
        let (index, start, len) = sending.body?;
        let done = sending.sent - sending.head_len;
        let block = payload(&mut self.requests, &mut sending.answered, index);
        let head = Transfer { block, start: start + done, len: len - done };
        Some(Op::Send { file, head, body: None, zero_copy: false, waits })
    }

    /// Requests a wait for room in the socket, once.
    pub(super) fn ask_for_room(&mut self) -> Option<Op> {
        let has_asked = std::mem::replace(&mut self.asks_for_room, true);
        (!has_asked).then(|| Op::Writable { file: self.file() })
    }

    /// Restarts the timers while the rest of a send waits for a gate: the server cannot reply to it.
    pub(super) fn hold_send(&mut self, now: Instant) {
        let Some(sending) = &mut self.sending else { return };
        let since = std::mem::replace(&mut sending.since, now);
        let of_it = self.requests.iter_mut().flatten().filter(|request| request.sent == since);
        of_it.for_each(|request| request.sent = now);
    }

    /// Returns whether a request or a send waits for longer than the export allows. A server that still answers earlier
    /// requests is slow, not dead: a window may take longer than one request. A server that answers later requests has
    /// lost this one. Checked once a tick.
    pub(super) fn is_overdue(&mut self, now: Instant, export: &ExportConnections) -> bool {
        if now < self.next_look {
            return false;
        }
        self.next_look = now + TICK;
        if std::mem::take(&mut self.answers) {
            self.answered = now;
        }
        let limit = export.request_timeout();
        let late = |since: Instant| now.saturating_sub(since) > limit;
        let (body, body_late) = match self.receiving {
            Some(ReceiveInFlight::Body { index, since }) => (Some(index), late(since)),
            Some(ReceiveInFlight::Head) | None => (None, false),
        };
        let send_late = self.sending.as_ref().is_some_and(|sending| late(sending.since));
        let waits = self.requests.iter().enumerate().filter(|(index, _)| Some(*index) != body);
        body_late
            || send_late
            || waits.filter_map(|(_, request)| request.as_ref()).any(|request| {
                let is_overtaken = request.sent < self.newest_answered;
                late(request.sent.max(self.answered)) || (is_overtaken && late(request.sent))
            })
    }

    /// Returns when the last unanswered request that changes the export was sent.
    pub(super) fn last_change(&self) -> Option<Instant> {
        self.requests
            .iter()
            .flatten()
            .filter(|request| matches!(request.kind, RequestKind::Write { .. } | RequestKind::Zero { .. }))
            .map(|request| request.sent)
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::{ExportFacts, ExportFlags, MetaContexts, ReplyStyle};
    use crate::ring::Token;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_send_that_waits_for_a_gate_does_not_age() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let facts = ExportFacts {
            size_bytes: 1 << 20,
            flags: ExportFlags(1),
            min_block_bytes: 1,
            preferred_block_bytes: 4096,
            max_payload_bytes: 1 << 20,
        };
        let (style, contexts) = (ReplyStyle::Simple, MetaContexts::default());
        let session = Session { socket: Arc::new(socket.into()), facts, style, contexts, is_tcp: false };
        let at = Duration::from_secs;
        let request = |sent| {
            Some(NbdRequest {
                token: Token(0),
                kind: RequestKind::Write { offset: 0 },
                block: None,
                start: 0,
                len: 512,
                sent,
            })
        };
        let mut active = ActiveSession::new(session, 0, 3, at(1));
        active.requests = vec![request(at(5)), request(at(7)), None];
        active.hold_send(at(20));
        assert!(active.sending.is_none());
        let body = Some((1, 0, 512));
        let sending =
            SendInFlight { outbox_at: 0, head_len: 28, body, sent: 100, since: at(7), in_ring: false, answered: None };
        active.sending = Some(sending);
        active.hold_send(at(20));
        let sent: Vec<_> = active.requests.iter().flatten().map(|request| request.sent).collect();
        assert_eq!((sent, active.sending.map(|sending| sending.since)), (vec![at(5), at(20)], Some(at(20))));
    }
}
