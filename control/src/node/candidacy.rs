//! Decides whether this node stands for election: it is active, its certificates are valid, and its wall clock agrees
//! with its peers'.
//!
//! The leader tells every node the offset of that node's clock. A node whose clock is off by more than `--clock-off`
//! resigns if it leads, and does not stand again until its clock is set. If no node has led for [`UNOPPOSED_AFTER`],
//! the node stands in spite of its clock, and leads until another node does: a leader with a wrong clock is better than
//! none. A node without valid certificates never stands, as no client could call it.

use crate::clock::{Clock, ClockOffset};
use crate::peers::Peer;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Time without a leader after which a wrong clock no longer keeps this node from standing: longer than any election.
const UNOPPOSED_AFTER: Duration = Duration::from_secs(30);
/// Longest time between two decisions: no event announces that the clock was set.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Inputs of the decision.
#[derive(Debug)]
pub(super) struct Candidacy<'a> {
    pub(super) active: watch::Receiver<bool>,
    /// Whether this node's certificates are valid.
    pub(super) certified: watch::Receiver<bool>,
    pub(super) told: watch::Receiver<Option<ClockOffset>>,
    /// Current leader, if it is known.
    pub(super) leader: watch::Receiver<Option<Peer>>,
    /// Address at which other nodes reach this node.
    pub(super) address: &'a str,
    pub(super) clock: &'a dyn Clock,
    /// Largest offset from the peers' clocks with which a node stands.
    pub(super) off_max: Duration,
}

impl Candidacy<'_> {
    /// Publishes in `stands` whether this node stands for election, for as long as it is polled.
    pub(super) async fn decide(mut self, stands: &watch::Sender<bool>) {
        let mut state = State { leaderless_since: Some(Instant::now()), ..State::default() };
        loop {
            let active = *self.active.borrow_and_update();
            let certified = *self.certified.borrow_and_update();
            let off_ms = self.told.borrow_and_update().map(|offset| offset.ms(self.clock));
            let off_ms = off_ms.filter(|ms| u128::from(ms.unsigned_abs()) > self.off_max.as_millis());
            let leads = self.leader.borrow_and_update().as_ref().map(|leader| leader.address == self.address);
            let was_held_back = state.is_held_back;
            state.update(off_ms.is_some(), leads, Instant::now());
            match off_ms {
                Some(off_ms) if state.is_held_back && !was_held_back => tracing::error!(
                    off_ms,
                    "wall clock is off its peers': not standing for election until it is set (use NTP)"
                ),
                Some(off_ms) if !state.is_held_back && was_held_back => tracing::error!(
                    off_ms,
                    "wall clock is off its peers', but no other node leads: standing for election (set the clock by NTP)"
                ),
                None if was_held_back => {
                    tracing::info!("wall clock agrees with its peers': standing for election")
                }
                _ => (),
            }
            let stands_now = active && certified && !state.is_held_back;
            stands.send_if_modified(|stands| std::mem::replace(stands, stands_now) != stands_now);
            let changed = async {
                tokio::select! { biased;
                    changed = self.active.changed() => changed,
                    changed = self.certified.changed() => changed,
                    changed = self.told.changed() => changed,
                    changed = self.leader.changed() => changed,
                }
            };
            // A closed channel returns at once: without this wait the loop would spin.
            if let Ok(Err(_)) = timeout(CHECK_EVERY, changed).await {
                sleep(CHECK_EVERY).await;
            }
        }
    }
}

/// State from one decision to the next.
#[derive(Debug, Default)]
struct State {
    /// Start of the time without a known leader.
    leaderless_since: Option<Instant>,
    /// Whether no other node has led for so long that this node stands in spite of its clock.
    is_unopposed: bool,
    is_held_back: bool,
}

impl State {
    /// Updates the state. `leads`: whether this node is the leader; `None` without a known leader.
    fn update(&mut self, is_off: bool, leads: Option<bool>, now: Instant) {
        self.leaderless_since = if leads.is_none() { self.leaderless_since.or(Some(now)) } else { None };
        self.is_unopposed = match leads {
            Some(true) => self.is_unopposed,
            Some(false) => false,
            None => self.is_unopposed || self.leaderless_since.is_some_and(|since| now - since >= UNOPPOSED_AFTER),
        };
        self.is_held_back = is_off && !self.is_unopposed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;
    use crate::model::{Incarnation, NodeId};

    fn peer(name: &str) -> Peer {
        let (node, incarnation) = (NodeId::new(name).unwrap(), Incarnation(String::from("1")));
        Peer { address: format!("{name}:1"), node, incarnation }
    }

    struct Harness {
        active: watch::Sender<bool>,
        certified: watch::Sender<bool>,
        told: watch::Sender<Option<ClockOffset>>,
        leader: watch::Sender<Option<Peer>>,
        clock: &'static TestClock,
        stands: watch::Receiver<bool>,
    }

    /// Runs the candidacy of `n1`, which is active.
    fn harness() -> Harness {
        let (active, active_seen) = watch::channel(true);
        let (certified, certified_seen) = watch::channel(true);
        let (told, told_seen) = watch::channel(None);
        let (leader, leader_seen) = watch::channel(None);
        let (stands, stands_seen) = watch::channel(false);
        let clock: &'static TestClock = Box::leak(Box::new(TestClock::start()));
        clock.jump(100_000);
        tokio::spawn(async move {
            let off_max = Duration::from_secs(60);
            let parts = Candidacy {
                active: active_seen,
                certified: certified_seen,
                told: told_seen,
                leader: leader_seen,
                address: "n1:1",
                clock,
                off_max,
            };
            parts.decide(&stands).await;
        });
        Harness { active, certified, told, leader, clock, stands: stands_seen }
    }

    impl Harness {
        /// Tells whether the node stands after so many seconds.
        async fn stands_after(&self, seconds: u64) -> bool {
            sleep(Duration::from_secs(seconds)).await;
            *self.stands.borrow()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_clock_is_off_stands_again_when_the_clock_is_set() {
        let harness = harness();
        assert!(harness.stands_after(1).await, "no offset was received yet");
        harness.leader.send_replace(Some(peer("n1")));
        harness.told.send_replace(Some(ClockOffset::told(60_000, harness.clock)));
        assert!(harness.stands_after(1).await);
        harness.told.send_replace(Some(ClockOffset::told(60_001, harness.clock)));
        assert!(!harness.stands_after(1).await);
        harness.leader.send_replace(Some(peer("n2")));
        assert!(!harness.stands_after(3600).await);
        harness.clock.jump(40_000);
        assert!(harness.stands_after(6).await);
        harness.clock.jump(0);
        assert!(harness.stands_after(6).await, "40 s behind are within the limit");
        harness.told.send_replace(Some(ClockOffset::told(-60_001, harness.clock)));
        assert!(!harness.stands_after(6).await);
        harness.active.send_replace(false);
        harness.told.send_replace(Some(ClockOffset::told(0, harness.clock)));
        assert!(!harness.stands_after(6).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_without_valid_certificates_does_not_stand_even_if_no_other_node_leads() {
        let harness = harness();
        assert!(harness.stands_after(1).await);
        harness.certified.send_replace(false);
        assert!(!harness.stands_after(3600).await);
        harness.active.send_replace(false);
        harness.certified.send_replace(true);
        assert!(!harness.stands_after(1).await, "the node is inactive");
        harness.active.send_replace(true);
        assert!(harness.stands_after(1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_with_a_wrong_clock_stands_if_no_other_node_leads() {
        let harness = harness();
        harness.leader.send_replace(Some(peer("n1")));
        harness.told.send_replace(Some(ClockOffset::told(i64::MIN, harness.clock)));
        assert!(!harness.stands_after(1).await);
        harness.leader.send_replace(None);
        assert!(!harness.stands_after(25).await);
        assert!(harness.stands_after(10).await);
        harness.leader.send_replace(Some(peer("n1")));
        assert!(harness.stands_after(3600).await, "no other node has led meanwhile");
        harness.leader.send_replace(Some(peer("n2")));
        assert!(!harness.stands_after(1).await);
    }
}
