//! Ends the leader by a kill and by a stop, and measures how long until the next one decides.
//!
//! A kill takes a session's timeout, so most trials are made by several small centers on the same ensemble at once, after
//! the fleet has ended. A few are made by the whole fleet, where the next leader has all records to read.

use super::cell::{Cell, Center, NODES};
use super::decisions::Decisions;
use crate::measure::{Bound, Measure};
use blockhaul_testkit::test_cluster::Node;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::runtime::Runtime;

/// Small centers that share the trials.
const CENTERS: usize = 6;
/// Tasks of a trial, and the time between two.
const TASKS: u32 = 40;
const INTERVAL: Duration = Duration::from_millis(50);

/// How the leader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Kill,
    Stop,
}

/// A center that loses its leader.
struct Trials<'a> {
    runtime: &'a Runtime,
    center: &'a Center,
    nodes: &'a mut [Node],
    /// Number of all nodes.
    registered: usize,
    /// Whether its tasks are for its nodes, and not for any runner.
    require: bool,
}

impl Trials<'_> {
    /// Ends the leader, and starts it again when another one has decided; returns the pause.
    fn run(&mut self, ending: Ending, name: &str) -> Duration {
        let decisions = Decisions::submit(self.center, name, TASKS, INTERVAL, self.require);
        let decisions = self.runtime.block_on(decisions);
        let leader = self.runtime.block_on(self.center.status()).leader;
        let node = self.nodes.iter_mut().find(|node| node.id == leader).expect("one of them leads");
        decisions.wait_for_first();
        let since = SystemTime::now();
        match ending {
            Ending::Kill => node.kill(),
            Ending::Stop => node.signal(Signal::SIGTERM),
        }
        let pause = self.runtime.block_on(decisions.longest_pause(self.center, since));
        if ending == Ending::Stop {
            let status = node.wait();
            assert!(status.success(), "a stop ends with {status}");
        }
        node.start();
        self.runtime.block_on(self.center.wait_for_runners(self.registered));
        pause
    }

    fn all(&mut self, name: &str, numbers: impl Iterator<Item = usize>) -> (Vec<Duration>, Vec<Duration>) {
        numbers
            .map(|number| {
                let kill = self.run(Ending::Kill, &format!("{name}kill{number}"));
                (kill, self.run(Ending::Stop, &format!("{name}stop{number}")))
            })
            .unzip()
    }
}

/// Ends the leader of the whole fleet, while all tasks are live.
pub(crate) fn measure_full(cell: &mut Cell) -> Vec<Measure> {
    cell.fill();
    let (center, trials) = (cell.center.clone(), cell.options.full_trials);
    let registered = NODES + cell.options.runners;
    let nodes = &mut cell.cluster.nodes;
    let mut fleet = Trials { runtime: &cell.runtime, center: &center, nodes, registered, require: true };
    let (kills, stops) = fleet.all("full", 0..trials);
    vec![
        Measure::of_times("SIGKILL of the fleet's leader to the next decision", &kills, Bound::P99AtMost(12e3)),
        Measure::of_times("SIGTERM of the fleet's leader: pause of decisions", &stops, Bound::P99AtMost(2e3)),
    ]
}

/// Ends the fleet, and then the leaders of small centers.
pub(crate) fn measure(cell: &mut Cell) -> Vec<Measure> {
    // The fleet would take processor time from the small centers.
    cell.hosts.clear();
    cell.cluster.nodes.iter_mut().for_each(Node::kill);
    let (trials, cell) = (cell.options.trials, &*cell);
    let centers = CENTERS.min(trials);
    let small = std::thread::scope(|scope| {
        // A node ends with the thread that has started it.
        let share = |index| scope.spawn(move || measure_small(cell, index, (index..trials).step_by(centers)));
        let shares: Vec<_> = (0..centers).map(share).collect();
        shares.into_iter().map(|share| share.join().expect("a trial has failed")).collect::<Vec<_>>()
    });
    let (kills, stops): (Vec<_>, Vec<_>) = small.into_iter().unzip();
    vec![
        Measure::of_times("SIGKILL of the leader to the next decision", &kills.concat(), Bound::P99AtMost(12e3)),
        Measure::of_times("SIGTERM of the leader: pause of decisions", &stops.concat(), Bound::P99AtMost(2e3)),
    ]
}

/// Makes the trials of one small center.
fn measure_small(cell: &Cell, index: usize, numbers: impl Iterator<Item = usize>) -> (Vec<Duration>, Vec<Duration>) {
    let dirs = &cell.cluster.dirs;
    let zookeeper = format!("{}/small{index}", cell.cluster.ensemble.addresses());
    let allowed = dirs.path("volumes");
    let start = |number| {
        let mut node = Node::new(dirs, &format!("small{index}.{number}"));
        node.set_flags(&["--zookeeper", &zookeeper, "--allow-path", text(&allowed)]);
        node.start();
        node
    };
    let mut nodes: Vec<Node> = (0..NODES).map(start).collect();
    let center = Center::new(nodes.iter().map(Node::address).collect());
    cell.runtime.block_on(center.wait_for_runners(NODES));
    Trials { runtime: &cell.runtime, center: &center, nodes: &mut nodes, registered: NODES, require: false }
        .all("small", numbers)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
