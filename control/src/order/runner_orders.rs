//! Checks the order of a task on the node that is to run it, and returns the task as its client has signed it.

use super::content::{Claimed, Order};
use super::ended::EndedOrders;
use super::refused;
use super::verifier::OrderVerifier;
use crate::model::{NodeId, SignedOrder, TaskId, TaskRecord};
use blockhaul_engine::error::Result;
use std::sync::Arc;

/// Precedes what the mark of an order is the hash of.
const MARK_DOMAIN: &[u8] = b"blockhaul mark 1\0";
/// Digits of a mark.
const MARK_DIGITS: usize = 32;

/// Orders as the runner of a node checks them. Clones share what they remember.
#[derive(Clone, Debug)]
pub struct RunnerOrders {
    verifier: OrderVerifier,
    node: NodeId,
    /// Boot id of the kernel.
    boot: String,
    ended: Arc<EndedOrders>,
}

/// Task whose order has been checked.
#[derive(Clone, Debug)]
pub(crate) struct VerifiedTask {
    /// The record, with the work that was signed.
    pub(crate) record: TaskRecord,
    /// What a destination is marked with that is written by this order.
    pub(crate) mark: String,
    /// When the order ceases to hold, in milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

impl RunnerOrders {
    /// Creates the orders of a node. `boot` is the kernel's boot id.
    pub(crate) fn new(verifier: OrderVerifier, node: NodeId, boot: String, ended: EndedOrders) -> Self {
        Self { verifier, node, boot, ended: Arc::new(ended) }
    }

    /// Checks a task before an attempt. Of its work, only the limit is taken from the record.
    ///
    /// # Errors
    /// `EPermission`: the record is not what a client has signed for this center with a key that is in force, the order has
    /// expired, or the task has ended on this node before.
    pub(crate) fn verify(&self, record: &TaskRecord, now_ms: u64) -> Result<VerifiedTask> {
        let signed = record.order.as_ref();
        let order = self.verifier.verified(signed, now_ms)?;
        let claimed = Claimed::from(record);
        let (mut spec, instance) = order.work(claimed.id, self.verifier.here())?;
        instance.check_now(claimed.id, now_ms, &self.node, &self.boot)?;
        if !spec.is_same_work(claimed.spec) {
            return Err(refused("the record of the task asks for other work than its client has signed"));
        }
        order.check_place(&claimed)?;
        self.ended.check(claimed.id, now_ms)?;
        spec.kind_mut().set_limit(record.spec.kind().limit());
        let Order { not_after_ms, .. } = order;
        let mark = signed.map(|signed| mark(&record.id, signed)).unwrap_or_default();
        Ok(VerifiedTask { record: TaskRecord { spec, ..record.clone() }, mark, not_after_ms })
    }

    /// Remembers, until its order has expired, that a task has ended on this node.
    ///
    /// # Errors
    /// The error of writing the state directory. It is remembered for as long as this process runs all the same.
    pub(crate) async fn remember(&self, task: &TaskId, not_after_ms: u64, now_ms: u64) -> Result<()> {
        let (ended, task) = (Arc::clone(&self.ended), task.clone());
        let written = tokio::task::spawn_blocking(move || ended.remember(&task, not_after_ms, now_ms)).await;
        written.unwrap_or_else(|error| Err(refused(error.to_string())))
    }
}

/// Returns the mark of an order for one task: no other task and no other text has it.
fn mark(task: &TaskId, order: &SignedOrder) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(MARK_DOMAIN).update(task.as_str().as_bytes()).update(b"\0").update(order.text.as_bytes());
    hasher.finalize().to_hex()[..MARK_DIGITS].to_owned()
}
