//! Runs the leader's role: assigns tasks to runners, takes them back when runners are lost, and answers clients.
//!
//! ```text
//!  store, runners, clients --observe--> ClusterState --decide (pure)--> Decisions --enact--> writes and calls
//!           ^                                                                              |
//!           `------------------------------------------------------------------------------'
//! ```
//!
//! One [`Dispatcher`] lives as long as one [`LeaderTerm`] and is one asynchronous task of its caller. It starts by
//! reading everything. Afterwards hints (a watch on the runners, calls from them) and a full scan every 30 s and after
//! each reconnect keep its state current.
//!
//! What always holds: calls to runners are about committed records only. Every write checks the term and the version of
//! the node that it replaces. At most one write of a task is under way. Other parts of the node use the dispatcher only
//! through the [`DispatcherHandle`].

mod age;
mod apply;
mod backoff;
mod cluster_state;
mod decide;
mod decision;
mod dependencies;
mod drains;
mod enact;
mod event;
mod exclusion;
mod explain;
mod feed;
mod fence;
mod firing;
mod fleet;
mod groups;
mod handle;
mod held_places;
mod level;
mod rollback_detection;
mod now;
mod pending_mutations;
mod place;
mod queue;
mod quotas;
mod reads;
mod requests;
mod schedule_groups;
mod schedule_requests;
mod schedules;
mod settings;
mod status;
mod subscribers;
mod tasks;
mod unplaced;
mod windows;
mod write;
mod write_schedule;

pub(crate) use feed::{Next, Snapshot, Subscriber, TaskChange};
pub(crate) use fence::{FenceCommand, FenceProgram};
pub(crate) use handle::{DispatcherHandle, NewSchedule, Query, ScheduleCommand, ScheduleView};
pub(crate) use settings::shown_version;
pub(crate) use status::{DispatcherMetrics, RunnerSummary, Status};

use crate::clock::Clock;
use crate::cluster::clock_skew::ClockSkew;
use crate::cluster::election::LeaderTerm;
use crate::coord::Session;
use crate::liveness::LivenessCounter;
use crate::model::{NodeId, Submission, TaskId, TaskRecord};
use crate::peers::RunnerClient;
use cluster_state::ClusterState;
use decide::{DecisionLimits, decide};
use decision::Budget;
use event::Event;
use feed::Feed;
use handle::{Reply, Request};
use now::Now;
use pending_mutations::PendingMutations;
use reads::Reads;
use schedule_requests::ScheduleRequest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use write::Writer;

/// Most writes to the store in flight: enough to hide the 3 ms of each, too few to flood the ensemble.
const WRITES_MAX: usize = 64;
/// Most calls to runners in flight; each lasts at most 2 s.
const CALLS_MAX: usize = 256;
/// Most requests that are served in one turn, and most rounds of decisions.
const REQUESTS_A_TURN: usize = 64;
/// Shortest time between two notifications about groups.
const NOTIFY_GROUPS_EVERY: Duration = Duration::from_millis(250);
/// Longest pause between two turns: due times are of the boot-time clock, which may differ from the timer's.
const TURN_EVERY: Duration = Duration::from_secs(1);

/// Settings of a dispatcher.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Time for which ended tasks are kept. Default 7 days.
    pub retention: Duration,
    /// Assumed lifetime of a lost runner's requests in any network or server. Default 30 s. Longer: tasks that lost a
    /// runner succeed later. Shorter: a late write might hit a finished copy.
    pub quiet_after: Duration,
    /// Time from the loss of a runner to the next attempt under a lease. Default 2 s, by which the runner's lease has
    /// certainly ended.
    pub hold_off: Duration,
    /// Time after which a runner that has not answered an assignment loses the task. Default 15 s.
    pub answer_within: Duration,
    /// Time between two full scans of the store, plus or minus a tenth. Default 30 s.
    pub reconcile_every: Duration,
    /// Most tasks. Above, ended tasks are purged early, the oldest first. While as many tasks have not ended, new ones
    /// are refused with `EOverloaded`. Default 100,000.
    pub tasks_max: usize,
    /// Most tasks that have ended. Above, the oldest are purged early, except those that a live group or dependent needs.
    /// Default 50,000.
    pub ended_max: usize,
    /// Clock skew of the nodes, where it is measured. Default none: this node's clock is the only one.
    pub clock_skew: Option<watch::Receiver<ClockSkew>>,
    /// Fence program, for tasks whose fence is `command`; without a program they are refused. Default none.
    pub fence: Option<Arc<dyn FenceProgram>>,
    /// Counts the turns of the loop.
    pub liveness: LivenessCounter,
    /// Counters and latencies of this process.
    pub metrics: DispatcherMetrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            quiet_after: Duration::from_secs(30),
            hold_off: Duration::from_secs(2),
            answer_within: Duration::from_secs(15),
            reconcile_every: Duration::from_secs(30),
            tasks_max: 100_000,
            ended_max: 50_000,
            clock_skew: None,
            fence: None,
            liveness: LivenessCounter::default(),
            metrics: DispatcherMetrics::default(),
        }
    }
}

/// Reason for the end of a dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TermEnd {
    /// The caller asked for it.
    Stopped,
    /// This node no longer leads.
    LostLeadership,
    /// The session is over.
    SessionOver,
    /// The coordination service has lost history that this leader has seen: this node resigns, and the next term reads
    /// everything.
    HistoryLost,
}

/// Client that waits for a new task to be stored: what it has submitted, and the channel for the answer.
type Submitter = (Submission, Reply<Arc<TaskRecord>>);

/// The dispatcher of one term.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    writer: Writer,
    calls: Arc<dyn RunnerClient>,
    clock: Arc<dyn Clock>,
    config: Config,
    limits: DecisionLimits,
    cluster: ClusterState,
    reads: Reads,
    mutations: PendingMutations,
    requests: mpsc::Receiver<Request>,
    jobs: JoinSet<Event>,
    writes_inflight: usize,
    calls_inflight: usize,
    /// Requests about schedules that wait for an earlier write.
    schedule_requests: VecDeque<ScheduleRequest>,
    /// Clients that wait for a new task to be stored, by its id.
    submitters: BTreeMap<TaskId, Vec<Submitter>>,
    watchers: BTreeMap<TaskId, watch::Sender<Arc<TaskRecord>>>,
    /// Changes of all tasks, for those who follow all.
    feed: Feed,
    /// Watched groups whose members have changed since the last notification.
    changed_groups: BTreeSet<TaskId>,
    /// Boot time at which it is tried again to end each drain whose time is over.
    drain_ends: BTreeMap<NodeId, Duration>,
    /// Boot time of the last notification about groups.
    groups_notified_at: Duration,
    /// Task whose record has changed last.
    latest: Option<TaskId>,
    /// Boot time of the last turn.
    turned_at: Duration,
    /// Least lead of the wall clock over the boot-time clock in this term, in milliseconds: leaves out leaps forward.
    wall_lead_ms: u64,
    ending: Option<TermEnd>,
}

impl Dispatcher {
    /// Creates the dispatcher of one term over one session, both of the same election, and its handle. Nothing happens
    /// before [`Dispatcher::run`].
    #[must_use]
    pub(crate) fn new(
        session: Arc<dyn Session>,
        leader_term: LeaderTerm,
        calls: Arc<dyn RunnerClient>,
        clock: Arc<dyn Clock>,
        config: Config,
    ) -> (Self, DispatcherHandle) {
        let (handle, requests) = DispatcherHandle::new();
        let feed = Feed::new(leader_term.epoch(), clock.unix_ms());
        let limits = DecisionLimits {
            retention: config.retention,
            quiet_after: config.quiet_after,
            hold_off: config.hold_off,
            answer_within: config.answer_within,
            tasks_max: config.tasks_max,
            ended_max: config.ended_max,
        };
        let this = Self {
            writer: Writer { session, leader_term },
            calls,
            clock,
            config,
            limits,
            cluster: ClusterState::default(),
            reads: Reads::default(),
            mutations: PendingMutations::default(),
            requests,
            jobs: JoinSet::new(),
            writes_inflight: 0,
            calls_inflight: 0,
            schedule_requests: VecDeque::new(),
            submitters: BTreeMap::new(),
            watchers: BTreeMap::new(),
            feed,
            changed_groups: BTreeSet::new(),
            drain_ends: BTreeMap::new(),
            groups_notified_at: Duration::ZERO,
            latest: None,
            turned_at: Duration::ZERO,
            wall_lead_ms: u64::MAX,
            ending: None,
        };
        (this, handle)
    }

    /// Leads until the term or the session is over, the store's history is lost, or `shutdown` is ready. Drops the
    /// writes and calls that are under way then: the next leader reads their outcome. Requests wait until everything
    /// has been read.
    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>) -> TermEnd {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut states = self.writer.session.states();
        let mut reconnects = states.borrow().reconnects;
        self.reads.reconcile_at = Some(Duration::ZERO);
        loop {
            // Checked first: the cluster state may be wrong.
            if let Some(ending) = self.ending {
                return ending;
            }
            let state = *states.borrow_and_update();
            if state.is_over() {
                return TermEnd::SessionOver;
            }
            if state.reconnects != reconnects {
                reconnects = state.reconnects;
                self.reads.on_reconnect(self.clock.boot_time(), self.latest.clone());
            }
            self.turn(state.is_connected());
            let (pause, is_settled) = (self.pause(), self.reads.is_settled());
            tokio::select! {
                biased;
                () = &mut shutdown => return TermEnd::Stopped,
                () = self.writer.leader_term.ended() => return TermEnd::LostLeadership,
                changed = states.changed() => if changed.is_err() { return TermEnd::SessionOver },
                () = self.reads.fleet_changed() => {}
                Some(event) = self.jobs.join_next() => self.apply_all(event),
                Some(request) = self.requests.recv(), if is_settled => self.serve(request),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn now(&self) -> Now {
        let (boot, unix_ms) = (self.clock.boot_time(), self.clock.unix_ms());
        let boot_ms = u64::try_from(boot.as_millis()).unwrap_or(u64::MAX);
        let steady_ms = boot_ms.saturating_add(self.wall_lead_ms.min(unix_ms.saturating_sub(boot_ms)));
        let ahead_ms = self.config.clock_skew.as_ref().map_or(Some(0), |skew| skew.borrow().ahead_ms);
        let sure_ms = ahead_ms.map(|ahead_ms| steady_ms.saturating_sub(ahead_ms));
        let node = &self.writer.leader_term.leader().node;
        let lead_ms = unix_ms.saturating_sub(boot_ms);
        let is_clock_right = self.config.clock_skew.as_ref().is_none_or(|skew| skew.borrow().agrees(node, lead_ms));
        Now { boot, unix_ms, sure_ms, is_clock_right }
    }

    /// Does everything that can be done without waiting.
    fn turn(&mut self, is_connected: bool) {
        self.config.liveness.beat();
        let now = self.now();
        let boot_ms = u64::try_from(now.boot.as_millis()).unwrap_or(u64::MAX);
        self.wall_lead_ms = self.wall_lead_ms.min(now.unix_ms.saturating_sub(boot_ms));
        self.turned_at = now.boot;
        self.start_reads(now.boot, is_connected);
        if !self.reads.is_settled() {
            return;
        }
        for _ in 0..REQUESTS_A_TURN {
            let Ok(request) = self.requests.try_recv() else { break };
            self.serve(request);
        }
        self.start_mutations(now);
        self.start_schedule_requests(now);
        self.notify_groups(now.boot);
        self.cluster.fleet.end_backoffs(now.boot);
        self.end_drains(now);
        // Each round changes the cluster state that the next one reads. The bound keeps a defect from spinning.
        for _ in 0..REQUESTS_A_TURN {
            let writes = if is_connected { WRITES_MAX.saturating_sub(self.writes_inflight) } else { 0 };
            let budget = Budget { writes, calls: CALLS_MAX.saturating_sub(self.calls_inflight) };
            let decisions = decide(&self.cluster, &self.limits, now, budget);
            if decisions.is_empty() {
                break;
            }
            decisions.into_iter().for_each(|decision| self.enact(decision, now));
        }
    }

    /// Returns how long the loop may wait if nothing happens.
    fn pause(&self) -> Duration {
        let due = self.cluster.next_due(self.now()).filter(|_| self.reads.is_loaded);
        let groups = (!self.changed_groups.is_empty()).then_some(self.groups_notified_at + NOTIFY_GROUPS_EVERY);
        let next = [due, self.reads.next_due(), self.mutations.next_due(), groups].into_iter().flatten().min();
        match next {
            // What is still due waits for the budget that the end of a job frees, or for the connection.
            Some(next) if next <= self.turned_at => TURN_EVERY,
            Some(next) => next.saturating_sub(self.clock.boot_time()).clamp(Duration::from_millis(1), TURN_EVERY),
            None => TURN_EVERY,
        }
    }

    fn apply_all(&mut self, first: Result<Event, tokio::task::JoinError>) {
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                Ok(event) => self.apply(event),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
            next = self.jobs.try_join_next();
        }
    }
}

#[cfg(test)]
pub(crate) use feed::Feed as ChangeFeed;
#[cfg(test)]
pub(crate) use feed::picture::Picture;
#[cfg(test)]
pub(crate) use handle::{Mutation, Page, Request as DispatcherRequest};
#[cfg(test)]
pub(crate) use status::RunningTotals;

#[cfg(test)]
mod tests;
