//! Declares the roles of this node as the services see them: its dispatcher, while this node leads, and its runner.
//!
//! Both come and go while the process lives. The services hold a [`watch`] of them and read it at each call.

use super::error::RpcError;
use crate::attempt_log::AttemptLogs;
use crate::clock::ClockOffset;
use crate::dispatcher::DispatcherHandle;
use crate::peers::RunnerClient;
use crate::runner::RunnerHandle;
use std::sync::Arc;
use tokio::sync::watch;

/// Leadership as this node knows it.
#[derive(Clone, Debug, Default)]
pub struct Leadership {
    /// The dispatcher, while this node leads.
    pub(crate) dispatcher: Option<DispatcherHandle>,
    /// `HOST:PORT` of the leader, if it is known.
    pub(crate) address: Option<String>,
}

/// The roles of this node, as they come and go.
#[derive(Clone, Debug)]
pub struct NodeRoles {
    /// The leader: this node's dispatcher, or another node's address.
    pub leadership: watch::Receiver<Leadership>,
    /// True while this node has roles: neither while it starts or stops, nor while its storage network is lost.
    pub serving: watch::Receiver<bool>,
    /// The runner, once it can take calls.
    pub runner: watch::Receiver<Option<RunnerHandle>>,
    /// Offset of this node's wall clock from its peers', once a leader has told it.
    pub clock: watch::Sender<Option<ClockOffset>>,
    /// Logs that this node keeps of its attempts.
    pub logs: AttemptLogs,
    /// Calls to the runners, for what a leader passes on from them to its clients.
    pub runners: Arc<dyn RunnerClient>,
}

impl NodeRoles {
    /// Returns the dispatcher of this node.
    ///
    /// # Errors
    /// `ENotLeader` with the address of the leader.
    pub(crate) fn dispatcher(&self) -> Result<DispatcherHandle, RpcError> {
        let Leadership { dispatcher, address } = self.leadership.borrow().clone();
        dispatcher.ok_or_else(|| RpcError::not_leader(address))
    }
}
