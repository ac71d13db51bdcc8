//! All roles of a node at once, for as long as it should have them, and given up in order.
//!
//! This is what a `taskd` does between its beginning and its end, apart from the services around it; a simulated node does
//! the same.

use super::candidacy::Candidacy;
use super::duty::{self, Post};
use super::leader_role::LeaderRole;
use super::post::NodePost;
use super::shutdown::StopHandle;
use crate::clock::ClockOffset;
use crate::cluster::storage_probe::ProbeStatus;
use crate::coord::session_keeper::SessionKeeper;
use crate::runner::{Runner, Stopped};
use blockhaul_engine::error::{Error, Result};
use tokio::sync::{mpsc, watch};

/// What the roles stand on, and what takes them away.
pub(crate) struct Roles<'a> {
    pub(crate) keeper: &'a SessionKeeper,
    pub(crate) leading: &'a LeaderRole,
    /// What health says.
    pub(crate) serving: watch::Sender<bool>,
    pub(crate) stopper: &'a StopHandle,
    /// How the data channel stands, where there is one.
    pub(crate) channel: Option<watch::Receiver<ProbeStatus>>,
    /// How far this node's wall clock is off, once a leader has told it.
    pub(crate) clock_told: watch::Receiver<Option<ClockOffset>>,
    /// Whether this node's certificates are valid, where it has some.
    pub(crate) certified: Option<watch::Receiver<bool>>,
    /// Why a role cannot be had on this node.
    pub(crate) failures: mpsc::Receiver<Error>,
}

impl Roles<'_> {
    /// Until a stop is asked for or a role has failed, which is the error; `stopping` is called when the node has stepped
    /// down. The session is closed if nothing is left behind; else its owner leaves it as it is.
    pub(crate) async fn run(self, runner: Runner, stopping: impl FnOnce()) -> (Stopped, Result<()>) {
        let Self { keeper, leading, serving, stopper, channel, clock_told, certified, mut failures } = self;
        let (stand, on_duty) = watch::channel(false);
        let (stands, candidacy) = watch::channel(false);
        let uncertified = watch::Sender::new(true);
        let post = NodePost {
            runner: runner.handle(),
            serving,
            stand,
            office: leading.office.subscribe(),
            leader: leading.leader.subscribe(),
            address: leading.address.clone(),
        };
        let decision = Candidacy {
            on_duty,
            certified: certified.unwrap_or_else(|| uncertified.subscribe()),
            told: clock_told,
            leader: leading.leader.subscribe(),
            address: &leading.address,
            clock: &*leading.clock,
            off_max: leading.clock_off,
        };
        let mut result = Ok(());
        let on_duty = async {
            post.take_up();
            result = duty::serve(&post, stopper, channel, &mut failures).await;
            stopping();
        };
        let stopped = tokio::select! {
            biased;
            stopped = runner.run(keeper.sessions(), on_duty) => stopped,
            () = keeper.run() => unreachable!("it never ends"),
            () = decision.decide(&stands) => unreachable!("it never ends"),
            () = leading.run(keeper.sessions(), candidacy) => unreachable!("it never ends"),
        };
        if stopped.left_behind.is_empty() {
            keeper.close().await;
        }
        (stopped, result)
    }
}
