//! Runs the world of a seed: its service, network, volumes, nodes and clients, and the loop that applies events.
//!
//! For 90 simulated seconds tasks arrive and faults happen. Then every fault is repaired, and every task has to end. No
//! task that can proceed may stay unchanged for a minute. The world runs on one thread with one clock, which advances
//! only when no task has work, so that a seed replays exactly.

use super::client::Client;
use super::defect::{self, Defect};
use super::disk::{Disks, LATE};
use super::environment::{DiskBehaviour, SimEnvironment};
use super::hooks::HookRuns;
use super::invariants::InvariantChecker;
use super::net::{Net, NetworkFaults};
use super::node::{SimNode, SimProcess};
use super::placement_invariants::rules_of;
use super::run_result::RunResult;
use super::scenario::{ClientAction, Event, FAULT_TIME, Fault, Scenario};
use super::subscriber::SimSubscriber;
use super::volume_name::VolumeName;
use crate::clock::Clock;
use crate::coord::paths;
use crate::coord::sim::{Ensemble, FaultRates, Snapshot};
use crate::coord::{CreateMode, Op};
use crate::dispatcher::FenceProgram;
use crate::model::{DesiredState, DrainMode, FenceMethod, Holder, NodeId, Submission, TaskId, TaskState};
use async_trait::async_trait;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

/// Timeout of a session.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time from the end of all faults to the end of all tasks.
const SETTLE_MAX: Duration = Duration::from_secs(900);
/// Longest time from the end of all faults until every schedule has decided on what was due before.
const SCHEDULES_MAX: Duration = Duration::from_secs(120);
/// Time within which a process that is asked to stop has ended.
const STOP_MAX: Duration = Duration::from_secs(20);
/// Time between two checks that a process has stopped.
const STOP_CHECK_EVERY: Duration = Duration::from_millis(250);
/// Seconds between two rounds in which clients resume tasks and operators undo drains.
const OPERATORS_EVERY_SECONDS: u64 = 5;
/// Time between two checks that all tasks have ended.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Number of snapshots of the service, one a second, that history can go back to.
const SNAPSHOTS: usize = 16;

/// Least number of faults of a seed.
const FAULTS_MIN: u64 = 5;

/// State of a seed's world.
pub(super) struct World {
    scenario: Scenario,
    result: RunResult,
    ensemble: Ensemble,
    disks: Disks,
    net: Net,
    invariants: InvariantChecker,
    client: Client,
    disk_behaviour: Arc<Mutex<DiskBehaviour>>,
    nodes: Vec<SimNode>,
    incarnations: Vec<Option<SimProcess>>,
    rng: fastrand::Rng,
    /// Follow-ups, in the order of their times.
    follow_ups: BTreeMap<(Instant, u64), FollowUp>,
    scheduled: u64,
    fence_requests: mpsc::UnboundedReceiver<FenceRequest>,
    snapshots: VecDeque<(Instant, Snapshot)>,
    /// Whether a client follows all tasks.
    has_subscriber: bool,
    defect: Option<Defect>,
}

/// Follow-up of a fault.
#[derive(Clone, Debug)]
enum FollowUp {
    Start(usize),
    Resume(usize),
    ReconnectService(usize),
    ReconnectPeers(usize),
    RestoreServer(usize),
    StartService,
    EndServiceFaults,
    EndNetworkFaults,
    EndSlowDisks,
    Undrain(usize),
    /// Tries a fault again that had no target.
    RetryFault(Fault),
    CheckStopped {
        node: usize,
        holder: Holder,
        asked: Instant,
        down: Duration,
    },
}

/// Process to cut off, and the channel that reports that it is.
type FenceRequest = (Holder, oneshot::Sender<()>);

/// Fence program that powers the runner's node off, and makes servers refuse the runner. Fails now and then.
#[derive(Debug)]
struct ScriptedFence(mpsc::UnboundedSender<FenceRequest>);

#[async_trait]
impl FenceProgram for ScriptedFence {
    async fn fence_runner(&self, runner: &Holder) -> Result<(), String> {
        sleep(Duration::from_millis(fastrand::u64(10..2000))).await;
        if fastrand::u8(..5) == 0 {
            return Err(String::from("the switch does not answer"));
        }
        let (done, is_done) = oneshot::channel();
        self.0.send((runner.clone(), done)).map_err(|_| String::from("no switch"))?;
        is_done.await.map_err(|_| String::from("no switch"))
    }
}

/// Returns the longest delay of writes whose job has ended or was cut off.
fn late(defect: Option<Defect>) -> Duration {
    if defect == Some(Defect::LateWritesLand) { Duration::from_secs(120) } else { LATE }
}

impl World {
    pub(super) fn new(seed: u64, trace: bool, defect: Option<Defect>) -> Self {
        fastrand::seed(seed ^ 0x5eed);
        let scenario = Scenario::new(seed);
        let result = RunResult::new(trace);
        let (net, disks) = (Net::default(), Disks::new(result.clone(), late(defect)));
        let invariants = InvariantChecker::new(disks.clone(), result.clone());
        let ensemble = Ensemble::new(seed, TIMEOUT);
        let watching = invariants.clone();
        ensemble.set_observer(Arc::new(move |commit| watching.observe(commit)));
        let (switch, fence_requests) = mpsc::unbounded_channel();
        let disk_behaviour = Arc::new(Mutex::new(scenario.disk_behaviour));
        let environment = SimEnvironment {
            net: net.clone(),
            disks: disks.clone(),
            hooks: HookRuns::new(result.clone()),
            invariants: invariants.clone(),
            disk_behaviour: disk_behaviour.clone(),
            jobs: Arc::default(),
            fence: Arc::new(ScriptedFence(switch)),
            defect,
        };
        let node = |name: &String| SimNode::new(name, scenario.slots, ensemble.client(name), environment.clone());
        let nodes: Vec<_> = scenario.nodes.iter().map(node).collect();
        for (node, name, blocks) in &scenario.volumes {
            let volume = match node {
                Some(node) => VolumeName::parse(&format!("file://{node}/vol/{name}"), None),
                None => VolumeName::parse(&format!("nbd://store/{name}"), None),
            };
            disks.add(&volume.name(), node.as_deref(), blocks.clone());
        }
        let client = Client { net: net.clone(), invariants: invariants.clone(), result: result.clone() };
        Self {
            incarnations: nodes.iter().map(|_| None).collect(),
            rng: fastrand::Rng::with_seed(seed ^ 0xfa17),
            follow_ups: BTreeMap::new(),
            scheduled: 0,
            snapshots: VecDeque::new(),
            scenario,
            result,
            ensemble,
            disks,
            net,
            invariants,
            client,
            has_subscriber: seed % 2 == 1,
            disk_behaviour,
            nodes,
            fence_requests,
            defect,
        }
    }

    /// Runs the world.
    pub(super) async fn run(mut self) -> RunResult {
        self.set_up().await;
        let result = self.result.clone();
        tokio::select! {
            biased;
            () = result.failed() => {}
            () = self.run_to_end() => {}
        }
        for incarnation in self.incarnations.iter().flatten() {
            incarnation.process.end();
        }
        self.result.clone()
    }

    /// Returns the number of requests that each node sends to the service per second when nothing happens.
    pub(super) async fn requests_at_rest(mut self) -> f64 {
        self.set_up().await;
        sleep(FAULT_TIME).await;
        let before = self.ensemble.requests();
        sleep(FAULT_TIME).await;
        let requests = self.ensemble.requests() - before;
        self.incarnations.iter().flatten().for_each(|incarnation| incarnation.process.end());
        requests as f64 / self.nodes.len() as f64 / FAULT_TIME.as_secs_f64()
    }

    async fn set_up(&mut self) {
        let session = self.ensemble.client("installer").open().await.expect("nothing is wrong yet");
        let create = |path| Op::Create { path, data: Vec::new(), mode: CreateMode::Persistent };
        session.multi(paths::all_folders().map(create).collect()).await.expect("nothing is wrong yet");
        session.close().await;
        let latency_ms = self.scenario.latency_ms;
        self.ensemble.set_fault_rates(FaultRates { latency_ms, ..FaultRates::default() });
        self.net.set_faults(NetworkFaults { delay_ms: latency_ms.1, ..NetworkFaults::default() });
        (0..self.nodes.len()).for_each(|node| self.start(node));
        if let Some(defect) = self.defect {
            tokio::spawn(defect::break_invariant(defect, self.ensemble.clone(), self.result.clone()));
        }
    }

    async fn run_to_end(&mut self) {
        let subscriber = self.has_subscriber.then(|| SimSubscriber::start(self.net.clone(), self.invariants.clone()));
        self.run_scenario().await;
        self.repair_all().await;
        self.settle().await;
        sleep(late(self.defect)).await;
        self.disks.check_end();
        if let Some(subscriber) = subscriber.filter(|_| !self.scenario.regresses) {
            subscriber.check(&self.invariants).await;
        }
        let faults = self.result.faults().values().sum::<u64>();
        self.result.expect(faults >= FAULTS_MIN, || format!("only {faults} faults"));
    }

    /// Runs the scenario.
    async fn run_scenario(&mut self) {
        let start = Instant::now();
        let mut events: VecDeque<_> = self.scenario.events.clone().into();
        let mut snapshot = start;
        while start.elapsed() < FAULT_TIME {
            let event = events.front().map_or(start + FAULT_TIME, |(at, _)| start + *at);
            let follow_up = self.follow_ups.keys().next().map_or(event, |(at, _)| *at);
            let next = event.min(follow_up).min(snapshot).min(start + FAULT_TIME);
            tokio::select! {
                biased;
                Some(request) = self.fence_requests.recv() => self.cut_off(request),
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            if snapshot <= now && self.scenario.regresses {
                self.snapshots.push_back((now, self.ensemble.snapshot()));
                if self.snapshots.len() > SNAPSHOTS {
                    self.snapshots.pop_front();
                }
            }
            if snapshot <= now {
                snapshot = now + CHECK_EVERY;
            }
            self.apply_due(now);
            while events.front().is_some_and(|(at, _)| start + *at <= now) {
                let (_, event) = events.pop_front().expect("it was there");
                self.apply_event(event);
            }
            self.restart_wedged();
        }
    }

    fn apply_due(&mut self, now: Instant) {
        while let Some(entry) = self.follow_ups.first_entry().filter(|entry| entry.key().0 <= now) {
            let follow_up = entry.remove();
            self.apply_follow_up(follow_up);
        }
    }

    fn schedule(&mut self, time: Duration, follow_up: FollowUp) {
        self.scheduled += 1;
        self.follow_ups.insert((Instant::now() + time, self.scheduled), follow_up);
    }

    fn apply_event(&mut self, event: Event) {
        match event {
            Event::Submit { id, spec, priority, max_attempts, after } => {
                let name = |id: String| TaskId::new(id).expect("a task's name");
                let after = after.into_iter().map(|(id, condition)| (name(id), condition)).collect();
                let id = name(id);
                let placement = rules_of(&id);
                let submission = Submission { after, placement, ..Submission::new(id, priority, max_attempts, *spec) };
                tokio::spawn(self.client.clone().submit(submission));
            }
            Event::SubmitGroup { group, members, dies } => {
                tokio::spawn(self.client.clone().submit_group(*group, members, dies));
            }
            Event::ClientAction { id, action } => {
                let id = TaskId::new(id).expect("a task's name");
                tokio::spawn(self.client.clone().request(id, action));
            }
            Event::AddSchedule(new) => {
                tokio::spawn(self.client.clone().add_schedule(*new));
            }
            Event::Retry { id } => {
                tokio::spawn(self.client.clone().retry(TaskId::new(id).expect("a task's name")));
            }
            Event::Fault(fault) => match self.redirect(fault.clone()) {
                Some(fault) => {
                    self.result.note(format_args!("FAULT {fault:?}"));
                    self.result.count_fault(fault.kind());
                    self.apply_fault(fault);
                }
                None => self.schedule(CHECK_EVERY, FollowUp::RetryFault(fault)),
            },
        }
    }

    /// Redirects a fault to a running process, if its own is down. `None` if no process runs.
    fn redirect(&self, mut fault: Fault) -> Option<Fault> {
        if let Some(node) = fault.victim() {
            let count = self.incarnations.len();
            *node = (0..count).map(|step| (*node + step) % count).find(|&node| self.incarnations[node].is_some())?;
        }
        Some(fault)
    }

    fn apply_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { node, power, down } => self.crash(node, power, down),
            Fault::Stop { node, down } => {
                if let Some(incarnation) = &self.incarnations[node] {
                    incarnation.stop();
                    let (holder, asked) = (incarnation.holder.clone(), Instant::now());
                    self.schedule(STOP_CHECK_EVERY, FollowUp::CheckStopped { node, holder, asked, down });
                }
            }
            Fault::Pause { node, time } => {
                if let Some(incarnation) = &self.incarnations[node] {
                    incarnation.process.pause();
                    self.disks.note_pause(&incarnation.holder);
                    self.schedule(time, FollowUp::Resume(node));
                }
            }
            Fault::Partition { node, center, peers, time } => {
                if center {
                    self.ensemble.cut(&self.scenario.nodes[node]);
                    self.schedule(time, FollowUp::ReconnectService(node));
                }
                if peers {
                    self.cut_peers(node, true);
                    self.schedule(time, FollowUp::ReconnectPeers(node));
                }
            }
            Fault::Reset { node } => self.ensemble.reset(&self.scenario.nodes[node]),
            Fault::Isolate { server, time } => {
                self.ensemble.isolate(server);
                self.schedule(time, FollowUp::RestoreServer(server));
            }
            Fault::Stall { time } => self.ensemble.stall(time),
            Fault::Outage { time } => {
                self.ensemble.stop();
                self.schedule(time, FollowUp::StartService);
            }
            Fault::Drain { node, now, time } => {
                let desired_state = if now { DrainMode::Now } else { DrainMode::Finish };
                self.drain(node, desired_state);
                self.schedule(time, FollowUp::Undrain(node));
            }
            Fault::Jump { node, skew_ms } => self.nodes[node].clock.jump(skew_ms),
            Fault::Regress { back } => self.regress(back),
            Fault::LossyService { time } => {
                let latency_ms = (self.scenario.latency_ms.0, self.scenario.latency_ms.1 * 4);
                let (lost_reply, late_write, lost_watch, late_watch) = (0.15, 0.7, 0.3, 0.3);
                let fault_rates =
                    FaultRates { latency_ms, lag_ms: (0, 800), lost_reply, late_write, lost_watch, late_watch };
                self.ensemble.set_fault_rates(fault_rates);
                self.schedule(time, FollowUp::EndServiceFaults);
            }
            Fault::NetworkFaults { time } => {
                self.net.set_faults(NetworkFaults { lost: 0.3, twice: 0.2, delay_ms: 1200 });
                self.schedule(time, FollowUp::EndNetworkFaults);
            }
            Fault::Slow { time } => {
                self.set_disk_behaviour(DiskBehaviour { write_ms: (100, 3_000), hang: 0.05, fail: 0.1, unfit: 0.1 });
                self.schedule(time, FollowUp::EndSlowDisks);
            }
        }
    }

    fn apply_follow_up(&mut self, follow_up: FollowUp) {
        if !matches!(follow_up, FollowUp::CheckStopped { .. }) {
            self.result.note(format_args!("{follow_up:?}"));
        }
        match follow_up {
            FollowUp::Start(node) => {
                if self.incarnations[node].is_none() {
                    self.start(node);
                }
            }
            FollowUp::CheckStopped { node, holder, asked, down } => self.check_stopped(node, &holder, asked, down),
            FollowUp::Resume(node) => {
                if let Some(incarnation) = &self.incarnations[node] {
                    incarnation.process.resume();
                    self.disks.note_resume(&incarnation.holder);
                }
            }
            FollowUp::ReconnectService(node) => self.ensemble.mend(&self.scenario.nodes[node]),
            FollowUp::ReconnectPeers(node) => self.cut_peers(node, false),
            FollowUp::RestoreServer(server) => self.ensemble.restore(server),
            FollowUp::StartService => self.ensemble.start(),
            FollowUp::EndServiceFaults => {
                let latency_ms = self.scenario.latency_ms;
                self.ensemble.set_fault_rates(FaultRates { latency_ms, ..FaultRates::default() });
            }
            FollowUp::EndNetworkFaults => {
                let delay_ms = self.scenario.latency_ms.1;
                self.net.set_faults(NetworkFaults { delay_ms, ..NetworkFaults::default() });
            }
            FollowUp::EndSlowDisks => self.set_disk_behaviour(self.scenario.disk_behaviour),
            FollowUp::Undrain(node) => self.drain(node, DrainMode::Undo),
            FollowUp::RetryFault(fault) => self.apply_event(Event::Fault(fault)),
        }
    }

    /// Checks a process that was asked to stop: it has to stop within 20 s, and without writes in flight unless it
    /// leaves tasks behind.
    fn check_stopped(&mut self, node: usize, holder: &Holder, asked: Instant, down: Duration) {
        let Some(incarnation) = self.incarnations[node].as_ref().filter(|incarnation| incarnation.holder == *holder)
        else {
            return;
        };
        let is_late = asked.elapsed() >= STOP_MAX;
        let Some(stopped) = incarnation.ended() else {
            if !is_late {
                let holder = holder.clone();
                return self.schedule(STOP_CHECK_EVERY, FollowUp::CheckStopped { node, holder, asked, down });
            }
            self.result
                .expect(incarnation.process.was_paused(), || format!("{} did not stop in {STOP_MAX:?}", holder.node));
            return self.crash(node, false, down);
        };
        self.result.note(format_args!("{} has stopped: {:?}", holder.node, stopped.left_behind));
        let late = self.disks.in_flight(|by| by.holder == *holder);
        self.result.expect(late == 0 || !stopped.left_behind.is_empty(), || {
            format!("{} has stopped with {late} writes on their way", holder.node)
        });
        self.crash(node, false, down);
    }

    fn set_disk_behaviour(&self, disk_behaviour: DiskBehaviour) {
        *self.disk_behaviour.lock().unwrap_or_else(PoisonError::into_inner) = disk_behaviour;
    }

    fn cut_peers(&self, node: usize, is_cut: bool) {
        let nodes = &self.scenario.nodes;
        nodes.iter().for_each(|other| self.net.cut(&nodes[node], other, is_cut && *other != nodes[node]));
    }

    fn drain(&self, node: usize, desired_state: DrainMode) {
        let node = NodeId::new(self.scenario.nodes[node].as_str()).expect("a node's name");
        tokio::spawn(self.client.clone().drain(node, desired_state));
    }

    fn start(&mut self, node: usize) {
        let incarnation = self.nodes[node].start();
        self.result.note(format_args!(
            "{} starts as {}",
            self.nodes[node].name,
            &incarnation.holder.incarnation.0[..6]
        ));
        self.incarnations[node] = Some(incarnation);
    }

    /// Ends a process; the node starts another one after a while.
    fn crash(&mut self, node: usize, power: bool, down: Duration) {
        let Some(incarnation) = self.incarnations[node].take() else { return };
        self.net.unlisten(&self.nodes[node].name);
        incarnation.process.end();
        let holder = incarnation.holder.clone();
        let late = self.disks.orphan(|by| by.holder == holder, &mut self.rng);
        self.disks.unlock_all(&incarnation.jobs());
        if power {
            self.disks.power_cut(&self.nodes[node].name, &mut self.rng);
            self.nodes[node].reboot();
        }
        self.result.note(format_args!("{} is down, {late} writes on their way", self.nodes[node].name));
        self.schedule(down, FollowUp::Start(node));
    }

    /// Powers off the node of a process, and makes servers refuse that process.
    fn cut_off(&mut self, (holder, done): FenceRequest) {
        let is_it = |incarnation: &Option<SimProcess>| {
            incarnation.as_ref().is_some_and(|incarnation| incarnation.holder == holder)
        };
        if let Some(node) = self.incarnations.iter().position(is_it) {
            self.crash(node, true, Duration::from_secs(3));
        }
        self.disks.ban(&holder);
        self.result.note(format_args!("{} is cut off", holder.node));
        let _ = done.send(());
    }

    /// Restarts processes with a copy that will never drain, as an operator would. Reports panics.
    fn restart_wedged(&mut self) {
        for incarnation in self.incarnations.iter().flatten() {
            if let Some(panic) = incarnation.process.panic() {
                self.result.fail(format_args!("{} panicked: {panic}", incarnation.holder.node));
            }
        }
        for node in 0..self.incarnations.len() {
            if self.incarnations[node].as_ref().is_some_and(SimProcess::is_wedged) {
                self.result.note(format_args!("{} is wedged", self.nodes[node].name));
                self.crash(node, false, Duration::from_secs(5));
            }
        }
    }

    fn regress(&mut self, back: Duration) {
        let past = self.snapshots.iter().rev().find(|(at, _)| at.elapsed() >= back);
        let Some((_, snapshot)) = past else { return };
        self.ensemble.regress(snapshot);
        self.disks.next_era();
        self.invariants.restart(&self.ensemble.committed_below("/"));
    }

    /// Ends every fault, and starts every node.
    async fn repair_all(&mut self) {
        self.result.note("all faults are repaired");
        if self.defect == Some(Defect::FaultsNeverEnd) {
            return self.scenario.nodes.iter().for_each(|node| self.ensemble.cut(node));
        }
        for follow_up in std::mem::take(&mut self.follow_ups).into_values() {
            if !matches!(follow_up, FollowUp::RetryFault(_)) {
                self.apply_follow_up(follow_up);
            }
        }
        self.net.mend_all();
        self.set_disk_behaviour(DiskBehaviour { write_ms: (5, 50), hang: 0.0, fail: 0.0, unfit: 0.0 });
        for node in 0..self.nodes.len() {
            self.nodes[node].clock.jump(0);
            self.ensemble.mend(&self.scenario.nodes[node]);
            self.drain(node, DrainMode::Undo);
            if let Some(incarnation) = &self.incarnations[node] {
                incarnation.process.resume();
                self.disks.note_resume(&incarnation.holder);
            } else {
                self.start(node);
            }
        }
    }

    /// Waits until every task has ended, and checks that none is stuck.
    async fn settle(&mut self) {
        let start = Instant::now();
        let repaired_ms = self.nodes[0].clock.unix_ms();
        while start.elapsed() < SETTLE_MAX {
            tokio::select! {
                biased;
                Some(request) = self.fence_requests.recv() => self.cut_off(request),
                () = sleep(CHECK_EVERY) => {}
            }
            self.apply_due(Instant::now());
            self.restart_wedged();
            if self.scenario.regresses {
                if start.elapsed() > Duration::from_secs(60) {
                    return;
                }
                continue;
            }
            let schedules = self.invariants.schedules();
            match self.invariants.undecided(repaired_ms) {
                Some(undecided) if start.elapsed() > SCHEDULES_MAX => return self.result.fail(undecided),
                Some(_) => continue,
                None => {}
            }
            for name in &schedules {
                self.client.remove_schedule(name).await;
            }
            if self.invariants.all_done() {
                return;
            }
            if start.elapsed().as_secs().is_multiple_of(OPERATORS_EVERY_SECONDS) {
                self.resume_all();
            }
            self.confirm_lost().await;
            if let Some(stuck) = self.invariants.stuck(start, self.nodes[0].clock.unix_ms()) {
                return self.result.fail(stuck);
            }
        }
        let live =
            self.invariants.tasks().into_iter().map(|seen| seen.record).filter(|record| !record.state.is_terminal());
        let live: Vec<String> = live.map(|record| format!("{} {}", record.id, record.state.as_str())).collect();
        let names = live.join(", ");
        self.result.fail(format_args!("tasks have not ended for long after all faults were repaired: {names}"));
    }

    /// Resumes paused tasks as clients do, and undoes drains as operators do.
    fn resume_all(&self) {
        for seen in self.invariants.tasks() {
            if !seen.record.state.is_terminal() && seen.record.desired_state == DesiredState::Pause {
                tokio::spawn(self.client.clone().request(seen.record.id, ClientAction::Resume));
            }
        }
        for (node, name) in self.scenario.nodes.iter().enumerate() {
            if self.ensemble.committed(&paths::drain(name)).is_some() {
                self.drain(node, DrainMode::Undo);
            }
        }
    }

    /// Acts as the operator of a node that has lost a task with the fence `manual`: powers the node off, confirms that,
    /// and starts the node again.
    async fn confirm_lost(&mut self) {
        let is_manual = |seen: &super::invariants::CommittedTask| {
            seen.record.state == TaskState::Lost && seen.record.spec.kind().fence() == FenceMethod::Manual
        };
        let Some(lost) = self.invariants.tasks().into_iter().find(is_manual) else { return };
        let Some(runner) = lost.record.attempts.last().map(|attempt| attempt.runner.clone()) else { return };
        let Some(node) = self.nodes.iter().position(|node| node.name == runner.node.as_str()) else { return };
        self.crash(node, false, Duration::from_secs(600));
        self.disks.power_off(&self.nodes[node].name);
        self.invariants.confirmed(&runner.node);
        for _ in 0..30 {
            sleep(CHECK_EVERY).await;
            // Others that are down start meanwhile: one of them has to lead.
            self.apply_due(Instant::now());
            if self.client.confirm(&runner.node).await {
                break;
            }
        }
        if self.incarnations[node].is_none() {
            self.start(node);
        }
    }
}
