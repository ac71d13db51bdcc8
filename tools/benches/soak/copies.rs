//! Keeps a copy running on each of three nodes for as long as a trial lasts.

use crate::measure::Bound;
use crate::options::Options;
use crate::traffic::Traffic;
use blockhaul_testkit::scratch::MIB;
use blockhaul_testkit::test_cluster::{ExportPair, Task, TestCluster};
use std::ops::Range;
use std::time::Duration;

/// Nodes of a cluster.
pub(crate) const NODES: usize = 3;
/// Rate of a copy, with requests of at most a MiB: slow enough to last, fast enough for pauses to show.
const LIMIT: &str = "8MiB/s";
/// Size of a volume in bytes: more than a trial copies.
const LENGTH: usize = 384 * MIB;

/// Longest pause of a copy in milliseconds; a copy writes a MiB eight times a second.
pub(crate) const PAUSE: Bound = Bound::AtMost(1e3);

/// A cluster with volumes for copies, which all trials share.
pub(crate) struct Copies {
    pub(crate) cluster: TestCluster,
    pub(crate) pairs: Vec<ExportPair>,
    trials: usize,
}

/// A copy of the running trial.
pub(crate) struct Copy {
    pub(crate) id: String,
    /// Index of its pair.
    pub(crate) index: usize,
    /// Index of its node.
    pub(crate) node: usize,
}

/// Distributes the trials over the clusters; returns the result of each trial.
pub(crate) fn in_clusters<T: Send + 'static>(
    options: &Options,
    trial: impl Fn(&mut Copies, usize) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let carry_out = |share: Range<usize>| {
        let trial = trial.clone();
        std::thread::spawn(move || {
            let mut copies = Copies::new();
            share.map(|number| trial(&mut copies, number)).collect::<Vec<_>>()
        })
    };
    let clusters: Vec<_> = options.shares().into_iter().map(carry_out).collect();
    clusters.into_iter().flat_map(|cluster| cluster.join().expect("a trial has failed")).collect()
}

impl Copies {
    /// Three nodes on three servers, with every default.
    pub(crate) fn new() -> Self {
        let cluster = TestCluster::new(NODES, 3);
        let pairs = (0..NODES).map(|index| ExportPair::new(&cluster, &format!("pair{index}"), LENGTH)).collect();
        Self { cluster, pairs, trials: 0 }
    }

    /// Submits a copy for each node, and waits until all of them have written.
    pub(crate) fn begin(&mut self) -> Vec<Copy> {
        self.trials += 1;
        let ids: Vec<String> = (0..NODES).map(|index| format!("copy{index}-{}", self.trials)).collect();
        for (id, pair) in ids.iter().zip(&self.pairs) {
            pair.submit(&self.cluster, id, &["--limit", LIMIT, "--overwrite", "--max-attempts", "100"]);
        }
        let copies = ids.into_iter().enumerate();
        copies.map(|(index, id)| Copy { node: self.cluster.wait_for_progress(&id), id, index }).collect()
    }

    /// Lets a copy complete as fast as it can, and compares every byte.
    pub(crate) fn finish(&self, copy: &Copy) {
        self.cluster.ask(&["set", &copy.id, "--limit", "100GiB/s"]);
        self.cluster.wait_for_success(&copy.id);
        self.pairs[copy.index].assert_copied();
    }

    /// Cancels all copies, and waits until their claims are released.
    pub(crate) fn end(&self, copies: &[Copy]) {
        for copy in copies {
            // Cancelling an ended copy changes nothing.
            let _ = self.cluster.blockhaul(&["cancel", &copy.id]);
        }
        for copy in copies {
            self.cluster.wait_for(&copy.id, "its end", Task::is_over);
        }
    }

    /// Starts a node that has ended, and waits until all are registered.
    pub(crate) fn restart_node(&mut self, node: usize) {
        if !self.cluster.nodes[node].is_running() {
            self.cluster.nodes[node].kill();
            self.cluster.nodes[node].start();
        }
        self.cluster.wait_until("all nodes are registered", |cluster| {
            cluster.leader().is_some() && cluster.runners().len() == NODES
        });
        // A new leader first reads all records; trials begin with an idle center.
        std::thread::sleep(Duration::from_millis(200));
    }

    /// Follows the writes of all pairs from now on.
    pub(crate) fn traffic(&self) -> Vec<Traffic> {
        self.pairs.iter().map(Traffic::of).collect()
    }

    /// Returns the index of the leader.
    pub(crate) fn leader(&self) -> usize {
        self.cluster.leader().expect("a node leads an idle center")
    }
}
