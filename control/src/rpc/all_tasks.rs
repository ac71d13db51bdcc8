//! Streams the changes of all tasks to a client that follows them.
//!
//! ```text
//! Subscriber.next --- Snapshot ---> begin, tasks ..., end
//!        |--------- Changes ----> changes
//!        `--------- Nothing ----> wait: a change, or a sign of life each second
//! ```
//! What always holds: what a client gets from the last `begin` on is all tasks and then every change of them. A client
//! that takes its messages slowly gets a snapshot where the changes in between are gone; one that takes none loses its
//! place. Nothing waits here but the stream of that client.

use super::error::RpcError;
use super::limits::{HEARTBEAT_EVERY, PAGE_BYTES_MAX, PAGE_ITEMS_MAX, SUBSCRIBER_STALL_MAX, SUBSCRIBERS_MAX};
use super::wire::{self, watch_all_event::What};
use crate::dispatcher::{DispatcherHandle, Next, Snapshot, Subscriber, TaskChange};
use crate::model::{Epoch, Position, Transition};
use crate::rpc::convert::spelling;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use prost::Message;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::timeout;
use tonic::Status;

/// Messages that wait for a slow client; everything else waits in the ring.
pub(super) const QUEUE: usize = 2;

/// Client that follows all tasks.
pub(super) struct Subscription {
    pub(super) dispatcher: DispatcherHandle,
    pub(super) subscriber: Subscriber,
    pub(super) events: mpsc::Sender<Result<wire::WatchAllEvent, Status>>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) _place: OwnedSemaphorePermit,
}

/// Why a client is served no longer.
enum Gone {
    /// It has left, or has taken nothing for too long.
    Client,
    /// This node leads no longer, or stops.
    Leader,
}

impl Subscription {
    /// Serves the client until it is gone, or this node does not lead any more.
    pub(super) async fn run(mut self) {
        loop {
            let served = match self.subscriber.next() {
                Next::Snapshot => self.send_snapshot().await,
                Next::Changes(changes) => {
                    let wired = |_, (number, change): &(u64, Arc<TaskChange>)| wire_change(*number, change);
                    self.send_all(&changes, 0, wired, What::Changes).await
                }
                Next::Nothing => self.wait().await,
            };
            match served {
                Ok(()) => {}
                Err(Gone::Client) => return,
                Err(Gone::Leader) => {
                    // A client that takes nothing learns it from the end of the stream.
                    let _ = self.events.try_send(Err(RpcError::not_leader(None).into()));
                    return;
                }
            }
        }
    }

    async fn send_snapshot(&mut self) -> Result<(), Gone> {
        let snapshot = self.dispatcher.snapshot().await.map_err(|_| Gone::Leader)?;
        self.subscriber.take(&snapshot);
        let Snapshot { number, tasks } = &*snapshot;
        let position = Some(self.subscriber.position(*number).into());
        self.send(Some(What::Begin(wire::SnapshotBegin { position, tasks: tasks.len() as u64 }))).await?;
        self.send_all(tasks, *number, wire_change, What::Tasks).await?;
        self.send(position.map(What::End)).await
    }

    /// Sends changes in as many messages as are needed.
    async fn send_all<T: Sync>(
        &mut self,
        items: &[T],
        number: u64,
        wired: fn(u64, &T) -> wire::TaskChange,
        what: fn(wire::TaskChanges) -> What,
    ) -> Result<(), Gone> {
        let epoch = self.subscriber.position(0).epoch.0;
        let mut rest = items;
        while !rest.is_empty() {
            let changes = page(rest.iter().map(|item| wired(number, item)));
            rest = &rest[changes.len()..];
            self.send(Some(what(wire::TaskChanges { epoch, changes }))).await?;
        }
        Ok(())
    }

    /// Waits for a change, and sends a sign of life if there is none.
    async fn wait(&mut self) -> Result<(), Gone> {
        let Self { subscriber, events, stopping, .. } = self;
        let changed = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Err(Gone::Leader),
            () = events.closed() => return Err(Gone::Client),
            changed = timeout(HEARTBEAT_EVERY, subscriber.changed()) => changed,
        };
        match changed {
            Ok(true) => Ok(()),
            Ok(false) => Err(Gone::Leader),
            Err(_) => self.send(None).await,
        }
    }

    async fn send(&mut self, what: Option<What>) -> Result<(), Gone> {
        tokio::select! {
            biased;
            sent = timeout(SUBSCRIBER_STALL_MAX, self.events.send(Ok(wire::WatchAllEvent { what }))) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(Gone::Client),
            },
            _ = self.stopping.wait_for(|stopping| *stopping) => Err(Gone::Leader),
        }
    }
}

/// Returns the refusal of one client too many.
pub(super) fn too_many_subscribers() -> Status {
    let message = format!("{SUBSCRIBERS_MAX} clients follow all tasks already, and no more may: retry, or use list");
    RpcError::from(Error::new(Code::Overloaded, Side::Coordination, Operation::Start, message)).into()
}

/// Returns as many changes as a message has room for, at least one.
fn page(changes: impl Iterator<Item = wire::TaskChange>) -> Vec<wire::TaskChange> {
    let mut bytes = 0;
    let fits = |change: &wire::TaskChange| {
        let has_room = bytes < PAGE_BYTES_MAX;
        bytes += change.encoded_len();
        has_room
    };
    changes.take(PAGE_ITEMS_MAX).take_while(fits).collect()
}

fn wire_change(number: u64, change: &TaskChange) -> wire::TaskChange {
    let TaskChange { id, kind, state, desired_state, reason, node, version, group, schedule, is_removed } = change;
    wire::TaskChange {
        number,
        id: id.to_string(),
        kind: (*kind).to_owned(),
        state: state.as_str().to_owned(),
        desired_state: spelling(desired_state),
        reason: reason.clone(),
        node: node.as_ref().map(ToString::to_string),
        version: *version,
        group: group.as_ref().map(ToString::to_string),
        schedule: schedule.as_ref().map(ToString::to_string),
        removed: *is_removed,
    }
}

impl From<Position> for wire::Position {
    fn from(Position { epoch, number }: Position) -> Self {
        Self { epoch: epoch.0, number }
    }
}

impl From<wire::Position> for Position {
    fn from(wire::Position { epoch, number }: wire::Position) -> Self {
        Self { epoch: Epoch(epoch), number }
    }
}

impl From<&Transition> for wire::Transition {
    fn from(transition: &Transition) -> Self {
        let Transition { at_ms, state, desired_state, reason, node, by, unknown: _ } = transition;
        Self {
            at_ms: *at_ms,
            state: state.as_str().to_owned(),
            desired_state: spelling(desired_state),
            reason: reason.clone(),
            node: node.as_ref().map(ToString::to_string),
            by: by.word().to_owned(),
            client: by.client().map(str::to_owned),
        }
    }
}
