//! Runs all roles of this node, and gives them up in a fixed order.
//!
//! ```text
//!            .--- storage network back -----------------------------------------------.
//!            v                                                                        |
//!          active --- storage network lost ---> steps down ---> deregisters, inactive
//!            |                                                                        |
//!            `------- stop requested, or a role has failed --- steps down ------------'---> ended
//! ```
//! Stepping down has one order wherever it comes from: stop deciding, remove the service address, resign leadership. What
//! follows needs no hurry: another node leads already.
//!
//! What always holds: one loop does all of it, one step after the other, so that no role is given up twice at once or started
//! while it is being given up; a stop is heard at any point; the loop ends stepped down. A simulated node runs the same code.

use super::candidacy::Candidacy;
use super::leader_role::LeaderRole;
use super::shutdown::{Stop, StopHandle};
use crate::clock::ClockOffset;
use crate::cluster::storage_probe::{ProbeStatus, Verdict};
use crate::coord::session_keeper::SessionKeeper;
use crate::peers::Peer;
use crate::runner::{Runner, RunnerHandle, Stopped};
use crate::stop_bounds::{LEADERSHIP_MAX, SUCCESSOR_MAX};
use blockhaul_engine::error::{Error, Result};
use std::future::Future;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// What the roles need, and what ends them.
pub(crate) struct Roles<'a> {
    pub(crate) keeper: &'a SessionKeeper,
    pub(crate) leading: &'a LeaderRole,
    /// Whether the health service says that this node serves.
    pub(crate) serving: watch::Sender<bool>,
    pub(crate) stopper: &'a StopHandle,
    /// Reachability of the storage network, where it is probed.
    pub(crate) storage_network: Option<watch::Receiver<ProbeStatus>>,
    /// How far this node's wall clock is off, once a leader has told it.
    pub(crate) clock_told: watch::Receiver<Option<ClockOffset>>,
    /// Whether this node's certificates are valid, where it has some.
    pub(crate) certified: Option<watch::Receiver<bool>>,
    /// Reasons why a role cannot run on this node.
    pub(crate) failures: mpsc::Receiver<Error>,
}

impl Roles<'_> {
    /// Runs until a stop is requested or a role has failed, which is the error. Calls `stopping` when the node has stepped
    /// down. Closes the session if no task is left behind; else its owner leaves it to expire.
    pub(crate) async fn run(self, runner: Runner, stopping: impl FnOnce()) -> (Stopped, Result<()>) {
        let Self { keeper, leading, serving, stopper, storage_network, clock_told, certified, mut failures } = self;
        let (stand, active) = watch::channel(false);
        let (stands, candidacy) = watch::channel(false);
        let uncertified = watch::Sender::new(true);
        let control = NodeRoleControl {
            runner: runner.handle(),
            serving,
            stand,
            leadership: leading.holds_leadership.subscribe(),
            leader: leading.leader.subscribe(),
            address: leading.address.clone(),
        };
        let decision = Candidacy {
            active,
            certified: certified.unwrap_or_else(|| uncertified.subscribe()),
            told: clock_told,
            leader: leading.leader.subscribe(),
            address: &leading.address,
            clock: &*leading.clock,
            off_max: leading.clock_off,
        };
        let mut result = Ok(());
        let running = async {
            control.start();
            result = run_until_stopped(&control, stopper, storage_network, &mut failures).await;
            stopping();
        };
        let stopped = tokio::select! {
            biased;
            stopped = runner.run(keeper.sessions(), running) => stopped,
            () = keeper.run() => unreachable!("it never ends"),
            () = decision.decide(&stands) => unreachable!("it never ends"),
            () = leading.run(keeper.sessions(), candidacy) => unreachable!("it never ends"),
        };
        if stopped.left_behind.is_empty() {
            keeper.close().await;
        }
        (stopped, result)
    }
}

/// Starts and ends the roles of a node.
trait RoleControl: Sync {
    /// Starts to stand for election and to run tasks.
    fn start(&self);

    /// Stops deciding, removes the service address, and resigns leadership; bounded. Does nothing the second time.
    fn step_down(&self) -> impl Future<Output = ()> + Send;

    /// Returns what this node runs, and deregisters. Goes on by itself when it is dropped.
    fn leave(&self) -> impl Future<Output = ()> + Send;
}

/// Runs the roles whenever the storage network can be used, until a stop is requested or a role has failed. Then the node has
/// stepped down, and the runner can be stopped.
///
/// # Errors
/// The reason why a role has failed.
async fn run_until_stopped(
    control: &impl RoleControl,
    stopper: &StopHandle,
    storage_network: Option<watch::Receiver<ProbeStatus>>,
    failures: &mut mpsc::Receiver<Error>,
) -> Result<(), Error> {
    let watching = async {
        let Some(mut storage_network) = storage_network else { return std::future::pending().await };
        loop {
            wait_for_verdict(&mut storage_network, Verdict::Lost).await;
            control.step_down().await;
            control.leave().await;
            wait_for_verdict(&mut storage_network, Verdict::Usable).await;
            control.start();
        }
    };
    let result = tokio::select! { biased;
        () = stopper.wait_for(Stop::Drained) => Ok(()),
        Some(error) = failures.recv() => Err(error),
        () = watching => Ok(()),
    };
    tracing::info!("stopping: returning all tasks");
    control.step_down().await;
    result
}

async fn wait_for_verdict(storage_network: &mut watch::Receiver<ProbeStatus>, verdict: Verdict) {
    if storage_network.wait_for(|seen| seen.verdict == verdict).await.is_err() {
        // The probe has ended: its last verdict stays.
        std::future::pending::<()>().await;
    }
}

/// See [`RoleControl`].
#[derive(Debug)]
struct NodeRoleControl {
    runner: RunnerHandle,
    /// Whether the health service says that this node serves.
    serving: watch::Sender<bool>,
    /// Whether this node stands for election.
    stand: watch::Sender<bool>,
    /// Whether this node leads, or has not given up all of that yet.
    leadership: watch::Receiver<bool>,
    /// Who leads.
    leader: watch::Receiver<Option<Peer>>,
    /// Where others reach this node.
    address: String,
}

impl RoleControl for NodeRoleControl {
    fn start(&self) {
        self.runner.come_back();
        self.stand.send_replace(true);
        self.serving.send_replace(true);
    }

    async fn step_down(&self) {
        self.serving.send_replace(false);
        self.stand.send_replace(false);
        let has_led = *self.leadership.borrow();
        let given_up = async {
            // A sender that is gone has given everything up.
            let _ = self.leadership.clone().wait_for(|leadership| !leadership).await;
        };
        if timeout(LEADERSHIP_MAX, given_up).await.is_err() {
            tracing::error!("leadership not resigned in time: it ends with the lease");
        }
        // The runner tells the next leader what it returns: it has to know who that is.
        if has_led && !self.runner.held().is_empty() {
            let is_another =
                |leader: &Option<Peer>| leader.as_ref().is_some_and(|leader| leader.address != self.address);
            let _ = timeout(SUCCESSOR_MAX, self.leader.clone().wait_for(is_another)).await;
        }
    }

    async fn leave(&self) {
        tracing::warn!("no roles until peers answer");
        self.runner.leave().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::{Code, Operation, Side};
    use shuttle::sync::Mutex;
    use shuttle::{check_random, future, thread};
    use std::sync::Arc;

    /// Schedules of threads and tasks that are tried.
    const SCHEDULES: usize = 2000;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Roles {
        stands: bool,
        leads: bool,
        runs: bool,
        /// Steps that have begun and not ended.
        under_way: usize,
        steps_down: usize,
    }

    /// Roles that take their time, and that an election gives and takes in between.
    #[derive(Clone, Default)]
    struct RecordedRoles(Arc<Mutex<Roles>>);

    impl RecordedRoles {
        fn begin(&self, change: impl FnOnce(&mut Roles)) {
            let mut roles = self.0.lock().unwrap();
            assert_eq!(roles.under_way, 0, "one thing after the other: {roles:?}");
            roles.under_way += 1;
            change(&mut roles);
        }

        fn end(&self, change: impl FnOnce(&mut Roles)) {
            let mut roles = self.0.lock().unwrap();
            roles.under_way -= 1;
            change(&mut roles);
        }

        /// A step that is dropped half-way has ended, too.
        fn step(&self) -> StepGuard {
            StepGuard(self.clone())
        }
    }

    struct StepGuard(RecordedRoles);

    impl Drop for StepGuard {
        fn drop(&mut self) {
            self.0.end(|_| ());
        }
    }

    impl RoleControl for RecordedRoles {
        fn start(&self) {
            self.begin(|roles| (roles.stands, roles.runs) = (true, true));
            self.end(|_| ());
        }

        async fn step_down(&self) {
            self.begin(|roles| roles.stands = false);
            let _step = self.step();
            future::yield_now().await;
            let mut roles = self.0.lock().unwrap();
            roles.leads = false;
            roles.steps_down += 1;
        }

        async fn leave(&self) {
            self.begin(|roles| assert!(!roles.leads && !roles.stands, "leadership goes first: {roles:?}"));
            let _step = self.step();
            future::yield_now().await;
            self.0.lock().unwrap().runs = false;
        }
    }

    fn seen(verdict: Verdict) -> ProbeStatus {
        ProbeStatus { verdict, peers: Vec::new() }
    }

    /// A stop from two threads at once against the start, a storage network that comes and goes, and an election.
    #[test]
    fn a_stop_at_any_moment_ends_stepped_down() {
        let schedule = || {
            let (post, stopper) = (RecordedRoles::default(), StopHandle::new());
            let (storage_network, judged) = watch::channel(seen(Verdict::Usable));
            let (_failed, mut failures) = mpsc::channel(1);
            let storage_network = Arc::new(storage_network);
            let flapping = {
                let storage_network = Arc::clone(&storage_network);
                thread::spawn(move || {
                    for verdict in [Verdict::Lost, Verdict::Usable, Verdict::Lost, Verdict::Usable] {
                        storage_network.send_replace(seen(verdict));
                        thread::yield_now();
                    }
                })
            };
            let electing = {
                let post = post.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let mut roles = post.0.lock().unwrap();
                        roles.leads |= roles.stands;
                        drop(roles);
                        thread::yield_now();
                    }
                })
            };
            let stopping: Vec<_> = [Stop::Drained, Stop::Drained, Stop::Fast]
                .map(|how| {
                    let stopper = stopper.clone();
                    thread::spawn(move || stopper.stop(how))
                })
                .into();
            let (recorded, asked) = (post.clone(), stopper.clone());
            let ended = future::block_on(async move {
                recorded.start();
                run_until_stopped(&recorded, &asked, Some(judged), &mut failures).await
            });
            assert_eq!(ended, Ok(()));
            let roles = *post.0.lock().unwrap();
            assert!(!roles.stands && roles.under_way == 0 && roles.steps_down >= 1, "{roles:?}");
            stopping.into_iter().chain([flapping, electing]).for_each(|thread| thread.join().unwrap());
            let roles = *post.0.lock().unwrap();
            assert!(!roles.leads || roles.stands, "nobody is elected who does not stand: {roles:?}");
            assert_eq!(stopper.asked(), Stop::Fast);
        };
        check_random(schedule, SCHEDULES);
    }

    /// A role that fails while others ask for a stop: the server ends once, with the reason or without, stepped down.
    #[test]
    fn a_failed_role_ends_it_with_its_reason() {
        let schedule = || {
            let (post, stopper) = (RecordedRoles::default(), StopHandle::new());
            let (failed, mut failures) = mpsc::channel(1);
            let failing = thread::spawn(move || {
                let error = Error::new(Code::NotFound, Side::Caller, Operation::Start, "no such interface");
                failed.try_send(error).unwrap();
                failed
            });
            let (recorded, asked) = (post.clone(), stopper.clone());
            let ended = future::block_on(async move {
                recorded.start();
                run_until_stopped(&recorded, &asked, None, &mut failures).await
            });
            assert_eq!(ended.unwrap_err().code, Code::NotFound);
            assert_eq!(post.0.lock().unwrap().steps_down, 1);
            drop(failing.join().unwrap());
        };
        check_random(schedule, SCHEDULES);
    }

    /// Asked before it begins, it starts nothing for longer than it takes to step down.
    #[test]
    fn a_stop_that_came_first_wins() {
        let schedule = || {
            let (post, stopper) = (RecordedRoles::default(), StopHandle::new());
            stopper.stop(Stop::Drained);
            let (storage_network, judged) = watch::channel(seen(Verdict::Lost));
            let (_failed, mut failures) = mpsc::channel(1);
            let recorded = post.clone();
            future::block_on(async move {
                recorded.start();
                run_until_stopped(&recorded, &stopper, Some(judged), &mut failures).await.unwrap();
            });
            let roles = *post.0.lock().unwrap();
            assert_eq!((roles.stands, roles.steps_down), (false, 1));
            drop(storage_network);
        };
        check_random(schedule, 100);
    }
}
