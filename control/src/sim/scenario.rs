//! Derives a scenario from a seed: nodes, volumes, tasks, requests of clients, and faults.

use super::environment::DiskBehaviour;
use crate::batch::OnFailure;
use crate::dispatcher::NewSchedule;
use crate::model::{
    CatchUp, CopyTask, FenceMethod, GroupName, GroupTask, MemberTemplate, NodeId, NoopTask, RunTask, ScheduleName,
    Submission, TaskId, TaskSpec, Template, Trigger, UnknownFields,
};
use blockhaul_engine::flow::graph::Condition;
use std::time::Duration;

/// Time in which faults happen.
pub(super) const FAULT_TIME: Duration = Duration::from_secs(90);

/// Least time between the submissions of a task and of one that depends on it.
const DEPENDENCY_LEAD: Duration = Duration::from_secs(2);

/// Everything that a seed determines before a run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) nodes: Vec<String>,
    pub(super) slots: u32,
    /// Node, name and blocks of each volume. Sources hold data, destinations do not.
    pub(super) volumes: Vec<(Option<String>, String, Vec<u64>)>,
    pub(super) events: Vec<(Duration, Event)>,
    pub(super) disk_behaviour: DiskBehaviour,
    pub(super) latency_ms: (u64, u64),
    /// Whether history goes back once. Then tasks may stay without an end.
    pub(super) regresses: bool,
}

/// Event from outside.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Submit {
        id: String,
        spec: Box<TaskSpec>,
        priority: u8,
        max_attempts: u32,
        /// Tasks that it depends on; they are submitted earlier.
        after: Vec<(String, Condition)>,
    },
    /// A group and its members, which a client submits one after the other.
    SubmitGroup {
        group: Box<Submission>,
        members: Vec<Submission>,
        /// Number of messages after which the client dies, and time until the same batch is submitted again.
        dies: Option<(usize, Duration)>,
    },
    AddSchedule(Box<NewSchedule>),
    ClientAction {
        id: String,
        action: ClientAction,
    },
    /// Tries a task again, if it has ended without success.
    Retry {
        id: String,
    },
    Fault(Fault),
}

/// Request of a client about a task.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClientAction {
    Cancel,
    Pause,
    Resume,
    Limit,
    /// To another node than the one that has it.
    Move,
    /// Of a group: cancels its clean-up, too.
    CancelAll,
}

/// Fault and its duration. Nodes by number.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// SIGKILL, or a power cut of the node; starts again after a while.
    Crash { node: usize, power: bool, down: Duration },
    /// Asked to stop; starts again after a while.
    Stop { node: usize, down: Duration },
    /// SIGSTOP and SIGCONT.
    Pause { node: usize, time: Duration },
    /// Cut off from the coordination service, from the other nodes, or from both.
    Partition { node: usize, center: bool, peers: bool, time: Duration },
    /// The node's connections to the service break.
    Reset { node: usize },
    /// A server of the service is isolated from its leader.
    Isolate { server: usize, time: Duration },
    /// The service has no leader.
    Stall { time: Duration },
    /// The service is down.
    Outage { time: Duration },
    /// Answers and watches get lost, and writes come late.
    LossyService { time: Duration },
    /// Calls get lost, come late and twice.
    NetworkFaults { time: Duration },
    /// Writes take long, some up to 15 s.
    Slow { time: Duration },
    /// An operator drains a node, and undoes that later.
    Drain { node: usize, now: bool, time: Duration },
    /// A wall clock jumps.
    Jump { node: usize, skew_ms: i64 },
    /// The service goes back to its state so long ago.
    Regress { back: Duration },
}

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes: Vec<String> = (1..=rng.usize(3..=5)).map(|number| format!("n{number}")).collect();
        let mut this = Self {
            slots: rng.u32(1..=4),
            volumes: Vec::new(),
            events: Vec::new(),
            disk_behaviour: DiskBehaviour { write_ms: (10, rng.u64(200..=3000)), hang: 0.0, fail: 0.02, unfit: 0.02 },
            latency_ms: (0, rng.u64(1..=20)),
            regresses: rng.u8(..20) == 0,
            nodes,
        };
        this.add_volumes(&mut rng);
        this.add_tasks(&mut rng);
        this.add_faults(&mut rng);
        // Drawn apart, so that a seed has the same faults as without.
        this.add_dependencies(&mut fastrand::Rng::with_seed(seed ^ 0xdead_beef));
        this.add_groups(&mut fastrand::Rng::with_seed(seed ^ 0x6709));
        this.add_hooks(&mut fastrand::Rng::with_seed(seed ^ 0x0b00_c0de));
        this.add_retries(&mut fastrand::Rng::with_seed(seed ^ 0x4e74));
        this.add_schedules(&mut fastrand::Rng::with_seed(seed ^ 0x5c4e_d01e));
        let batches = this.draw_batch_schedule(&mut fastrand::Rng::with_seed(seed ^ 0xba7c));
        this.events.extend(batches);
        this.events.sort_by_key(|(at, _)| *at);
        this
    }

    fn add_volumes(&mut self, rng: &mut fastrand::Rng) {
        let blocks = rng.usize(4..=64);
        let owners = self.nodes.iter().cloned().map(Some).chain([None]);
        for (number, owner) in owners.enumerate() {
            for index in 0..3 {
                let data = |block: usize| ((number as u64 + 1) << 32) | ((index + 1) << 16) | (block as u64 + 1);
                self.volumes.push((owner.clone(), format!("s{index}"), (0..blocks).map(data).collect()));
                self.volumes.push((owner.clone(), format!("d{index}"), vec![0; blocks]));
            }
        }
    }

    fn add_tasks(&mut self, rng: &mut fastrand::Rng) {
        for number in 0..rng.usize(10..=36) {
            let at = Duration::from_millis(rng.u64(0..=75_000));
            let id = format!("t{number:02}");
            let spec = self.draw_spec(rng);
            let priority = rng.u8(0..=9);
            let is_copy = matches!(spec, TaskSpec::Copy(_));
            let submit = Event::Submit {
                id: id.clone(),
                spec: Box::new(spec),
                priority,
                max_attempts: rng.u32(3..=6),
                after: Vec::new(),
            };
            self.events.push((at, submit));
            let later = |rng: &mut fastrand::Rng| at + Duration::from_millis(rng.u64(100..=30_000));
            match rng.u8(..20) {
                0..=2 => self.events.push((later(rng), Event::ClientAction { id, action: ClientAction::Cancel })),
                3..=5 if is_copy => {
                    let pause = later(rng);
                    let resume = pause + Duration::from_millis(rng.u64(100..=20_000));
                    self.events.push((pause, Event::ClientAction { id: id.clone(), action: ClientAction::Pause }));
                    self.events.push((resume, Event::ClientAction { id, action: ClientAction::Resume }));
                }
                6 if is_copy => self.events.push((later(rng), Event::ClientAction { id, action: ClientAction::Limit })),
                7 if is_copy => self.events.push((later(rng), Event::ClientAction { id, action: ClientAction::Move })),
                _ => {}
            }
        }
    }

    /// Has clients try tasks again.
    fn add_retries(&mut self, rng: &mut fastrand::Rng) {
        let submitted: Vec<(Duration, String)> = self.events.iter().filter_map(submitted).collect();
        for (at, id) in submitted {
            if rng.u8(..3) == 0 {
                let later = at + Duration::from_millis(rng.u64(1_000..=60_000));
                self.events.push((later, Event::Retry { id }));
            }
        }
    }

    fn add_dependencies(&mut self, rng: &mut fastrand::Rng) {
        let submitted: Vec<(Duration, String)> = self.events.iter().filter_map(submitted).collect();
        for (at, event) in &mut self.events {
            let Event::Submit { after, .. } = event else { continue };
            let earlier: Vec<&String> =
                submitted.iter().filter(|(before, _)| *before + DEPENDENCY_LEAD <= *at).map(|(_, id)| id).collect();
            if earlier.is_empty() || rng.u8(..4) > 0 {
                continue;
            }
            for _ in 0..rng.usize(1..=3) {
                let condition = match rng.u8(..6) {
                    0..=2 => Condition::Success,
                    3..=4 => Condition::End,
                    _ => Condition::Failure,
                };
                after.push((earlier[rng.usize(..earlier.len())].clone(), condition));
            }
        }
    }

    fn add_groups(&mut self, rng: &mut fastrand::Rng) {
        let name = |text: String| TaskId::new(text).expect("a task's name");
        for number in 0..rng.usize(0..=2) {
            let at = Duration::from_millis(rng.u64(0..=75_000));
            let count = rng.usize(1..=6);
            let priority = rng.u8(0..=9);
            let mut members: Vec<Submission> = Vec::new();
            for member in 0..count {
                let mut after = Vec::new();
                let mut clean_up = false;
                if member > 0 && rng.bool() {
                    let condition = [Condition::Success, Condition::Success, Condition::End][rng.usize(..3)];
                    let on: &Submission = &members[rng.usize(..member)];
                    clean_up = condition == Condition::End || on.group.as_ref().is_some_and(|group| group.clean_up);
                    after.push((on.id.clone(), condition));
                }
                let group = Some(GroupName { id: name(format!("g{number}")), clean_up });
                let id = name(format!("g{number}.{member}"));
                let spec = if rng.u8(..3) == 0 { self.draw_hook(rng) } else { self.draw_spec(rng) };
                members.push(Submission { after, group, ..Submission::new(id, priority, rng.u32(2..=4), spec) });
            }
            let spec = TaskSpec::Group(GroupTask {
                digest: "0".repeat(64),
                members: u32::try_from(count).expect("few members"),
                parallel: rng.bool().then(|| rng.u32(1..=3)),
                on_failure: if rng.bool() { OnFailure::Stop } else { OnFailure::Continue },
                hold: rng.u8(..3) == 0,
                unknown: UnknownFields::default(),
            });
            let id = format!("g{number}");
            let group = Submission::new(name(id.clone()), priority, 3, spec);
            let dies = rng.bool().then(|| (rng.usize(1..=count + 1), Duration::from_millis(rng.u64(0..=30_000))));
            self.events.push((at, Event::SubmitGroup { group: Box::new(group), members, dies }));
            let later = |rng: &mut fastrand::Rng| at + Duration::from_millis(rng.u64(100..=40_000));
            let action = match rng.u8(..8) {
                0 => ClientAction::Cancel,
                1 => ClientAction::CancelAll,
                2..=3 => ClientAction::Pause,
                _ => continue,
            };
            let first = later(rng);
            self.events.push((first, Event::ClientAction { id: id.clone(), action }));
            if let ClientAction::Pause = action {
                let resume = first + Duration::from_millis(rng.u64(100..=20_000));
                self.events.push((resume, Event::ClientAction { id, action: ClientAction::Resume }));
            }
        }
    }

    /// Adds hooks: some after a copy, as one that thaws what another has frozen.
    fn add_hooks(&mut self, rng: &mut fastrand::Rng) {
        let earlier: Vec<(Duration, String)> = self.events.iter().filter_map(submitted).collect();
        for number in 0..rng.usize(0..=6) {
            let at = Duration::from_millis(rng.u64(0..=75_000));
            let id = format!("h{number}");
            let run = self.draw_hook(rng);
            let before: Vec<&String> =
                earlier.iter().filter(|(before, _)| *before + DEPENDENCY_LEAD <= at).map(|(_, id)| id).collect();
            let after = match rng.u8(..4) {
                0 if !before.is_empty() => vec![(before[rng.usize(..before.len())].clone(), Condition::End)],
                _ => Vec::new(),
            };
            let (spec, max_attempts) = (Box::new(run), rng.u32(3..=6));
            let submit = Event::Submit { id: id.clone(), spec, priority: rng.u8(0..=9), max_attempts, after };
            self.events.push((at, submit));
            if rng.u8(..5) == 0 {
                let later = at + Duration::from_millis(rng.u64(100..=30_000));
                self.events.push((later, Event::ClientAction { id, action: ClientAction::Cancel }));
            }
        }
    }

    /// Adds schedules, and clocks that jump by days while they fire.
    fn add_schedules(&mut self, rng: &mut fastrand::Rng) {
        for number in 0..rng.usize(0..=3).saturating_sub(1) {
            let at = Duration::from_millis(rng.u64(0..=60_000));
            let name = ScheduleName::new(format!("s{number}")).expect("a schedule's name");
            let node = NodeId::new(self.nodes[rng.usize(..self.nodes.len())].as_str()).expect("a node's name");
            let trigger = match rng.u8(..6) {
                0..=2 => Trigger::Every { interval_ms: rng.u64(2..=20) * 1000, from_ms: Some(rng.u64(0..100) * 1000) },
                3..=4 => Trigger::Cron(format!("*/{} * * * * *", rng.u8(5..=20))),
                _ => Trigger::OnBoot(node),
            };
            let spec = TaskSpec::Noop(NoopTask::new(rng.u64(10..=15_000), None));
            let template = Submission::new(TaskId::fresh(), rng.u8(0..=9), rng.u32(2..=5), spec);
            self.events.push((
                at,
                Event::AddSchedule(Box::new(NewSchedule {
                    name,
                    request: String::from("request"),
                    trigger,
                    zone: String::from("Europe/Berlin"),
                    template: Template::new(template).expect("a single task"),
                    members: Vec::new(),
                    catch_up: CatchUp::Once,
                    keep: rng.u32(0..=3),
                    replace: false,
                    if_version: None,
                    cancel_live: false,
                })),
            ));
            if rng.bool() {
                let days = rng.i64(-3..=3) * 86_400_000;
                let jump = Fault::Jump { node: rng.usize(..self.nodes.len()), skew_ms: days };
                self.events.push((Duration::from_millis(rng.u64(5_000..=85_000)), Event::Fault(jump)));
            }
        }
    }

    /// Draws a schedule that submits batches, some of more members than are stored at once.
    fn draw_batch_schedule(&self, rng: &mut fastrand::Rng) -> Option<(Duration, Event)> {
        if rng.u8(..3) > 0 {
            return None;
        }
        let task_id = |text: String| TaskId::new(text).expect("a task's name");
        let count = if rng.u8(..4) == 0 { rng.usize(20..=40) } else { rng.usize(1..=6) };
        let mut members: Vec<MemberTemplate> = Vec::new();
        for member in 0..count {
            let (mut after, mut clean_up) = (Vec::new(), false);
            if member > 0 && rng.bool() {
                let condition = [Condition::Success, Condition::Success, Condition::End][rng.usize(..3)];
                let on = &members[rng.usize(..member)];
                clean_up = condition == Condition::End || on.clean_up;
                after.push((on.id.clone(), condition));
            }
            let spec = TaskSpec::Noop(NoopTask::new(rng.u64(10..=2_000), None));
            let submission = Submission::new(task_id(format!("m{member}")), rng.u8(0..=9), rng.u32(2..=4), spec);
            let member = MemberTemplate::new(Submission { after, ..submission }, clean_up);
            members.push(member.expect("it has neither times nor a group"));
        }
        let group = TaskSpec::Group(GroupTask {
            digest: "1".repeat(64),
            members: u32::try_from(count).expect("few members"),
            parallel: rng.bool().then(|| rng.u32(1..=3)),
            on_failure: if rng.bool() { OnFailure::Stop } else { OnFailure::Continue },
            hold: rng.u8(..4) == 0,
            unknown: UnknownFields::default(),
        });
        let template = Submission::new(TaskId::fresh(), rng.u8(0..=9), 3, group);
        let new = NewSchedule {
            name: ScheduleName::new("b0").expect("a schedule's name"),
            request: String::from("request"),
            trigger: Trigger::Every { interval_ms: rng.u64(2..=15) * 1000, from_ms: Some(rng.u64(0..100) * 1000) },
            zone: String::from("Europe/Berlin"),
            template: Template::new(template).expect("it waits for no other task"),
            members,
            catch_up: CatchUp::Once,
            keep: rng.u32(0..=3),
            replace: false,
            if_version: None,
            cancel_live: false,
        };
        Some((Duration::from_millis(rng.u64(0..=40_000)), Event::AddSchedule(Box::new(new))))
    }

    fn draw_hook(&self, rng: &mut fastrand::Rng) -> TaskSpec {
        let node = &self.nodes[rng.usize(..self.nodes.len())];
        TaskSpec::Run(RunTask {
            node: rng.bool().then(|| NodeId::new(node.as_str()).expect("a node's name")),
            at_most_once: rng.u8(..3) == 0,
            ..RunTask::example("freeze")
        })
    }

    fn draw_spec(&self, rng: &mut fastrand::Rng) -> TaskSpec {
        let home = &self.nodes[rng.usize(..self.nodes.len())];
        let node = |rng: &mut fastrand::Rng| rng.bool().then(|| NodeId::new(home.as_str()).expect("a node's name"));
        if rng.u8(..10) == 0 {
            return TaskSpec::Noop(NoopTask::new(rng.u64(10..=20_000), node(rng)));
        }
        let is_local = rng.u8(..10) < 4;
        let local = |kind: char, rng: &mut fastrand::Rng| match rng.u8(..3) {
            0 if kind == 'd' => format!("file://{home}/alias/{kind}{}", rng.u8(..3)),
            _ => format!("file://{home}/vol/{kind}{}", rng.u8(..3)),
        };
        let export = |kind: char, rng: &mut fastrand::Rng| match rng.bool() {
            true => format!("nbd://store:10809/{kind}{}", rng.u8(..3)),
            false => format!("nbd://store/{kind}{}", rng.u8(..3)),
        };
        let source = if rng.bool() { local('s', rng) } else { export('s', rng) };
        let destination = if is_local { local('d', rng) } else { export('d', rng) };
        let fence = match rng.u8(..10) {
            _ if is_local => FenceMethod::Local,
            0 => FenceMethod::Command,
            1 => FenceMethod::Manual,
            _ => FenceMethod::Lease,
        };
        TaskSpec::Copy(CopyTask {
            verify: rng.u8(..4) == 0,
            overwrite: rng.u8(..8) > 0,
            fence,
            ..CopyTask::example(&source, &destination)
        })
    }

    fn add_faults(&mut self, rng: &mut fastrand::Rng) {
        let last = FAULT_TIME.as_millis() as u64 - 5_000;
        let mut before = None;
        for _ in 0..rng.usize(6..=14) {
            // Half of the faults follow another one closely, so that they overlap.
            let at_ms = match before {
                Some(before) if rng.bool() => before + rng.u64(0..=12_000),
                _ => rng.u64(2_000..=last),
            };
            before = Some(at_ms);
            let at = Duration::from_millis(at_ms.min(last));
            let fault = self.draw_fault(rng);
            self.events.push((at, Event::Fault(fault)));
        }
        if self.regresses {
            let at = Duration::from_millis(rng.u64(20_000..=70_000));
            let back = Duration::from_millis(rng.u64(500..=15_000));
            self.events.push((at, Event::Fault(Fault::Regress { back })));
        }
    }

    fn draw_fault(&self, rng: &mut fastrand::Rng) -> Fault {
        let node = rng.usize(..self.nodes.len());
        let mut time = |least: u64, most: u64| Duration::from_millis(rng.u64(least..=most));
        let (short, middle, long) = (time(100, 3_000), time(500, 14_000), time(1_000, 30_000));
        let around = time(9_000, 15_000);
        match rng.u8(..26) {
            0..=4 => Fault::Crash { node, power: rng.u8(..3) == 0, down: if rng.bool() { short } else { long } },
            5..=6 => Fault::Stop { node, down: short },
            7..=9 => Fault::Pause { node, time: if rng.bool() { middle } else { long } },
            10..=13 => {
                let which = rng.u8(..4);
                Fault::Partition {
                    node,
                    center: which != 0,
                    peers: which != 1,
                    time: if rng.bool() { middle } else { long },
                }
            }
            14 => Fault::Reset { node },
            // About as long as a session lives without a connection.
            15 => Fault::Partition { node, center: true, peers: rng.bool(), time: around },
            16..=17 => Fault::Isolate { server: rng.usize(..3), time: middle },
            18 => Fault::Stall { time: short * 2 },
            19 => Fault::Outage { time: if rng.bool() { short } else { long } },
            20..=21 => Fault::LossyService { time: long },
            22 => Fault::NetworkFaults { time: long },
            23 => Fault::Slow { time: long },
            24 => Fault::Drain { node, now: rng.bool(), time: middle },
            _ => Fault::Jump { node, skew_ms: rng.i64(-120_000..=120_000) },
        }
    }
}

/// Returns the time and the name of a task that is submitted.
fn submitted((at, event): &(Duration, Event)) -> Option<(Duration, String)> {
    match event {
        Event::Submit { id, .. } => Some((*at, id.clone())),
        Event::SubmitGroup { .. }
        | Event::AddSchedule(_)
        | Event::ClientAction { .. }
        | Event::Retry { .. }
        | Event::Fault(_) => None,
    }
}

impl Fault {
    /// Returns the name of the kind in the counts of all seeds.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Crash { power: false, .. } => "crash",
            Self::Crash { power: true, .. } => "power cut",
            Self::Stop { .. } => "stop",
            Self::Pause { .. } => "pause",
            Self::Partition { center: true, peers: true, .. } => "partition from all",
            Self::Partition { center: true, .. } => "partition from the service",
            Self::Partition { .. } => "partition from nodes",
            Self::Reset { .. } => "reset",
            Self::Isolate { .. } => "isolated server",
            Self::Stall { .. } => "no quorum",
            Self::Outage { .. } => "outage",
            Self::LossyService { .. } => "lost answers, late writes and watches",
            Self::NetworkFaults { .. } => "lost and doubled calls",
            Self::Slow { .. } => "slow disks",
            Self::Drain { .. } => "drain",
            Self::Jump { .. } => "clock jump",
            Self::Regress { .. } => "history regress",
        }
    }

    /// Returns the node whose process the fault hits, if it hits one.
    pub(super) fn victim(&mut self) -> Option<&mut usize> {
        match self {
            Self::Crash { node, .. }
            | Self::Stop { node, .. }
            | Self::Pause { node, .. }
            | Self::Partition { node, .. }
            | Self::Reset { node } => Some(node),
            Self::Isolate { .. } | Self::Stall { .. } | Self::Outage { .. } | Self::LossyService { .. } => None,
            Self::NetworkFaults { .. } | Self::Slow { .. } | Self::Drain { .. } | Self::Jump { .. } => None,
            Self::Regress { .. } => None,
        }
    }
}
