//! Elections and the dispatcher: stands for election in every session, leads while it is elected, follows otherwise.

use super::desk::LeaderDesk;
use crate::api::desk::{Desk, Leadership};
use crate::clock::Clock;
use crate::coord::Session;
use crate::dispatcher::{Config as DispatcherConfig, Dispatcher};
use crate::election::{Election, Reign, Role};
use crate::peers::RunnerCalls;
use crate::record::{Incarnation, NodeId};
use crate::runner::{RunnerHandle, Sessions};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// All that leading takes.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Where others reach this node.
    pub(crate) address: String,
    pub(crate) center: Arc<OnceLock<String>>,
    pub(crate) calls: Arc<dyn RunnerCalls>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) dispatcher: DispatcherConfig,
    /// Told whether this node leads.
    pub(crate) runner: RunnerHandle,
    /// What the services look at.
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Where the runner's calls go.
    pub(crate) leader: watch::Sender<Option<String>>,
}

impl Leading {
    /// Stands for election in every session while `stands` is true, and follows whoever leads otherwise. Ends never;
    /// dropped, it leaves its offices to the end of the session.
    pub(crate) async fn run(&self, mut sessions: Sessions, stands: watch::Receiver<bool>) {
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
        tokio::select! {
            biased;
            () = election.run(stands) => (),
            () = self.act(session, seen) => (),
        }
    }

    /// Is what the election says, for as long as it says so.
    async fn act(&self, session: &Arc<dyn Session>, mut roles: watch::Receiver<Role>) {
        loop {
            let role = roles.borrow_and_update().clone();
            match role {
                Role::Follower { leader } => {
                    self.follow(leader.map(|leader| leader.address));
                    if roles.changed().await.is_err() {
                        return;
                    }
                }
                Role::Leader(reign) => self.lead(session, reign, &mut roles).await,
            }
        }
    }

    async fn lead(&self, session: &Arc<dyn Session>, reign: Reign, roles: &mut watch::Receiver<Role>) {
        let (calls, clock) = (Arc::clone(&self.calls), Arc::clone(&self.clock));
        let (dispatcher, handle) =
            Dispatcher::new(Arc::clone(session), reign.clone(), calls, clock, self.dispatcher.clone());
        let desk: Arc<dyn Desk> = Arc::new(LeaderDesk { dispatcher: handle, center: Arc::clone(&self.center) });
        self.runner.set_leading(true);
        self.leader.send_replace(Some(self.address.clone()));
        self.leadership.send_replace(Leadership { desk: Some(desk), address: Some(self.address.clone()) });
        let ending = dispatcher.run(std::future::pending()).await;
        tracing::info!(epoch = reign.epoch().0, ?ending, "leads no more");
        reign.step_down();
        self.follow(None);
        // The election learns of it by the reign, and says who leads then.
        let _ = roles.wait_for(|role| !matches!(role, Role::Leader(now) if now.epoch() == reign.epoch())).await;
    }

    fn follow(&self, leader: Option<String>) {
        self.runner.set_leading(false);
        self.leader.send_replace(leader.clone());
        self.leadership.send_replace(Leadership { desk: None, address: leader });
    }
}
