//! Elects one leader at a time over a session, with an epoch that every write of a leader checks.
//!
//! ```text
//!  Follower(leader?) --- /leader absent: multi { create /leader, set /leader_epoch } --> Leader(LeaderTerm)
//!       ^                                                                                    |
//!       `---- write refused by the epoch, /leader not ours, disconnected for 6 s, resigned --'
//! ```
//!
//! What always holds: a leader's write happens only if no other leader has been elected since ([`LeaderTerm::commit`]
//! checks the version of `/leader_epoch` in the same multi), so a deposed leader that does not know it yet does no
//! harm. `/leader` only publishes the leader's address; no write depends on it.
//!
//! The node runs the loop ([`Election::run`]), decides whether this node stands for election, and starts and stops the
//! dispatcher as the published [`Role`] changes.

use crate::coord::paths::{LEADER, LEADER_EPOCH};
use crate::coord::{CoordError, CreateMode, Done, Op, Refusal, Session, Watch, Znode};
use crate::model::{Epoch, Incarnation, Leader, NodeId, OpId, Record};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// Time without a connection after which a leader steps down: shorter than any session, so that it stops sending calls
/// before another leader begins.
pub const DISCONNECTED_MAX: Duration = Duration::from_secs(6);

/// Longest time between two reads of a follower, as watches may be lost.
const READ_EVERY: Duration = Duration::from_secs(10);

/// Wait after a request that failed.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Time after which a lasting failure is logged again.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Role of this node.
#[derive(Clone, Debug)]
pub enum Role {
    /// Another node leads, or no leader is known.
    Follower {
        /// Node that clients should call.
        leader: Option<Leader>,
    },
    /// This node leads until the term is over.
    Leader(LeaderTerm),
}

impl Role {
    /// Returns the error for a client that asked a follower.
    #[must_use]
    pub fn not_leader(&self) -> Error {
        let message = match self {
            Self::Leader(leader_term) => format!("{} leads", leader_term.leader().address),
            Self::Follower { leader: Some(leader) } => format!("this node does not lead: ask {}", leader.address),
            Self::Follower { leader: None } => String::from("no node leads now: retry"),
        };
        Error { retryable: true, ..Error::new(Code::NotLeader, Side::Coordination, Operation::Start, message) }
    }

    /// Returns the leader, as far as it is known.
    #[must_use]
    pub fn leader(&self) -> Option<&Leader> {
        match self {
            Self::Leader(leader_term) => Some(leader_term.leader()),
            Self::Follower { leader } => leader.as_ref(),
        }
    }
}

/// A leader's term: the right to write as leader until the next election. Clones are the same term.
#[derive(Clone, Debug)]
pub struct LeaderTerm {
    session: Arc<dyn Session>,
    leader: Leader,
    epoch: Epoch,
    version: i32,
    is_over: Arc<watch::Sender<bool>>,
}

/// Error of a leader's write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Another election has been held, or this node has stepped down; nothing was done.
    #[error("this node no longer leads")]
    LostLeadership,
    /// Any other error. Indices are those of the given operations.
    #[error(transparent)]
    Store(#[from] CoordError),
}

impl LeaderTerm {
    fn new(session: Arc<dyn Session>, leader: Leader, epoch: Epoch, version: i32) -> Self {
        Self { session, leader, epoch, version, is_over: Arc::new(watch::Sender::new(false)) }
    }

    /// Returns the epoch: higher than that of every earlier term. Every call of the leader carries it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns this node as others see it.
    #[must_use]
    pub fn leader(&self) -> &Leader {
        &self.leader
    }

    /// Tells whether this node knows that it no longer leads.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        *self.is_over.borrow()
    }

    /// Waits until this node knows that it no longer leads.
    pub async fn ended(&self) {
        // The sender lives as long as self: it cannot fail.
        let _ = self.is_over.subscribe().wait_for(|over| *over).await;
    }

    /// Ends the term: nothing is committed after this call.
    pub fn step_down(&self) {
        self.is_over.send_replace(true);
    }

    /// Does all of `ops` if this term still holds, or nothing. Results and indices are those of `ops`.
    ///
    /// # Errors
    /// [`CommitError::LostLeadership`]: stop. Others as [`Session::multi`].
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Done>, CommitError> {
        if self.has_ended() {
            return Err(CommitError::LostLeadership);
        }
        let check = Op::Check { path: LEADER_EPOCH.to_owned(), version: self.version };
        let guarded = std::iter::once(check).chain(ops).collect();
        match self.session.multi(guarded).await {
            Ok(mut done) => {
                done.remove(0);
                Ok(done)
            }
            Err(CoordError::Refused { index: 0, why }) => {
                warn!(epoch = self.epoch.0, %why, "lost leadership: another leader was elected");
                self.step_down();
                Err(CommitError::LostLeadership)
            }
            Err(CoordError::Refused { index, why }) => Err(CoordError::Refused { index: index - 1, why }.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Resigns leadership, so that another node takes over at once.
    async fn resign(&self) {
        self.step_down();
        let Ok(Some(node)) = self.session.get(LEADER).await else { return };
        if node.stat.owner != Some(self.session.id()) {
            return;
        }
        let ops = vec![
            Op::Check { path: LEADER_EPOCH.to_owned(), version: self.version },
            Op::Delete { path: LEADER.to_owned(), version: node.stat.version },
        ];
        match self.session.multi(ops).await {
            Ok(_) => info!(epoch = self.epoch.0, "resigned leadership"),
            Err(error) => warn!(epoch = self.epoch.0, %error, "cannot resign leadership: it ends with the session"),
        }
    }
}

/// Last logged failure of a campaign: without a connection campaigns fail four times a second.
#[derive(Debug, Default)]
struct LoggedFailure(Option<(CoordError, Instant)>);

impl LoggedFailure {
    /// Tells whether a failure is to be logged: it differs from the last one, or that was logged 30 s ago. `None` is a
    /// success.
    fn should_log(&mut self, error: Option<&CoordError>, now: Instant) -> bool {
        let is_logged = |(logged, at): &(CoordError, Instant)| Some(logged) == error && now < *at + LOG_EVERY;
        let is_new = error.is_some() && !self.0.as_ref().is_some_and(is_logged);
        if is_new || error.is_none() {
            self.0 = error.map(|error| (error.clone(), now));
        }
        is_new
    }
}

/// Outcome of one campaign.
enum Campaign {
    Won(LeaderTerm, Watch),
    Lost(Option<Leader>, Watch),
}

/// Elections over one session.
#[derive(Debug)]
pub struct Election {
    session: Arc<dyn Session>,
    node: NodeId,
    incarnation: Incarnation,
    address: String,
    /// Earlier incarnations of this node, all over.
    earlier: Vec<Incarnation>,
    roles: Arc<watch::Sender<Role>>,
}

impl Election {
    /// Creates an election for one session; a new session needs a new one, with the same `roles`. `address` is where
    /// clients reach this node.
    #[must_use]
    pub fn new(
        session: Arc<dyn Session>,
        node: NodeId,
        incarnation: Incarnation,
        address: String,
        roles: Arc<watch::Sender<Role>>,
    ) -> Self {
        Self { session, node, incarnation, address, earlier: Vec::new(), roles }
    }

    /// Adds earlier incarnations of this node. They are over, as the caller holds the lock that they held, so their
    /// `/leader` is removed without waiting for its session to expire. Another process that uses this node's name is
    /// not among them.
    #[must_use]
    pub fn after(self, incarnations: Vec<Incarnation>) -> Self {
        let earlier = incarnations.into_iter().filter(|earlier| *earlier != self.incarnation).collect();
        Self { earlier, ..self }
    }

    /// Creates a channel for roles, before a leader is known.
    #[must_use]
    pub fn roles() -> Arc<watch::Sender<Role>> {
        Arc::new(watch::Sender::new(Role::Follower { leader: None }))
    }

    /// Holds elections while the session lives: leads whenever no other node does and `stands` is true, and resigns
    /// when it becomes false. Ends when the session is over or `stands` is dropped (after resigning), as a follower.
    pub async fn run(&self, mut stands: watch::Receiver<bool>) {
        let (mut logged_failure, mut served) = (LoggedFailure::default(), None);
        while !self.session.states().borrow().is_over() && stands.has_changed().is_ok() {
            let candidacy = *stands.borrow_and_update();
            let campaign = self.campaign(candidacy, served).await;
            if logged_failure.should_log(campaign.as_ref().err(), Instant::now())
                && let Err(error) = &campaign
            {
                info!(%error, "cannot read the leader");
            }
            match campaign {
                Ok(Campaign::Won(leader_term, changed)) => {
                    served = Some(leader_term.epoch());
                    self.lead(leader_term, changed, &mut stands).await;
                }
                Ok(Campaign::Lost(leader, changed)) => self.follow(leader, changed, &mut stands).await,
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
        self.publish_follower(None);
    }

    async fn follow(&self, leader: Option<Leader>, changed: Watch, stands: &mut watch::Receiver<bool>) {
        self.publish_follower(leader);
        let mut states = self.session.states();
        tokio::select! {
            biased;
            () = changed.fired() => {}
            _ = states.wait_for(|state| state.is_over()) => {}
            _ = stands.changed() => {}
            () = tokio::time::sleep(READ_EVERY) => {}
        }
    }

    async fn lead(&self, leader_term: LeaderTerm, changed: Watch, stands: &mut watch::Receiver<bool>) {
        info!(epoch = leader_term.epoch().0, "elected leader");
        self.roles.send_replace(Role::Leader(leader_term.clone()));
        let mut changed = Box::pin(changed.fired());
        let mut states = self.session.states();
        let mut reconnects = states.borrow().reconnects;
        loop {
            let reconnected = async {
                let state = states.wait_for(|state| state.reconnects != reconnects).await;
                state.map(|state| state.reconnects)
            };
            tokio::select! {
                biased;
                () = leader_term.ended() => break,
                () = self.lost() => {
                    warn!(epoch = leader_term.epoch().0, "lost leadership: no connection to the coordination service");
                    leader_term.step_down();
                    break;
                }
                stand = stands.changed() => {
                    if stand.is_err() || !*stands.borrow_and_update() {
                        leader_term.resign().await;
                        break;
                    }
                }
                counted = reconnected => match counted {
                    Ok(now) => reconnects = now,
                    Err(_) => break,
                },
                () = &mut changed => {}
            }
            // The watch has fired, or may have been lost.
            match self.read_leader_again(&leader_term).await {
                Some(watch) => changed = Box::pin(watch.fired()),
                None => break,
            }
        }
        leader_term.step_down();
        self.publish_follower(None);
    }

    /// Reads `/leader` again. Returns `None` if it is no longer ours, or the epoch is not that of the term: another
    /// node has been elected, or the service has gone back to a time before the election.
    async fn read_leader_again(&self, leader_term: &LeaderTerm) -> Option<Watch> {
        loop {
            let read = async {
                let (leader, watch) = self.session.get_and_watch(LEADER).await?;
                let epoch = self.session.get(LEADER_EPOCH).await?;
                let is_mine = leader.is_some_and(|node| self.is_mine(&node));
                let is_current = epoch.is_some_and(|node| Epoch::from(node.stat.modified) == leader_term.epoch());
                Ok::<_, CoordError>((is_mine && is_current).then_some(watch))
            };
            match read.await {
                Ok(watch) => return watch,
                Err(_) if leader_term.has_ended() || self.session.states().borrow().is_over() => return None,
                Err(_) => tokio::select! {
                    biased;
                    () = self.lost() => return None,
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                },
            }
        }
    }

    /// Returns when the session is over, or has been disconnected for too long.
    async fn lost(&self) {
        let mut states = self.session.states();
        loop {
            if states.wait_for(|state| !state.is_connected()).await.is_err() || states.borrow().is_over() {
                return;
            }
            let back = states.wait_for(|state| state.is_connected() || state.is_over());
            match tokio::time::timeout(DISCONNECTED_MAX, back).await {
                Ok(Ok(state)) if state.is_connected() => {}
                _ => return,
            }
        }
    }

    /// Reads the leader, and stands for election if there is none and `stands` is true. Never returns the term of the
    /// epoch `served` again: its end has been published.
    async fn campaign(&self, stands: bool, served: Option<Epoch>) -> Result<Campaign, CoordError> {
        loop {
            let (leader, watch) = self.session.get_and_watch(LEADER).await?;
            match leader {
                // Left by a campaign or a resignation whose outcome was unknown, or by a term before a long
                // disconnection.
                Some(node) if self.is_mine(&node) => match self.adopt(&node).await? {
                    Some(leader_term) if stands && served != Some(leader_term.epoch()) => {
                        return Ok(Campaign::Won(leader_term, watch));
                    }
                    _ => self.remove(&node).await?,
                },
                Some(node) => match Leader::decode(&node.data) {
                    Ok(leader) if leader.node == self.node && self.earlier.contains(&leader.incarnation) => {
                        info!("removing the leadership of an earlier incarnation of this node");
                        self.remove(&node).await?;
                    }
                    Ok(leader) => return Ok(Campaign::Lost(Some(leader), watch)),
                    Err(error) => {
                        warn!(%error, "cannot decode {LEADER}: waiting for its session to end");
                        return Ok(Campaign::Lost(None, watch));
                    }
                },
                None if !stands => return Ok(Campaign::Lost(None, watch)),
                None => {
                    if let Some(leader_term) = self.stand().await? {
                        let (_, watch) = self.session.get_and_watch(LEADER).await?;
                        return Ok(Campaign::Won(leader_term, watch));
                    }
                }
            }
        }
    }

    /// Tries to become leader. `None`: read again.
    async fn stand(&self) -> Result<Option<LeaderTerm>, CoordError> {
        let leader = Leader {
            node: self.node.clone(),
            incarnation: self.incarnation.clone(),
            address: self.address.clone(),
            op: OpId::fresh(),
        };
        let data = leader.encode();
        let epoch = self.session.get(LEADER_EPOCH).await?;
        let path = LEADER_EPOCH.to_owned();
        let mut ops = Vec::new();
        if epoch.is_none() {
            ops.push(Op::Create { path: path.clone(), data: data.clone(), mode: CreateMode::Persistent });
        }
        ops.push(Op::Create { path: LEADER.to_owned(), data: data.clone(), mode: CreateMode::Ephemeral });
        ops.push(Op::Set { path, data, version: epoch.map_or(0, |node| node.stat.version) });
        match self.session.multi(ops).await {
            Ok(done) => match done.last() {
                Some(Done::Set(stat)) => {
                    Ok(Some(LeaderTerm::new(self.session.clone(), leader, stat.modified.into(), stat.version)))
                }
                _ => Ok(None),
            },
            Err(CoordError::Refused { why: Refusal::NodeExists | Refusal::BadVersion | Refusal::NoNode, .. }) => {
                Ok(None)
            }
            Err(CoordError::Unknown(why)) => {
                info!(why, "outcome of the election unknown: reading it");
                self.session.sync().await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the term that `/leader` of this session belongs to, if the epoch was written by the same multi.
    async fn adopt(&self, node: &Znode) -> Result<Option<LeaderTerm>, CoordError> {
        let Some(epoch) = self.session.get(LEADER_EPOCH).await? else { return Ok(None) };
        let (Ok(leader), Ok(elected)) = (Leader::decode(&node.data), Leader::decode(&epoch.data)) else {
            return Ok(None);
        };
        let is_same = leader.op == elected.op && leader.incarnation == self.incarnation;
        let leader_term =
            || LeaderTerm::new(self.session.clone(), leader, epoch.stat.modified.into(), epoch.stat.version);
        Ok(is_same.then(leader_term))
    }

    async fn remove(&self, node: &Znode) -> Result<(), CoordError> {
        let delete = Op::Delete { path: LEADER.to_owned(), version: node.stat.version };
        match self.session.multi(vec![delete]).await {
            Ok(_) | Err(CoordError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn is_mine(&self, node: &Znode) -> bool {
        node.stat.owner == Some(self.session.id())
    }

    fn publish_follower(&self, leader: Option<Leader>) {
        self.roles.send_if_modified(|role| {
            let is_known = matches!(role, Role::Follower { leader: known } if *known == leader);
            if !is_known {
                *role = Role::Follower { leader };
            }
            !is_known
        });
    }
}

#[cfg(test)]
mod tests;
