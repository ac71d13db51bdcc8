//! Many runners in one process: each is what a `taskd` has, with its own session, registration and listener, and without
//! an engine. They take tasks that do nothing.

use async_trait::async_trait;
use blockhaul_control::api::calls::GrpcLeaderCalls;
use blockhaul_control::api::channels::Channels;
use blockhaul_control::api::desk::{Floor, Leadership, Roles};
use blockhaul_control::api::listener::Listener;
use blockhaul_control::clock::HostClock;
use blockhaul_control::coord::zookeeper::{Settings, ZooKeeper};
use blockhaul_control::record::{CopyTask, Incarnation, NodeId, TaskId};
use blockhaul_control::runner::{Runner, RunnerConfig, Running, Seams, SessionKeeper, StateDir, Work, Worker};
use blockhaul_engine::error::{Error, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// Starts `count` runners that serve the node at `leader` until the runtime ends; returns when all listen.
pub(crate) async fn launch(count: usize, zookeeper: &str, leader: &str, folder: &Path) {
    for number in 0..count {
        let id = format!("simulated{number}");
        let folder = folder.join(&id);
        let state = StateDir::lock(&folder).expect("the folder is ours");
        let (leads, leader) = watch::channel(Some(leader.to_owned()));
        let (floor, floor_seen) = watch::channel(None);
        let (serving, serving_seen) = watch::channel(true);
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let roles = Roles { leadership: leadership_seen, serving: serving_seen, floor: floor_seen };
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::open(anywhere, None, roles, None).await.expect("there are ports");
        let seams = Seams {
            worker: Arc::new(NoCopies),
            leader: Arc::new(GrpcLeaderCalls::new(Channels::new(None), leader)),
            clock: Arc::new(HostClock),
            state: Arc::new(state),
        };
        let node = NodeId::new(&id).expect("a short name");
        let config = RunnerConfig::new(node, Incarnation(id), listener.address().to_string());
        let runner = Runner::new(config, seams);
        floor.send_replace(Some(Arc::new(runner.handle()) as Arc<dyn Floor>));
        let service = ZooKeeper::new(zookeeper, Settings::default()).expect("the ensemble's addresses");
        tokio::spawn(async move {
            let keeper = SessionKeeper::new(Arc::new(service));
            let _kept = (leads, leadership, serving, floor, listener);
            tokio::join!(keeper.run(), runner.run(keeper.sessions(), std::future::pending()));
        });
    }
}

/// Has no volumes.
#[derive(Debug)]
struct NoCopies;

#[async_trait]
impl Worker for NoCopies {
    async fn resolve(&self, _: &CopyTask) -> Result<Vec<String>> {
        Err(Error::bad_request("this runner takes no copies"))
    }

    fn start(&self, work: Work) -> Arc<dyn Running> {
        unreachable!("no copy was accepted: {work:?}")
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        Vec::new()
    }

    fn forget(&self, _: &TaskId, _: u64) {}
}
