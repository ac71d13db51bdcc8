//! Keeps a copy running on each of three nodes for as long as a trial lasts.

use crate::measure::Bound;
use crate::options::Options;
use crate::support::{Cell, MIB, Pair, Task};
use crate::traffic::Traffic;
use std::ops::Range;
use std::time::Duration;

/// Nodes of a cell.
pub(crate) const NODES: usize = 3;
/// A copy writes so much a second, in requests of a MiB at most: slow enough to last, quick enough for pauses to show.
const LIMIT: &str = "8MiB/s";
/// What it does not copy in any trial.
const LENGTH: usize = 384 * MIB;

/// A copy writes a MiB eight times a second: a pause of a second is one.
pub(crate) const PAUSE: Bound = Bound::AtMost(1e3);

/// A cell with volumes for copies; they are used again and again.
pub(crate) struct Copies {
    pub(crate) cell: Cell,
    pub(crate) pairs: Vec<Pair>,
    trials: usize,
}

/// A copy of the running trial.
pub(crate) struct Copy {
    pub(crate) id: String,
    /// Of its pair.
    pub(crate) index: usize,
    /// Of the node that has it.
    pub(crate) node: usize,
}

/// Carries out each trial in one of the cells, which share them; gives what each trial has brought.
pub(crate) fn in_cells<T: Send + 'static>(
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
    let cells: Vec<_> = options.shares().into_iter().map(carry_out).collect();
    cells.into_iter().flat_map(|cell| cell.join().expect("a trial has failed")).collect()
}

impl Copies {
    /// Three nodes on three servers, with every default.
    pub(crate) fn new() -> Self {
        let cell = Cell::new(NODES, 3);
        let pairs = (0..NODES).map(|index| Pair::new(&cell, &format!("pair{index}"), LENGTH)).collect();
        Self { cell, pairs, trials: 0 }
    }

    /// Submits a copy for each node, and waits until each has one on its way.
    pub(crate) fn begin(&mut self) -> Vec<Copy> {
        self.trials += 1;
        let ids: Vec<String> = (0..NODES).map(|index| format!("copy{index}-{}", self.trials)).collect();
        for (id, pair) in ids.iter().zip(&self.pairs) {
            pair.submit(&self.cell, id, &["--limit", LIMIT, "--overwrite", "--max-attempts", "100"]);
        }
        let copies = ids.into_iter().enumerate();
        copies.map(|(index, id)| Copy { node: self.cell.wait_for_progress(&id), id, index }).collect()
    }

    /// Lets one finish as fast as it can, and compares every byte.
    pub(crate) fn finish(&self, copy: &Copy) {
        self.cell.ask(&["set", &copy.id, "--limit", "100GiB/s"]);
        self.cell.wait_for_success(&copy.id);
        self.pairs[copy.index].assert_copied();
    }

    /// Gives all of them up, and waits until their destinations are free.
    pub(crate) fn end(&self, copies: &[Copy]) {
        for copy in copies {
            // One that is over says so and stays what it is.
            let _ = self.cell.blockhaul(&["cancel", &copy.id]);
        }
        for copy in copies {
            self.cell.wait_for(&copy.id, "its end", Task::is_over);
        }
    }

    /// Starts a node that is gone, and waits until all are there.
    pub(crate) fn restart_node(&mut self, node: usize) {
        if !self.cell.nodes[node].is_running() {
            self.cell.nodes[node].kill();
            self.cell.nodes[node].start();
        }
        self.cell.wait_until("all are there", |cell| cell.leader().is_some() && cell.runners().len() == NODES);
        // Whoever was just elected reads the center first; trials begin with a center at rest.
        std::thread::sleep(Duration::from_millis(200));
    }

    /// Who writes what, from now on.
    pub(crate) fn traffic(&self) -> Vec<Traffic> {
        self.pairs.iter().map(Traffic::of).collect()
    }

    /// The node that leads.
    pub(crate) fn leader(&self) -> usize {
        self.cell.leader().expect("a node leads an idle center")
    }
}
