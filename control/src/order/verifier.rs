//! Checks orders for a center: what its leader does before anything is written.

use super::content::{Claimed, Order};
use super::keys::OrderKeys;
use super::refused;
use super::signature::verified;
use crate::model::{NodeId, ScheduleName, SignedOrder, Submission, TaskSpec, Trigger};
use crate::peers::CenterId;
use blockhaul_engine::error::Result;

/// How far the instant of a task that a client has its schedule make may be from the leader's clock.
const RUN_WITHIN_MS: u64 = 60_000;

/// Checks orders by the keys in force. Clones share the keys.
#[derive(Clone, Debug)]
pub struct OrderVerifier {
    keys: OrderKeys,
    center: CenterId,
    /// Node of plain paths where there is only one.
    here: Option<NodeId>,
}

impl OrderVerifier {
    /// Creates a verifier for `center`, by its identity. `here` is the node of plain paths where there is only one node.
    #[must_use]
    pub fn new(keys: OrderKeys, center: CenterId, here: Option<NodeId>) -> Self {
        Self { keys, center, here }
    }

    pub(super) fn here(&self) -> Option<&NodeId> {
        self.here.as_ref()
    }

    /// Returns what a client has signed for this center, if it holds now.
    ///
    /// # Errors
    /// `EPermission`.
    pub(super) fn verified(&self, signed: Option<&SignedOrder>, now_ms: u64) -> Result<Order> {
        let signed = signed.ok_or_else(|| {
            refused("it is not signed, and this center runs only what is")
                .advise("use --sign KEY, with a key of --order-keys")
        })?;
        let center = self.center.get().ok_or_else(|| refused("this node has not joined its center yet"))?;
        verified(signed, &self.keys.keys(), center, now_ms)
    }

    /// Checks what is submitted.
    ///
    /// # Errors
    /// `EPermission`.
    pub(crate) fn check_submission(&self, submission: &Submission, now_ms: u64) -> Result<()> {
        let order = self.verified(submission.order.as_ref(), now_ms)?;
        if order.trigger.is_some() {
            return Err(refused("it was signed for a schedule"));
        }
        let claimed = Claimed::from(submission);
        let (spec, _) = order.work(claimed.id, self.here())?;
        if !spec.is_same_work(claimed.spec) {
            return Err(refused("its client has signed other work"));
        }
        order.check_place(&claimed)
    }

    /// Checks a schedule that is added.
    ///
    /// # Errors
    /// `EPermission`.
    pub(crate) fn check_schedule(
        &self,
        name: &ScheduleName,
        trigger: (&Trigger, &str),
        template: (&TaskSpec, Option<&SignedOrder>),
        now_ms: u64,
    ) -> Result<()> {
        let (spec, signed) = template;
        self.verified(signed, now_ms)?.check_schedule(name, trigger, spec, self.here())
    }

    /// Checks that a client has signed the template of a schedule for one instant that is about now. Returns that instant, in
    /// milliseconds since 1970.
    ///
    /// # Errors
    /// `EPermission`.
    pub(crate) fn check_run(
        &self,
        name: &ScheduleName,
        (spec, zone): (&TaskSpec, &str),
        signed: Option<&SignedOrder>,
        now_ms: u64,
    ) -> Result<u64> {
        let order = self.verified(signed, now_ms)?;
        let Some(Trigger::At(at_ms)) = order.trigger.as_ref().map(|trigger| &trigger.when) else {
            return Err(refused("it was not signed for one instant"));
        };
        if at_ms.abs_diff(now_ms) > RUN_WITHIN_MS {
            return Err(refused("it was signed for another time").advise("compare the clocks, and sign it anew"));
        }
        order.check_schedule(name, (&Trigger::At(*at_ms), zone), spec, self.here())?;
        Ok(*at_ms)
    }
}
