//! The roles of this node as its duty sees them.

use super::duty::Post;
use crate::peers::Peer;
use crate::runner::RunnerHandle;
use crate::stopping::{LEADERSHIP_MAX, SUCCESSOR_MAX};
use tokio::sync::watch;
use tokio::time::timeout;

/// See [`Post`].
#[derive(Debug)]
pub(super) struct NodePost {
    pub(super) runner: RunnerHandle,
    /// What health says.
    pub(super) serving: watch::Sender<bool>,
    /// Whether this node stands for election.
    pub(super) stand: watch::Sender<bool>,
    /// Whether it leads, or has not given up all of that yet.
    pub(super) office: watch::Receiver<bool>,
    /// Who leads.
    pub(super) leader: watch::Receiver<Option<Peer>>,
    /// Where others reach this node.
    pub(super) address: String,
}

impl Post for NodePost {
    fn take_up(&self) {
        self.runner.come_back();
        self.stand.send_replace(true);
        self.serving.send_replace(true);
    }

    async fn step_down(&self) {
        self.serving.send_replace(false);
        self.stand.send_replace(false);
        let had_office = *self.office.borrow();
        let given_up = async {
            // A sender that is gone has given everything up.
            let _ = self.office.clone().wait_for(|office| !office).await;
        };
        if timeout(LEADERSHIP_MAX, given_up).await.is_err() {
            tracing::error!("leadership not resigned in time: it ends with the lease");
        }
        // Known at once, the next leader is told at once what is given back.
        if had_office && !self.runner.held().is_empty() {
            let is_another =
                |leader: &Option<Peer>| leader.as_ref().is_some_and(|leader| leader.address != self.address);
            let _ = timeout(SUCCESSOR_MAX, self.leader.clone().wait_for(is_another)).await;
        }
    }

    async fn leave(&self) {
        tracing::warn!("data channel lost: no roles until peers answer");
        self.runner.leave().await;
    }
}
