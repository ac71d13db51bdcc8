//! Holds the state that all parts of a runner share: its registration, its phase, and its queue of notifications.

use super::leader_notifier::LeaderNotifier;
use super::metrics::RunnerMetrics;
use super::write_lease::ActiveRegistration;
use super::{RunnerConfig, RunnerDependencies};
use crate::coord::{CoordError, SessionState};
use crate::model::{Epoch, Holder};
use blockhaul_engine::error::{Code, Error, Result};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// Longest wait before a retry that no event announces.
const RETRY_WAIT_MAX: Duration = Duration::from_millis(200);

/// Wait before a retry of a write that an operator has to permit first.
const DENIED_WAIT: Duration = Duration::from_secs(10);

/// State that all parts of a runner share.
#[derive(Debug)]
pub(super) struct RunnerContext {
    pub config: RunnerConfig,
    pub dependencies: RunnerDependencies,
    pub notifier: LeaderNotifier,
    pub metrics: RunnerMetrics,
    /// Wanted phase of the runner; its registration follows.
    pub phase: watch::Sender<RunnerPhase>,
    /// Current registration.
    pub registration: watch::Sender<Option<ActiveRegistration>>,
    /// Wakes the renewal.
    pub renew: Notify,
    /// Wakes the loop that checks the registration.
    pub check_registration: Notify,
    /// Wakes the loop that returns all tasks without ending the runner.
    pub interrupt: Notify,
    /// Whether the node wants a runner.
    pub wanted: watch::Sender<bool>,
    /// Whether the runner has deregistered because its node does not want a runner.
    pub is_away: watch::Sender<bool>,
    /// Number of slots.
    slots: watch::Sender<u32>,
    ends: AtomicBool,
    leads: AtomicBool,
    leader: Mutex<Option<Epoch>>,
}

/// Phase of a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunnerPhase {
    /// It accepts assignments.
    Serving,
    /// It returns its tasks and accepts none.
    Stopping,
    /// It is not registered.
    Absent,
}

impl RunnerContext {
    pub(super) fn new(config: RunnerConfig, dependencies: RunnerDependencies) -> Self {
        let slots = watch::Sender::new(config.slots);
        Self {
            config,
            dependencies,
            notifier: LeaderNotifier::default(),
            metrics: RunnerMetrics::default(),
            phase: watch::Sender::new(RunnerPhase::Absent),
            registration: watch::Sender::new(None),
            renew: Notify::new(),
            check_registration: Notify::new(),
            interrupt: Notify::new(),
            wanted: watch::Sender::new(true),
            is_away: watch::Sender::new(false),
            slots,
            ends: AtomicBool::new(false),
            leads: AtomicBool::new(false),
            leader: Mutex::new(None),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.dependencies.clock.boot_time()
    }

    pub(super) fn unix_ms(&self) -> u64 {
        self.dependencies.clock.unix_ms()
    }

    pub(super) fn holder(&self) -> Holder {
        Holder { node: self.config.node.clone(), incarnation: self.config.incarnation.clone() }
    }

    /// Returns the current registration; waits until there is one.
    pub(super) async fn registration(&self) -> ActiveRegistration {
        loop {
            let mut registrations = self.registration.subscribe();
            // The sender lives as long as this context.
            if let Ok(registration) = registrations.wait_for(Option::is_some).await
                && let Some(registration) = &*registration
            {
                return registration.clone();
            }
        }
    }

    /// Waits before a retry after `error`: for a connection, another registration, or a time. Bounded, except without a
    /// connection.
    pub(super) async fn wait_to_retry(&self, registration: &ActiveRegistration, error: &CoordError) {
        let mut registrations = self.registration.subscribe();
        let moved = registrations.wait_for(|now| !now.as_ref().is_some_and(|now| now.is_same(registration)));
        match error {
            CoordError::NotConnected => {
                let mut states = registration.session.states();
                let usable = states.wait_for(|state: &SessionState| state.is_connected() || state.is_over());
                tokio::select! { biased; _ = moved => {}, _ = usable => {} }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            CoordError::Refused { why, .. } if !why.is_condition() => {
                tracing::error!(%error, "write refused by the coordination service: change that");
                let _ = timeout(DENIED_WAIT, moved).await;
            }
            CoordError::Ended(_) | CoordError::Refused { index: 0, .. } => {
                self.check_registration.notify_one();
                let _ = timeout(RETRY_WAIT_MAX, moved).await;
            }
            // The record or a claim has changed: the caller reads them again.
            CoordError::Refused { .. } => {}
            CoordError::Unknown(_) | CoordError::Unusable(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = timeout(RETRY_WAIT_MAX * 10, registration.session.sync()).await;
            }
            CoordError::TooLarge { .. } => {
                tracing::error!(%error, "record too large for the store");
                tokio::time::sleep(RETRY_WAIT_MAX * 10).await;
            }
        }
    }

    /// Accepts a dispatcher with this epoch: stores a higher one, refuses a lower one.
    ///
    /// # Errors
    /// `EFenced` if a higher epoch was seen before, by this incarnation of the node or an earlier one. `EOverloaded` if
    /// the state directory cannot be read or written now: not the task's fault, so it is retried.
    pub(super) fn accept_leader(&self, leader: Epoch) -> Result<(), (Code, String)> {
        let of_state = |error: Error| (Code::Overloaded, error.to_string());
        let mut seen = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &self.dependencies.state;
        let highest = match *seen {
            Some(highest) => highest,
            None => state.leader_epoch().map_err(of_state)?,
        };
        if leader < highest {
            tracing::error!(%leader, %highest, "call refused: lower leader epoch than seen before");
            let why = format!("leader epoch {leader} is over: {highest} was seen");
            return Err((Code::Fenced, why));
        }
        if leader > highest {
            state.raise_leader_epoch(leader).map_err(of_state)?;
        }
        *seen = Some(leader);
        Ok(())
    }

    /// Changes the phase if it is `from`; tells whether it was.
    pub(super) fn change_phase(&self, from: RunnerPhase, to: RunnerPhase) -> bool {
        self.phase.send_if_modified(|phase| {
            let changes = *phase == from;
            if changes {
                *phase = to;
            }
            changes
        })
    }

    /// Tells whether the node wants a runner.
    pub(super) fn is_wanted(&self) -> bool {
        *self.wanted.borrow() && !self.is_ending()
    }

    /// Waits until the node wants a runner (`true`), or wants none.
    pub(super) async fn wait_for_wanted(&self, wanted: bool) {
        // The sender lives as long as this context.
        let _ = self.wanted.subscribe().wait_for(|now| *now == wanted).await;
    }

    /// Returns the current number of slots.
    pub(super) fn slots(&self) -> u32 {
        *self.slots.borrow()
    }

    /// Sets the number of slots. Running tasks are not stopped.
    pub(super) fn set_slots(&self, slots: u32) {
        self.slots.send_replace(slots);
        // Wakes the loop that updates the registration.
        self.check_registration.notify_one();
    }

    /// Asks the runner to end, which cannot be undone.
    pub(super) fn end(&self) {
        self.ends.store(true, Relaxed);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ends.load(Relaxed)
    }

    /// Sets whether this node leads: a leader's lease is renewed even without copies.
    pub(super) fn set_leading(&self, leads: bool) {
        self.leads.store(leads, Relaxed);
        self.renew.notify_one();
    }

    /// Tells whether this node leads.
    pub(super) fn is_leading(&self) -> bool {
        self.leads.load(Relaxed)
    }
}
