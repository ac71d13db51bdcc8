//! The commands that ask a task center: `submit`, `get`, `watch`, `cancel`, `pause`, `resume`, `remove`, `set`, `list`,
//! `runners`, `drain`, `fence` and `center`.
//!
//! Each takes its flags apart, makes its call, and shows the answer. Finding the node that leads, and trying again, is the
//! client's business.

pub(crate) mod args;
mod show;
mod submit;

use crate::exit::Exit;
use crate::output::tell;
use crate::start_logging;
use args::{RawAsk, RawCenter, RawDrain, RawFence, RawList, RawName, RawRemove, RawSet, RawSubmit};
use blockhaul_control::clock::HostClock;
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::error::Fault;
use blockhaul_control::rpc::task_view::TaskView;
use blockhaul_control::rpc::tls::Tls;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::resource::{RUNTIME_DESCRIPTORS, require_descriptors};
use tokio::runtime::{Builder, Runtime};

/// A connection to a center, and how its answers are shown.
struct Desk {
    runtime: Runtime,
    client: CenterClient,
    json: bool,
}

impl Desk {
    fn open(raw: RawCenter) -> Result<Self> {
        let RawCenter { center, tls, json, log } = raw;
        start_logging(log)?;
        require_descriptors(RUNTIME_DESCRIPTORS, "start a runtime")?;
        let built = Builder::new_current_thread().enable_all().build();
        let runtime = built.map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "start a runtime"))?;
        let addresses = center.into_iter().filter(|address| !address.is_empty()).collect();
        let client =
            CenterClient::new(addresses, Channels::new(Tls::read(&tls, &HostClock)?))?.telling(|line| tell(line));
        Ok(Self { runtime, client, json })
    }

    /// Shows a task as it changes, until it has ended.
    fn follow(&mut self, id: &str) -> Result<Exit> {
        let Self { runtime, client, json } = self;
        let mut shown = None;
        let each = |task: &wire::Task| {
            let task = TaskView::from(task.clone());
            show::change(&task, shown.as_ref(), *json);
            shown = Some(task);
        };
        let task = runtime.block_on(client.follow(id, each)).map_err(of_center)?;
        let task = TaskView::from(task);
        if let Some(error) = task.error.as_ref().filter(|_| task.state == "FAILED") {
            tell(format_args!("task {id}: {}: {}", error.code, error.message));
        }
        Ok(ending(&task))
    }

    fn show(&self, task: wire::Task) -> Exit {
        show::task(&TaskView::from(task), self.json);
        Exit::Done
    }
}

/// Calls one verb of the client.
macro_rules! ask {
    ($desk:ident, $verb:ident, $request:expr) => {
        $desk.runtime.block_on($desk.client.$verb($request)).map_err(of_center)
    };
}

/// What a client says of a failure; where the leader is, it knows by itself.
fn of_center(fault: Fault) -> Error {
    fault.error
}

/// As a copy would end.
fn ending(task: &TaskView) -> Exit {
    match task.state.as_str() {
        "SUCCEEDED" => Exit::Done,
        "CANCELLED" => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

pub(crate) fn submit(raw: RawSubmit) -> Result<Exit> {
    let submit::Submission { request, center, wait } = submit::resolve(raw)?;
    let mut desk = Desk::open(center)?;
    let task = ask!(desk, submit, request)?;
    if wait {
        return desk.follow(&task.id);
    }
    show::submitted(&TaskView::from(task), desk.json);
    Ok(Exit::Done)
}

pub(crate) fn get(RawName { id, center }: RawName) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let task = ask!(desk, get, wire::TaskName { id })?;
    Ok(desk.show(task))
}

pub(crate) fn watch(RawName { id, center }: RawName) -> Result<Exit> {
    Desk::open(center)?.follow(&id)
}

pub(crate) fn cancel(RawName { id, center }: RawName) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let task = ask!(desk, cancel, wire::TaskName { id })?;
    Ok(desk.show(task))
}

pub(crate) fn pause(RawName { id, center }: RawName) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let task = ask!(desk, pause, wire::TaskName { id })?;
    Ok(desk.show(task))
}

pub(crate) fn resume(RawName { id, center }: RawName) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let task = ask!(desk, resume, wire::TaskName { id })?;
    Ok(desk.show(task))
}

/// Each by itself: one that cannot be removed keeps no other one. The first failure is the outcome.
pub(crate) fn remove(RawRemove { ids, center }: RawRemove) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let mut failed = None;
    for id in ids {
        match ask!(desk, remove, wire::TaskName { id }) {
            Ok(task) => show::removed(&TaskView::from(task), desk.json),
            Err(error) => {
                // The last words of the program are those of the first one.
                if failed.is_some() {
                    tell(format_args!("{error}"));
                }
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(Exit::Done), Err)
}

pub(crate) fn set(RawSet { id, limit, center }: RawSet) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let task = ask!(desk, set_limit, wire::SetLimitRequest { id, limit: limit.0 })?;
    Ok(desk.show(task))
}

pub(crate) fn list(RawList { state, center }: RawList) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let mut after = String::new();
    loop {
        let request = wire::ListRequest { state: state.clone().unwrap_or_default(), after };
        let wire::ListReply { tasks, next } = ask!(desk, list, request)?;
        tasks.into_iter().for_each(|task| show::line(&TaskView::from(task), desk.json));
        if next.is_empty() {
            return Ok(Exit::Done);
        }
        after = next;
    }
}

pub(crate) fn runners(RawAsk { center }: RawAsk) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let mut after = String::new();
    loop {
        let wire::RunnersReply { runners, next } = ask!(desk, runners, wire::RunnersRequest { after })?;
        runners.into_iter().for_each(|runner| show::runner(runner, desk.json));
        if next.is_empty() {
            return Ok(Exit::Done);
        }
        after = next;
    }
}

pub(crate) fn drain(RawDrain { node, now, undo, center }: RawDrain) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let request = wire::DrainRequest { node: node.clone(), now, undo };
    let wire::DrainReply { running } = ask!(desk, drain, request)?;
    show::drained(&node, !undo, running, desk.json);
    Ok(Exit::Done)
}

pub(crate) fn fence(RawFence { node, confirm, center }: RawFence) -> Result<Exit> {
    if !confirm {
        let message =
            format!("a fence says that {node} is powered off or cut off: if it is not, volumes are destroyed");
        return Err(
            Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message).advise("say so with --confirm")
        );
    }
    let mut desk = Desk::open(center)?;
    let wire::FenceReply { tasks } = ask!(desk, fence, wire::FenceRequest { node: node.clone(), confirm })?;
    show::fenced(&node, tasks, desk.json);
    Ok(Exit::Done)
}

pub(crate) fn center(RawAsk { center }: RawAsk) -> Result<Exit> {
    let mut desk = Desk::open(center)?;
    let status = ask!(desk, status, wire::StatusRequest {})?;
    show::center(status, desk.json);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_ends_as_its_copy_would() {
        let ended = |state: &str| ending(&TaskView::from(wire::Task { state: state.to_owned(), ..Default::default() }));
        assert_eq!(["SUCCEEDED", "FAILED", "CANCELLED"].map(ended), [Exit::Done, Exit::Failed, Exit::Interrupted]);
    }
}
