//! Measures how far the wall clocks of the nodes are apart, publishes the result, warns, and tells each node its own
//! skew.
//!
//! The leader asks every runner for its time and compares the answer with the middle between question and answer. Wall
//! clocks only label records and logs: leases and delays go by each node's boot-time clock. An ended task is purged
//! only when its retention has passed by the slowest clock of all nodes.

use crate::clock::Clock;
use crate::model::{NodeId, Registration};
use crate::peers::{Peer, RunnerClient};
use futures_util::StreamExt;
use futures_util::stream;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Time between two rounds of measurements.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// Wait before the first round: a new leader needs a moment to read the registrations.
const MEASURE_AFTER: Duration = Duration::from_secs(1);
/// Offset beyond which a clock counts as wrong, in milliseconds.
const OFF_MAX_MS: i64 = 5000;

/// Least number of measured clocks for a verdict: of two, either may be wrong.
const CLOCKS_MIN: usize = 3;
/// Number of nodes that are asked at once; each call takes 2 s at most.
const CALLS_MAX: usize = 32;

/// Milliseconds by which the clock of each node is ahead of its peers', of the nodes that answered.
pub(crate) type Offsets = BTreeMap<NodeId, i64>;

/// Clock skew of the nodes, as the leader has measured it last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClockSkew {
    /// Offset of each node that answered.
    pub(crate) offsets: Offsets,
    /// Milliseconds by which this node's clock is ahead of the slowest one; `None` until a node has answered.
    pub(crate) ahead_ms: Option<u64>,
    /// Lead of this node's wall clock over its boot-time clock when it was measured, in milliseconds.
    pub(crate) lead_ms: u64,
}

impl ClockSkew {
    /// Tells whether this node's wall clock agrees with its peers', as far as they have answered, and has not leapt since.
    /// `lead_ms` is its lead over the boot-time clock now.
    pub(crate) fn agrees(&self, node: &NodeId, lead_ms: u64) -> bool {
        let is_wrong = self.offsets.len() >= CLOCKS_MIN && self.offsets.get(node).is_some_and(|&offset| is_off(offset));
        let has_leapt = is_off(difference(lead_ms, self.lead_ms));
        self.ahead_ms.is_some() && !is_wrong && !has_leapt
    }
}

/// Measures the skew of the nodes that `registrations` returns, publishes it in `skew`, and warns. Never ends.
pub(crate) async fn watch<F: Future<Output = Vec<Registration>>>(
    skew: &watch::Sender<ClockSkew>,
    registrations: impl Fn() -> F,
    calls: &dyn RunnerClient,
    clock: &dyn Clock,
) {
    let mut warned = BTreeSet::new();
    sleep(MEASURE_AFTER).await;
    loop {
        let known = skew.borrow().offsets.clone();
        let asked = registrations().await.into_iter().map(|registration| {
            let offset_ms = known.get(&registration.node).copied().filter(|_| known.len() >= CLOCKS_MIN);
            async move { Some((registration.node.clone(), measure(&registration, offset_ms, calls, clock).await?)) }
        });
        let answered = stream::iter(asked).buffer_unordered(CALLS_MAX);
        let ahead: BTreeMap<NodeId, i64> = answered.filter_map(std::future::ready).collect().await;
        let offsets = off_peers(&ahead);
        let lead_ms = lead_of(clock);
        warn(&offsets, &mut warned);
        skew.send_modify(|skew| {
            (skew.offsets, skew.lead_ms) = (offsets, lead_ms);
            if let Some(slowest) = ahead.values().min() {
                skew.ahead_ms = Some(slowest.min(&0).unsigned_abs());
            }
        });
        sleep(MEASURE_EVERY).await;
    }
}

/// Asks a node for its time, and tells the node its own offset. Returns the milliseconds by which its clock is ahead of
/// this node's; `None` without an answer.
async fn measure(
    registration: &Registration,
    offset_ms: Option<i64>,
    calls: &dyn RunnerClient,
    clock: &dyn Clock,
) -> Option<i64> {
    let asked = clock.boot_time();
    let unix_ms = calls.clock(&Peer::from(registration), offset_ms).await.ok()?;
    let middle = (clock.boot_time().saturating_sub(asked) / 2).as_millis();
    let here = clock.unix_ms().saturating_sub(u64::try_from(middle).unwrap_or(u64::MAX));
    Some(difference(unix_ms, here))
}

/// Returns the lead of the wall clock over the boot-time clock, in milliseconds.
pub(crate) fn lead_of(clock: &dyn Clock) -> u64 {
    clock.unix_ms().saturating_sub(u64::try_from(clock.boot_time().as_millis()).unwrap_or(u64::MAX))
}

/// Tells whether an offset from the peers' clocks is too large.
pub(crate) fn is_off(offset_ms: i64) -> bool {
    offset_ms.saturating_abs() > OFF_MAX_MS
}

fn difference(there: u64, here: u64) -> i64 {
    let number = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    number(there).saturating_sub(number(here))
}

/// Computes each clock's offset from its peers: from the median of the others and, between two medians, from the nearer
/// one, so that a single wrong clock blames no other node. Sorts once: this runs beside the dispatcher, and a center has a
/// thousand nodes.
fn off_peers(ahead: &BTreeMap<NodeId, i64>) -> Offsets {
    let mut sorted: Vec<i64> = ahead.values().copied().collect();
    sorted.sort_unstable();
    let others = sorted.len().saturating_sub(1);
    let of = |(node, own): (&NodeId, &i64)| {
        // The place of one of those that are equal to it, which is left out.
        let place = sorted.partition_point(|other| other < own);
        let other = |index: usize| sorted.get(index + usize::from(index >= place)).copied().unwrap_or(*own);
        let middle = others / 2;
        let candidates = middle.saturating_sub(usize::from(others.is_multiple_of(2)))..=middle;
        // The latest first: of two that are as near, the clock is called slow rather than fast.
        let offsets = candidates.rev().filter(|index| *index < others).map(|index| own.saturating_sub(other(index)));
        let nearest = offsets.min_by_key(|offset| offset.saturating_abs());
        (node.clone(), nearest.unwrap_or(0))
    };
    ahead.iter().map(of).collect()
}

/// Warns of each wrong clock once, and again only after that clock was right in between.
fn warn(offsets: &Offsets, warned: &mut BTreeSet<NodeId>) {
    for (node, &offset) in offsets {
        if is_off(offset) && warned.insert(node.clone()) {
            tracing::warn!(%node, offset_ms = offset, "wall clock of a node is off its peers': set it by NTP");
        }
    }
    warned.retain(|node| offsets.get(node).is_some_and(|&offset| is_off(offset)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(ahead: &[i64]) -> Vec<i64> {
        let name = |index: usize| NodeId::new(format!("n{index}")).unwrap();
        let ahead = ahead.iter().enumerate().map(|(index, &ahead)| (name(index), ahead)).collect();
        off_peers(&ahead).into_values().collect()
    }

    #[test]
    fn a_wrong_clock_is_told_from_those_of_its_peers() {
        assert_eq!(offsets(&[]), [0_i64; 0]);
        assert_eq!(offsets(&[77]), [0]);
        assert_eq!(offsets(&[0, 9000]), [-9000, 9000], "of two clocks either may be wrong");
        assert_eq!(offsets(&[0, 10, 9000]), [-10, 10, 8990]);
        // The leader's own clock is the wrong one.
        assert_eq!(offsets(&[0, 9000, 9010]), [-9000, -10, 10]);
        assert_eq!(offsets(&[0, 1, 2, 9000]), [-2, -1, 1, 8999]);
        assert!(is_off(5001) && is_off(i64::MIN) && !is_off(-5000));
    }

    /// The definition, at the cost of a sort for each node.
    fn offset_by_definition(ahead: &[i64], index: usize) -> i64 {
        let others = ahead.iter().enumerate().filter(|(other, _)| *other != index);
        let mut others: Vec<i64> = others.map(|(_, other)| ahead[index].saturating_sub(*other)).collect();
        others.sort_unstable();
        let middle = others.len() / 2;
        let candidates = others.get(middle.saturating_sub(usize::from(others.len().is_multiple_of(2)))..=middle);
        let nearest = candidates.unwrap_or_default().iter().copied().min_by_key(|offset| offset.saturating_abs());
        nearest.unwrap_or(0)
    }

    #[test]
    fn one_sort_gives_what_a_sort_for_each_node_would() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let count = random.usize(..9);
            // Few values, so that many are equal; names with one digit, so that the order of the nodes is theirs.
            let ahead: Vec<i64> = (0..count).map(|_| random.i64(-6..6)).collect();
            let expected: Vec<i64> = (0..count).map(|index| offset_by_definition(&ahead, index)).collect();
            assert_eq!(offsets(&ahead), expected, "{ahead:?}");
        }
    }

    #[test]
    fn each_failure_is_warned_about_once() {
        let node = NodeId::new("n").unwrap();
        let mut warned = BTreeSet::new();
        warn(&Offsets::from([(node.clone(), 6000)]), &mut warned);
        assert!(warned.contains(&node));
        warn(&Offsets::from([(node.clone(), 10)]), &mut warned);
        assert!(warned.is_empty());
    }

    #[test]
    fn times_of_any_size_are_compared() {
        assert_eq!(difference(u64::MAX, 0), i64::MAX);
        assert_eq!(difference(0, u64::MAX), -i64::MAX);
    }
}
