//! Stands for election in every session, runs the dispatcher while this node leads, and follows the leader otherwise.
//!
//! A term ends in one order: the dispatcher stops and the services no longer use it, the service address is removed,
//! and only then this node resigns, so that the next leader meets neither.

use crate::clock::Clock;
use crate::cluster::clock_skew::{self, ClockSkew};
use crate::cluster::election::{Election, LeaderTerm, Role};
use crate::cluster::service_address::ServiceAddress;
use crate::coord::Session;
use crate::coord::session_keeper::Sessions;
use crate::dispatcher::{Config as DispatcherConfig, Dispatcher};
use crate::model::{Incarnation, NodeId};
use crate::peers::{Peer, RunnerClient};
use crate::rpc::local_roles::Leadership;
use crate::runner::RunnerHandle;
use blockhaul_engine::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Leader's role of a node, and all that it needs.
#[derive(Debug)]
pub(crate) struct LeaderRole {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Address at which other nodes reach this node.
    pub(crate) address: String,
    pub(crate) calls: Arc<dyn RunnerClient>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Largest offset of this node's wall clock from its peers' while it leads.
    pub(crate) clock_off: Duration,
    pub(crate) dispatcher: DispatcherConfig,
    /// This node's runner, which keeps its lease while this node leads.
    pub(crate) runner: RunnerHandle,
    /// Leadership as the services see it.
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Leader that the runner's calls go to.
    pub(crate) leader: watch::Sender<Option<Peer>>,
    /// The service address.
    pub(crate) vip: Option<ServiceAddress>,
    /// Whether this node leads: from its election until the service address is removed and leadership resigned or lost.
    pub(crate) holds_leadership: watch::Sender<bool>,
    /// Receives the error with which this node cannot lead.
    pub(crate) failed: mpsc::Sender<Error>,
}

impl LeaderRole {
    /// Stands for election in every session while `stands` is true, and follows the leader otherwise. Never ends. If it
    /// is dropped, leadership ends with the session.
    pub(crate) async fn run(&self, sessions: Sessions, stands: watch::Receiver<bool>) {
        let does_not_lead = || !*self.holds_leadership.borrow();
        tokio::join!(self.lead_in_every_session(sessions, stands), self.dispatcher.liveness.idle(does_not_lead));
    }

    async fn lead_in_every_session(&self, mut sessions: Sessions, stands: watch::Receiver<bool>) {
        loop {
            let open = sessions.wait_for(Option::is_some).await.map(|session| session.clone());
            let Ok(Some(session)) = open else { return std::future::pending().await };
            self.serve(&session, stands.clone()).await;
            self.follow(None);
            // The session keeper replaces the session as soon as it sees the end, too.
            let is_other = |now: &Option<Arc<dyn Session>>| now.as_ref().is_none_or(|now| now.id() != session.id());
            let _ = sessions.wait_for(is_other).await;
        }
    }

    /// Leads or follows until the session is over.
    async fn serve(&self, session: &Arc<dyn Session>, stands: watch::Receiver<bool>) {
        let roles = Election::roles();
        let seen = roles.subscribe();
        let (node, incarnation) = (self.node.clone(), self.incarnation.clone());
        let election = Election::new(Arc::clone(session), node, incarnation, self.address.clone(), roles);
        let election = election.after(self.runner.incarnations());
        // The election's own `stands`: it becomes false only after the dispatcher and the service address are gone.
        let (candidacy, candidacy_seen) = watch::channel(*stands.borrow());
        tokio::select! {
            biased;
            () = election.run(candidacy_seen) => (),
            () = self.follow_role(session, seen, stands, &candidacy) => (),
        }
        // The session is over, and leadership with it: the service address goes now.
        if *self.holds_leadership.borrow() {
            self.follow(None);
            self.end_leadership().await;
        }
    }

    /// Leads or follows as the election's role changes.
    async fn follow_role(
        &self,
        session: &Arc<dyn Session>,
        mut roles: watch::Receiver<Role>,
        mut stands: watch::Receiver<bool>,
        candidacy: &watch::Sender<bool>,
    ) {
        loop {
            let role = roles.borrow_and_update().clone();
            let stands_now = *stands.borrow_and_update();
            match role {
                Role::Follower { leader } => {
                    self.follow(leader.map(Peer::from));
                    // Only if it changes: every change starts another campaign, whose role would wake this loop again.
                    candidacy.send_if_modified(|candidacy| std::mem::replace(candidacy, stands_now) != stands_now);
                    tokio::select! { biased;
                        changed = roles.changed() => if changed.is_err() { return },
                        changed = stands.changed() => if changed.is_err() { return },
                    }
                }
                Role::Leader(leader_term) => self.lead(session, leader_term, &mut roles, &mut stands, candidacy).await,
            }
        }
    }

    async fn lead(
        &self,
        session: &Arc<dyn Session>,
        leader_term: LeaderTerm,
        roles: &mut watch::Receiver<Role>,
        stands: &mut watch::Receiver<bool>,
        candidacy: &watch::Sender<bool>,
    ) {
        self.holds_leadership.send_replace(true);
        let (calls, clock) = (Arc::clone(&self.calls), Arc::clone(&self.clock));
        let (skew, clock_skew) = watch::channel(ClockSkew::default());
        let config = DispatcherConfig { clock_skew: Some(clock_skew), ..self.dispatcher.clone() };
        let (dispatcher, handle) = Dispatcher::new(Arc::clone(session), leader_term.clone(), calls, clock, config);
        let registered = || async {
            let runners = handle.runners().await.unwrap_or_default();
            runners.into_iter().filter_map(|runner| runner.registration).collect()
        };
        let measuring = clock_skew::watch(&skew, registered, &*self.calls, &*self.clock);
        self.runner.set_leading(true);
        self.leader.send_replace(Some(Peer::from(leader_term.leader().clone())));
        self.leadership
            .send_replace(Leadership { dispatcher: Some(handle.clone()), address: Some(self.address.clone()) });
        let resigned = async {
            // A closed channel counts as a request to resign.
            let _ = stands.wait_for(|stands| !stands).await;
        };
        tokio::select! {
            biased;
            ending = dispatcher.run(resigned) => tracing::info!(epoch = leader_term.epoch().0, ?ending, "lost leadership"),
            () = self.hold_vip() => tracing::error!(epoch = leader_term.epoch().0, "cannot keep the service address: resigning"),
            () = measuring => (),
        }
        self.follow(None);
        self.end_leadership_with(|| async {
            // The election resigns, if leadership is not lost already, and publishes the follower's role.
            if !leader_term.has_ended() {
                candidacy.send_replace(false);
            }
            let is_over = |role: &Role| !matches!(role, Role::Leader(now) if now.epoch() == leader_term.epoch());
            let _ = roles.wait_for(is_over).await;
        })
        .await;
    }

    /// Keeps the service address on this node. Returns when that is impossible, after reporting the error, which ends
    /// the process.
    async fn hold_vip(&self) {
        let Some(vip) = &self.vip else { return std::future::pending().await };
        let error = vip.hold(|| self.runner.lease_left()).await;
        // Fails only if an error was reported before: the first one is enough.
        let _ = self.failed.try_send(error);
    }

    /// Removes the service address.
    async fn end_leadership(&self) {
        self.end_leadership_with(|| std::future::ready(())).await;
    }

    async fn end_leadership_with<F: Future<Output = ()>>(&self, resign: impl FnOnce() -> F) {
        if let Some(vip) = &self.vip {
            vip.release().await;
        }
        resign().await;
        self.holds_leadership.send_replace(false);
    }

    fn follow(&self, leader: Option<Peer>) {
        self.runner.set_leading(false);
        let address = leader.as_ref().map(|leader| leader.address.clone());
        self.leader.send_replace(leader);
        self.leadership.send_replace(Leadership { dispatcher: None, address });
    }
}
