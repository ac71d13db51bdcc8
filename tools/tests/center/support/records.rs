//! Reads and writes the records of a center directly in the coordination service.

use blockhaul_control::coord::paths;
use blockhaul_control::coord::zookeeper::{Settings, ZooKeeper};
use blockhaul_control::coord::{CoordClient, CoordError, CreateMode, Op, Session};
use blockhaul_control::model::{Record, TaskId, TaskRecord};
use blockhaul_testkit::test_cluster::TestCluster;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// A session of the test, without credentials.
#[derive(Debug)]
pub(crate) struct Records {
    runtime: Runtime,
    session: Arc<dyn Session>,
}

impl Records {
    /// Opens a session with the center at `HOSTS/CHROOT`.
    pub(crate) fn of(address: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("there are threads");
        let center = ZooKeeper::new(address, Settings::default()).expect("the address is one");
        let session = runtime.block_on(center.open()).expect("the ensemble answers");
        Self { runtime, session }
    }

    /// Returns a task's record; `None` if there is none.
    pub(crate) fn task(&self, id: &str) -> Option<TaskRecord> {
        let path = paths::task(&TaskId::new(id).expect("tests use valid names"));
        let node = self.runtime.block_on(self.session.get(&path)).expect("the ensemble answers")?;
        Some(TaskRecord::decode(&node.data).expect("a taskd has written it"))
    }

    /// Returns the names below a folder.
    pub(crate) fn children(&self, folder: &str) -> Vec<String> {
        self.runtime.block_on(self.session.children(folder)).expect("the ensemble answers")
    }

    /// Returns the names of all claims.
    pub(crate) fn claims(&self) -> Vec<String> {
        paths::shards().flat_map(|shard| self.children(&format!("{}/{shard}", paths::CLAIMS))).collect()
    }

    /// Creates a node of the tree.
    ///
    /// # Errors
    /// The error of the service.
    pub(crate) fn create(&self, path: &str, data: &[u8]) -> Result<(), CoordError> {
        let op = Op::Create { path: path.to_owned(), data: data.to_vec(), mode: CreateMode::Persistent };
        self.runtime.block_on(self.session.multi(vec![op])).map(drop)
    }

    /// Replaces the content of a node of the tree.
    ///
    /// # Errors
    /// The error of the service.
    pub(crate) fn set(&self, path: &str, data: &[u8]) -> Result<(), CoordError> {
        let node = self.runtime.block_on(self.session.get(path))?.expect("it is there");
        let op = Op::Set { path: path.to_owned(), data: data.to_vec(), version: node.stat.version };
        self.runtime.block_on(self.session.multi(vec![op])).map(drop)
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.runtime.block_on(self.session.close());
    }
}

/// The records of a cluster's center.
pub(crate) trait ClusterRecords {
    /// Opens a session with the records.
    fn records(&self) -> Records;

    /// As [`TestCluster::wait_for_progress`], and until the record has the progress: what remains of a killed runner.
    fn wait_for_checkpoint(&self, id: &str) -> usize;
}

impl ClusterRecords for TestCluster {
    fn records(&self) -> Records {
        Records::of(&self.zookeeper())
    }

    fn wait_for_checkpoint(&self, id: &str) -> usize {
        let node = self.wait_for_progress(id);
        let records = self.records();
        self.wait_until("a checkpoint", |_| records.task(id).is_some_and(|record| record.progress.durable > 0));
        node
    }
}
