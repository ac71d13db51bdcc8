//! Writes a task's record and its claims as one multi that checks the term and every version.
//!
//! A write whose outcome is unknown is resolved here: the record is read until it names the write that made it. The
//! write is sent again only with the same versions and the same operation id, so that it happens at most once however
//! often it arrives. The read may show that the store's history is another one (see
//! [`rollback_detection`](super::rollback_detection)): then nothing more is written.

use super::handle::not_leader;
use super::pending_mutations::store_error;
use super::rollback_detection::RecordVersion;
use crate::cluster::election::{CommitError, LeaderTerm};
use crate::coord::paths;
use crate::coord::{CoordError, CreateMode, Done, Op, Refusal, Session, Znode, Zxid};
use crate::model::state_machine::{ClaimChange, claim_change};
use crate::model::{Claim, Epoch, OpId, Record, TaskId, TaskRecord};
use blockhaul_engine::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Time between two reads to find out the outcome of a write.
const READ_RETRY: Duration = Duration::from_millis(200);

/// Times that a write is built again because a claim was not as expected.
const CLAIM_TRIES: usize = 4;

/// Times that a record is read and written while others change it.
const RECORD_TRIES: usize = 4;

/// Record that replaces another.
#[derive(Debug)]
pub(crate) struct RecordUpdate {
    /// Record as it is in the store, as far as is known.
    pub(crate) before: Arc<TaskRecord>,
    /// Node of that record, as far as is known.
    pub(crate) known: RecordVersion,
    /// Record that replaces it.
    pub(crate) after: TaskRecord,
}

/// Outcome of a write.
#[derive(Debug)]
pub(crate) enum Written {
    /// The write happened.
    Done {
        /// Record as it is now.
        record: Box<TaskRecord>,
        /// Version of its node.
        version: i32,
        /// Transaction that created the node, if the answer tells it.
        created: Option<Zxid>,
        /// Epoch of the grant, if the claims got a holder.
        grant: Option<Epoch>,
    },
    /// Another process has written the record: the node as it is now, `None` if it is deleted.
    Changed(Option<Znode>),
    /// Another task has that claim.
    Claimed(String),
    /// Nothing happened, and will not before an operator changes something.
    Denied(Denial),
    /// Nothing happened.
    Failed(CoordError),
    /// Nothing happened, and nothing will: this node no longer leads.
    LostLeadership,
    /// The store has another history than this leader has seen.
    HistoryLost,
}

/// What is to become of a record.
#[derive(Debug)]
pub(crate) enum RecordChange<R> {
    /// It stays as it is; `None`: there is none.
    Keep(Option<R>),
    /// It is written.
    Store(R),
    /// It is deleted.
    Delete,
}

/// Write that the coordination service refuses, whatever the records are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordination service refuses to write {path}: {why}")]
pub(crate) struct Denial {
    /// Path of the node, or of the first of a write that is refused as a whole.
    pub(crate) path: String,
    /// Reason of the service.
    pub(crate) why: Refusal,
}

impl Denial {
    /// Returns the denial of the operation at `index`.
    pub(crate) fn of(ops: &[Op], index: usize, why: Refusal) -> Self {
        let path = ops.get(index).map_or_else(String::new, |op| op.path().to_owned());
        Self { path, why }
    }
}

/// Writes records and claims in one term.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) session: Arc<dyn Session>,
    pub(crate) leader_term: LeaderTerm,
}

impl Writer {
    /// Replaces a record, and changes its claims according to the transition.
    pub(crate) async fn update(self, update: RecordUpdate) -> Written {
        let mut is_first_grant = update.before.claims.is_empty();
        for tries in 0..CLAIM_TRIES {
            if tries > 0
                && let Err(error) = self.session.sync().await
            {
                return Written::Failed(error);
            }
            let ops = match self.operations(&update, is_first_grant).await {
                Ok(Ok(ops)) => ops,
                Ok(Err(claim)) => return Written::Claimed(claim),
                Err(error) => return Written::Failed(error),
            };
            match self.commit_until_known(&update, &ops).await {
                Written::Failed(CoordError::Refused { index, why }) if !why.is_condition() => {
                    return Written::Denied(Denial::of(&ops, index, why));
                }
                Written::Failed(CoordError::Refused { index, .. }) if index > 0 => is_first_grant = false,
                Written::Failed(CoordError::Refused { .. }) => return self.changed(&update).await,
                written => return written,
            }
        }
        // Another process keeps changing the claims: the task is decided again.
        self.changed(&update).await
    }

    /// Sends a write until its outcome is known.
    async fn commit_until_known(&self, update: &RecordUpdate, ops: &[Op]) -> Written {
        let mut was_sent = false;
        loop {
            match self.leader_term.commit(ops.to_vec()).await {
                Ok(done) => return finished(update, &done),
                Err(CommitError::LostLeadership) => return Written::LostLeadership,
                Err(CommitError::Store(CoordError::Unknown(_))) => was_sent = true,
                // What was sent before may still be carried out.
                Err(CommitError::Store(CoordError::NotConnected)) if was_sent => {}
                Err(CommitError::Store(error)) => return Written::Failed(error),
            }
            let node = match self.read_committed(&update.after.id).await {
                Ok(node) => node,
                Err(error) => return Written::Failed(error),
            };
            match node {
                Some(node) if has_op(&node, &update.after.op) => {
                    return finished(update, &[Done::Set(node.stat)]);
                }
                node if update.known.is_contradicted_by_node(node.as_ref()) => return Written::HistoryLost,
                // Not done yet, or lost: it is sent again. If both arrive, the later one is refused.
                Some(node) if node.stat.version == update.known.version => {}
                node => return Written::Changed(node),
            }
        }
    }

    /// Changes a record that no task has: reads it, and asks `decide`, again while others change it or while it is not known
    /// whether a change was stored. `decide` recognises its own change. Returns the record as it is then, and its version.
    pub(crate) async fn change_record<R: Record>(
        &self,
        path: &str,
        decide: impl Fn(Option<(&[u8], i32)>) -> Result<RecordChange<R>, Error>,
    ) -> Result<Option<(R, i32)>, Error> {
        let mut last = CoordError::NotConnected;
        for _ in 0..RECORD_TRIES {
            let stored = self.read_committed_node(path).await.map_err(|error| store_error(&error))?;
            let version = stored.as_ref().map(|node| node.stat.version);
            let change = decide(stored.as_ref().map(|node| (&*node.data, node.stat.version)))?;
            let (op, changed) = match (change, version) {
                (RecordChange::Keep(record), version) => return Ok(record.zip(version)),
                (RecordChange::Store(record), Some(version)) => {
                    let (path, data) = (path.to_owned(), record.encode());
                    (Op::Set { path, data, version }, Some((record, version + 1)))
                }
                (RecordChange::Store(record), None) => {
                    let (path, data) = (path.to_owned(), record.encode());
                    (Op::Create { path, data, mode: CreateMode::Persistent }, Some((record, 0)))
                }
                (RecordChange::Delete, Some(version)) => (Op::Delete { path: path.to_owned(), version }, None),
                (RecordChange::Delete, None) => return Ok(None),
            };
            match self.leader_term.commit(vec![op]).await {
                Ok(_) => return Ok(changed),
                Err(CommitError::LostLeadership) => return Err(not_leader()),
                Err(CommitError::Store(error @ (CoordError::Refused { .. } | CoordError::Unknown(_)))) => last = error,
                Err(CommitError::Store(error)) => return Err(store_error(&error)),
            }
        }
        Err(store_error(&last))
    }

    /// Reads the record's node after all committed writes. Waits for the connection.
    async fn read_committed(&self, id: &TaskId) -> Result<Option<Znode>, CoordError> {
        self.read_committed_node(&paths::task(id)).await
    }

    /// As [`Writer::read_committed`], of any node.
    pub(crate) async fn read_committed_node(&self, path: &str) -> Result<Option<Znode>, CoordError> {
        self.read_until_connected(|| self.session.get(path)).await
    }

    /// Reads after all committed writes. Waits for the connection.
    pub(crate) async fn read_until_connected<T, F>(&self, read: impl Fn() -> F + Send + Sync) -> Result<T, CoordError>
    where
        F: Future<Output = Result<T, CoordError>> + Send,
        T: Send,
    {
        loop {
            let read = async {
                self.session.sync().await?;
                read().await
            };
            match read.await {
                Err(CoordError::NotConnected | CoordError::Unknown(_)) if !self.leader_term.has_ended() => {
                    tokio::time::sleep(READ_RETRY).await;
                }
                other => return other,
            }
        }
    }

    async fn changed(&self, update: &RecordUpdate) -> Written {
        match self.read_committed(&update.after.id).await {
            Ok(Some(node)) if has_op(&node, &update.after.op) => finished(update, &[Done::Set(node.stat)]),
            Ok(node) => changed_outcome(&update.known, node),
            Err(error) => Written::Failed(error),
        }
    }

    /// Returns the operations of a change, the record's own first; or the claim that another task has.
    async fn operations(&self, update: &RecordUpdate, is_first: bool) -> Result<Result<Vec<Op>, String>, CoordError> {
        let RecordUpdate { before, known: RecordVersion { version, .. }, after } = update;
        let mut ops = vec![Op::Set { path: paths::task(&after.id), data: after.encode(), version: *version }];
        let claims = if after.claims.is_empty() { &before.claims } else { &after.claims };
        let kind = claim_change(before, after);
        for text in claims.iter().filter(|_| kind != ClaimChange::Keep) {
            let path = paths::claim(text);
            let node = if is_first { None } else { self.session.get(&path).await? };
            let known = node.as_ref().and_then(|node| Claim::decode(&node.data).ok());
            let claim = Claim {
                destination: text.clone(),
                task: after.id.clone(),
                holder: after.holder.clone(),
                op: after.op.clone(),
                unknown: known.map(|claim| claim.unknown).unwrap_or_default(),
            };
            let foreign = node.as_ref().and_then(|node| foreign_owner(node, &after.id));
            match (kind, node, foreign) {
                (_, Some(node), Some(owner)) => {
                    if kind == ClaimChange::Set {
                        if self.is_claimed_by(&owner, text).await? {
                            return Ok(Err(text.clone()));
                        }
                        ops.push(Op::Set { path, data: claim.encode(), version: node.stat.version });
                    }
                }
                (ClaimChange::Set, Some(node), None) => {
                    ops.push(Op::Set { path, data: claim.encode(), version: node.stat.version });
                }
                (ClaimChange::Set, None, _) => {
                    ops.push(Op::Create { path, data: claim.encode(), mode: CreateMode::Persistent });
                }
                (ClaimChange::Remove, Some(node), None) => {
                    ops.push(Op::Delete { path, version: node.stat.version });
                }
                (ClaimChange::Remove, None, _) | (ClaimChange::Keep, ..) => {}
            }
        }
        Ok(Ok(ops))
    }

    /// Tells whether the owner's record has the claim. If not, the claim is a leftover and may be taken over.
    async fn is_claimed_by(&self, owner: &Owner, text: &str) -> Result<bool, CoordError> {
        let Owner::Task(id) = owner else { return Ok(true) };
        self.session.sync().await?;
        let Some(node) = self.session.get(&paths::task(id)).await? else { return Ok(false) };
        Ok(TaskRecord::decode(&node.data).map_or(true, |record| record.claims.iter().any(|claim| claim == text)))
    }

    /// Stores a new task. `Changed`: there is one of that id already.
    pub(crate) async fn create(self, record: TaskRecord) -> Written {
        let path = paths::task(&record.id);
        let ops = vec![Op::Create { path: path.clone(), data: record.encode(), mode: CreateMode::Persistent }];
        let mut was_sent = false;
        loop {
            let refused = match self.leader_term.commit(ops.clone()).await {
                Ok(_) => {
                    // Old servers do not return the creating transaction, which orders submissions: it is read.
                    let node = self.session.get(&path).await.ok().flatten();
                    let created_by = node.filter(|node| has_op(node, &record.op)).map(|node| node.stat.created);
                    return created(record, 0, created_by);
                }
                Err(CommitError::LostLeadership) => return Written::LostLeadership,
                Err(CommitError::Store(CoordError::Refused { why: Refusal::NodeExists, .. })) => true,
                Err(CommitError::Store(CoordError::Refused { index, why })) if !why.is_condition() => {
                    return Written::Denied(Denial::of(&ops, index, why));
                }
                Err(CommitError::Store(CoordError::Unknown(_))) => {
                    was_sent = true;
                    false
                }
                Err(CommitError::Store(CoordError::NotConnected)) if was_sent => false,
                Err(CommitError::Store(error)) => return Written::Failed(error),
            };
            match self.read_committed(&record.id).await {
                Ok(Some(node)) if has_op(&node, &record.op) => {
                    return created(record, node.stat.version, Some(node.stat.created));
                }
                Ok(None) if !refused => {}
                Ok(node) => return Written::Changed(node),
                Err(error) => return Written::Failed(error),
            }
        }
    }

    /// Deletes a record that has not changed.
    pub(crate) async fn purge(self, id: TaskId, known: RecordVersion) -> Written {
        let ops = vec![Op::Delete { path: paths::task(&id), version: known.version }];
        match self.leader_term.commit(ops.clone()).await {
            Ok(_) => Written::Changed(None),
            Err(CommitError::LostLeadership) => Written::LostLeadership,
            Err(CommitError::Store(CoordError::Refused { index, why })) if !why.is_condition() => {
                Written::Denied(Denial::of(&ops, index, why))
            }
            Err(CommitError::Store(CoordError::Refused { .. } | CoordError::Unknown(_))) => {
                match self.read_committed(&id).await {
                    Ok(node) => changed_outcome(&known, node),
                    Err(error) => Written::Failed(error),
                }
            }
            Err(CommitError::Store(error)) => Written::Failed(error),
        }
    }

    /// Returns the epoch under which the holder of a task works: of the task's first claim.
    pub(crate) async fn grant(&self, record: &TaskRecord) -> Result<Option<Epoch>, CoordError> {
        let Some(first) = record.claims.first() else { return Ok(None) };
        let Some(node) = self.session.get(&paths::claim(first)).await? else { return Ok(None) };
        let is_its = Claim::decode(&node.data)
            .is_ok_and(|claim| claim.task == record.id && claim.holder.is_some() && claim.holder == record.holder);
        Ok(is_its.then(|| node.stat.modified.into()))
    }
}

/// Owner of a claim that is not this task's.
enum Owner {
    Task(TaskId),
    /// The claim cannot be decoded, or is of another destination.
    Unknown,
}

fn foreign_owner(node: &Znode, task: &TaskId) -> Option<Owner> {
    match Claim::decode(&node.data) {
        Ok(claim) if claim.task == *task => None,
        Ok(claim) => Some(Owner::Task(claim.task)),
        Err(_) => Some(Owner::Unknown),
    }
}

fn has_op(node: &Znode, op: &OpId) -> bool {
    TaskRecord::decode(&node.data).is_ok_and(|record| record.op == *op)
}

/// Returns the outcome of a write that was refused, by the node that is stored instead.
fn changed_outcome(known: &RecordVersion, node: Option<Znode>) -> Written {
    if known.is_contradicted_by_node(node.as_ref()) { Written::HistoryLost } else { Written::Changed(node) }
}

fn created(record: TaskRecord, version: i32, created: Option<Zxid>) -> Written {
    Written::Done { record: Box::new(record), version, created, grant: None }
}

fn finished(update: &RecordUpdate, done: &[Done]) -> Written {
    let stat = done.first().and_then(|done| match done {
        Done::Set(stat) => Some(*stat),
        Done::Plain => None,
    });
    let version = stat.map_or(update.known.version + 1, |stat| stat.version);
    let is_granted = claim_change(&update.before, &update.after) == ClaimChange::Set && update.after.holder.is_some();
    let grant = stat.filter(|_| is_granted).map(|stat| stat.modified.into());
    Written::Done { record: Box::new(update.after.clone()), version, created: stat.map(|stat| stat.created), grant }
}
