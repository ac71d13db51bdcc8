//! Serves clients. The leader answers; every other node refers to the leader's address.
//!
//! Who may call what, and the audit log, are the business of `guarded_center`, which stands in front of this service.

use super::all_tasks::{self, Subscription};
use super::checks;
use super::convert::state_of;
use super::error::RpcError;
use super::handshake::caller_of;
use super::limits::{HEARTBEAT_EVERY, PAGE_BYTES_MAX, PAGE_ITEMS_MAX, SUBSCRIBERS_MAX, WATCH_EVERY, WATCHES_MAX};
use super::local_roles::NodeRoles;
use super::logs::{LOG_QUEUE, LogReader, Which};
use super::schedules;
use super::wire::{self, center_server::Center};
use crate::access::Caller;
use crate::clock::{Clock, HostClock};
use crate::cluster::clock_skew::is_off;
use crate::dispatcher::{self, Query, RunnerSummary, ScheduleCommand, Subscriber};
use crate::model::{
    DrainMode, KindName, LastEnd, NodeId, ScheduleName, SettingName, Settings, SignedOrder, Submission, TaskChanges,
    TaskCommand, TaskId, TaskRecord,
};
use crate::order::OrderVerifier;
use crate::peers::CenterId;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use blockhaul_engine::spec::Direct;
use blockhaul_engine::volume::{Locator, ReadOptions, look_at_export};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Longest check of the export that a task reads.
const LOOK_WAIT: Duration = Duration::from_secs(3);

/// Messages of a watched task that wait for a slow reader: the newest state is read when there is room again.
const WATCH_QUEUE: usize = 2;

/// Answers clients.
#[derive(Debug)]
pub(crate) struct CenterService {
    roles: NodeRoles,
    center: CenterId,
    here: Option<NodeId>,
    orders: Option<OrderVerifier>,
    watches: Arc<Semaphore>,
    subscribers: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl CenterService {
    /// Creates the service of a node of `center`. `here` is the node of plain paths where there is only one node;
    /// with `orders`, only what clients have signed is taken; streams end when `stopping` is true.
    #[must_use]
    pub(crate) fn new(
        roles: NodeRoles,
        center: CenterId,
        here: Option<NodeId>,
        orders: Option<OrderVerifier>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (watches, subscribers) = (Semaphore::new(WATCHES_MAX), Semaphore::new(SUBSCRIBERS_MAX));
        Self { roles, center, here, orders, watches: Arc::new(watches), subscribers: Arc::new(subscribers), stopping }
    }

    /// Checks that this node leads.
    ///
    /// # Errors
    /// `ENotLeader` with the address of the leader.
    pub(super) fn check_leads(&self) -> Result<(), RpcError> {
        self.roles.dispatcher().map(drop)
    }

    async fn command(&self, by: Caller, id: String, command: TaskCommand) -> Result<Response<wire::Task>, Status> {
        let dispatcher = self.roles.dispatcher()?.of_client(by.name.as_deref());
        let id = TaskId::new(id).map_err(RpcError::from)?;
        let task = dispatcher.command(&id, command).await.map_err(RpcError::from)?;
        reply(&task)
    }

    async fn schedule(&self, by: Caller, name: &ScheduleName, command: ScheduleCommand) -> Answer<wire::Schedule> {
        let view = self
            .roles
            .dispatcher()?
            .of_client(by.name.as_deref())
            .schedule(name, command)
            .await
            .map_err(RpcError::from)?;
        Ok(Response::new(view.into()))
    }
}

impl CenterService {
    /// Returns the command by which a schedule makes the task that its client has signed.
    async fn signed_run(
        &self,
        orders: &OrderVerifier,
        name: &ScheduleName,
        order: Option<SignedOrder>,
    ) -> Result<ScheduleCommand, RpcError> {
        let record = self.roles.dispatcher()?.get_schedule(name).await?.record;
        let template = (&record.template.spec, record.zone.as_str());
        let at_ms = orders.check_run(name, template, order.as_ref(), HostClock.unix_ms())?;
        Ok(order.map_or(ScheduleCommand::Run, |order| ScheduleCommand::RunSigned { at_ms, order }))
    }
}

/// Returns the error of a setting by which the center itself would make tasks.
fn unsigned_notifications() -> Error {
    let message = "notify: nobody could sign the tasks that it makes, and this center runs only what is signed";
    Error::new(Code::Permission, Side::Caller, Operation::Parse, message)
}

pub(super) type Answer<T> = Result<Response<T>, Status>;

impl CenterService {
    /// Tells whether a task runs a hook.
    pub(super) async fn is_hook(&self, id: &str) -> bool {
        let (Ok(dispatcher), Ok(id)) = (self.roles.dispatcher(), TaskId::new(id)) else { return false };
        dispatcher.get(&id).await.is_ok_and(|task| KindName::from(&task.spec) == KindName::Run)
    }
}

#[tonic::async_trait]
impl Center for CenterService {
    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn submit(&self, request: Request<wire::SubmitRequest>) -> Answer<wire::Task> {
        let dispatcher = self.roles.dispatcher()?.of_client(caller_of(&request).name.as_deref());
        let order = Submission::check(request.into_inner(), self.here.as_ref()).map_err(RpcError::from)?;
        if let Some(orders) = &self.orders {
            orders.check_submission(&order, HostClock.unix_ms()).map_err(RpcError::from)?;
        }
        // What is known already was looked at when it was new.
        let existed = dispatcher.get(&order.id).await.is_ok();
        if !existed {
            look_at_source(&order).await.map_err(RpcError::from)?;
        }
        let task = dispatcher.submit(order).await.map_err(RpcError::from)?;
        Ok(Response::new(wire::Task { existed, ..wire::Task::from(&*task) }))
    }

    async fn check(&self, request: Request<wire::SubmitRequest>) -> Answer<wire::CheckReply> {
        let dispatcher = self.roles.dispatcher()?;
        let order = Submission::check(request.into_inner(), self.here.as_ref()).map_err(RpcError::from)?;
        look_at_source(&order).await.map_err(RpcError::from)?;
        let nodes = dispatcher.runners().await.map_err(RpcError::from)?;
        let checked = checks::check(&order, nodes, &*self.roles.runners).await.map_err(RpcError::from)?;
        Ok(Response::new(checked))
    }

    async fn get(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        let dispatcher = self.roles.dispatcher()?;
        let id = TaskId::new(request.into_inner().id).map_err(RpcError::from)?;
        let task = dispatcher.get(&id).await.map_err(RpcError::from)?;
        reply(&task)
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<wire::ListReply> {
        let dispatcher = self.roles.dispatcher()?;
        let wire::ListRequest { state, after, group } = request.into_inner();
        let state = (!state.is_empty()).then(|| state_of(&state)).transpose().map_err(RpcError::from)?;
        let after = (!after.is_empty()).then(|| TaskId::new(after)).transpose().map_err(RpcError::from)?;
        let group = (!group.is_empty()).then(|| TaskId::new(group)).transpose().map_err(RpcError::from)?;
        let found =
            dispatcher.list(Query { state, group, after, limit: PAGE_ITEMS_MAX }).await.map_err(RpcError::from)?;
        let (tasks, next) = page(found.tasks.iter().map(|task| wire::Task::from(&**task)), |task| task.id.clone());
        let next = if next.is_empty() { found.next.map(String::from).unwrap_or_default() } else { next };
        Ok(Response::new(wire::ListReply { tasks, next }))
    }

    type WatchStream = ReceiverStream<Result<wire::WatchEvent, Status>>;

    async fn watch(&self, request: Request<wire::TaskName>) -> Answer<Self::WatchStream> {
        let dispatcher = self.roles.dispatcher()?;
        let id = TaskId::new(request.into_inner().id).map_err(RpcError::from)?;
        let task = dispatcher.watch(&id).await.map_err(RpcError::from)?;
        let place = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| too_many_watches())?;
        let (events, stream) = mpsc::channel(WATCH_QUEUE);
        tokio::spawn(Watching { task, events, stopping: self.stopping.clone(), _place: place }.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn events(&self, request: Request<wire::TaskName>) -> Answer<wire::EventsReply> {
        let dispatcher = self.roles.dispatcher()?;
        let id = TaskId::new(request.into_inner().id).map_err(RpcError::from)?;
        let task = dispatcher.get(&id).await.map_err(RpcError::from)?;
        Ok(Response::new(wire::EventsReply { transitions: task.transitions.iter().map(Into::into).collect() }))
    }

    type WatchAllStream = ReceiverStream<Result<wire::WatchAllEvent, Status>>;

    async fn watch_all(&self, request: Request<wire::WatchAllRequest>) -> Answer<Self::WatchAllStream> {
        let dispatcher = self.roles.dispatcher()?;
        let place = Arc::clone(&self.subscribers).try_acquire_owned().map_err(|_| all_tasks::too_many_subscribers())?;
        let since = request.into_inner().since.map(Into::into);
        let subscriber = Subscriber::new(dispatcher.feed().await.map_err(RpcError::from)?, since);
        let (events, stream) = mpsc::channel(all_tasks::QUEUE);
        tokio::spawn(
            Subscription { dispatcher, subscriber, events, stopping: self.stopping.clone(), _place: place }.run(),
        );
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type LogsStream = ReceiverStream<Result<wire::LogsEvent, Status>>;

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Answer<Self::LogsStream> {
        let dispatcher = self.roles.dispatcher()?;
        let request = request.into_inner();
        let which = Which::from(&request);
        let wire::LogsRequest { id, follow: follows, offset, .. } = request;
        let id = TaskId::new(id).map_err(RpcError::from)?;
        let task = dispatcher.watch(&id).await.map_err(RpcError::from)?;
        let place = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| too_many_watches())?;
        let (events, stream) = mpsc::channel(LOG_QUEUE);
        let (runners, stopping) = (Arc::clone(&self.roles.runners), self.stopping.clone());
        let reader =
            LogReader { id, which, follows, offset, task, dispatcher, runners, events, stopping, _place: place };
        tokio::spawn(reader.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn seal(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        self.command(caller_of(&request), request.into_inner().id, TaskCommand::Seal).await
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn cancel(&self, request: Request<wire::CancelRequest>) -> Answer<wire::Task> {
        let by = caller_of(&request);
        let wire::CancelRequest { id, all } = request.into_inner();
        self.command(by, id, if all { TaskCommand::CancelAll } else { TaskCommand::Cancel }).await
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn pause(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        self.command(caller_of(&request), request.into_inner().id, TaskCommand::Pause).await
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn resume(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        self.command(caller_of(&request), request.into_inner().id, TaskCommand::Resume).await
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn remove(&self, request: Request<wire::TaskName>) -> Answer<wire::Task> {
        let dispatcher = self.roles.dispatcher()?.of_client(caller_of(&request).name.as_deref());
        let id = TaskId::new(request.into_inner().id).map_err(RpcError::from)?;
        let task = dispatcher.remove(&id).await.map_err(RpcError::from)?;
        reply(&task)
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn set(&self, request: Request<wire::SetRequest>) -> Answer<wire::Task> {
        let by = caller_of(&request);
        let request = request.into_inner();
        let changes = TaskChanges::try_from(&request).map_err(RpcError::from)?;
        self.command(by, request.id, TaskCommand::Set(changes)).await
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn set_limit(&self, request: Request<wire::SetLimitRequest>) -> Answer<wire::Task> {
        let set = |wire::SetLimitRequest { id, limit }| {
            let limit = Some(wire::Setting { value: limit });
            wire::SetRequest { id, limit, ..wire::SetRequest::default() }
        };
        self.set(request.map(set)).await
    }

    #[tracing::instrument(skip_all, fields(task = %request.get_ref().id))]
    async fn move_task(&self, request: Request<wire::MoveRequest>) -> Answer<wire::Task> {
        let by = caller_of(&request);
        let wire::MoveRequest { id, node } = request.into_inner();
        let node = node.map(NodeId::new).transpose().map_err(RpcError::from)?;
        self.command(by, id, TaskCommand::Move(node)).await
    }

    async fn get_settings(&self, _: Request<wire::SettingsRequest>) -> Answer<wire::Settings> {
        let settings = self.roles.dispatcher()?.settings(Vec::new(), None).await.map_err(RpcError::from)?;
        Ok(Response::new(settings.into()))
    }

    #[tracing::instrument(skip_all)]
    async fn set_settings(&self, request: Request<wire::SetSettingsRequest>) -> Answer<wire::Settings> {
        let wire::SetSettingsRequest { values, if_version } = request.into_inner();
        let change = |(name, value): (String, String)| SettingName::parse(&name).map(|name| (name, value));
        let changes: Vec<_> = values.into_iter().map(change).collect::<Result<_, _>>().map_err(RpcError::from)?;
        if self.orders.is_some() && changes.iter().any(|(name, value)| *name == SettingName::Notify && value != "none")
        {
            return Err(RpcError::from(unsigned_notifications()).into());
        }
        let settings = self.roles.dispatcher()?.settings(changes, if_version).await.map_err(RpcError::from)?;
        Ok(Response::new(settings.into()))
    }

    #[tracing::instrument(skip_all, fields(schedule = %request.get_ref().name))]
    async fn add_schedule(&self, request: Request<wire::AddScheduleRequest>) -> Answer<wire::Schedule> {
        let by = caller_of(&request);
        let (name, command) = schedules::addition(request.into_inner(), self.here.as_ref()).map_err(RpcError::from)?;
        if let (Some(orders), ScheduleCommand::Add(new)) = (&self.orders, &command) {
            let template = (&new.template.spec, new.template.order.as_ref());
            let trigger = (&new.trigger, new.zone.as_str());
            let checked = orders.check_schedule(&name, trigger, template, HostClock.unix_ms());
            checked.map_err(RpcError::from)?;
            if !new.members.is_empty() {
                let message = "the members of a schedule's batch carry no signatures, which this center demands";
                let error = Error::new(Code::Permission, Side::Coordination, Operation::Start, message);
                return Err(RpcError::from(error).into());
            }
        }
        self.schedule(by, &name, command).await
    }

    async fn get_schedule(&self, request: Request<wire::ScheduleRequest>) -> Answer<wire::Schedule> {
        let name = schedules::name(request.into_inner().name)?;
        let view = self.roles.dispatcher()?.get_schedule(&name).await.map_err(RpcError::from)?;
        Ok(Response::new(view.into()))
    }

    async fn list_schedules(&self, request: Request<wire::ListSchedulesRequest>) -> Answer<wire::ListSchedulesReply> {
        let wire::ListSchedulesRequest { after } = request.into_inner();
        let after = (!after.is_empty()).then(|| schedules::name(after)).transpose()?;
        let found = self.roles.dispatcher()?.list_schedules(after).await.map_err(RpcError::from)?;
        let is_full = found.len() >= PAGE_ITEMS_MAX;
        let last = found.last().map(|view| view.record.name.to_string()).filter(|_| is_full).unwrap_or_default();
        let (schedules, next) = page(found.into_iter().map(wire::Schedule::from), |schedule| schedule.name.clone());
        let next = if next.is_empty() { last } else { next };
        Ok(Response::new(wire::ListSchedulesReply { schedules, next }))
    }

    #[tracing::instrument(skip_all, fields(schedule = %request.get_ref().name))]
    async fn pause_schedule(&self, request: Request<wire::ScheduleRequest>) -> Answer<wire::Schedule> {
        self.schedule(caller_of(&request), &schedules::name(request.into_inner().name)?, ScheduleCommand::Pause).await
    }

    #[tracing::instrument(skip_all, fields(schedule = %request.get_ref().name))]
    async fn resume_schedule(&self, request: Request<wire::ScheduleRequest>) -> Answer<wire::Schedule> {
        self.schedule(caller_of(&request), &schedules::name(request.into_inner().name)?, ScheduleCommand::Resume).await
    }

    #[tracing::instrument(skip_all, fields(schedule = %request.get_ref().name))]
    async fn run_schedule(&self, request: Request<wire::RunScheduleRequest>) -> Answer<wire::Schedule> {
        let by = caller_of(&request);
        let wire::RunScheduleRequest { name, refire_from_ms, signed_order, order_signature } = request.into_inner();
        let name = schedules::name(name)?;
        let command = match (refire_from_ms, &self.orders) {
            (Some(from_ms), _) => ScheduleCommand::RefireFrom(from_ms),
            (None, None) => ScheduleCommand::Run,
            (None, Some(orders)) => {
                let order = SignedOrder::from_wire(signed_order, &order_signature).map_err(RpcError::from)?;
                self.signed_run(orders, &name, order).await?
            }
        };
        self.schedule(by, &name, command).await
    }

    #[tracing::instrument(skip_all, fields(schedule = %request.get_ref().name))]
    async fn remove_schedule(&self, request: Request<wire::RemoveScheduleRequest>) -> Answer<wire::Schedule> {
        let by = caller_of(&request);
        let wire::RemoveScheduleRequest { name, cancel_live } = request.into_inner();
        self.schedule(by, &schedules::name(name)?, ScheduleCommand::Remove { cancel_live }).await
    }

    async fn runners(&self, request: Request<wire::RunnersRequest>) -> Answer<wire::RunnersReply> {
        let dispatcher = self.roles.dispatcher()?;
        let wire::RunnersRequest { after } = request.into_inner();
        let seen = dispatcher.runners().await.map_err(RpcError::from)?;
        let later = seen.into_iter().filter(|runner| runner.node.as_str() > after.as_str());
        let (runners, next) = page(later.map(wire::Node::from), |runner| runner.node.clone());
        Ok(Response::new(wire::RunnersReply { runners, next }))
    }

    #[tracing::instrument(skip_all, fields(node = %request.get_ref().node))]
    async fn include(&self, request: Request<wire::IncludeRequest>) -> Answer<wire::IncludeReply> {
        let node = NodeId::new(request.into_inner().node).map_err(RpcError::from)?;
        let was_excluded = self.roles.dispatcher()?.include(&node).await.map_err(RpcError::from)?;
        Ok(Response::new(wire::IncludeReply { was_excluded }))
    }

    #[tracing::instrument(skip_all, fields(node = %request.get_ref().node))]
    async fn drain(&self, request: Request<wire::DrainRequest>) -> Answer<wire::DrainReply> {
        let dispatcher = self.roles.dispatcher()?;
        let wire::DrainRequest { node, now, undo, idle, for_ms } = request.into_inner();
        let refused = |message: &str| Err(RpcError::from(Error::bad_request(message)).into());
        let mode = match (now, undo) {
            (false, false) => DrainMode::Finish,
            (true, false) => DrainMode::Now,
            (false, true) => DrainMode::Undo,
            (true, true) => return refused("drain and undo exclude each other"),
        };
        if for_ms.is_some_and(|for_ms| for_ms == 0 || undo) {
            return refused("the time of a drain is longer than 0, and an undone drain has none");
        }
        let lasts = for_ms.map(Duration::from_millis);
        if idle > 0 {
            if !node.is_empty() || mode != DrainMode::Finish {
                return refused("idle nodes have no name, and nothing to return: leave out node, now and undo");
            }
            let drained = dispatcher.drain_idle(idle as usize, lasts).await.map_err(RpcError::from)?;
            return Ok(Response::new(wire::DrainReply {
                running: 0,
                nodes: drained.into_iter().map(String::from).collect(),
            }));
        }
        let node = NodeId::new(node).map_err(RpcError::from)?;
        let running = dispatcher.drain(&node, mode, lasts).await.map_err(RpcError::from)?;
        let nodes = vec![node.into()];
        Ok(Response::new(wire::DrainReply { running: narrow(running), nodes }))
    }

    #[tracing::instrument(skip_all, fields(node = %request.get_ref().node))]
    async fn fence(&self, request: Request<wire::FenceRequest>) -> Answer<wire::FenceReply> {
        let dispatcher = self.roles.dispatcher()?.of_client(caller_of(&request).name.as_deref());
        let wire::FenceRequest { node, confirm } = request.into_inner();
        if !confirm {
            let advice = "cut it off or power it off first, then confirm that with --confirm";
            let error = Error::bad_request(format!("not confirmed that {node} can write no more")).advise(advice);
            return Err(RpcError::from(error).into());
        }
        let node = NodeId::new(node).map_err(RpcError::from)?;
        let tasks = dispatcher.fence(&node).await.map_err(RpcError::from)?;
        Ok(Response::new(wire::FenceReply { tasks: narrow(tasks) }))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Answer<wire::CenterStatus> {
        let status = self.roles.dispatcher()?.status().await.map_err(RpcError::from)?;
        let center = self.center.get().cloned().unwrap_or_default();
        Ok(Response::new(wire::CenterStatus { center, ..wire::CenterStatus::from(status) }))
    }
}

/// Watched task and its reader.
struct Watching {
    task: watch::Receiver<Arc<TaskRecord>>,
    events: mpsc::Sender<Result<wire::WatchEvent, Status>>,
    stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

/// Next message for a reader.
enum News {
    Changed,
    Nothing,
    NodeStops,
    ReaderGone,
    NoLongerHere,
}

impl Watching {
    /// Sends the task until it has ended or its reader is gone. A slow reader gets the newest state when it has taken
    /// the older one.
    async fn run(mut self) {
        let mut task = Arc::clone(&self.task.borrow_and_update());
        let mut is_news = true;
        loop {
            let event = wire::WatchEvent { task: is_news.then(|| wire::Task::from(&*task)) };
            if !self.tell(event).await || task.state.is_terminal() {
                return;
            }
            is_news = match self.news(&task).await {
                News::Changed => {
                    task = Arc::clone(&self.task.borrow_and_update());
                    true
                }
                News::Nothing => false,
                News::ReaderGone => return,
                News::NodeStops | News::NoLongerHere => {
                    // A reader that takes nothing learns it from the end of the stream.
                    let _ = self.events.try_send(Err(RpcError::not_leader(None).into()));
                    return;
                }
            };
        }
    }

    /// Waits for a change: at most four a second of progress, at once for a state; and at most a second.
    async fn news(&mut self, last: &Arc<TaskRecord>) -> News {
        let Self { task, events, stopping, .. } = self;
        let changed = async {
            let moved = async { task.wait_for(|task| task.state != last.state).await.map(drop) };
            match timeout(WATCH_EVERY, moved).await {
                Ok(moved) => moved,
                // Looking has marked everything as seen: what counts is whether it differs from what was told.
                Err(_) => task.wait_for(|task| task != last).await.map(drop),
            }
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => News::NodeStops,
            () = events.closed() => News::ReaderGone,
            changed = timeout(HEARTBEAT_EVERY, changed) => match changed {
                Ok(Ok(())) => News::Changed,
                Ok(Err(_)) => News::NoLongerHere,
                Err(_) => News::Nothing,
            },
        }
    }

    async fn tell(&mut self, event: wire::WatchEvent) -> bool {
        tokio::select! {
            biased;
            sent = self.events.send(Ok(event)) => sent.is_ok(),
            _ = self.stopping.wait_for(|stopping| *stopping) => false,
        }
    }
}

fn too_many_watches() -> Status {
    let message = format!("too many watched tasks ({WATCHES_MAX}): retry, or use get");
    RpcError::from(Error::new(Code::Overloaded, Side::Coordination, Operation::Start, message)).into()
}

/// Returns as many items as a message has room for, and where the next page begins.
fn page<T: Message>(items: impl Iterator<Item = T>, name: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        if !taken.is_empty() && (bytes > PAGE_BYTES_MAX || taken.len() == PAGE_ITEMS_MAX) {
            let next = taken.last().map(&name).unwrap_or_default();
            return (taken, next);
        }
        taken.push(item);
    }
    (taken, String::new())
}

/// Checks a source that must not change: a late duplicate of a write must carry the same bytes. A source that cannot be
/// checked from here is left to the runner.
async fn look_at_source(order: &Submission) -> Result<(), Error> {
    let Some(source) = order.source_to_look_at() else { return Ok(()) };
    let Locator::Nbd(uri) = Locator::parse(source)? else { return Ok(()) };
    let looking = tokio::task::spawn_blocking(move || look_at_export(&uri, &ReadOptions::new(Direct::No)));
    match timeout(LOOK_WAIT, looking).await {
        Ok(Ok(Ok(found))) if !found.is_read_only => {
            let advice =
                "export it read-only, or promise with --source-stable that nothing changes it while it is copied";
            Err(Error::bad_request(format!("{source} may be written by others while it is copied")).advise(advice))
        }
        Ok(Ok(Ok(_) | Err(_)) | Err(_)) | Err(_) => Ok(()),
    }
}

fn reply(task: &TaskRecord) -> Result<Response<wire::Task>, Status> {
    Ok(Response::new(wire::Task::from(task)))
}

impl From<(Settings, Option<i32>)> for wire::Settings {
    fn from((settings, version): (Settings, Option<i32>)) -> Self {
        let values = settings.all().into_iter().map(|(name, value)| (name.to_owned(), value));
        Self { values: values.collect(), version: dispatcher::shown_version(version) }
    }
}

/// Narrows a count to the width that a message carries.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl From<RunnerSummary> for wire::Node {
    fn from(summary: RunnerSummary) -> Self {
        let RunnerSummary {
            node,
            registration,
            tasks,
            drain,
            clock_offset_ms,
            excluded,
            is_unreadable,
            level,
            idle_since_ms,
            last_ended,
            failures,
            refused,
        } = summary;
        let base = Self {
            node: node.into(),
            running: narrow(tasks),
            draining: drain.is_some(),
            drained_until_ms: drain.as_ref().and_then(|drain| drain.until_ms),
            registered: registration.is_some() || is_unreadable,
            unreadable: is_unreadable,
            level,
            idle_since_ms,
            last_task_ended_ms: last_ended.as_ref().map(|(_, at_ms)| *at_ms),
            last_task: last_ended.map(|(task, _)| task.into()).unwrap_or_default(),
            failures: narrow(failures),
            refused_namesakes: refused,
            clock_offset_ms,
            clock_is_off: clock_offset_ms.is_some_and(is_off),
            excluded_until_ms: excluded.as_ref().map(|(until_ms, _)| *until_ms),
            excluded_reason: excluded.map(|(_, why)| why).unwrap_or_default(),
            ..Self::default()
        };
        let Some(there) = registration else { return base };
        let LastEnd { how, detail, at_ms } = there.last_end.unwrap_or_default();
        Self {
            address: there.address,
            slots: there.slots,
            stopping: there.stopping,
            build: there.build,
            incarnation: there.incarnation.0,
            labels: there.labels.into_iter().collect(),
            allow_paths: there.allow_paths,
            allow_nbd: there.allow_nbd,
            restarts: there.restarts,
            last_end: how,
            last_end_detail: detail,
            last_end_ms: at_ms,
            data_address: there.data.map(|address| address.to_string()),
            ..base
        }
    }
}

impl From<dispatcher::Status> for wire::CenterStatus {
    fn from(status: dispatcher::Status) -> Self {
        let dispatcher::Status { leader, epoch, tasks, undecodable, runners, restarts, level, .. } = status;
        let unreadable = undecodable.into_iter().take(PAGE_ITEMS_MAX);
        Self {
            center: String::new(),
            leader: leader.node.into(),
            leader_address: leader.address,
            epoch: epoch.0,
            runners: narrow(runners),
            restarts,
            level: level.unwrap_or_default(),
            tasks: tasks.into_iter().map(|(state, count)| (state.as_str().to_owned(), count as u64)).collect(),
            unreadable: unreadable.map(|(path, why)| format!("{path}: {why}")).collect(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_a_message_is_full_and_says_where_the_next_one_begins() {
        let tasks = |count: usize, bytes: usize| {
            let reason = "x".repeat(bytes);
            (0..count).map(move |at| wire::Task {
                id: format!("{at:04}"),
                reason: reason.clone(),
                ..Default::default()
            })
        };
        let name = |task: &wire::Task| task.id.clone();
        let (all, next) = page(tasks(500, 10), name);
        assert_eq!((all.len(), next.as_str()), (500, ""));
        let (all, next) = page(tasks(501, 10), name);
        assert_eq!((all.len(), next.as_str()), (500, "0499"));
        let (some, next) = page(tasks(500, 8000), name);
        assert_eq!(next, some.last().unwrap().id);
        let bytes: usize = some.iter().map(Message::encoded_len).sum();
        assert!((PAGE_BYTES_MAX - 10_000..=PAGE_BYTES_MAX).contains(&bytes), "{bytes}");
        let (one, next) = page(tasks(2, PAGE_BYTES_MAX * 2), name);
        assert_eq!((one.len(), next.as_str()), (1, "0000"));
    }
}
