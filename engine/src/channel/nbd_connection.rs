//! Carries the operations of one worker over one connection to an export.
//!
//! ```text
//! accept -> queue -> [send] -> requests -> [receive head] -> events -> answers -> worker
//!             ^                   |              `-> [receive body, straight into the slot's block]
//!             `---- lost ---------'
//! ```
//! At most one send and one receive are in flight at a time, as a stream has an order. A send carries the headers of
//! all requests that wait, up to and including the first one with a payload, which follows from the slot's own block.
//!
//! A connection that fails, stalls, or belongs to an older generation of its export is _broken_. It is shut down, which
//! makes the kernel give back whatever it holds, and then closed. Its requests wait for the next session and are sent
//! again. They are answered with an error only when the export has failed for good or the job gives up.

use super::active_session::{ActiveSession, ReceiveInFlight, SendInFlight};
use super::nbd_request::{NbdRequest, RequestKind};
use crate::buffer::{Arena, Block};
use crate::error::{Code, Error, Operation};
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::limits::ZERO_COPY_BYTES_MIN;
use crate::nbd::Session;
use crate::nbd::block_status::{StatusDescriptors, merge};
use crate::nbd::codec::REQUEST_BYTES_MAX;
use crate::nbd::export_connections::ExportConnections;
use crate::nbd::replies::{NextReceive, ProtocolViolation, Replies, ReplyEvent};
use crate::ring::{Completion, Instant, Op, Token, Transfer};
use nix::errno::Errno;
use nix::libc::linger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// Sends of a connection at a time: zero-copy sends in flight, and one more.
const OUTBOXES_MAX: usize = 16;
/// Bytes of a connection's buffer for headers, each way.
const HEAD_BYTES: usize = 4096;

/// Direction of a ring operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Send,
    Receive,
}

/// Whether a connection must be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionRank {
    /// The connection waits for a session.
    Primary,
    /// The connection takes a session if one is available.
    Spare,
}

/// One worker's connection to an export.
#[derive(Debug)]
pub(crate) struct NbdConnection {
    export: Arc<ExportConnections>,
    rank: ConnectionRank,
    active: Option<ActiveSession>,
    /// Whether the export counts this connection as waiting for a session.
    waiting: bool,
    /// Requests that are not sent yet.
    queue: VecDeque<NbdRequest>,
    /// Most requests on the connection.
    slots: usize,
    /// Buffer for headers of replies; `None` while the ring has it.
    inbox: Option<Block>,
    /// Buffers for headers of requests; absent while the ring has them.
    outboxes: Vec<Block>,
    answers: VecDeque<Completion>,
    events: Vec<ReplyEvent>,
}

impl NbdConnection {
    /// Creates a connection for at most `slots` operations at a time.
    pub(super) fn new(
        export: Arc<ExportConnections>,
        rank: ConnectionRank,
        slots: usize,
    ) -> crate::error::Result<Self> {
        let arena = Arc::new(Arena::of_small_pages((1 + OUTBOXES_MAX) * HEAD_BYTES)?);
        let mut heads = arena.split(HEAD_BYTES, 1 + OUTBOXES_MAX);
        Ok(Self {
            export,
            rank,
            active: None,
            waiting: false,
            queue: VecDeque::with_capacity(slots),
            slots,
            inbox: heads.pop(),
            outboxes: heads,
            answers: VecDeque::with_capacity(slots),
            events: Vec::with_capacity(slots),
        })
    }

    /// Accepts an operation. [`NbdConnection::answer`] returns its completion exactly once.
    pub(crate) fn accept(&mut self, token: Token, op: Op) {
        let request = NbdRequest::of(token, op, &self.export);
        match request.answer_at_once(&self.export) {
            Some(result) => self.answers.push_back(request.answered(result)),
            None => self.queue.push_back(request),
        }
    }

    /// Returns the next completed operation.
    pub(crate) fn answer(&mut self) -> Option<Completion> {
        self.answers.pop_front()
    }

    /// Advances the connection: breaks it if it is overdue or outdated, closes it when it is broken, and takes a new
    /// session. With `give_up` requests do not wait for a session.
    pub(crate) fn turn(&mut self, now: Instant, give_up: bool) {
        if let Some(active) = &mut self.active
            && !active.broken
        {
            if self.export.has_ended() {
                self.break_connection("the export is over", false);
            } else if active.generation != self.export.generation() {
                self.break_connection("another connection to the same server was lost", false);
            } else if active.is_overdue(now, &self.export) {
                self.break_connection("the server does not answer", false);
            }
        }
        if give_up && self.export.is_gate_closed() {
            self.give_up_held();
        }
        self.close_broken();
        if self.active.is_some() {
            return;
        }
        let is_over = self.export.has_ended() || give_up;
        if is_over {
            self.fail_queue();
        }
        if is_over || (self.rank == ConnectionRank::Primary && self.queue.is_empty() && !self.export.has_question()) {
            self.export.stop_waiting(&mut self.waiting);
            return;
        }
        let session = match self.rank {
            ConnectionRank::Primary => self.export.take_or_wait(&mut self.waiting),
            ConnectionRank::Spare => self.export.take_spare_session(),
        };
        if let Some((generation, session)) = session {
            self.active = Some(ActiveSession::new(session, generation, self.slots, now));
        }
    }

    /// Returns the number of requests that are not answered yet.
    pub(super) fn load(&self) -> usize {
        self.queue.len() + self.active.as_ref().map_or(0, |active| active.replies.outstanding())
    }

    /// Returns whether the connection is open and not broken.
    pub(super) fn is_up(&self) -> bool {
        self.active.as_ref().is_some_and(|active| !active.broken)
    }

    /// Returns whether the connection is open or has requests.
    pub(super) fn is_used(&self) -> bool {
        self.active.is_some() || !self.queue.is_empty()
    }

    /// Passes its requests to another connection of the same export, unless this one is open.
    pub(super) fn hand_over(&mut self, first: &mut Self) {
        if self.active.is_none() {
            first.queue.append(&mut self.queue);
        }
    }

    /// Abandons requests that wait for a closed gate; they are never sent.
    fn give_up_held(&mut self) {
        self.fail_queue();
        let is_half_sent = |active: &ActiveSession| active.sending.as_ref().is_some_and(|sending| !sending.in_ring);
        if self.active.as_ref().is_some_and(is_half_sent) {
            self.shut_down(false);
        }
    }

    fn fail_queue(&mut self) {
        while let Some(request) = self.queue.pop_front() {
            match request.kind {
                RequestKind::Status { range, .. } => self.export.retract_question(range),
                RequestKind::Read { .. }
                | RequestKind::Write { .. }
                | RequestKind::Zero { .. }
                | RequestKind::Flush => {
                    self.answers.push_back(request.answered(Err(Errno::EHOSTUNREACH)));
                }
            }
        }
    }

    /// Returns the next operation for the ring.
    pub(crate) fn next_op(&mut self, now: Instant, give_up: bool) -> Option<(Direction, Op)> {
        if self.active.as_ref().is_none_or(|active| active.broken) {
            return None;
        }
        if !give_up && let Some(question) = self.export.take_question() {
            self.queue.push_front(NbdRequest::status(question));
        }
        let out = self.next_send(now).map(|op| (Direction::Send, op));
        out.or_else(|| self.next_receive(now).map(|op| (Direction::Receive, op)))
    }

    fn next_send(&mut self, now: Instant) -> Option<Op> {
        // A gate cannot hold back a send that the kernel continues by itself.
        let (is_shut, waits) = (self.export.is_gate_closed(), !self.export.is_gated());
        let active = self.active.as_mut()?;
        match &active.sending {
            Some(sending) if sending.in_ring => return None,
            Some(_) if is_shut => {
                active.hold_send(now);
                return None;
            }
            Some(_) if active.full => return active.ask_for_room(),
            Some(_) => return active.rest_of_send(&mut self.outboxes, waits),
            None => {}
        }
        let next = |queue: &VecDeque<NbdRequest>| queue.iter().position(|request| !(is_shut && request.changes()));
        if next(&self.queue).is_none() || active.replies.outstanding() == self.slots {
            return None;
        }
        let mut outbox = self.outboxes.pop()?;
        let mut head_len = 0;
        let (mut payload, mut body) = (None, None);
        while payload.is_none()
            && head_len + REQUEST_BYTES_MAX <= outbox.len()
            && active.replies.outstanding() < self.slots
            && let Some(mut request) = next(&self.queue).and_then(|at| self.queue.remove(at))
        {
            let (mut header, expected) = request.header(&self.export);
            header.cookie = active.replies.expect(expected);
            let index = Replies::index(header.cookie);
            head_len += header.encode(active.session().style, &mut outbox[head_len..]);
            request.sent = now;
            if let RequestKind::Write { .. } = request.kind {
                let block = request.block.take().expect("a write that waits has its block");
                payload = Some(Transfer { block, start: request.start, len: request.len });
                body = Some((index, request.start, request.len));
            }
            active.requests[index] = Some(request);
        }
        let head_len = u32::try_from(head_len).expect("within the buffer");
        let zero_copy =
            waits && active.zero_copy && payload.as_ref().is_some_and(|payload| payload.len >= ZERO_COPY_BYTES_MIN);
        let outbox_at = outbox.as_ptr() as usize;
        active.sending =
            Some(SendInFlight { outbox_at, head_len, body, sent: 0, since: now, in_ring: true, answered: None });
        let head = Transfer { block: outbox, start: 0, len: head_len };
        Some(Op::Send { file: active.file(), head, body: payload, zero_copy, waits })
    }

    fn next_receive(&mut self, now: Instant) -> Option<Op> {
        let active = self.active.as_mut()?;
        if active.receiving.is_some() || active.replies.outstanding() == 0 {
            return None;
        }
        let file = active.file();
        match active.replies.wants() {
            NextReceive::Head { most } => {
                let inbox = self.inbox.take()?;
                let len = u32::try_from(most.min(inbox.len())).expect("within the buffer");
                active.receiving = Some(ReceiveInFlight::Head);
                let head = Some(Transfer { block: inbox, start: 0, len });
                Some(Op::Receive { file, head, body: None, all: false })
            }
            NextReceive::Body { index, at, len } => {
                let request = active.requests[index].as_mut().expect("a body belongs to a request that waits for it");
                let block = request.block.take().expect("a read that waits has its block");
                active.receiving = Some(ReceiveInFlight::Body { index, since: now });
                let body = Some(Transfer { block, start: request.start + at, len });
                Some(Op::Receive { file, head: None, body, all: true })
            }
        }
    }

    /// Handles a completion of the ring.
    pub(crate) fn completed(&mut self, direction: Direction, completion: Completion) {
        match direction {
            Direction::Send => self.sent(completion),
            Direction::Receive => self.received(completion),
        }
        self.close_broken();
    }

    fn sent(&mut self, completion: Completion) {
        let Completion { result, block, head, copied, more, .. } = completion;
        let active = self.active.as_mut().expect("a connection stays while the ring works for it");
        if std::mem::take(&mut active.asks_for_room) {
            // The next send shows whether the connection is broken.
            active.full = false;
            return;
        }
        active.zero_copy &= !copied;
        if more {
            return self.zero_copy_sent(result);
        }
        let lent = head.as_ref().and_then(|head| {
            let at = head.as_ptr() as usize;
            active.lent.iter().position(|sending| sending.outbox_at == at)
        });
        if let Some(lent) = lent {
            let sending = active.lent.swap_remove(lent);
            self.outboxes.extend(head);
            return self.zero_copy_released(sending, block);
        }
        let sending = active.sending.as_mut().expect("a send completes once");
        sending.in_ring = false;
        // The rest of a short send is sent as the head.
        let rest_of_body = block.is_none() && sending.sent >= sending.head_len;
        let (outbox, payload) = if rest_of_body { (None, head) } else { (head, block) };
        self.outboxes.extend(outbox);
        active.put_back(payload);
        let sending = active.sending.as_mut().expect("it is still there");
        match result {
            Ok(bytes) if bytes > 0 => sending.sent += bytes,
            Ok(_) => return self.break_connection("it takes no more bytes", true),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return self.break_connection(errno.desc(), is_closed_by_peer(errno)),
        }
        active.full = self.export.is_gated() && !sending.is_sent();
        if sending.is_sent() {
            let finished = active.sending.take().and_then(|sending| sending.answered);
            if let Some((request, result)) = finished {
                self.finish(request, result);
            }
        }
    }

    /// Handles the first completion of a zero-copy send: the next send may follow.
    fn zero_copy_sent(&mut self, result: Result<u32, Errno>) {
        let active = self.active.as_mut().expect("a connection stays while the ring works for it");
        let mut sending = active.sending.take().expect("a send is answered once");
        sending.in_ring = false;
        sending.sent += result.unwrap_or(0);
        let is_sent = sending.is_sent();
        active.lent.push(sending);
        if !is_sent {
            // The rest cannot follow while the network uses the memory.
            self.break_connection("it takes no more bytes", true);
        }
    }

    /// Handles the second completion of a zero-copy send: the memory is free.
    fn zero_copy_released(&mut self, sending: SendInFlight, block: Option<Block>) {
        let (Some(block), Some((index, ..))) = (block, sending.body) else { return };
        if let Some((mut request, result)) = sending.answered {
            request.block = Some(block);
            return self.finish(request, result);
        }
        let active = self.active.as_mut().expect("a connection stays while its memory is lent");
        active.requests[index].as_mut().expect("it was not answered yet").block = Some(block);
    }

    fn received(&mut self, Completion { result, block, head, .. }: Completion) {
        let active = self.active.as_mut().expect("a connection stays while the ring works for it");
        let receiving = active.receiving.take().expect("a receive completes once");
        if let (ReceiveInFlight::Body { index, .. }, Some(block)) = (receiving, block) {
            active.requests[index].as_mut().expect("its body was on its way").block = Some(block);
        }
        self.inbox = self.inbox.take().or(head);
        if active.broken {
            return;
        }
        let bytes = match result {
            Ok(0) => return self.break_connection("the server has closed the connection", true),
            Ok(bytes) => bytes,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(errno) => return self.break_connection(errno.desc(), is_closed_by_peer(errno)),
        };
        let parsed = match (receiving, &self.inbox) {
            (ReceiveInFlight::Head, Some(inbox)) => active.replies.head(&inbox[..bytes as usize], &mut self.events),
            (ReceiveInFlight::Head, None) => unreachable!("the buffer has just come back"),
            (ReceiveInFlight::Body { .. }, _) => active.replies.body(bytes, &mut self.events),
        };
        self.act();
        if let Err(violation) = parsed {
            self.protocol_error(&violation);
        }
    }

    /// Applies the events of parsed replies.
    fn act(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            let Some(active) = self.active.as_mut() else { break };
            match event {
                ReplyEvent::Hole { index, at, len } => {
                    let request = active.requests[index].as_mut().expect("a reply belongs to a request");
                    let start = (request.start + at) as usize;
                    let block = request.block.as_mut().expect("no body of it is on its way");
                    block[start..start + len as usize].fill(0);
                }
                ReplyEvent::Early { index, from, at, len } => {
                    // The receive was started before the read was sent.
                    let (Some(inbox), Some(request)) = (&self.inbox, active.requests[index].as_mut()) else { continue };
                    let (start, len) = ((request.start + at) as usize, len as usize);
                    let block = request.block.as_mut().expect("no body of it is on its way");
                    block[start..start + len].copy_from_slice(&inbox[from..from + len]);
                }
                ReplyEvent::Status { index, context, extents } => {
                    let is_dirty = active.session().contexts.dirty == Some(context);
                    let request = active.requests[index].as_mut().expect("a reply belongs to a request");
                    match &mut request.kind {
                        RequestKind::Status { dirty, .. } if is_dirty => *dirty = Some(extents),
                        RequestKind::Status { allocation, .. } => *allocation = Some(extents),
                        RequestKind::Read { .. }
                        | RequestKind::Write { .. }
                        | RequestKind::Zero { .. }
                        | RequestKind::Flush => {}
                    }
                }
                ReplyEvent::Done { index, result } => self.done(index, result),
            }
        }
        self.events = events;
    }

    fn done(&mut self, index: usize, result: Result<(), Errno>) {
        let Some(active) = self.active.as_mut() else { return };
        active.answers = true;
        if !std::mem::replace(&mut active.heard, true) {
            self.export.note_answer();
        }
        let request = active.requests[index].take().expect("a request is answered once");
        active.newest_answered = active.newest_answered.max(request.sent);
        // Also if its block is returned: the rest of its payload must still be sent.
        match active.sending.iter_mut().chain(&mut active.lent).find(|sending| sending.holds(index)) {
            Some(sending) => sending.answered = Some((request, result)),
            None => self.finish(request, result),
        }
    }

    /// Completes a request that is answered and whose memory is returned.
    fn finish(&mut self, mut request: NbdRequest, result: Result<(), Errno>) {
        if result == Err(Errno::ESHUTDOWN) {
            self.queue.push_back(request);
            // The server may still be busy with other requests.
            return self.break_connection("the server is shutting down", false);
        }
        match (&mut request.kind, result) {
            (RequestKind::Zero { left, .. }, Ok(())) => {
                let rest = ByteRange::new(left.start() + u64::from(request.len), left.end());
                *left = rest;
                if !rest.is_empty() {
                    return self.queue.push_front(request);
                }
            }
            (RequestKind::Zero { fast: true, .. }, Err(Errno::EOPNOTSUPP)) => {
                self.export.set_zeroes_slowly();
                return self.queue.push_front(request);
            }
            (RequestKind::Status { range, allocation, dirty }, result) => {
                let (range, scan) = (*range, (allocation.take(), dirty.take()));
                return self.answer_question(range, scan, result);
            }
            (
                RequestKind::Read { .. } | RequestKind::Write { .. } | RequestKind::Zero { .. } | RequestKind::Flush,
                _,
            ) => {}
        }
        let bytes = if matches!(request.kind, RequestKind::Zero { .. }) { 0 } else { request.len };
        self.answers.push_back(request.answered(result.map(|()| bytes)));
    }

    fn answer_question(
        &mut self,
        range: ByteRange,
        (allocation, dirty): (Option<StatusDescriptors>, Option<StatusDescriptors>),
        result: Result<(), Errno>,
    ) {
        let Some(active) = &self.active else { return self.export.retract_question(range) };
        let (generation, has_bitmap) = (active.generation, active.session().contexts.dirty.is_some());
        let scan = match result {
            Ok(()) if has_bitmap && dirty.is_none() => {
                return self.protocol_error(&ProtocolViolation("a block status without the dirty bitmap"));
            }
            Ok(()) => Ok(merge(range, allocation, dirty)),
            Err(errno) if has_bitmap => {
                let what = format!("ask {} for its dirty bitmap", self.export.name());
                Err(Error::os(self.export.side(), Operation::Map, errno, what).at(range.start(), range.len()))
            }
            // A failed request for block status counts as data.
            Err(errno) => {
                tracing::debug!(export = self.export.name(), offset = range.start(), %errno, "no block status");
                Ok(vec![Extent { range, kind: ExtentKind::Data }])
            }
        };
        self.export.answer_question(generation, range, scan);
    }

    /// Fails the export after a violation of the protocol.
    fn protocol_error(&mut self, violation: &ProtocolViolation) {
        let message = format!("{} broke the protocol: {}", self.export.name(), violation.0);
        let error = Error::new(Code::Protocol, self.export.side(), Operation::Read, message)
            .advise("report it to the vendor of the server");
        self.export.fail(error);
        self.break_connection("it broke the protocol", false);
    }

    /// Breaks the connection. `closed`: the peer has closed it, so that no request takes effect later.
    fn break_connection(&mut self, why: &str, closed: bool) {
        let generation = self.shut_down(closed).filter(|_| !self.export.has_ended());
        generation.into_iter().for_each(|generation| self.export.connection_lost(generation, why));
    }

    /// Shuts the connection down and returns its generation; `None` if no working connection is open.
    fn shut_down(&mut self, closed: bool) -> Option<u64> {
        let active = self.active.as_mut().filter(|active| !active.broken)?;
        active.broken = true;
        let session = active.session();
        // A server that has ended has closed all of its connections, whichever connection noticed it first; a cut path
        // has closed none.
        let closed = (closed || is_hung_up(session)) && !self.export.is_revoked();
        if session.is_tcp {
            // The close drops unsent bytes, which would otherwise be sent later.
            let _ = setsockopt(&session.socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 });
        }
        // Completes the operations of the ring on the socket.
        let _ = shutdown(session.socket.as_raw_fd(), Shutdown::Both);
        if let Some(sent) = active.last_change().filter(|_| !closed) {
            self.export.note_unanswered(sent);
        }
        Some(active.generation)
    }

    /// Closes a broken connection once the ring has returned all of its memory.
    fn close_broken(&mut self) {
        let is_out = |active: &ActiveSession| {
            active.broken
                && active.receiving.is_none()
                && !active.asks_for_room
                && active.sending.as_ref().is_none_or(|sending| !sending.in_ring)
        };
        let Some(active) = self.active.as_mut().filter(|active| is_out(active)) else { return };
        // Closing the socket makes the network release the memory of zero-copy sends.
        active.session = None;
        if !active.lent.is_empty() {
            return;
        }
        let Some(ActiveSession { requests, sending, .. }) = self.active.take() else { return };
        let answered = sending.and_then(|sending| sending.answered);
        for request in requests.into_iter().flatten().chain(answered.map(|(request, _)| request)) {
            match request.kind {
                RequestKind::Status { range, .. } => self.export.retract_question(range),
                RequestKind::Read { .. }
                | RequestKind::Write { .. }
                | RequestKind::Zero { .. }
                | RequestKind::Flush => {
                    self.queue.push_back(request);
                }
            }
        }
    }

    /// Returns whether no request and no ring operation is pending.
    pub(crate) fn is_idle(&self) -> bool {
        let quiet = |active: &ActiveSession| {
            !active.broken
                && active.sending.is_none()
                && active.lent.is_empty()
                && active.receiving.is_none()
                && active.replies.outstanding() == 0
        };
        self.queue.is_empty() && self.answers.is_empty() && self.active.as_ref().is_none_or(quiet)
    }

    /// Abandons all requests, as the job does not wait for them any more.
    pub(crate) fn abandon(&mut self) {
        self.break_connection("its job has given up", false);
    }

    /// Returns the session to the export. Call when [`NbdConnection::is_idle`].
    pub(crate) fn close(mut self) {
        self.export.stop_waiting(&mut self.waiting);
        if let Some(ActiveSession { session: Some(session), generation, .. }) = self.active.take() {
            self.export.return_session(generation, session);
        }
    }
}

/// Returns whether the peer is known to have closed a connection.
fn is_hung_up(session: &Session) -> bool {
    // The crate has no name for it, and no answer where it is set.
    let half_closed = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
    let mut fds = [PollFd::new(session.socket.as_fd(), half_closed)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && fds[0].revents().is_none_or(|found| found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// Returns whether the peer has ended a connection. A connection that the network has lost may still be served.
fn is_closed_by_peer(errno: Errno) -> bool {
    matches!(errno, Errno::ECONNRESET | Errno::EPIPE)
}
