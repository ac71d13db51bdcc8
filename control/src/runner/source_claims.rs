//! Watches the claims on the volumes that a comparison reads: what another task writes meanwhile cannot be compared.
//!
//! A claim that is made and ended while this node has no connection to the coordination service leaves no trace.

use super::context::RunnerContext;
use crate::coord::{CoordError, Session, Watch, Zxid, paths};
use crate::execution::{End, Outcome};
use crate::model::{Claim, Failure, Record, TaskId, TaskRecord, TaskVolume};
use blockhaul_engine::error::{Code, Error, Operation, Side};

/// Claims on the volumes that a task reads, as they were before it began.
#[derive(Debug)]
pub(super) struct SourceClaims {
    volumes: Vec<(TaskVolume, Vec<WatchedClaim>)>,
}

#[derive(Debug)]
struct WatchedClaim {
    path: String,
    /// Last change; `None`: there is no such claim.
    modified: Option<Zxid>,
    /// Task that works under it.
    writer: Option<TaskId>,
    watch: Watch,
}

impl SourceClaims {
    /// Reads and watches the claims on what a task reads, if that must not change meanwhile. A volume that this node cannot
    /// resolve has none: the task itself fails on it, and says why. Waits for a connection.
    pub(super) async fn watch(context: &RunnerContext, record: &TaskRecord) -> Self {
        let mut volumes = Vec::new();
        let kind = record.spec.kind();
        let sources = if kind.reads_unchanging() { kind.sources().unwrap_or_default() } else { Vec::new() };
        for volume in sources {
            let identities = context.dependencies.executor.resolve(&volume).await.unwrap_or_default();
            let claims = loop {
                let registration = context.registration().await;
                match watch_claims(&*registration.session, &identities).await {
                    Ok(claims) => break claims,
                    Err(error) => context.wait_to_retry(&registration, &error).await,
                }
            };
            volumes.push((volume, claims));
        }
        Self { volumes }
    }

    /// Returns the error of a task that would read what another one writes now.
    pub(super) fn conflict(&self) -> Option<Error> {
        self.volumes.iter().find_map(|(volume, claims)| {
            let writer = claims.iter().find_map(|claim| claim.writer.as_ref())?;
            Some(busy(format!("task {writer} writes {volume}")))
        })
    }

    /// Returns the outcome of a comparison: none that counts if a claim has changed meanwhile. Waits for a connection.
    pub(super) async fn checked(&mut self, context: &RunnerContext, outcome: Outcome) -> Outcome {
        if !matches!(&outcome.end, End::Succeeded | End::Failed(Failure { code: Code::VerifyMismatch, .. })) {
            return outcome;
        }
        for (volume, claims) in &mut self.volumes {
            let has_changed = loop {
                let registration = context.registration().await;
                match have_changed(&*registration.session, claims).await {
                    Ok(has_changed) => break has_changed,
                    Err(error) => context.wait_to_retry(&registration, &error).await,
                }
            };
            if has_changed {
                let error = busy(format!("another task has written {volume} meanwhile"));
                return Outcome { end: End::Failed(Failure::from(&error)), ..outcome };
            }
        }
        outcome
    }
}

async fn watch_claims(session: &dyn Session, identities: &[String]) -> Result<Vec<WatchedClaim>, CoordError> {
    session.sync().await?;
    let mut claims = Vec::with_capacity(identities.len());
    for path in identities.iter().map(|identity| paths::claim(identity)) {
        let (node, watch) = session.get_and_watch(&path).await?;
        let claim = node.as_ref().and_then(|node| Claim::decode(&node.data).ok());
        let writer = claim.filter(|claim| claim.holder.is_some()).map(|claim| claim.task);
        claims.push(WatchedClaim { path, modified: node.map(|node| node.stat.modified), writer, watch });
    }
    Ok(claims)
}

async fn have_changed(session: &dyn Session, claims: &mut [WatchedClaim]) -> Result<bool, CoordError> {
    session.sync().await?;
    for claim in claims {
        let modified = session.get(&claim.path).await?.map(|node| node.stat.modified);
        if modified != claim.modified || claim.watch.has_fired() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn busy(message: String) -> Error {
    Error { retryable: true, ..Error::new(Code::Busy, Side::Source, Operation::Read, message) }
}
