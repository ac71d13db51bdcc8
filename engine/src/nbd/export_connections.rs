//! Keeps the connections to one export, shared by the job, the workers and the dialer.
//!
//! They own the unused sessions. Workers take one each and return it healthy, or report that it was lost. Then all
//! sessions of the export are dropped, its _generation_ grows, and a dialer's thread makes new ones, with growing
//! pauses, until `retry_for` has passed without a single answer. Unflushed writes of an older generation may be lost,
//! as the server may have been restarted. The first permanent _failure_ ends the export for good.
//!
//! **When an export is quiet.** A request that was sent over a connection that is lost may still be carried out by the
//! server. The export is quiet when no request can take effect any more. Each one was answered, or the peer has closed
//! its connection, or [`REQUEST_LIFE`] has passed since it was sent.

use super::block_status::{BlockStatusCache, StatusAnswer};
use super::blocking_client::{self, BlockingClient};
use super::connection_revoker::ConnectionRevoker;
use super::dial::Dialer;
use super::{ExportFacts, NbdUri, Session};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::limits::{CONNECTIONS_MAX, DIAL_LIMIT, DRAIN_LIMIT, FURTHER_DIAL_LIMIT, REDIAL_BACKOFF, REQUEST_LIFE, TICK};
use crate::network::NetworkTerms;
use crate::ring::{Instant, clock};
use crate::sync::lock;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// All sessions of a job to one export.
#[derive(Debug)]
pub struct ExportConnections {
    dialer: Dialer,
    name: String,
    /// Span of the job: workers, which serve all jobs, log in it what happens to this export.
    span: tracing::Span,
    side: Side,
    terms: NetworkTerms,
    revoker: Arc<ConnectionRevoker>,
    facts: ExportFacts,
    /// Grows with every loss.
    generation: AtomicU64,
    /// Channels over this export: while there are any, only workers use sessions.
    served: AtomicUsize,
    /// Whether there is a failure.
    over: AtomicBool,
    /// Whether the server zeroes faster than it writes, as far as is known.
    zeroes_fast: AtomicBool,
    /// Whether block status was asked for.
    has_question: AtomicBool,
    state: Mutex<PoolState>,
}

#[derive(Debug)]
struct PoolState {
    idle: Vec<(u64, Session)>,
    /// Workers that wait for a session.
    waiting: usize,
    /// Workers that have not taken the session that was made for them.
    reserved: usize,
    /// Further sessions that would be of use.
    spare: usize,
    /// Whether the dialer's thread runs.
    dialing: bool,
    /// The job is over and waits for no session.
    closed: bool,
    /// Time at which the first session was lost since the last answer.
    lost_since: Option<Instant>,
    /// Losses since the last answer.
    losses: u32,
    failure: Option<Error>,
    /// Time from which on no request of a dropped connection can take effect.
    quiet_at: Instant,
    block_status: BlockStatusCache,
}

impl ExportConnections {
    /// Dials once.
    ///
    /// # Errors
    /// As [`Dialer::dial`]; `ENotFound` if the server does not have the bitmap.
    pub(crate) fn open(
        uri: &NbdUri,
        side: Side,
        terms: NetworkTerms,
        dirty_bitmap: Option<&str>,
        revoker: &Arc<ConnectionRevoker>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Arc<Self>> {
        let dialer = Dialer::new(uri, side, dirty_bitmap)?.with_user_timeout(revoker.user_timeout());
        let session = dialer.dial(DIAL_LIMIT, &|| cancelled() || revoker.is_revoked());
        if revoker.is_revoked() {
            return Err(revoker.error(side, &uri.to_string()));
        }
        let session = session?;
        revoker.register(&session.socket);
        let facts = session.facts.clone();
        if !facts.flags.can_flush() && !facts.flags.can_fua() && side == Side::Destination {
            tracing::warn!(export = %uri, "the server can neither flush nor write through: it is trusted to have no cache");
        }
        Ok(Arc::new(Self {
            dialer,
            name: uri.to_string(),
            span: tracing::Span::current(),
            side,
            terms,
            revoker: Arc::clone(revoker),
            zeroes_fast: AtomicBool::new(facts.flags.can_fast_zero()),
            facts,
            generation: AtomicU64::new(0),
            served: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            has_question: AtomicBool::new(false),
            state: Mutex::new(PoolState {
                block_status: BlockStatusCache::new(session.contexts),
                idle: vec![(0, session)],
                waiting: 0,
                reserved: 0,
                spare: 0,
                dialing: false,
                closed: false,
                lost_since: None,
                losses: 0,
                failure: None,
                quiet_at: Duration::ZERO,
            }),
        }))
    }

    pub(crate) fn facts(&self) -> &ExportFacts {
        &self.facts
    }

    /// Returns the canonical URI.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.terms.request_timeout
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Returns whether block status is there to be asked for.
    pub(crate) fn tells_extents(&self) -> bool {
        lock(&self.state).block_status.is_useful()
    }

    // What the job's thread does.

    /// Reads while no worker serves the export.
    ///
    /// # Errors
    /// The server's, with the range; `EUnreachable`.
    pub(crate) fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        self.with_client(|client| client.read(range)).map_err(|error| error.at(range.start(), range.len()))
    }

    /// Returns at most `max` extents from the start of `within` on. `None`: a request is pending, call again.
    ///
    /// # Errors
    /// The server's; what ended the export.
    pub(crate) fn extents(&self, within: ByteRange, max: usize) -> Result<Option<Vec<Extent>>> {
        if within.is_empty() || !self.tells_extents() {
            let data = Extent { range: within, kind: ExtentKind::Data };
            return Ok(Some(if within.is_empty() { Vec::new() } else { vec![data] }));
        }
        if self.served.load(Acquire) > 0 {
            if let Some(failure) = self.failure() {
                return Err(failure.at(within.start(), within.len()));
            }
            let answer = lock(&self.state).block_status.look(within, max);
            self.has_question.store(lock(&self.state).block_status.has_question(), Release);
            return answer.transpose();
        }
        loop {
            let mut state = lock(&self.state);
            if let Some(known) = state.block_status.look(within, max) {
                return known.map(Some);
            }
            let Some(question) = state.block_status.take_question() else { continue };
            drop(state);
            let extents = self.with_client(|client| client.status(question))?;
            lock(&self.state).block_status.answer(question, Ok(extents));
        }
    }

    /// Returns the number of workers that may serve the export, by its flags and the caller's terms.
    pub(crate) fn workers_allowed(&self, workers: usize) -> usize {
        let wanted = self.terms.connections.unwrap_or(CONNECTIONS_MAX).min(workers).max(1);
        if self.facts.flags.can_multi_conn() { wanted } else { 1 }
    }

    /// Connections of each of that many workers at most, spare ones included. None are spare towards a destination:
    /// writes over four connections to one file took twice as long as over two.
    pub(crate) fn connections_per_worker(&self, workers: usize) -> usize {
        if self.side == Side::Destination {
            return 1;
        }
        let all = if self.facts.flags.can_multi_conn() { self.terms.connections.unwrap_or(CONNECTIONS_MAX) } else { 1 };
        (all / workers.max(1)).max(1)
    }

    /// Makes a session for each of that many workers. Returns how many the server has accepted: it may have a limit of
    /// its own, or be full. Spare sessions are made meanwhile.
    pub(crate) fn connect(self: &Arc<Self>, workers: usize) -> usize {
        let made = self.connect_first(workers);
        let mut state = lock(&self.state);
        let idle = self.idle(&mut state).len();
        state.reserved = made;
        if made == workers {
            state.spare = (workers * self.connections_per_worker(workers)).saturating_sub(idle);
        }
        if state.spare > 0 {
            self.ensure_dialing(state);
        }
        made
    }

    fn connect_first(&self, workers: usize) -> usize {
        loop {
            let sessions = self.idle(&mut lock(&self.state)).len();
            if sessions >= workers {
                return workers;
            }
            let generation = self.generation();
            match self.redial(FURTHER_DIAL_LIMIT) {
                Ok(session) => self.return_session(generation, session),
                Err(error) => {
                    tracing::info!(parent: &self.span, export = %self.name, sessions, %error, "further connection failed");
                    // Without any session, the worker tries again.
                    return sessions.max(1);
                }
            }
        }
    }

    /// Registers a channel to the export: from now on only workers use its sessions.
    pub(crate) fn add_channel(&self) {
        self.served.fetch_add(1, AcqRel);
    }

    /// Unregisters a channel.
    pub(crate) fn remove_channel(&self) {
        self.served.fetch_sub(1, AcqRel);
    }

    /// Ends the export: says goodbye on every session and waits for the peers' close. Says whether nothing of it can
    /// land later.
    pub(crate) fn stop(&self, limit: Duration) -> bool {
        let until = clock() + limit;
        let (sessions, quiet_at) = {
            let mut state = lock(&self.state);
            state.closed = true;
            (std::mem::take(&mut state.idle), state.quiet_at)
        };
        let sockets: Vec<_> = sessions.into_iter().map(|(_, session)| session).collect();
        let closed = blocking_client::disconnect(sockets, until);
        closed && clock() >= quiet_at
    }

    // What workers do.

    /// A session of the present generation, with that generation.
    pub(crate) fn take_session(&self) -> Option<(u64, Session)> {
        self.idle(&mut lock(&self.state)).pop()
    }

    /// As above, for a worker that needs a session: without one the worker counts as waiting, which `waiting` stores,
    /// and new sessions are made. Call again until there is one: other workers may have been faster.
    pub(crate) fn take_or_wait(self: &Arc<Self>, waiting: &mut bool) -> Option<(u64, Session)> {
        let mut state = lock(&self.state);
        let taken = self.idle(&mut state).pop();
        match (&taken, *waiting) {
            (Some(_), true) => state.waiting -= 1,
            (Some(_), false) => state.reserved = state.reserved.saturating_sub(1),
            (None, false) => {
                state.waiting += 1;
                state.lost_since.get_or_insert(clock());
            }
            (None, true) => {}
        }
        *waiting = taken.is_none();
        if *waiting {
            self.ensure_dialing(state);
        }
        taken
    }

    /// As [`ExportConnections::take_session`], unless other workers wait for one.
    pub(crate) fn take_spare_session(&self) -> Option<(u64, Session)> {
        let mut state = lock(&self.state);
        let needed = state.waiting + state.reserved;
        let idle = self.idle(&mut state);
        if idle.len() > needed { idle.pop() } else { None }
    }

    /// Stops waiting for a session.
    pub(crate) fn stop_waiting(&self, waiting: &mut bool) {
        if std::mem::take(waiting) {
            lock(&self.state).waiting -= 1;
        }
    }

    /// Returns an idle session.
    pub(crate) fn return_session(&self, generation: u64, session: Session) {
        lock(&self.state).idle.push((generation, session));
    }

    /// A session of that generation was lost.
    pub(crate) fn connection_lost(&self, generation: u64, why: &str) {
        let mut state = lock(&self.state);
        if self.generation() == generation {
            tracing::warn!(parent: &self.span, export = %self.name, generation, why, "connection lost");
            self.generation.store(generation + 1, Release);
            state.losses += 1;
            state.reserved = 0;
            state.block_status.forget();
        }
    }

    /// Returns the idle sessions of the present generation; the others are closed.
    fn idle<'a>(&self, state: &'a mut PoolState) -> &'a mut Vec<(u64, Session)> {
        let generation = self.generation();
        state.idle.retain(|(of, _)| *of == generation);
        &mut state.idle
    }

    fn ensure_dialing(self: &Arc<Self>, mut state: MutexGuard<'_, PoolState>) {
        if state.dialing || state.closed || state.failure.is_some() {
            return;
        }
        state.dialing = true;
        let export = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("dialer".to_owned()).spawn(move || export.dial_until_done());
        if let Err(error) = spawned {
            state.dialing = false;
            let is_wanted = state.waiting > 0;
            drop(state);
            if !is_wanted {
                tracing::info!(parent: &self.span, export = %self.name, %error, "cannot start a thread for spare connections");
                return;
            }
            self.fail(Error::io(self.side, Operation::Open, &error, "start a thread to dial again"));
        }
    }

    /// Notes that the server has answered on the present generation.
    pub(crate) fn note_answer(&self) {
        let mut state = lock(&self.state);
        (state.lost_since, state.losses) = (None, 0);
    }

    /// Requests that may still land were given up; the last of them was sent then.
    pub(crate) fn note_unanswered(&self, sent: Instant) {
        let mut state = lock(&self.state);
        state.quiet_at = state.quiet_at.max(sent + REQUEST_LIFE);
    }

    /// Ends the export. The first failure holds.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.state).failure.get_or_insert(error);
        self.over.store(true, Release);
    }

    /// Returns the error that has ended the export.
    pub(crate) fn failure(&self) -> Option<Error> {
        match self.over.load(Acquire) {
            true => lock(&self.state).failure.clone(),
            false => self.revoker.is_revoked().then(|| self.revoker.error(self.side, &self.name)),
        }
    }

    /// Returns whether the job's owner has cut its connections: what was sent and not answered may still land.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoker.is_revoked()
    }

    /// Returns whether what changes the export waits for a gate.
    pub(crate) fn is_gated(&self) -> bool {
        self.side == Side::Destination && self.revoker.gate().is_some()
    }

    /// Returns whether nothing that changes the export may be sent now.
    pub(crate) fn is_gate_closed(&self) -> bool {
        self.side == Side::Destination && !self.revoker.is_open()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.over.load(Acquire) || self.revoker.is_revoked()
    }

    /// Returns whether a request for block status is pending.
    pub(crate) fn has_question(&self) -> bool {
        self.has_question.load(Relaxed)
    }

    /// Takes the range whose block status is requested; the worker that takes it must answer or return it.
    pub(crate) fn take_question(&self) -> Option<ByteRange> {
        if !self.has_question.swap(false, AcqRel) {
            return None;
        }
        lock(&self.state).block_status.take_question()
    }

    /// Stores the block status that a session of `generation` has returned; if the generation has grown, the request is
    /// repeated.
    pub(crate) fn answer_question(&self, generation: u64, question: ByteRange, scan: StatusAnswer) {
        let mut state = lock(&self.state);
        if self.generation() == generation {
            return state.block_status.answer(question, scan);
        }
        drop(state);
        self.retract_question(question);
    }

    pub(crate) fn retract_question(&self, question: ByteRange) {
        lock(&self.state).block_status.retract(question);
        self.has_question.store(true, Release);
    }

    pub(crate) fn zeroes_fast(&self) -> bool {
        self.zeroes_fast.load(Relaxed)
    }

    pub(crate) fn set_zeroes_slowly(&self) {
        self.zeroes_fast.store(false, Relaxed);
    }

    // What the dialer does.

    /// The life of the dialer's thread.
    fn dial_until_done(&self) {
        let (mut failures, mut since) = (0, clock());
        while let Some(task) = self.next_dial(failures, since) {
            match task {
                DialTask::Wanted { pause, deadline } => {
                    self.sleep(pause);
                    let waited = self.wait_for_gate();
                    since += waited;
                    let is_made = self.dial_wanted(deadline.saturating_add(waited));
                    (failures, since) = if is_made { (0, clock()) } else { (failures + 1, since) };
                }
                DialTask::Spare => {
                    self.wait_for_gate();
                    self.dial_spare();
                }
            }
        }
    }

    /// Returns the next dial; `None` ends the thread. `since` is when the last session was made.
    fn next_dial(&self, failures: u32, since: Instant) -> Option<DialTask> {
        let mut state = lock(&self.state);
        let is_wanted = state.waiting > self.idle(&mut state).len();
        let is_over = state.closed || state.failure.is_some() || self.revoker.is_revoked();
        if is_over || !(is_wanted || state.spare > 0) {
            state.dialing = false;
            return None;
        }
        if !is_wanted {
            return Some(DialTask::Spare);
        }
        // Other sessions may get replies while the server accepts no further connection.
        let since = state.lost_since.map_or(since, |lost| lost.min(since));
        let pause = REDIAL_BACKOFF.wait(failures.max(state.losses.saturating_sub(1)));
        Some(DialTask::Wanted { pause, deadline: since.saturating_add(self.terms.retry_for) })
    }

    /// Tries once to make a session that is waited for. Says whether it has.
    fn dial_wanted(&self, deadline: Instant) -> bool {
        let generation = self.generation();
        let dialed = self.redial(DIAL_LIMIT);
        let late = clock() >= deadline;
        match dialed {
            Ok(_) if late => self.fail(self.unreachable("it takes connections, but answers nothing")),
            Ok(session) => {
                self.return_session(generation, session);
                return true;
            }
            Err(error) if matches!(error.code, Code::Protocol | Code::SourceChanged) => self.fail(error),
            Err(error) if late => self.fail(self.unreachable(&error.message)),
            Err(error) => tracing::info!(parent: &self.span, export = %self.name, %error, "reconnect failed"),
        }
        false
    }

    /// Tries once to make a session that would be of use. A server that does not let it in is not asked again.
    fn dial_spare(&self) {
        let generation = self.generation();
        let dialed = self.redial(FURTHER_DIAL_LIMIT);
        let mut state = lock(&self.state);
        state.spare = if dialed.is_ok() { state.spare.saturating_sub(1) } else { 0 };
        drop(state);
        match dialed {
            Ok(session) => self.return_session(generation, session),
            Err(error) => tracing::info!(parent: &self.span, export = %self.name, %error, "spare connection failed"),
        }
    }

    /// A further session, which must be to the same export. None is made while the gate is closed.
    fn redial(&self, limit: Duration) -> Result<Session> {
        if !self.revoker.is_open() {
            let message = format!("{} is not connected to while the right to write is not held", self.name);
            return Err(Error::new(Code::Unreachable, self.side, Operation::Open, message));
        }
        let is_over = || self.revoker.is_revoked() || lock(&self.state).closed;
        let session = self.dialer.dial(limit.min(self.terms.retry_for), &is_over)?;
        self.revoker.register(&session.socket);
        let is_same = session.facts == self.facts && self.same_contexts(&session);
        if is_same { Ok(session) } else { Err(self.changed(&session.facts)) }
    }

    fn same_contexts(&self, session: &Session) -> bool {
        lock(&self.state).block_status.fits(session.contexts)
    }

    fn sleep(&self, pause: Duration) {
        let until = clock() + pause;
        while clock() < until && !lock(&self.state).closed {
            std::thread::sleep(until.saturating_sub(clock()).min(TICK));
        }
    }

    /// Waits until the gate permits connections. The wait does not count as time without the server.
    fn wait_for_gate(&self) -> Duration {
        let since = clock();
        while !self.revoker.is_open() && !self.revoker.is_revoked() && !lock(&self.state).closed {
            std::thread::sleep(TICK);
        }
        let waited = clock() - since;
        let lost_since = &mut lock(&self.state).lost_since;
        *lost_since = lost_since.map(|lost| lost + waited);
        waited
    }

    fn changed(&self, now: &ExportFacts) -> Error {
        let (name, was) = (&self.name, &self.facts);
        let message = format!(
            "{name} is another export since the connection was lost: {} bytes with flags {:#x}, was {} bytes with flags {:#x}",
            now.size_bytes, now.flags.0, was.size_bytes, was.flags.0
        );
        let code = if self.side == Side::Source { Code::SourceChanged } else { Code::Protocol };
        Error::new(code, self.side, Operation::Open, message)
            .advise("find out who changed it, and start over with --restart")
    }

    fn unreachable(&self, why: &str) -> Error {
        let (name, limit) = (&self.name, self.terms.retry_for.as_secs_f64());
        let message = format!("{name} did not come back within {limit} s: {why}");
        Error::new(Code::Unreachable, self.side, Operation::Open, message)
            .advise("go on with --resume when it is there again, or wait longer with --retry-for")
            .maybe_applied()
    }

    /// Asks the server over an idle session, or over a new one.
    fn with_client<T>(&self, ask: impl FnOnce(&mut BlockingClient<'_>) -> Result<T>) -> Result<T> {
        let (generation, session) = match self.take_session() {
            Some(taken) => taken,
            None => (self.generation(), self.redial(DIAL_LIMIT)?),
        };
        // Cancels are not checked meanwhile: the limit keeps the delay of a stop below the drain limit.
        let limit = self.terms.request_timeout.min(DRAIN_LIMIT);
        let mut client = BlockingClient::new(&session, self.side, &self.name, limit);
        let answer = ask(&mut client);
        // After a failure replies may still be in flight.
        if client.is_reusable() {
            self.return_session(generation, session);
        }
        answer
    }
}

impl Drop for ExportConnections {
    /// Disconnects an export that was not stopped, as its job was refused, without waiting.
    fn drop(&mut self) {
        let sessions = std::mem::take(&mut lock(&self.state).idle);
        blocking_client::disconnect(sessions.into_iter().map(|(_, session)| session).collect(), Duration::ZERO);
    }
}

/// Next dial of the dialer's thread.
enum DialTask {
    /// A session that a worker waits for: after a pause, and until a deadline.
    Wanted { pause: Duration, deadline: Instant },
    /// A spare session.
    Spare,
}
