//! Writes the record of a schedule, together with the members of its batch and the task that it makes, as one multi that
//! checks the term and the version; and reads the members.

use super::write::{Denial, Writer};
use crate::cluster::election::CommitError;
use crate::coord::paths;
use crate::coord::{CoordError, CreateMode, Done, Op, Znode};
use crate::model::schedule::decode_members;
use crate::model::{MemberTemplate, OpId, Record, ScheduleName, ScheduleRecord, TaskId, TaskRecord};

/// Change of a schedule.
#[derive(Clone, Debug)]
pub(crate) struct ScheduleUpdate {
    pub(crate) name: ScheduleName,
    /// Version of its node as it is known; `None`: it does not exist.
    pub(crate) known: Option<i32>,
    /// Record that is stored; `None`: it is deleted.
    pub(crate) after: Option<ScheduleRecord>,
    /// Members of its batch as they are stored, which replace those of before; `None`: these stay.
    pub(crate) members: Option<Vec<Vec<u8>>>,
    /// Task that is created in the same write.
    pub(crate) task: Option<TaskRecord>,
    /// Task that must not have changed, and the version of its node as it is known.
    pub(crate) unchanged: Option<(TaskId, i32)>,
}

/// Outcome of the write.
#[derive(Debug)]
pub(crate) enum ScheduleWritten {
    /// It happened: the version of the schedule's node now.
    Done(i32),
    /// Nothing happened, as a task of that id exists.
    TaskExists,
    /// Nothing happened, as the task that must not has changed.
    Outdated(TaskId),
    /// Nothing happened, and will not before an operator changes something.
    Denied(Denial),
    /// Nothing happened.
    Failed(CoordError),
    /// Nothing happened, and nothing will: this node no longer leads.
    LostLeadership,
    /// The schedule is not as this leader, its only writer, has left it.
    HistoryLost,
}

impl Writer {
    /// Writes a change of a schedule, until its outcome is known.
    pub(crate) async fn update_schedule(self, update: ScheduleUpdate) -> ScheduleWritten {
        let parts = match self.stored_parts(&update).await {
            Ok(parts) => parts,
            Err(error) => return ScheduleWritten::Failed(error),
        };
        let ops = operations(&update, parts);
        let mut was_sent = false;
        loop {
            let mut refused = None;
            match self.leader_term.commit(ops.clone()).await {
                Ok(done) => return ScheduleWritten::Done(version_after(&update, &done)),
                Err(CommitError::LostLeadership) => return ScheduleWritten::LostLeadership,
                Err(CommitError::Store(CoordError::Refused { index, why })) if !why.is_condition() => {
                    return ScheduleWritten::Denied(Denial::of(&ops, index, why));
                }
                // A write that was sent before may have happened: the record tells.
                Err(CommitError::Store(error @ CoordError::Refused { .. })) => refused = Some(error),
                Err(CommitError::Store(CoordError::Unknown(_))) => was_sent = true,
                Err(CommitError::Store(CoordError::NotConnected)) if was_sent => {}
                Err(CommitError::Store(error)) => return ScheduleWritten::Failed(error),
            }
            let node = match self.read_committed_node(&paths::schedule(&update.name)).await {
                Ok(node) => node,
                Err(error) => return ScheduleWritten::Failed(error),
            };
            match (&node, &update.after) {
                (Some(node), Some(after)) if has_op(node, &after.op) => {
                    return ScheduleWritten::Done(node.stat.version);
                }
                (None, None) => return ScheduleWritten::Done(0),
                _ => {}
            }
            if node.map(|node| node.stat.version) != update.known {
                return ScheduleWritten::HistoryLost;
            }
            // The schedule is as it was: the write is still to happen, or its task is there already.
            if let Some(task) = &update.task {
                match self.read_committed_node(&paths::task(&task.id)).await {
                    Ok(Some(_)) => return ScheduleWritten::TaskExists,
                    Ok(None) => {}
                    Err(error) => return ScheduleWritten::Failed(error),
                }
            }
            if let (Some((id, version)), Some(_)) = (&update.unchanged, &refused) {
                match self.read_committed_node(&paths::task(id)).await {
                    Ok(node) if node.as_ref().is_none_or(|node| node.stat.version != *version) => {
                        return ScheduleWritten::Outdated(id.clone());
                    }
                    Ok(_) => {}
                    Err(error) => return ScheduleWritten::Failed(error),
                }
            }
            if let Some(error) = refused {
                return ScheduleWritten::Failed(error);
            }
        }
    }
}

impl Writer {
    /// Returns the paths of the parts of its batch that a change deletes.
    async fn stored_parts(&self, update: &ScheduleUpdate) -> Result<Vec<String>, CoordError> {
        let goes = update.after.is_none() || update.members.is_some();
        if update.known.is_none() || !goes {
            return Ok(Vec::new());
        }
        let path = paths::schedule(&update.name);
        // Whatever is there has to go, also what a leader has left behind that knows no batches.
        let names = self.read_until_connected(|| self.session.children(&path)).await?;
        Ok(names.into_iter().map(|name| format!("{path}/{name}")).collect())
    }

    /// Reads the members of a schedule's batch.
    ///
    /// # Errors
    /// A failure of the service, or which node is missing or cannot be decoded.
    pub(crate) async fn read_members(&self, name: &ScheduleName, parts: u64) -> Result<Vec<MemberTemplate>, String> {
        let mut members = Vec::new();
        for part in 0..usize::try_from(parts).unwrap_or(usize::MAX) {
            let path = paths::schedule_part(name, part);
            let node = self.read_committed_node(&path).await.map_err(|error| error.to_string())?;
            let node = node.ok_or_else(|| format!("{path} is missing"))?;
            let read = decode_members(&node.data).map_err(|error| format!("{path} cannot be decoded: {error}"))?;
            members.extend(read);
        }
        Ok(members)
    }
}

/// Returns the operations of a change. That of the schedule's own node is the first one, unless it is deleted: nodes below it
/// go first. Parts of a batch are never changed, so that each has version 0.
fn operations(update: &ScheduleUpdate, stored_parts: Vec<String>) -> Vec<Op> {
    let path = paths::schedule(&update.name);
    let gone = stored_parts.into_iter().map(|path| Op::Delete { path, version: 0 });
    let create = |path, data| Op::Create { path, data, mode: CreateMode::Persistent };
    let own = match (update.known, &update.after) {
        (None, Some(after)) => Some(create(path, after.encode())),
        (Some(version), Some(after)) => Some(Op::Set { path, data: after.encode(), version }),
        (Some(version), None) => Some(Op::Delete { path, version }),
        (None, None) => None,
    };
    let task = update.task.as_ref().map(|task| create(paths::task(&task.id), task.encode()));
    let check = update.unchanged.as_ref().map(|(id, version)| Op::Check { path: paths::task(id), version: *version });
    if update.after.is_none() {
        return gone.chain(own).chain(task).chain(check).collect();
    }
    let parts = update.members.iter().flatten().enumerate();
    let parts = parts.map(|(part, data)| create(paths::schedule_part(&update.name, part), data.clone()));
    own.into_iter().chain(gone).chain(parts).chain(task).chain(check).collect()
}

fn version_after(update: &ScheduleUpdate, done: &[Done]) -> i32 {
    match (update.known, done.first()) {
        (_, Some(Done::Set(stat))) => stat.version,
        (Some(version), _) => version + 1,
        (None, _) => 0,
    }
}

fn has_op(node: &Znode, op: &OpId) -> bool {
    ScheduleRecord::decode(&node.data).is_ok_and(|record| record.op == *op)
}
