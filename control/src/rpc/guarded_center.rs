//! Stands in front of the service of clients: each call is made by somebody who may make it, and each change is audited.
//!
//! ```text
//! call -> does this node lead? -> has the caller the role? -> [line in the audit log] -> service -> [line with the outcome]
//! ```
//! What always holds: the service behind it is reached through here alone, and no call gets past [`GuardedCenter::guard`].
//! What a call needs and whether it is audited is in the table of [`Method::demand`]. The leader decides by its own file
//! of roles; other nodes only refer to it. The caller of a stream is authorized again at each of its messages, of which there
//! is one a second at least: it ends soon after its role was taken away.

use super::center::{Answer, CenterService};
use super::error::RpcError;
use super::handshake::caller_of;
use super::wire::{self, center_server::Center};
use crate::access::{AccessControl, Caller, ClientRole, Impact, Method};
use crate::audit::{AuditLog, AuditedChange, Target, Unlogged};
use crate::model::{OpId, TaskId};
use std::future::Future;
use std::pin::Pin;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// Stream that ends when its caller may not have it any more.
type AuthorizedStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Service of clients with access control and audit log.
#[derive(Debug)]
pub(crate) struct GuardedCenter {
    center: CenterService,
    access: Option<AccessControl>,
    audit: AuditLog,
}

/// Call of a client, without what it carries.
struct Call {
    caller: Caller,
    method: Method,
    target: Target,
    detail: Option<String>,
}

impl Call {
    fn of<T>(request: &Request<T>, method: Method, target: Target) -> Self {
        Self { caller: caller_of(request), method, target, detail: None }
    }

    fn task<T>(request: &Request<T>, method: Method, id: &str) -> Self {
        Self::of(request, method, Target::Task(id.to_owned()))
    }

    fn schedule<T>(request: &Request<T>, method: Method, name: &str) -> Self {
        Self::of(request, method, Target::Schedule(name.to_owned()))
    }

    fn node<T>(request: &Request<T>, method: Method, name: &str) -> Self {
        Self::of(request, method, Target::Node(name.to_owned()))
    }

    /// A call that reads is not audited: what it is about does not matter.
    fn read<T>(request: &Request<T>, method: Method) -> Self {
        Self::of(request, method, Target::Settings)
    }

    fn with(self, detail: impl Into<String>) -> Self {
        let detail = Some(detail.into()).filter(|detail| !detail.is_empty());
        Self { detail, ..self }
    }
}

impl GuardedCenter {
    /// Puts a guard in front of `center`. Without `access` every caller may do everything.
    #[must_use]
    pub(crate) fn new(center: CenterService, access: Option<AccessControl>, audit: AuditLog) -> Self {
        Self { center, access, audit }
    }

    /// Makes a call, if its caller may make it. `served` does nothing before it is polled.
    async fn guard<T>(&self, call: Call, served: impl Future<Output = Answer<T>> + Send) -> Answer<T> {
        self.center.check_leads()?;
        let role = self.role(&call)?;
        let (_, impact) = call.method.demand();
        let unlogged = match impact {
            Impact::Read => return served.await,
            Impact::Change => Unlogged::Refused,
            Impact::Stop => Unlogged::Made,
        };
        let Call { caller, method, target, detail } = call;
        let Caller { name, address, is_self: _ } = caller;
        let role = role.map(ClientRole::as_str);
        let operation = OpId::fresh();
        let change = AuditedChange { operation, who: name, role, from: address, what: method.name(), target, detail };
        let pending = self.audit.begin(change, unlogged).await.map_err(RpcError::from)?;
        let answer = served.await;
        pending.end(match &answer {
            Ok(_) => Ok(()),
            Err(status) => {
                let error = RpcError::from(status.clone()).error;
                Err((error.code, error.message))
            }
        });
        answer
    }

    /// Authorizes the caller of a stream again at each of its messages.
    fn authorize_each<T: Send + 'static>(
        &self,
        stream: Response<ReceiverStream<Result<T, Status>>>,
        caller: Caller,
        method: Method,
    ) -> Response<AuthorizedStream<T>> {
        let access = self.access.clone();
        let authorized = move |event: Result<T, Status>| {
            if let Some(access) = &access {
                access.authorize(&caller, method).map_err(RpcError::from)?;
            }
            event
        };
        stream.map(|events| Box::pin(events.map(authorized)) as AuthorizedStream<T>)
    }

    /// Returns the caller's role; `None` where everybody may do everything.
    fn role(&self, call: &Call) -> Result<Option<ClientRole>, RpcError> {
        let Some(access) = &self.access else { return Ok(None) };
        Ok(Some(access.authorize(&call.caller, call.method)?))
    }
}

/// Lists changed settings in the order of their names.
fn settings(request: &wire::SetSettingsRequest) -> String {
    let mut all: Vec<_> = request.values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    all.sort();
    all.join(" ")
}

fn flags(flags: &[(bool, &str)]) -> String {
    flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

#[tonic::async_trait]
impl Center for GuardedCenter {
    async fn submit(&self, mut request: Request<wire::SubmitRequest>) -> Answer<wire::Task> {
        // Named here, so that the audit log can name it before it exists.
        if request.get_ref().id.is_empty() {
            request.get_mut().id = TaskId::fresh().to_string();
        }
        let retry_of = &request.get_ref().retry_of;
        let detail = if retry_of.is_empty() { String::new() } else { format!("retry of {retry_of}") };
        let call = Call::task(&request, Method::Submit, &request.get_ref().id).with(detail);
        self.guard(call, self.center.submit(request)).await
    }

    async fn get(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        self.guard(Call::read(&request, Method::Get), self.center.get(request)).await
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<wire::ListReply> {
        self.guard(Call::read(&request, Method::List), self.center.list(request)).await
    }

    async fn check(&self, request: Request<wire::SubmitRequest>) -> Answer<wire::CheckReply> {
        self.guard(Call::read(&request, Method::Check), self.center.check(request)).await
    }

    type WatchStream = AuthorizedStream<wire::WatchEvent>;

    async fn watch(&self, request: Request<wire::TaskName>) -> Answer<Self::WatchStream> {
        let caller = caller_of(&request);
        let stream = self.guard(Call::read(&request, Method::Watch), self.center.watch(request)).await?;
        Ok(self.authorize_each(stream, caller, Method::Watch))
    }

    async fn events(&self, request: Request<wire::TaskName>) -> Answer<wire::EventsReply> {
        self.guard(Call::read(&request, Method::Events), self.center.events(request)).await
    }

    type WatchAllStream = AuthorizedStream<wire::WatchAllEvent>;

    async fn watch_all(&self, request: Request<wire::WatchAllRequest>) -> Answer<Self::WatchAllStream> {
        let caller = caller_of(&request);
        let stream = self.guard(Call::read(&request, Method::WatchAll), self.center.watch_all(request)).await?;
        Ok(self.authorize_each(stream, caller, Method::WatchAll))
    }

    type LogsStream = AuthorizedStream<wire::LogsEvent>;

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Answer<Self::LogsStream> {
        // Nobody learns what a task is who may not read logs at all.
        self.center.check_leads()?;
        self.role(&Call::read(&request, Method::Logs))?;
        let caller = caller_of(&request);
        let is_hook = self.center.is_hook(&request.get_ref().id).await;
        let method = if is_hook { Method::HookLogs } else { Method::Logs };
        let stream = self.guard(Call::read(&request, method), self.center.logs(request)).await?;
        Ok(self.authorize_each(stream, caller, method))
    }

    async fn seal(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        let call = Call::task(&request, Method::Seal, &request.get_ref().id);
        self.guard(call, self.center.seal(request)).await
    }

    async fn cancel(&self, request: Request<wire::CancelRequest>) -> Answer<wire::Task> {
        let wire::CancelRequest { id, all } = request.get_ref();
        let call = Call::task(&request, Method::Cancel, id).with(flags(&[(*all, "all")]));
        self.guard(call, self.center.cancel(request)).await
    }

    async fn pause(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        let call = Call::task(&request, Method::Pause, &request.get_ref().id);
        self.guard(call, self.center.pause(request)).await
    }

    async fn resume(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        let call = Call::task(&request, Method::Resume, &request.get_ref().id);
        self.guard(call, self.center.resume(request)).await
    }

    async fn remove(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        let call = Call::task(&request, Method::Remove, &request.get_ref().id);
        self.guard(call, self.center.remove(request)).await
    }

    async fn set(&self, request: Request<wire::SetRequest>) -> Answer<wire::Task> {
        let wire::SetRequest { id, limit, priority, max_attempts, start_at_ms, deadline_ms } = request.get_ref();
        let changed = flags(&[
            (limit.is_some(), "limit"),
            (priority.is_some(), "priority"),
            (max_attempts.is_some(), "max-attempts"),
            (start_at_ms.is_some(), "start-at"),
            (deadline_ms.is_some(), "deadline"),
        ]);
        let call = Call::task(&request, Method::Set, id).with(changed);
        self.guard(call, self.center.set(request)).await
    }

    async fn set_limit(&self, request: Request<wire::SetLimitRequest>) -> Answer<wire::Task> {
        let call = Call::task(&request, Method::SetLimit, &request.get_ref().id);
        self.guard(call, self.center.set_limit(request)).await
    }

    async fn move_task(&self, request: Request<wire::MoveRequest>) -> Answer<wire::Task> {
        let wire::MoveRequest { id, node } = request.get_ref();
        let to = node.as_ref().map(|node| format!("to {node}")).unwrap_or_default();
        let call = Call::task(&request, Method::MoveTask, id).with(to);
        self.guard(call, self.center.move_task(request)).await
    }

    async fn get_settings(&self, request: Request<wire::SettingsRequest>) -> Answer<wire::Settings> {
        self.guard(Call::read(&request, Method::GetSettings), self.center.get_settings(request)).await
    }

    async fn set_settings(&self, request: Request<wire::SetSettingsRequest>) -> Answer<wire::Settings> {
        let changed = settings(request.get_ref());
        let call = Call::of(&request, Method::SetSettings, Target::Settings).with(changed);
        self.guard(call, self.center.set_settings(request)).await
    }

    async fn add_schedule(&self, request: Request<wire::AddScheduleRequest>) -> Answer<wire::Schedule> {
        let wire::AddScheduleRequest { name, replace, if_version, cancel_live, .. } = request.get_ref();
        let how = flags(&[(*replace || if_version.is_some(), "replace"), (*cancel_live, "cancel-live")]);
        let call = Call::schedule(&request, Method::AddSchedule, name).with(how);
        self.guard(call, self.center.add_schedule(request)).await
    }

    async fn get_schedule(&self, request: Request<wire::ScheduleRequest>) -> Answer<wire::Schedule> {
        self.guard(Call::read(&request, Method::GetSchedule), self.center.get_schedule(request)).await
    }

    async fn list_schedules(&self, request: Request<wire::ListSchedulesRequest>) -> Answer<wire::ListSchedulesReply> {
        self.guard(Call::read(&request, Method::ListSchedules), self.center.list_schedules(request)).await
    }

    async fn pause_schedule(&self, request: Request<wire::ScheduleRequest>) -> Answer<wire::Schedule> {
        let call = Call::schedule(&request, Method::PauseSchedule, &request.get_ref().name);
        self.guard(call, self.center.pause_schedule(request)).await
    }

    async fn resume_schedule(&self, request: Request<wire::ScheduleRequest>) -> Answer<wire::Schedule> {
        let call = Call::schedule(&request, Method::ResumeSchedule, &request.get_ref().name);
        self.guard(call, self.center.resume_schedule(request)).await
    }

    async fn run_schedule(&self, request: Request<wire::RunScheduleRequest>) -> Answer<wire::Schedule> {
        let wire::RunScheduleRequest { name, refire_from_ms, .. } = request.get_ref();
        let call =
            Call::schedule(&request, Method::RunSchedule, name).with(flags(&[(refire_from_ms.is_some(), "refire")]));
        self.guard(call, self.center.run_schedule(request)).await
    }

    async fn remove_schedule(&self, request: Request<wire::RemoveScheduleRequest>) -> Answer<wire::Schedule> {
        let wire::RemoveScheduleRequest { name, cancel_live } = request.get_ref();
        let call = Call::schedule(&request, Method::RemoveSchedule, name).with(flags(&[(*cancel_live, "cancel-live")]));
        self.guard(call, self.center.remove_schedule(request)).await
    }

    async fn runners(&self, request: Request<wire::RunnersRequest>) -> Answer<wire::RunnersReply> {
        self.guard(Call::read(&request, Method::Runners), self.center.runners(request)).await
    }

    async fn include(&self, request: Request<wire::IncludeRequest>) -> Answer<wire::IncludeReply> {
        let call = Call::node(&request, Method::Include, &request.get_ref().node);
        self.guard(call, self.center.include(request)).await
    }

    async fn drain(&self, request: Request<wire::DrainRequest>) -> Answer<wire::DrainReply> {
        let wire::DrainRequest { node, now, undo, idle, for_ms } = request.get_ref();
        let mut how = flags(&[(*now, "now"), (*undo, "undo"), (for_ms.is_some(), "for a time")]);
        if *idle > 0 {
            how = format!("{idle} idle nodes {how}").trim_end().to_owned();
        }
        let call = Call::node(&request, Method::Drain, node).with(how);
        self.guard(call, self.center.drain(request)).await
    }

    async fn fence(&self, request: Request<wire::FenceRequest>) -> Answer<wire::FenceReply> {
        let wire::FenceRequest { node, confirm } = request.get_ref();
        let call = Call::node(&request, Method::Fence, node).with(flags(&[(*confirm, "confirmed")]));
        self.guard(call, self.center.fence(request)).await
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Answer<wire::CenterStatus> {
        self.guard(Call::read(&request, Method::Status), self.center.status(request)).await
    }
}
