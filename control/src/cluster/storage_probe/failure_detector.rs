//! Decides whether the storage network is usable from the answers of the peers. Does no I/O and reads no clock.
//!
//! ```text
//!  Usable --- two or more peers are registered, and none has answered for the timeout ---> Lost
//!     ^                                                                                     |
//!     `-- some peer answers steadily, or fewer than two are registered; not before the wait is over
//! ```
//! What always holds: time in which the detector did not run (a stopped process, a paused machine) does not count
//! against the storage network. A storage network that is lost again soon after it came back has to wait longer each
//! time, up to a bound.

use crate::model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Least number of registered peers with which the storage network can be lost: a single remaining node keeps its
/// roles.
const PEERS_MIN: usize = 2;

/// Times after which a verdict changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTiming {
    /// Time between two probes of a peer.
    pub interval: Duration,
    /// Silence of all peers after which the storage network counts as lost. Longer: fewer false alarms, but a later
    /// change of leader.
    pub timeout: Duration,
}

impl ProbeTiming {
    /// Returns the time for which a peer has to answer without a gap before a lost storage network is usable again.
    fn steady(&self) -> Duration {
        (self.interval * 3).max(self.timeout / 2)
    }

    /// Returns the longest time between two steady answers.
    fn gap(&self) -> Duration {
        self.interval * 5 / 2
    }

    /// Returns the longest wait of a storage network that is lost repeatedly.
    fn wait_max(&self) -> Duration {
        self.timeout * 6
    }

    /// Returns the time without a loss after which earlier losses no longer count.
    fn stable_after(&self) -> Duration {
        self.timeout * 12
    }

    /// Returns the time from a loss to the earliest return, after `losses` losses in a row.
    fn wait(&self, losses: u32) -> Duration {
        match losses {
            0 => Duration::ZERO,
            _ => self.timeout.saturating_mul(1 << (losses - 1).min(8)).min(self.wait_max()),
        }
    }
}

/// Verdict on the storage network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The node has its roles.
    #[default]
    Usable,
    /// The node gives up its roles.
    Lost,
}

/// Detects the loss of the storage network; see the module's head. Times are of one clock that never goes back.
#[derive(Debug)]
pub(crate) struct FailureDetector {
    timing: ProbeTiming,
    peers: BTreeMap<NodeId, Peer>,
    registered: usize,
    state: State,
    updated: Option<Duration>,
    /// Losses in a row, each soon after the storage network came back.
    losses: u32,
}

/// Peer that is probed.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// Time from which its silence counts.
    since: Duration,
    answered: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Time of the storage network's return; `None` if it was never lost.
    Usable {
        since: Option<Duration>,
    },
    Lost(Loss),
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    since: Duration,
    wait: Duration,
    /// Extra wait as a fraction of the timeout, so that nodes do not return at the same time.
    jitter: f64,
    /// First and last answer of a series without a gap.
    answers: Option<(Duration, Duration)>,
    /// Time from which too few peers are registered.
    alone_since: Option<Duration>,
}

impl Peer {
    fn silent(&self, now: Duration) -> Duration {
        now.saturating_sub(self.answered.map_or(self.since, |answered| answered.max(self.since)))
    }
}

impl FailureDetector {
    /// Creates a detector without peers: the storage network is usable.
    #[must_use]
    pub(crate) fn new(timing: ProbeTiming) -> Self {
        let state = State::Usable { since: None };
        Self { timing, peers: BTreeMap::new(), registered: 0, state, updated: None, losses: 0 }
    }

    /// Sets the peers to probe, of `registered` in all. While the storage network is lost, earlier peers are still
    /// probed: they may have lost their registrations for the same reason.
    pub(crate) fn observe(&mut self, now: Duration, probed: &BTreeSet<NodeId>, registered: usize) {
        self.registered = registered;
        if matches!(self.state, State::Usable { .. }) {
            self.peers.retain(|peer, _| probed.contains(peer));
        }
        for peer in probed {
            self.peers.entry(peer.clone()).or_insert(Peer { since: now, answered: None });
        }
    }

    /// Returns the peers to probe.
    pub(crate) fn probed(&self) -> impl Iterator<Item = &NodeId> {
        self.peers.keys()
    }

    /// Returns the probed peers, and for how long each has been silent.
    pub(crate) fn silences(&self, now: Duration) -> impl Iterator<Item = (&NodeId, Duration)> {
        self.peers.iter().map(move |(peer, seen)| (peer, seen.silent(now)))
    }

    /// Notes an answer of a peer.
    pub(crate) fn answered(&mut self, now: Duration, peer: &NodeId) {
        let Some(peer) = self.peers.get_mut(peer) else { return };
        peer.answered = Some(now);
        if let State::Lost(loss) = &mut self.state {
            let first = loss.answers.filter(|(_, last)| now.saturating_sub(*last) <= self.timing.gap());
            loss.answers = Some((first.map_or(now, |(first, _)| first), now));
        }
    }

    /// Updates and returns the verdict; to be called once in each interval. `jitter` is from 0 to 1.
    pub(crate) fn verdict(&mut self, now: Duration, jitter: f64) -> Verdict {
        self.skip_gap(now);
        match self.state {
            State::Usable { since } if self.is_silent(now) => self.lose(now, since, jitter),
            State::Usable { .. } => Verdict::Usable,
            State::Lost(loss) => self.check_return(now, loss),
        }
    }

    /// Restarts the silence of all peers after a time in which the detector did not run.
    fn skip_gap(&mut self, now: Duration) {
        let last = self.updated.replace(now).unwrap_or(now);
        if now.saturating_sub(last) <= self.timing.gap() {
            return;
        }
        self.peers.values_mut().for_each(|peer| peer.since = now);
        if let State::Lost(loss) = &mut self.state {
            (loss.answers, loss.alone_since) = (None, None);
        }
    }

    fn is_silent(&self, now: Duration) -> bool {
        self.registered >= PEERS_MIN && self.peers.values().all(|peer| peer.silent(now) >= self.timing.timeout)
    }

    fn lose(&mut self, now: Duration, usable_since: Option<Duration>, jitter: f64) -> Verdict {
        let is_again = usable_since.is_some_and(|since| now.saturating_sub(since) < self.timing.stable_after());
        self.losses = if is_again { self.losses.saturating_add(1) } else { 0 };
        let wait = self.timing.wait(self.losses);
        self.state = State::Lost(Loss { since: now, wait, jitter, answers: None, alone_since: None });
        Verdict::Lost
    }

    fn check_return(&mut self, now: Duration, mut loss: Loss) -> Verdict {
        let ProbeTiming { timeout, .. } = self.timing;
        loss.alone_since = (self.registered < PEERS_MIN).then(|| loss.alone_since.unwrap_or(now));
        let is_steady = loss.answers.is_some_and(|(first, last)| {
            now.saturating_sub(last) <= self.timing.gap() && now.saturating_sub(first) >= self.timing.steady()
        });
        let is_alone =
            loss.alone_since.is_some_and(|since| now.saturating_sub(since) >= timeout.mul_f64(1.0 + loss.jitter));
        if (is_steady || is_alone) && now.saturating_sub(loss.since) >= loss.wait {
            self.state = State::Usable { since: Some(now) };
            self.peers.values_mut().for_each(|peer| peer.since = now);
            return Verdict::Usable;
        }
        self.state = State::Lost(loss);
        Verdict::Lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMING: ProbeTiming = ProbeTiming { interval: Duration::from_secs(1), timeout: Duration::from_secs(5) };

    /// Virtual clock that ticks once in an interval, and the peers that answer.
    struct Harness {
        detector: FailureDetector,
        now: Duration,
        registered: Vec<&'static str>,
        answering: Vec<&'static str>,
    }

    impl Harness {
        fn new(registered: &[&'static str]) -> Self {
            let (registered, answering) = (registered.to_vec(), registered.to_vec());
            Self { detector: FailureDetector::new(TIMING), now: Duration::from_secs(1000), registered, answering }
        }

        fn tick(&mut self) -> Verdict {
            self.now += TIMING.interval;
            let probed: BTreeSet<NodeId> = self.registered.iter().map(|name| NodeId::new(*name).unwrap()).collect();
            self.detector.observe(self.now, &probed, probed.len());
            let known: Vec<NodeId> = self.detector.probed().cloned().collect();
            for peer in known.iter().filter(|peer| self.answering.contains(&peer.as_str())) {
                self.detector.answered(self.now, peer);
            }
            self.detector.verdict(self.now, 0.5)
        }

        /// Returns the seconds until this verdict.
        fn until(&mut self, verdict: Verdict) -> u32 {
            let ticks = (1..=600).find(|_| self.tick() == verdict);
            ticks.unwrap_or_else(|| panic!("never {verdict:?}: {:?}", self.detector))
        }

        fn stays(&mut self, verdict: Verdict, ticks: u32) {
            (0..ticks).for_each(|tick| assert_eq!(self.tick(), verdict, "after {tick}: {:?}", self.detector));
        }
    }

    #[test]
    fn the_network_is_lost_after_the_timeout_without_answers() {
        let mut harness = Harness::new(&["a", "b"]);
        harness.stays(Verdict::Usable, 60);
        harness.answering = vec!["b"];
        harness.stays(Verdict::Usable, 60);
        harness.answering.clear();
        assert_eq!(harness.until(Verdict::Lost), 5);
    }

    #[test]
    fn the_network_is_not_lost_with_fewer_than_two_peers() {
        for peers in [&[][..], &["a"]] {
            let mut harness = Harness::new(peers);
            harness.answering.clear();
            harness.stays(Verdict::Usable, 60);
        }
        let mut harness = Harness::new(&["a"]);
        harness.answering.clear();
        harness.stays(Verdict::Usable, 60);
        harness.registered = vec!["a", "b"];
        assert_eq!(harness.until(Verdict::Lost), 6, "a new peer has its time to answer");
    }

    #[test]
    fn the_network_returns_when_a_peer_answers_steadily() {
        let mut harness = Harness::new(&["a", "b"]);
        harness.answering.clear();
        harness.until(Verdict::Lost);
        harness.stays(Verdict::Lost, 100);
        harness.answering = vec!["a"];
        harness.tick();
        harness.answering.clear();
        harness.stays(Verdict::Lost, 20);
        harness.answering = vec!["a"];
        assert_eq!(harness.until(Verdict::Usable), 4, "three intervals without a gap");
    }

    #[test]
    fn deregistered_peers_still_prove_the_network() {
        let mut harness = Harness::new(&["a", "b", "c"]);
        harness.answering.clear();
        harness.until(Verdict::Lost);
        harness.registered = vec!["x", "y"];
        harness.stays(Verdict::Lost, 30);
        harness.answering = vec!["b"];
        harness.until(Verdict::Usable);
        assert_eq!(harness.detector.probed().count(), 5);
        harness.answering = vec!["x"];
        harness.tick();
        assert_eq!(harness.detector.probed().count(), 2, "they are forgotten when the storage network is back");
    }

    #[test]
    fn a_single_remaining_node_keeps_its_network() {
        let mut harness = Harness::new(&["a", "b"]);
        harness.answering.clear();
        harness.until(Verdict::Lost);
        harness.registered = vec!["a"];
        assert_eq!(harness.until(Verdict::Usable), 9, "its timeout and its jitter");
        harness.stays(Verdict::Usable, 60);
    }

    #[test]
    fn a_flapping_network_waits_longer_each_time_until_it_is_stable() {
        let mut harness = Harness::new(&["a", "b"]);
        let mut away = Vec::new();
        for _ in 0..6 {
            harness.answering.clear();
            harness.until(Verdict::Lost);
            harness.answering = vec!["a", "b"];
            away.push(harness.until(Verdict::Usable));
        }
        assert_eq!(away, [4, 5, 10, 20, 30, 30]);
        harness.stays(Verdict::Usable, 60);
        harness.answering.clear();
        harness.until(Verdict::Lost);
        harness.answering = vec!["a", "b"];
        assert_eq!(harness.until(Verdict::Usable), 4);
    }

    #[test]
    fn time_in_which_the_process_did_not_run_is_not_counted() {
        let mut harness = Harness::new(&["a", "b"]);
        harness.stays(Verdict::Usable, 10);
        harness.now += Duration::from_secs(600);
        harness.stays(Verdict::Usable, 10);
        harness.answering.clear();
        harness.now += Duration::from_secs(600);
        assert_eq!(harness.until(Verdict::Lost), 6, "silence counts from the first verdict on");
    }

    proptest! {
        /// Under any sequence of events: no loss without two peers and a silence of all for the timeout, no return
        /// before the wait is over, and a working storage network is used in the end.
        #[test]
        fn every_verdict_has_its_reasons(steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_u64..30), 1..80)) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let mut harness = Harness::new(&[]);
            let mut last_answer = harness.now;
            let mut before = Verdict::Usable;
            for (registered, answering, gap) in steps {
                harness.registered = NAMES[..registered.min(3)].to_vec();
                harness.answering = NAMES[..answering.min(3)].to_vec();
                harness.now += Duration::from_secs(gap / 10 * 7);
                let verdict = harness.tick();
                if harness.registered.iter().any(|name| harness.answering.contains(name)) {
                    last_answer = harness.now;
                }
                if (before, verdict) == (Verdict::Usable, Verdict::Lost) {
                    prop_assert!(registered >= 2 && harness.now - last_answer >= TIMING.timeout);
                }
                before = verdict;
            }
            (harness.registered, harness.answering) = (NAMES.to_vec(), NAMES.to_vec());
            harness.stays_usable_in_the_end();
        }
    }

    impl Harness {
        fn stays_usable_in_the_end(&mut self) {
            (0..=u32::try_from(TIMING.wait_max().as_secs()).unwrap()).for_each(|_| _ = self.tick());
            self.stays(Verdict::Usable, 20);
        }
    }
}
