//! Calls the center's service on behalf of a browser.
//!
//! What always holds: each call carries the caller of the browser's connection, so that its roles and the audit log apply.

use crate::rpc::error::RpcError;
use crate::rpc::guarded_center::GuardedCenter;
use crate::rpc::handshake::ConnectionInfo;
use crate::rpc::schedule_view::ScheduleInfo;
use crate::rpc::task_view::TaskView;
use crate::rpc::wire::{self, center_server::Center};
use std::sync::Arc;
use tokio_stream::StreamExt;
use tonic::{Request, Response};

/// Most bytes of a log on a page: all that a node keeps of one.
const LOG_BYTES_MAX: usize = 256 << 10;

/// Calls with the rights of one connection.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    center: Arc<GuardedCenter>,
    connection: ConnectionInfo,
}

/// Makes one call.
macro_rules! call {
    ($calls:expr, $method:ident, $message:expr) => {
        $calls.center.$method($calls.request($message)).await.map(Response::into_inner).map_err(RpcError::from)
    };
}

type Answer<T> = Result<T, RpcError>;

impl Calls {
    pub(super) fn new(center: Arc<GuardedCenter>, connection: ConnectionInfo) -> Self {
        Self { center, connection }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(self.connection.clone());
        request
    }

    pub(super) async fn status(&self) -> Answer<wire::CenterStatus> {
        call!(self, status, wire::StatusRequest {})
    }

    /// Returns a page of tasks, and after which one the next page begins; empty: there is none.
    pub(super) async fn tasks(&self, query: wire::ListRequest) -> Answer<(Vec<TaskView>, String)> {
        let wire::ListReply { tasks, next } = call!(self, list, query)?;
        Ok((tasks.into_iter().map(TaskView::from).collect(), next))
    }

    pub(super) async fn task(&self, id: &str) -> Answer<TaskView> {
        call!(self, get, name(id)).map(TaskView::from)
    }

    pub(super) async fn transitions(&self, id: &str) -> Answer<Vec<wire::Transition>> {
        call!(self, events, name(id)).map(|reply| reply.transitions)
    }

    /// Returns the log of an attempt as far as it is there now: the node, and the text.
    pub(super) async fn log(&self, id: &str, attempt: Option<u32>) -> Answer<(String, Vec<u8>)> {
        let request = wire::LogsRequest { id: id.to_owned(), attempt, ..wire::LogsRequest::default() };
        let mut events = call!(self, logs, request)?;
        let (mut node, mut text) = (String::new(), Vec::new());
        while let Some(event) = events.next().await {
            let event = event.map_err(RpcError::from)?;
            if let Some(failed) = event.error {
                return Err(RpcError::from(failed));
            }
            node = event.node;
            text.extend(event.text);
            if event.last || text.len() > LOG_BYTES_MAX {
                break;
            }
        }
        Ok((node, text))
    }

    /// Returns all nodes of a center: at most some thousand.
    pub(super) async fn nodes(&self) -> Answer<Vec<wire::Node>> {
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

    /// Returns a page of schedules, and after which one the next page begins.
    pub(super) async fn schedules(&self, after: String) -> Answer<(Vec<ScheduleInfo>, String)> {
        let wire::ListSchedulesReply { schedules, next } =
            call!(self, list_schedules, wire::ListSchedulesRequest { after })?;
        Ok((schedules.into_iter().map(ScheduleInfo::from).collect(), next))
    }

    pub(super) async fn schedule(&self, name: &str) -> Answer<ScheduleInfo> {
        call!(self, get_schedule, schedule(name)).map(ScheduleInfo::from)
    }

    pub(super) async fn settings(&self) -> Answer<wire::Settings> {
        call!(self, get_settings, wire::SettingsRequest {})
    }

    pub(super) async fn cancel(&self, id: &str, all: bool) -> Answer<()> {
        call!(self, cancel, wire::CancelRequest { id: id.to_owned(), all }).map(drop)
    }

    pub(super) async fn pause(&self, id: &str) -> Answer<()> {
        call!(self, pause, name(id)).map(drop)
    }

    pub(super) async fn resume(&self, id: &str) -> Answer<()> {
        call!(self, resume, name(id)).map(drop)
    }

    pub(super) async fn drain(&self, node: &str, undo: bool) -> Answer<()> {
        let request = wire::DrainRequest { node: node.to_owned(), undo, ..wire::DrainRequest::default() };
        call!(self, drain, request).map(drop)
    }

    pub(super) async fn include(&self, node: &str) -> Answer<()> {
        call!(self, include, wire::IncludeRequest { node: node.to_owned() }).map(drop)
    }

    pub(super) async fn pause_schedule(&self, name: &str) -> Answer<()> {
        call!(self, pause_schedule, schedule(name)).map(drop)
    }

    pub(super) async fn resume_schedule(&self, name: &str) -> Answer<()> {
        call!(self, resume_schedule, schedule(name)).map(drop)
    }

    pub(super) async fn run_schedule(&self, name: &str) -> Answer<()> {
        let request = wire::RunScheduleRequest { name: name.to_owned(), ..wire::RunScheduleRequest::default() };
        call!(self, run_schedule, request).map(drop)
    }
}

fn name(id: &str) -> wire::TaskName {
    wire::TaskName { id: id.to_owned() }
}

fn schedule(name: &str) -> wire::ScheduleRequest {
    wire::ScheduleRequest { name: name.to_owned() }
}
