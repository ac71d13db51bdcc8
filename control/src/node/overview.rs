//! Describes the state of a node: for the service manager, and for the log on request.

use crate::access::AccessControl;
use crate::cluster::service_address::ServiceAddress;
use crate::cluster::storage_probe::{ProbeStatus, Verdict};
use crate::model::{Incarnation, NodeId};
use crate::order::OrderKeys;
use crate::rpc::local_roles::Leadership;
use crate::rpc::tls::Tls;
use crate::runner::RunnerHandle;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Reads the state of all roles of a node.
#[derive(Clone, Debug)]
pub(super) struct Overview {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) started: Instant,
    pub(super) restarts: u64,
    pub(super) runner: RunnerHandle,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) serving: watch::Receiver<bool>,
    pub(super) storage_network: Option<watch::Receiver<ProbeStatus>>,
    pub(super) vip: Option<ServiceAddress>,
    pub(super) tls: Option<Tls>,
    pub(super) access: Option<AccessControl>,
    pub(super) order_keys: Option<OrderKeys>,
}

impl Overview {
    /// Returns one line for the service manager: the role, and the number of tasks.
    pub(super) fn line(&self) -> String {
        let held = self.runner.held().len();
        let running = format!("{held} of {} tasks", self.runner.slots());
        let certificates = if self.is_certified() { "" } else { "; its certificate has expired" };
        format!("{}; {running}{certificates}", self.role())
    }

    fn role(&self) -> String {
        let Leadership { dispatcher, address } = self.leadership.borrow().clone();
        match (*self.serving.borrow(), dispatcher, address) {
            (false, _, _) if self.is_cut_off() => String::from("storage network lost: no roles"),
            (false, _, _) => String::from("no roles"),
            (true, Some(_), _) => String::from("leader"),
            (true, None, Some(address)) => format!("follower of {address}"),
            (true, None, None) if self.runner.is_registered() => String::from("no leader"),
            (true, None, None) => String::from("waiting for the coordination service"),
        }
    }

    fn is_certified(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| *tls.valid().borrow())
    }

    fn is_cut_off(&self) -> bool {
        self.storage_network.as_ref().is_some_and(|network| network.borrow().verdict == Verdict::Lost)
    }

    /// Returns the whole state as JSON, for the log.
    pub(super) fn dump(&self) -> Value {
        let seconds = |duration: Duration| (duration.as_secs_f64() * 1000.0).round() / 1000.0;
        let storage_network = self.storage_network.as_ref().map(|network| {
            let ProbeStatus { verdict, peers } = network.borrow().clone();
            let peers: serde_json::Map<_, _> =
                peers.into_iter().map(|(peer, silent)| (peer.into(), json!(seconds(silent)))).collect();
            json!({ "lost": verdict == Verdict::Lost, "silent_seconds": peers })
        });
        let vip =
            self.vip.as_ref().map(|vip| json!({ "address": vip.address().to_string(), "on": *vip.is_on().borrow() }));
        let certificates = self
            .tls
            .as_ref()
            .map(|tls| json!({ "valid": *tls.valid().borrow(), "not_after_seconds": tls.expires().as_secs() }));
        json!({
            "node": self.node.as_str(),
            "incarnation": self.incarnation.0,
            "up_seconds": seconds(self.started.elapsed()),
            "restarts": self.restarts,
            "serving": *self.serving.borrow(),
            "role": self.role(),
            "registered": self.runner.is_registered(),
            "lease_left_seconds": seconds(self.runner.lease_left()),
            "slots": self.runner.slots(),
            "tasks": self.runner.held().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "data_channel": storage_network,
            "vip": vip,
            "certificates": certificates,
        })
    }
}
