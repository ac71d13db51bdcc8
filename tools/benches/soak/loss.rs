//! Stops or kills a runner under load, and measures how long until its copy runs on another node.
//!
//! Every second time that node also leads. Every copy is completed and verified.

use crate::copies::{Copies, in_clusters};
use crate::measure::{Bound, Measure};
use crate::options::Options;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How a runner is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LossKind {
    /// By a stop, in which it returns its copy.
    Stopped,
    /// By a kill, after which its session must expire.
    Killed,
}

pub(crate) fn measure(options: &Options, kind: LossKind) -> Vec<Measure> {
    let both = in_clusters(options, move |copies, number| trial(copies, kind, number % 2 == 0));
    let (moves, ends): (Vec<_>, Vec<_>) = both.into_iter().unzip();
    match kind {
        LossKind::Stopped => vec![
            Measure::of_times("graceful stop to the copy running elsewhere", &moves, Bound::P99AtMost(2e3)),
            Measure::of_times("graceful stop to the end of the process", &ends, Bound::AtMost(2e4)),
        ],
        LossKind::Killed => {
            vec![Measure::of_times("SIGKILL of a runner to the copy running elsewhere", &moves, Bound::P99AtMost(15e3))]
        }
    }
}

/// Returns the times to the copy running elsewhere and to the end of the process.
fn trial(copies: &mut Copies, kind: LossKind, of_leader: bool) -> (Duration, Duration) {
    let all = copies.begin();
    let traffic = copies.traffic();
    let leader = copies.leader();
    let victim = all
        .iter()
        .find(|copy| (copy.node == leader) == of_leader)
        .unwrap_or_else(|| panic!("each node has a copy: {:?}", all.iter().map(|copy| copy.node).collect::<Vec<_>>()));
    let (node, traffic) = (victim.node, &traffic[victim.index]);
    // Let the log catch up first.
    std::thread::sleep(Duration::from_millis(50));
    let before = traffic.writers();
    let start = Instant::now();
    let end = match kind {
        LossKind::Killed => {
            copies.cluster.nodes[node].kill();
            None
        }
        LossKind::Stopped => {
            copies.cluster.nodes[node].signal(Signal::SIGTERM);
            let status = copies.cluster.nodes[node].wait();
            assert!(status.success(), "a stop ends with {status}");
            Some(start.elapsed())
        }
    };
    let moved = traffic.first_write_of_others(&before) - start;
    copies.finish(victim);
    let task = copies.cluster.task(&victim.id);
    let expected = if kind == LossKind::Killed { "ELeaseLost" } else { "ERunnerInterrupt" };
    assert_eq!(task.outcomes(), [expected, "succeeded"], "{task:?}");
    copies.end(&all);
    copies.restart_node(node);
    (moved, end.unwrap_or_default())
}
