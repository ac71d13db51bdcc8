//! Holds the record and the claims of one assignment, as last read. Every write about the assignment checks their
//! versions.
//!
//! A write is one multi: the registration exists, the claims are as they were granted, the record has its version. An
//! unknown outcome is resolved by reading: the record names the write that made it.
//!
//! Records are read again on every new connection: behind it may be a service that has lost its history, where the same
//! version is that of another record.

use super::context::RunnerContext;
use super::write_lease::ActiveRegistration;
use crate::coord::paths;
use crate::coord::{CoordError, Done, Op, Session, SessionId, Stat, Znode};
use crate::model::state_machine::{ClaimChange, IllegalTransition, claim_change};
use crate::model::{Claim, Epoch, Holder, OpId, Record, TaskId, TaskRecord, TaskState};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// Time between two reads of a record that another process has to change first.
const LOST_RETRY: Duration = Duration::from_millis(500);

/// Reads and writes the record and the claims of one assignment.
#[derive(Debug)]
pub(super) struct AssignmentRecords {
    pub task: TaskId,
    pub epoch: Epoch,
    pub holder: Holder,
    /// `None` before the first read and while the outcome of a write is unknown.
    known: Mutex<Option<HeldRecords>>,
}

/// Record and claims as last read, which this runner holds.
#[derive(Clone, Debug)]
pub(super) struct HeldRecords {
    pub record: TaskRecord,
    pub version: i32,
    claims: Vec<GrantedClaim>,
    read_on: Connection,
}

/// Connection to the service: the session, and how often it has been connected again.
type Connection = (SessionId, u64);

fn connection(session: &dyn Session) -> Connection {
    (session.id(), session.states().borrow().reconnects)
}

#[derive(Clone, Debug)]
struct GrantedClaim {
    path: String,
    claim: Claim,
    version: i32,
}

/// Content of the store.
enum ReadResult {
    /// This runner holds the task.
    Ours(HeldRecords),
    /// Another process holds it, or none.
    NotOurs(Option<TaskRecord>),
}

/// Outcome of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// The write is in the store.
    Done(Box<TaskRecord>),
    /// The task has another holder; nothing more is to be written.
    NotOurs,
    /// The record does not permit the transition.
    IllegalTransition(IllegalTransition, Box<TaskRecord>),
}

impl AssignmentRecords {
    pub(super) fn new(task: TaskId, epoch: Epoch, holder: Holder) -> Self {
        Self { task, epoch, holder, known: Mutex::new(None) }
    }

    /// Reads the record and the claims again; `None` if the task has another holder. Waits for a connection.
    pub(super) async fn read(&self, context: &RunnerContext) -> Option<TaskRecord> {
        let mut known = self.known.lock().await;
        *known = None;
        loop {
            let registration = context.registration().await;
            match self.read_store(&*registration.session).await {
                Ok(ReadResult::Ours(found)) => return Some(known.insert(found).record.clone()),
                Ok(ReadResult::NotOurs(_)) => return None,
                Err(error) => context.wait_to_retry(&registration, &error).await,
            }
        }
    }

    /// Locks the known record, for a write together with other tasks. `None` if another write holds the lock for longer
    /// than `wait_max`.
    pub(super) async fn lock(&self, wait_max: Duration) -> Option<MutexGuard<'_, Option<HeldRecords>>> {
        timeout(wait_max, self.known.lock()).await.ok()
    }

    /// Reads the record and the claims if they are not known, without waiting for a connection. `known` stays `None` if
    /// the task has another holder.
    pub(super) async fn refresh(
        &self,
        session: &dyn Session,
        known: &mut Option<HeldRecords>,
    ) -> Result<(), CoordError> {
        if known.as_ref().is_some_and(|known| known.read_on != connection(session)) {
            *known = None;
        }
        if known.is_none()
            && let ReadResult::Ours(found) = self.read_store(session).await?
        {
            *known = Some(found);
        }
        Ok(())
    }

    /// Writes the result of `step`, and repeats this until the outcome is known. Waits while the task is `LOST`: then
    /// only the dispatcher may change it.
    pub(super) async fn write(
        &self,
        context: &RunnerContext,
        step: impl Fn(&TaskRecord) -> Result<TaskRecord, IllegalTransition>,
    ) -> Written {
        let mut known = self.known.lock().await;
        let mut tried = BTreeSet::new();
        loop {
            let registration = context.registration().await;
            // Taken out, so that a cancelled write leaves no outdated state behind.
            let read_on = connection(&*registration.session);
            let current = match known.take().filter(|known| known.read_on == read_on) {
                Some(current) => current,
                None => match self.read_store(&*registration.session).await {
                    Ok(ReadResult::Ours(current)) => current,
                    Ok(ReadResult::NotOurs(Some(record))) if tried.contains(&record.op) => {
                        return Written::Done(Box::new(record));
                    }
                    Ok(ReadResult::NotOurs(_)) => return Written::NotOurs,
                    Err(error) => {
                        context.wait_to_retry(&registration, &error).await;
                        continue;
                    }
                },
            };
            if tried.contains(&current.record.op) {
                return Written::Done(Box::new(known.insert(current).record.clone()));
            }
            if current.record.state == TaskState::Lost {
                context.notifier.changed(&self.task);
                tokio::time::sleep(LOST_RETRY).await;
                continue;
            }
            let after = match step(&current.record) {
                Ok(after) => after,
                Err(illegal) => {
                    let record = Box::new(current.record.clone());
                    *known = Some(current);
                    return Written::IllegalTransition(illegal, record);
                }
            };
            tried.insert(after.op.clone());
            match self.commit(&registration, &current, &after).await {
                Ok(stat) => {
                    *known = current.after(after.clone(), stat);
                    context.notifier.changed(&self.task);
                    return Written::Done(Box::new(after));
                }
                Err(error) => context.wait_to_retry(&registration, &error).await,
            }
        }
    }

    async fn commit(
        &self,
        registration: &ActiveRegistration,
        current: &HeldRecords,
        after: &TaskRecord,
    ) -> Result<Stat, CoordError> {
        let mut ops = vec![registration.check(&self.holder.node)];
        ops.extend(current.ops(after));
        match registration.session.multi(ops).await?.last() {
            Some(Done::Set(stat)) => Ok(*stat),
            Some(Done::Plain) | None => Err(CoordError::Unknown(String::from("an answer without the node's version"))),
        }
    }

    /// Reads the store. A record of another holder may be stale, and is read again after a sync.
    async fn read_store(&self, session: &dyn Session) -> Result<ReadResult, CoordError> {
        match self.read_store_once(session).await? {
            ReadResult::NotOurs(_) => {
                session.sync().await?;
                self.read_store_once(session).await
            }
            ours @ ReadResult::Ours(_) => Ok(ours),
        }
    }

    async fn read_store_once(&self, session: &dyn Session) -> Result<ReadResult, CoordError> {
        let read_on = connection(session);
        let Some(Znode { data, stat }) = session.get(&paths::task(&self.task)).await? else {
            return Ok(ReadResult::NotOurs(None));
        };
        let record = match TaskRecord::decode(&data) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, "cannot decode the task's record: leaving it alone");
                return Ok(ReadResult::NotOurs(None));
            }
        };
        let is_held = record.holder.as_ref() == Some(&self.holder);
        if !is_held || record.claims.is_empty() || record.epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Ok(ReadResult::NotOurs(Some(record)));
        }
        let mut claims = Vec::with_capacity(record.claims.len());
        for destination in &record.claims {
            match self.read_claim(session, destination).await? {
                Some(claim) => claims.push(claim),
                None => return Ok(ReadResult::NotOurs(Some(record))),
            }
        }
        Ok(ReadResult::Ours(HeldRecords { record, version: stat.version, claims, read_on }))
    }

    /// Returns the claim on a destination, if it is the one that was granted.
    async fn read_claim(&self, session: &dyn Session, destination: &str) -> Result<Option<GrantedClaim>, CoordError> {
        let path = paths::claim(destination);
        let Some(Znode { data, stat }) = session.get(&path).await? else { return Ok(None) };
        let Ok(claim) = Claim::decode(&data) else { return Ok(None) };
        let is_ours = claim.task == self.task
            && claim.holder.as_ref() == Some(&self.holder)
            && Epoch::from(stat.modified) == self.epoch;
        Ok(is_ours.then_some(GrantedClaim { path, claim, version: stat.version }))
    }
}

impl HeldRecords {
    /// Returns the operations that write `after` and the claims; the record comes last.
    pub(super) fn ops(&self, after: &TaskRecord) -> Vec<Op> {
        let change = claim_change(&self.record, after);
        let claims = self.claims.iter().map(|claim| claim.op(change, after));
        let path = paths::task(&after.id);
        claims.chain([Op::Set { path, data: after.encode(), version: self.version }]).collect()
    }

    /// Returns what is known once `after` has been written: nothing, if it has released the claims.
    pub(super) fn after(self, after: TaskRecord, stat: Stat) -> Option<Self> {
        let is_kept = claim_change(&self.record, &after) == ClaimChange::Keep;
        is_kept.then_some(Self { record: after, version: stat.version, ..self })
    }
}

impl GrantedClaim {
    fn op(&self, change: ClaimChange, after: &TaskRecord) -> Op {
        let (path, version) = (self.path.clone(), self.version);
        match change {
            ClaimChange::Keep => Op::Check { path, version },
            ClaimChange::Remove => Op::Delete { path, version },
            ClaimChange::Set => {
                let claim = Claim { holder: after.holder.clone(), op: OpId::fresh(), ..self.claim.clone() };
                Op::Set { path, data: claim.encode(), version }
            }
        }
    }
}
