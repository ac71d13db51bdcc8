//! Runs the commands that call a task center: `submit`, `retry`, `get`, `events`, `watch`, `logs`, `cancel`, `pause`, `resume`,
//! `remove`, `set`, `move`, `list`, `schedule`, `runners`, `include`, `drain`, `fence` and `center`.
//!
//! Each command resolves its flags, makes its call, and shows the reply. The client finds the leader and retries.

pub(crate) mod args;
mod batch;
mod check;
mod following;
mod logs;
mod retry;
mod schedule;
mod settings;
mod show;
mod signing;
mod submit;

use crate::exit::Exit;
use crate::output::{self, print_stderr};
use crate::start_logging;
use args::{
    RawBatchTask, RawCancel, RawCenter, RawChanges, RawDrain, RawFence, RawList, RawMove, RawNode, RawRemove, RawRetry,
    RawRunners, RawSet, RawSettingsCommand, RawStatus, RawSubmit, RawTaskId, RawWatch, Setting,
};
use batch::GroupSubmission;
use blockhaul_control::batch::Place;
use blockhaul_control::clock::HostClock;
use blockhaul_control::model::Position;
use blockhaul_control::rpc::change_view::{FollowedEvent, TransitionView};
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::error::RpcError;
use blockhaul_control::rpc::task_view::TaskView;
use blockhaul_control::rpc::tls::Tls;
use blockhaul_control::rpc::wire;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::resource_check::{RUNTIME_DESCRIPTORS, require_descriptors};
pub(crate) use logs::logs;
pub(crate) use schedule::schedule;
use signing::{Signer, Signing};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use submit::SingleTask;
use tokio::runtime::{Builder, Runtime};

/// Time between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Calls a method of the client.
macro_rules! call {
    ($session:ident, $verb:ident, $request:expr) => {
        $session.runtime.block_on($session.client.$verb($request)).map_err($crate::center::error_of)
    };
}
use call;

/// A client of a center, and how its replies are shown.
struct CenterSession {
    runtime: Runtime,
    client: CenterClient,
    json: bool,
}

impl CenterSession {
    fn open(raw: RawCenter) -> Result<Self> {
        let RawCenter { center, tls, json, log } = raw;
        start_logging(log)?;
        require_descriptors(RUNTIME_DESCRIPTORS, "start a runtime")?;
        let built = Builder::new_current_thread().enable_all().build();
        let runtime = built.map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "start a runtime"))?;
        let addresses: Vec<String> = center.into_iter().filter(|address| !address.is_empty()).collect();
        tracing::info!(?addresses, "calling the center");
        let client = CenterClient::new(addresses, Channels::new(Tls::read(&tls, &HostClock)?))?
            .telling(|line| print_stderr(line));
        Ok(Self { runtime, client, json })
    }

    /// Shows the changes of a task until it ends.
    fn follow(&mut self, id: &str) -> Result<Exit> {
        let Self { runtime, client, json } = self;
        let mut shown = None;
        let each = |task: &wire::Task| {
            let task = TaskView::from(task.clone());
            show::task_change(&task, shown.as_ref(), *json);
            shown = Some(task);
        };
        let task = runtime.block_on(client.follow(id, each)).map_err(error_of)?;
        let task = TaskView::from(task);
        if let Some(error) = task.error.as_ref().filter(|_| exit_of(&task) == Exit::Failed) {
            print_stderr(format_args!("task {id}: {}: {}", error.code, error.message));
        }
        Ok(exit_of(&task))
    }

    /// Shows all tasks and every change of any of them, until nobody reads that any more.
    fn follow_all(&mut self, since: Option<Position>) -> Result<Exit> {
        let Self { runtime, client, json } = self;
        let each = |what: &wire::watch_all_event::What| {
            FollowedEvent::all_of(what).iter().for_each(|event| following::event(event, *json));
            if output::is_stdout_broken() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        runtime.block_on(client.follow_all(since, each)).map_err(error_of)?;
        Ok(Exit::Done)
    }

    /// Shows a submitted task, and follows it if the user wants to. What existed already does not look like a new task.
    fn submitted(&mut self, task: wire::Task, wait: bool) -> Result<Exit> {
        let existed = task.existed;
        let task = TaskView::from(task);
        if existed {
            let since = if task.is_over() { "since" } else { "last changed" };
            let TaskView { id, state, updated_at, .. } = &task;
            print_stderr(format_args!("task {id} exists already: {state}, {since} {updated_at}"));
        }
        if wait {
            return self.follow(&task.id);
        }
        show::submitted(&task, self.json);
        Ok(Exit::Done)
    }

    /// Submits a group, or the rest of it; signed, if there is who signs.
    fn send(&mut self, mut submission: GroupSubmission, signer: Option<&Signer>) -> Result<wire::Task> {
        signer.map_or(Ok(()), |signer| submission.sign(signer))?;
        let Self { runtime, client, .. } = self;
        runtime.block_on(submission.send(client)).map_err(error_of)
    }

    /// Returns all nodes.
    fn runners(&mut self) -> Result<Vec<wire::Node>> {
        let (mut nodes, mut after) = (Vec::new(), String::new());
        loop {
            let wire::RunnersReply { runners, next } = call!(self, runners, wire::RunnersRequest { after })?;
            nodes.extend(runners);
            if next.is_empty() {
                return Ok(nodes);
            }
            after = next;
        }
    }

    /// Passes each task of a state and of a group, or all of them, to `each`.
    fn list(
        &mut self,
        state: Option<String>,
        group: Option<String>,
        mut each: impl FnMut(&Self, wire::Task),
    ) -> Result<()> {
        let (state, group) = (state.unwrap_or_default(), group.unwrap_or_default());
        let mut after = String::new();
        loop {
            let request = wire::ListRequest { state: state.clone(), after, group: group.clone() };
            let wire::ListReply { tasks, next } = call!(self, list, request)?;
            tasks.into_iter().for_each(|task| each(self, task));
            if next.is_empty() {
                return Ok(());
            }
            after = next;
        }
    }

    fn show(&self, task: wire::Task) -> Exit {
        show::task(&TaskView::from(task), self.json);
        Exit::Done
    }
}

/// Returns the error of a failed call. The client has already followed the leader.
fn error_of(fault: RpcError) -> Error {
    fault.error
}

/// Returns the exit code of a task, the same as that of a local copy.
fn exit_of(task: &TaskView) -> Exit {
    match task.state.as_str() {
        "SUCCEEDED" => Exit::Done,
        "CANCELLED" => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

pub(crate) fn submit(RawSubmit { work }: RawSubmit) -> Result<Exit> {
    let work = match SingleTask::of(work) {
        Ok(work) => work,
        Err(raw) => return submit_group(*raw),
    };
    let submit::Submission { mut request, hooks, center, wait, check, signing } = submit::resolve(work)?;
    if check {
        return check::run(request, &hooks, center);
    }
    let group =
        (!hooks.is_empty()).then(|| GroupSubmission::of_copy(request.clone(), &Place::Center, hooks)).transpose()?;
    let mut session = CenterSession::open(center)?;
    let signer = session.signer(signing)?;
    let task = match group {
        Some(group) => session.send(group, signer.as_ref())?,
        None => {
            signer.map_or(Ok(()), |signer| signer.sign(&mut request))?;
            call!(session, submit, request)?
        }
    };
    session.submitted(task, wait)
}

fn submit_group(raw: RawBatchTask) -> Result<Exit> {
    let submission = GroupSubmission::resolve(&raw, &Place::Center)?;
    let signing = Signing::resolve(&raw.signing)?;
    let mut session = CenterSession::open(raw.center)?;
    let signer = session.signer(signing)?;
    let group = session.send(submission, signer.as_ref())?;
    session.submitted(group, raw.wait)
}

pub(crate) fn retry(RawRetry { id, wait, signing, center }: RawRetry) -> Result<Exit> {
    let signing = Signing::resolve(&signing)?;
    let mut session = CenterSession::open(center)?;
    let signer = session.signer(signing)?;
    let as_signed = |task: wire::Task| match &signer {
        Some(signer) => signer.as_signed(task),
        None => Ok(task),
    };
    let task = as_signed(call!(session, get, wire::TaskName { id: id.clone() })?)?;
    let again = if task.members.is_some() {
        let mut members = Vec::new();
        session.list(None, Some(id), |_, member| members.push(as_signed(member)))?;
        let submission = retry::group(task, members.into_iter().collect::<Result<_>>()?)?;
        session.send(submission, signer.as_ref())?
    } else {
        let mut request = retry::single(task)?;
        signer.as_ref().map_or(Ok(()), |signer| signer.sign(&mut request))?;
        call!(session, submit, request)?
    };
    session.submitted(again, wait)
}

pub(crate) fn get(RawTaskId { id, center }: RawTaskId) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let task = call!(session, get, wire::TaskName { id })?;
    Ok(session.show(task))
}

pub(crate) fn events(RawTaskId { id, center }: RawTaskId) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let wire::EventsReply { transitions } = call!(session, events, wire::TaskName { id: id.clone() })?;
    for transition in transitions {
        following::transition(&TransitionView::new(&id, transition), session.json);
    }
    Ok(Exit::Done)
}

pub(crate) fn watch(RawWatch { id, all: _, since, center }: RawWatch) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    match id {
        Some(id) => session.follow(&id),
        None => session.follow_all(since),
    }
}

pub(crate) fn cancel(RawCancel { id, all, center }: RawCancel) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let task = call!(session, cancel, wire::CancelRequest { id, all })?;
    Ok(session.show(task))
}

pub(crate) fn pause(RawTaskId { id, center }: RawTaskId) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let task = call!(session, pause, wire::TaskName { id })?;
    Ok(session.show(task))
}

pub(crate) fn resume(RawTaskId { id, center }: RawTaskId) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let task = call!(session, resume, wire::TaskName { id })?;
    Ok(session.show(task))
}

/// Removes each task by itself; a failure does not keep the others. Returns the first failure.
pub(crate) fn remove(RawRemove { ids, older_than, center }: RawRemove) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    if let Some(age) = older_than {
        return remove_older(&mut session, age);
    }
    let mut failed = None;
    for id in ids {
        match call!(session, remove, wire::TaskName { id }) {
            Ok(task) => show::removed(&TaskView::from(task), session.json),
            Err(error) => {
                // The first error is reported by the caller.
                if failed.is_some() {
                    print_stderr(format_args!("{error}"));
                }
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(Exit::Done), Err)
}

/// Removes the tasks that ended so long ago, by the clock of this host, and that no other task needs. Members go with
/// their group.
fn remove_older(session: &mut CenterSession, age: Duration) -> Result<Exit> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = Timestamp(u64::try_from(now.saturating_sub(age).as_millis()).unwrap_or(u64::MAX));
    let mut old = Vec::new();
    session.list(None, None, |_, task| {
        let task = TaskView::from(task);
        if task.is_over() && task.group.is_none() && task.updated_at <= before {
            old.push(task.id);
        }
    })?;
    for id in old {
        match call!(session, remove, wire::TaskName { id }) {
            Ok(task) => show::removed(&TaskView::from(task), session.json),
            // Another task needs it, or it is gone by now.
            Err(error) if matches!(error.code, Code::Busy | Code::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Exit::Done)
}

pub(crate) fn set(RawSet { id, changes, center }: RawSet) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let RawChanges { limit, priority, max_attempts, start_at, deadline } = changes;
    if let (Some(Setting(limit)), None, None, None, None) = (limit, priority, max_attempts, start_at, deadline) {
        // A leader of an earlier version knows only this.
        let task = call!(session, set_limit, wire::SetLimitRequest { id, limit })?;
        return Ok(session.show(task));
    }
    let request = wire::SetRequest {
        id,
        limit: limit.map(|Setting(value)| wire::Setting { value }),
        priority,
        max_attempts,
        start_at_ms: start_at.map(|Setting(time)| wire::Setting { value: time.map(|Timestamp(unix_ms)| unix_ms) }),
        deadline_ms: deadline.map(|Setting(after)| wire::Setting { value: after.map(submit::milliseconds) }),
    };
    let task = call!(session, set, request)?;
    Ok(session.show(task))
}

pub(crate) fn move_task(RawMove { id, to, center }: RawMove) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let task = call!(session, move_task, wire::MoveRequest { id, node: to })?;
    Ok(session.show(task))
}

pub(crate) fn list(RawList { state, group, center }: RawList) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    session.list(state, group, |session, task| show::task_line(&TaskView::from(task), session.json))?;
    Ok(Exit::Done)
}

pub(crate) fn runners(RawRunners { wide, center }: RawRunners) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let nodes = session.runners()?;
    nodes.into_iter().for_each(|node| show::runner(node, wide, session.json));
    Ok(Exit::Done)
}

pub(crate) fn include(RawNode { node, center }: RawNode) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let wire::IncludeReply { was_excluded } = call!(session, include, wire::IncludeRequest { node: node.clone() })?;
    show::included(&node, was_excluded, session.json);
    Ok(Exit::Done)
}

pub(crate) fn drain(RawDrain { node, now, undo, idle, lasts, wait, center }: RawDrain) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let request = wire::DrainRequest {
        node: node.unwrap_or_default(),
        now,
        undo,
        idle: idle.unwrap_or_default(),
        for_ms: lasts.map(submit::milliseconds),
    };
    let wire::DrainReply { mut running, nodes } = call!(session, drain, request)?;
    if nodes.is_empty() {
        let message = "no node could be drained: none is idle, or as many are drained as max-drained lets be";
        return Err(Error::new(Code::Busy, Side::Coordination, Operation::Write, message));
    }
    for node in &nodes {
        if wait {
            running = wait_until_empty(&mut session, node)?;
        }
        show::drained(node, !undo, running, session.json);
    }
    Ok(Exit::Done)
}

/// Waits until a node holds no task. Returns the number of its tasks then: zero. One that is not listed is away, is drained no
/// longer, and holds none.
fn wait_until_empty(session: &mut CenterSession, node: &str) -> Result<u32> {
    loop {
        let nodes = session.runners()?;
        let running = nodes.into_iter().find(|found| found.node == node).map_or(0, |found| found.running);
        if running == 0 {
            return Ok(running);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

pub(crate) fn fence(RawFence { node, confirm, center }: RawFence) -> Result<Exit> {
    if !confirm {
        let message = format!(
            "fencing {node} requires that it is powered off or cut off from all volumes; otherwise data will be corrupted"
        );
        return Err(Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message)
            .advise("repeat with --confirm once it is"));
    }
    let mut session = CenterSession::open(center)?;
    let wire::FenceReply { tasks } = call!(session, fence, wire::FenceRequest { node: node.clone(), confirm })?;
    show::fenced(&node, tasks, session.json);
    Ok(Exit::Done)
}

pub(crate) fn center(RawStatus { command, center }: RawStatus) -> Result<Exit> {
    match command {
        Some(RawSettingsCommand::Get(raw)) => return settings::get(raw),
        Some(RawSettingsCommand::Set(raw)) => return settings::set(raw),
        None => {}
    }
    let mut session = CenterSession::open(center)?;
    let status = call!(session, status, wire::StatusRequest {})?;
    show::center(status, session.json);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_ends_as_its_copy_would() {
        let ended =
            |state: &str| exit_of(&TaskView::from(wire::Task { state: state.to_owned(), ..Default::default() }));
        assert_eq!(["SUCCEEDED", "FAILED", "CANCELLED"].map(ended), [Exit::Done, Exit::Failed, Exit::Interrupted]);
    }
}
