//! Sends the log of an attempt to a client: the leader reads it, part by part, from the node that runs or ran the attempt.
//!
//! ```text
//!  record -> attempt, node -> registration -> part, part, ... -> end: the attempt is over, or its node is away
//! ```
//! A node that is away, or does not answer within two seconds, is named in the answer. A client that follows waits for it;
//! any other one learns it at once.

use super::error::RpcError;
use super::limits::{HEARTBEAT_EVERY, LOG_EVERY};
use super::wire;
use crate::dispatcher::DispatcherHandle;
use crate::model::{Attempt, TaskId, TaskRecord};
use crate::peers::{CallError, LogPart, LogQuery, Peer, RunnerClient};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

/// Parts that wait for a slow reader; the next one is read when there is room again.
pub(super) const LOG_QUEUE: usize = 2;

/// Time for which the log of an ended attempt is read on although its node says that more may come: something of the
/// attempt is left there that will never end.
const LINGER: Duration = Duration::from_secs(5);

/// Attempt that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// The last one.
    Last,
    /// The one with this number, from 1.
    Number(u32),
    /// The one that was assigned then, in milliseconds since 1970.
    Assigned(u64),
}

/// A client and the log that it reads.
pub(super) struct LogReader {
    pub(super) id: TaskId,
    pub(super) which: Which,
    pub(super) follows: bool,
    pub(super) offset: u64,
    pub(super) task: watch::Receiver<Arc<TaskRecord>>,
    pub(super) dispatcher: DispatcherHandle,
    pub(super) runners: Arc<dyn RunnerClient>,
    pub(super) events: mpsc::Sender<std::result::Result<wire::LogsEvent, Status>>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) _place: OwnedSemaphorePermit,
}

/// Attempt whose log is read.
#[derive(Clone, Debug)]
struct Found {
    number: u32,
    attempt: Attempt,
}

/// What comes next.
enum Step {
    /// More is there to read.
    Continue,
    /// Nothing is there now; what it waits for, if it is not the attempt.
    Wait(String),
    /// The log is over.
    Done,
    /// No more can be shown.
    Failed(Error),
    /// This node leads no more.
    NotLeading,
}

impl From<&wire::LogsRequest> for Which {
    fn from(request: &wire::LogsRequest) -> Self {
        match (request.started_ms, request.attempt) {
            (Some(started_ms), _) => Self::Assigned(started_ms),
            (None, Some(number)) => Self::Number(number),
            (None, None) => Self::Last,
        }
    }
}

impl LogReader {
    /// Sends the log until its end, or until the reader is gone or this node stops or leads no more.
    pub(super) async fn run(mut self) {
        let ended = {
            let (events, mut stopping) = (self.events.clone(), self.stopping.clone());
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => false,
                () = events.closed() => true,
                ended = self.send_all() => ended,
            }
        };
        if !ended {
            // A reader that takes nothing learns it from the end of the stream.
            let _ = self.events.try_send(Err(RpcError::not_leader(None).into()));
        }
    }

    /// Returns whether the log is over for this reader; else this node leads no more.
    async fn send_all(&mut self) -> bool {
        let mut peer = None;
        let mut idle_since = Instant::now();
        loop {
            let record = Arc::clone(&self.task.borrow_and_update());
            let found = find(&record, self.which);
            if let Some(Found { attempt, .. }) = &found {
                // The number of an attempt becomes smaller when the oldest ones are dropped.
                self.which = Which::Assigned(attempt.started_ms);
            }
            let before = self.offset;
            let step = match &found {
                Some(found) => self.read(&record, found, &mut peer, idle_since.elapsed()).await,
                None => absent(&record, self.which, self.follows),
            };
            if self.offset != before {
                idle_since = Instant::now();
            }
            let step = match step {
                Step::Wait(waits_for) if !self.follows && waits_for.is_empty() => Step::Done,
                Step::Wait(waits_for) if !self.follows => Step::Failed(error(Code::Unreachable, waits_for)),
                step => step,
            };
            let event = event(found.as_ref(), self.offset);
            match step {
                Step::Continue => {}
                Step::NotLeading => return false,
                Step::Done => return self.send(wire::LogsEvent { last: true, ..event }).await,
                Step::Failed(error) => {
                    let error = Some(wire::RpcError::from(&RpcError::from(error)));
                    return self.send(wire::LogsEvent { last: true, error, ..event }).await;
                }
                Step::Wait(waits_for) => {
                    let wait = if waits_for.is_empty() { LOG_EVERY } else { HEARTBEAT_EVERY };
                    if !self.send(wire::LogsEvent { waits_for, ..event }).await {
                        return true;
                    }
                    // A change of the record does not shorten the wait: most are of progress.
                    tokio::time::sleep(wait).await;
                    if self.task.has_changed().is_err() {
                        return false;
                    }
                }
            }
        }
    }

    /// Reads the next part and sends it.
    async fn read(&mut self, record: &TaskRecord, found: &Found, peer: &mut Option<Peer>, idle: Duration) -> Step {
        let Found { number, attempt } = found;
        let node = &attempt.runner.node;
        let away = format!("node {node} is away; its log of attempt {number} is shown when it is back");
        if peer.is_none() {
            let runners = match self.dispatcher.runners().await {
                Ok(runners) => runners,
                Err(_) => return Step::NotLeading,
            };
            *peer = runners
                .into_iter()
                .find(|runner| runner.node == *node)
                .and_then(|it| it.registration.as_ref().map(Peer::from));
        }
        let Some(to) = peer.clone() else { return Step::Wait(away) };
        let query = LogQuery { task: self.id.clone(), assigned_ms: attempt.started_ms, offset: self.offset };
        let part = match self.runners.attempt_log(&to, &query).await {
            Ok(part) => part,
            Err(CallError::Refused { code: Code::Unsupported, .. }) => {
                let message = format!("node {node} runs a version of taskd that keeps no logs of attempts");
                return Step::Failed(error(Code::Unsupported, message));
            }
            Err(fault) => {
                *peer = None;
                return match fault {
                    CallError::Refused { code, why } => {
                        Step::Wait(format!("node {node} cannot read its log of attempt {number} now: {code}: {why}"))
                    }
                    CallError::NoAnswer(why) | CallError::Misdirected(why) => Step::Wait(format!("{away} ({why})")),
                };
            }
        };
        if !part.text.is_empty() {
            return self.pass_on(found, part).await;
        }
        let is_over = attempt.ended_ms.is_some() || record.state.is_terminal();
        match part.missing {
            Some(why) if is_over || !self.follows => {
                let message = format!("node {node} has no log of attempt {number}: {why}");
                Step::Failed(error(Code::NotFound, message))
            }
            // It was assigned a moment ago.
            Some(_) => Step::Wait(String::new()),
            None if !part.is_live || (is_over && idle > LINGER) => Step::Done,
            None => Step::Wait(String::new()),
        }
    }

    async fn pass_on(&mut self, found: &Found, part: LogPart) -> Step {
        let LogPart { offset, text, .. } = part;
        self.offset = offset + text.len() as u64;
        match self.send(wire::LogsEvent { text, ..event(Some(found), offset) }).await {
            true => Step::Continue,
            false => Step::Done,
        }
    }

    /// Returns false if the reader is gone.
    async fn send(&self, event: wire::LogsEvent) -> bool {
        self.events.send(Ok(event)).await.is_ok()
    }
}

/// Finds an attempt in a record.
fn find(record: &TaskRecord, which: Which) -> Option<Found> {
    let attempts = &record.attempts;
    let index = match which {
        Which::Last => attempts.len().checked_sub(1),
        Which::Number(number) => usize::try_from(number).ok().and_then(|number| number.checked_sub(1)),
        Which::Assigned(assigned_ms) => attempts.iter().position(|attempt| attempt.started_ms == assigned_ms),
    }?;
    let attempt = attempts.get(index)?.clone();
    Some(Found { number: u32::try_from(index + 1).unwrap_or(u32::MAX), attempt })
}

/// Returns what to do without the attempt.
fn absent(record: &TaskRecord, which: Which, follows: bool) -> Step {
    let TaskRecord { id, state, attempts, .. } = record;
    let count = attempts.len();
    let is_expected = match which {
        Which::Last => true,
        Which::Number(number) => number as usize == count + 1,
        Which::Assigned(_) => false,
    };
    if follows && is_expected && !state.is_terminal() {
        return Step::Wait(format!("an attempt of task {id}, which is {}", state.as_str()));
    }
    let message = match (which, count) {
        (_, 0) => format!("task {id} is {} and has had no attempt, so there is no log", state.as_str()),
        (Which::Assigned(_), _) => format!("task {id} no longer lists that attempt"),
        (_, 1) => format!("task {id} has had 1 attempt"),
        (_, count) => format!("task {id} has had {count} attempts"),
    };
    Step::Failed(error(Code::NotFound, message))
}

fn error(code: Code, message: String) -> Error {
    Error::new(code, Side::Coordination, Operation::Read, message)
}

fn event(found: Option<&Found>, offset: u64) -> wire::LogsEvent {
    let base = wire::LogsEvent { offset, ..wire::LogsEvent::default() };
    let Some(Found { number, attempt }) = found else { return base };
    wire::LogsEvent { attempt: *number, node: attempt.runner.node.to_string(), started_ms: attempt.started_ms, ..base }
}

impl From<&LogQuery> for wire::AttemptLogRequest {
    fn from(LogQuery { task, assigned_ms, offset }: &LogQuery) -> Self {
        Self { task: task.to_string(), started_ms: *assigned_ms, offset: *offset }
    }
}

impl TryFrom<wire::AttemptLogRequest> for LogQuery {
    type Error = Error;
    fn try_from(request: wire::AttemptLogRequest) -> Result<Self> {
        let wire::AttemptLogRequest { task, started_ms, offset } = request;
        Ok(Self { task: TaskId::new(task)?, assigned_ms: started_ms, offset })
    }
}

impl From<LogPart> for wire::AttemptLogReply {
    fn from(LogPart { offset, text, is_live, missing }: LogPart) -> Self {
        Self { offset, text, live: is_live, missing }
    }
}

impl From<wire::AttemptLogReply> for LogPart {
    fn from(wire::AttemptLogReply { offset, text, live, missing }: wire::AttemptLogReply) -> Self {
        Self { offset, text, is_live: live, missing }
    }
}
