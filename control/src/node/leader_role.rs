//! Stands for election in every session, runs the dispatcher while this node leads, and follows the leader otherwise.
//!
//! The end of a term has one order: the dispatcher stops and the services no longer see it, the service address is removed, and
//! only then leadership is resigned, so that the next leader meets neither.

use super::leader_api::DispatcherApi;
use crate::clock::Clock;
use crate::cluster::clock_skew::ClockSkew;
use crate::cluster::election::{Election, LeaderTerm, Role};
use crate::cluster::service_address::ServiceAddress;
use crate::coord::Session;
use crate::coord::session_keeper::Sessions;
use crate::dispatcher::{Config as DispatcherConfig, Dispatcher};
use crate::model::{Incarnation, NodeId};
use crate::peers::{CenterId, Peer, RunnerClient};
use crate::rpc::local_roles::{LeaderApi, Leadership};
use crate::runner::RunnerHandle;
use blockhaul_engine::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// All that leading takes.
#[derive(Debug)]
pub(crate) struct LeaderRole {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Where others reach this node.
    pub(crate) address: String,
    pub(crate) center: CenterId,
    pub(crate) calls: Arc<dyn RunnerClient>,
    pub(crate) clock: Arc<dyn Clock>,
    /// By how much this node's wall clock may be off its peers' while it leads.
    pub(crate) clock_off: Duration,
    pub(crate) dispatcher: DispatcherConfig,
    /// Told whether this node leads.
    pub(crate) runner: RunnerHandle,
    /// What the services look at.
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Where the runner's calls go.
    pub(crate) leader: watch::Sender<Option<Peer>>,
    /// The service address.
    pub(crate) vip: Option<ServiceAddress>,
    /// Whether this node leads, from its election until everything of that is given up.
    pub(crate) holds_leadership: watch::Sender<bool>,
    /// Why the role cannot be had on this node.
    pub(crate) failed: mpsc::Sender<Error>,
}

impl LeaderRole {
    /// Stands for election in every session while `stands` is true, and follows whoever leads otherwise. Never ends;
    /// dropped, leadership ends with the session.
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
            // The keeper replaces it when it sees the end, too.
            let is_other = |now: &Option<Arc<dyn Session>>| now.as_ref().is_none_or(|now| now.id() != session.id());
            let _ = sessions.wait_for(is_other).await;
        }
    }

    /// Until the session is over.
    async fn serve(&self, session: &Arc<dyn Session>, stands: watch::Receiver<bool>) {
        let roles = Election::roles();
        let seen = roles.subscribe();
        let (node, incarnation) = (self.node.clone(), self.incarnation.clone());
        let election = Election::new(Arc::clone(session), node, incarnation, self.address.clone(), roles);
        let election = election.after(self.runner.lives());
        // What the election is told: that it does not stand any more only when nothing of leadership is left.
        let (stand, candidacy) = watch::channel(*stands.borrow());
        tokio::select! {
            biased;
            () = election.run(candidacy) => (),
            () = self.act(session, seen, stands, &stand) => (),
        }
        // The session is over, and leadership with it: the service address goes now.
        if *self.holds_leadership.borrow() {
            self.follow(None);
            self.vacate().await;
        }
    }

    /// Is what the election says, for as long as it says so.
    async fn act(
        &self,
        session: &Arc<dyn Session>,
        mut roles: watch::Receiver<Role>,
        mut stands: watch::Receiver<bool>,
        stand: &watch::Sender<bool>,
    ) {
        loop {
            let role = roles.borrow_and_update().clone();
            let stands_now = *stands.borrow_and_update();
            match role {
                Role::Follower { leader } => {
                    self.follow(leader.map(Peer::from));
                    // Only news: the election answers each with another campaign, and with the role that this waits for.
                    stand.send_if_modified(|stand| std::mem::replace(stand, stands_now) != stands_now);
                    tokio::select! { biased;
                        changed = roles.changed() => if changed.is_err() { return },
                        changed = stands.changed() => if changed.is_err() { return },
                    }
                }
                Role::Leader(leader_term) => self.lead(session, leader_term, &mut roles, &mut stands, stand).await,
            }
        }
    }

    async fn lead(
        &self,
        session: &Arc<dyn Session>,
        leader_term: LeaderTerm,
        roles: &mut watch::Receiver<Role>,
        stands: &mut watch::Receiver<bool>,
        stand: &watch::Sender<bool>,
    ) {
        self.holds_leadership.send_replace(true);
        let (calls, clock) = (Arc::clone(&self.calls), Arc::clone(&self.clock));
        let (ahead, clock_ahead) = watch::channel(None);
        let config = DispatcherConfig { clock_ahead: Some(clock_ahead), ..self.dispatcher.clone() };
        let (dispatcher, handle) = Dispatcher::new(Arc::clone(session), leader_term.clone(), calls, clock, config);
        let clocks = Arc::new(ClockSkew::new(ahead));
        let watching = clocks.watch(&handle, &*self.calls, &*self.clock);
        let leader: Arc<dyn LeaderApi> = Arc::new(DispatcherApi {
            dispatcher: handle.clone(),
            center: Arc::clone(&self.center),
            clocks: Arc::clone(&clocks),
        });
        self.runner.set_leading(true);
        self.leader.send_replace(Some(Peer::from(leader_term.leader().clone())));
        self.leadership.send_replace(Leadership { leader: Some(leader), address: Some(self.address.clone()) });
        let resigned = async {
            // Nobody who could want it any more is as good as a wish to stop.
            let _ = stands.wait_for(|stands| !stands).await;
        };
        tokio::select! {
            biased;
            ending = dispatcher.run(resigned) => tracing::info!(epoch = leader_term.epoch().0, ?ending, "lost leadership"),
            () = self.hold_vip() => tracing::error!(epoch = leader_term.epoch().0, "cannot keep the service address: resigning"),
            () = watching => (),
        }
        self.follow(None);
        self.vacate_with(|| async {
            // The election resigns, if leadership is not lost already, and says who leads then.
            if !leader_term.has_ended() {
                stand.send_replace(false);
            }
            let is_over = |role: &Role| !matches!(role, Role::Leader(now) if now.epoch() == leader_term.epoch());
            let _ = roles.wait_for(is_over).await;
        })
        .await;
    }

    /// Keeps the service address on this node; ends when that cannot be, which ends the server.
    async fn hold_vip(&self) {
        let Some(vip) = &self.vip else { return std::future::pending().await };
        let error = vip.hold(|| self.runner.lease_left()).await;
        // One reason is enough.
        let _ = self.failed.try_send(error);
    }

    /// Removes the service address.
    async fn vacate(&self) {
        self.vacate_with(|| std::future::ready(())).await;
    }

    async fn vacate_with<F: Future<Output = ()>>(&self, give_up: impl FnOnce() -> F) {
        if let Some(vip) = &self.vip {
            vip.release().await;
        }
        give_up().await;
        self.holds_leadership.send_replace(false);
    }

    fn follow(&self, leader: Option<Peer>) {
        self.runner.set_leading(false);
        let address = leader.as_ref().map(|leader| leader.address.clone());
        self.leader.send_replace(leader);
        self.leadership.send_replace(Leadership { leader: None, address });
    }
}
