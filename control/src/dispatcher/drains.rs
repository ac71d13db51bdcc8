//! Drains nodes, and ends drains: keeps their records, and undoes those whose time is over.
//!
//! A node gets no task from the moment at which its drain is asked for; the record is stored meanwhile.

use super::Dispatcher;
use super::event::Event;
use super::handle::Reply;
use super::now::Now;
use super::pending_mutations::store_error;
use super::write::{RecordChange, Writer};
use crate::coord::paths;
use crate::model::{Drain, DrainMode, NodeId, OpId, Record};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::time::Duration;
use tokio::sync::oneshot;

/// Time after which it is tried again to end a drain whose time is over.
const UNDO_RETRY: Duration = Duration::from_secs(10);

/// Answer about one node of several.
pub(crate) type DrainAnswer = (NodeId, oneshot::Receiver<Result<usize>>);

/// What is done with a node.
#[derive(Debug)]
enum Change {
    /// It is drained.
    Drain(Drain),
    /// It gets tasks again. With an operation id: only if this operation has stored its drain.
    Undo(Option<OpId>),
}

impl Dispatcher {
    /// Drains a node, for this time or until it is undone; or ends that. Answers with the number of tasks that it holds.
    pub(crate) fn drain(&mut self, node: NodeId, mode: DrainMode, lasts: Option<Duration>, reply: Reply<usize>) {
        let change = match mode {
            DrainMode::Undo => Change::Undo(None),
            DrainMode::Finish | DrainMode::Now => {
                let others = self.cluster.fleet.drained().filter(|drained| **drained != node).count();
                if let Some(most) = self.cluster.settings.0.max_drained.filter(|most| others >= *most as usize) {
                    let message = format!("{others} nodes are drained, and the setting max-drained is {most}");
                    let error = Error::new(Code::Busy, Side::Caller, Operation::Parse, message);
                    let _ = reply.send(Err(error.advise("undo another drain first")));
                    return;
                }
                Change::Drain(self.new_drain(mode, lasts))
            }
        };
        self.change_drain(node, change, reply);
    }

    /// Drains up to `count` nodes that hold no task. Returns them with the answers that are to come.
    pub(crate) fn drain_idle(&mut self, count: usize, lasts: Option<Duration>) -> Vec<DrainAnswer> {
        let fleet = &self.cluster.fleet;
        let drained = fleet.drained().count();
        let most = self.cluster.settings.0.max_drained.map_or(usize::MAX, |most| most as usize);
        let idle = fleet.idle().take(count.min(most.saturating_sub(drained)));
        let nodes: Vec<NodeId> = idle.cloned().collect();
        let drain = |node: NodeId| {
            let (reply, answer) = oneshot::channel();
            let drain = self.new_drain(DrainMode::Finish, lasts);
            self.change_drain(node.clone(), Change::Drain(drain), reply);
            (node, answer)
        };
        nodes.into_iter().map(drain).collect()
    }

    /// Ends the drains whose time is over. While this node's clock is not known to be right, it ends none.
    pub(crate) fn end_drains(&mut self, now: Now) {
        self.drain_ends.retain(|_, again| *again > now.boot);
        if !now.is_clock_right {
            return;
        }
        let is_over = |drain: &Drain| drain.until_ms.is_some_and(|until_ms| until_ms <= now.unix_ms);
        let drains = self.cluster.fleet.drains.iter();
        let over = drains.filter(|(node, (drain, _))| is_over(drain) && !self.drain_ends.contains_key(*node));
        let over: Vec<(NodeId, OpId)> = over.map(|(node, (drain, _))| (node.clone(), drain.op.clone())).collect();
        for (node, op) in over {
            tracing::info!(%node, "the time of the node's drain is over");
            self.drain_ends.insert(node.clone(), now.boot + UNDO_RETRY);
            self.change_drain(node, Change::Undo(Some(op)), oneshot::channel().0);
        }
    }

    fn new_drain(&self, mode: DrainMode, lasts: Option<Duration>) -> Drain {
        let since_ms = self.clock.unix_ms();
        let lasts_ms = lasts.map(|lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX));
        let until_ms = lasts_ms.map(|lasts_ms| since_ms.saturating_add(lasts_ms));
        Drain { since_ms, now: mode == DrainMode::Now, until_ms, op: OpId::fresh() }
    }

    fn change_drain(&mut self, node: NodeId, change: Change, reply: Reply<usize>) {
        if let Change::Drain(_) = &change {
            self.cluster.fleet.begin_drain(&node);
        }
        let writer = self.writer.clone();
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let is_drain = matches!(change, Change::Drain(_));
            let result = store_drain(&writer, &node, change).await;
            Event::Drained { node, is_drain, result, reply }
        });
    }

    /// Applies a node's drain record as it was stored or removed, and answers the operator.
    pub(crate) fn apply_drain(
        &mut self,
        (node, is_drain): (&NodeId, bool),
        result: Result<Option<(Drain, i32)>>,
        reply: Reply<usize>,
    ) {
        let now = self.clock.boot_time();
        if is_drain {
            self.cluster.fleet.end_drain(node);
        }
        let answer = result.map(|drain| {
            self.cluster.interrupts.remove(node);
            if drain.as_ref().is_some_and(|(drain, _)| drain.now) {
                self.cluster.interrupts.insert(node.clone(), now);
            }
            self.cluster.fleet.set_drain(node, drain);
            self.cluster.fleet.tasks(node).count()
        });
        let _ = reply.send(answer);
    }
}

/// Stores a node's drain record, or removes it. The node need not be registered: the record counts when it returns.
async fn store_drain(writer: &Writer, node: &NodeId, change: Change) -> Result<Option<(Drain, i32)>> {
    if matches!(change, Change::Drain(_) | Change::Undo(None)) && !has_registered(writer, node).await? {
        let message = format!("no node {node} has ever registered: 'blockhaul runners' lists the nodes");
        return Err(Error::new(Code::NotFound, Side::Caller, Operation::Parse, message));
    }
    let decide = |stored: Option<(&[u8], i32)>| {
        let stored = stored.map(|(data, _)| Drain::decode(data).ok());
        Ok(match (&change, stored) {
            (Change::Drain(drain), Some(Some(stored))) if stored.op == drain.op => RecordChange::Keep(Some(stored)),
            (Change::Drain(drain), _) => RecordChange::Store(drain.clone()),
            (Change::Undo(Some(op)), Some(Some(stored))) if stored.op != *op => RecordChange::Keep(Some(stored)),
            (Change::Undo(_), Some(_)) => RecordChange::Delete,
            (Change::Undo(_), None) => RecordChange::Keep(None),
        })
    };
    writer.change_record(&paths::drain(node.as_str()), decide).await
}

/// Tells whether a node is or was registered: its lease record is never deleted.
async fn has_registered(writer: &Writer, node: &NodeId) -> Result<bool> {
    let known = [paths::lease(node.as_str()), paths::runner(node.as_str()), paths::drain(node.as_str())];
    for path in known {
        if writer.session.get(&path).await.map_err(|error| store_error(&error))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
