//! Calls the center for its clients, whichever node leads.
//!
//! A call goes to the node that led last, else to one of the addresses. The client follows `ENotLeader`, and repeats
//! the call elsewhere when it got no answer: every call can be repeated without harm, a submission because its id is
//! chosen here. After [`CLIENT_PATIENCE`] the last failure is the answer.

use super::channels::Channels;
use super::connect_failure::probe;
use super::convert::is_over;
use super::error::RpcError;
use super::limits::{CLIENT_CALL_WAIT, CLIENT_PATIENCE, MESSAGE_BYTES_MAX, STREAM_IDLE_MAX, WATCH_PATIENCE};
use super::wire::{self, center_client};
use crate::host_port::HostPort;
use crate::model::{Epoch, Position};
use blockhaul_engine::backoff::ExponentialBackoff;
use blockhaul_engine::error::{Code, Error, Result};
use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Waits before a call is repeated when all addresses have failed.
const RETRY: ExponentialBackoff = ExponentialBackoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };

type Stub = center_client::CenterClient<Channel>;

/// Longest wait before the user is told what a call waits for.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Calls a center. A clone makes its calls at the same time, over the same connections.
#[derive(Clone, Debug)]
pub struct CenterClient {
    channels: Channels,
    addresses: Vec<String>,
    /// Target of the next call.
    next: Target,
    patience: Duration,
    /// Is told what a call waits for, once for each call.
    waits: fn(&str),
}

/// Defines the calls of the protocol with one request and one answer.
macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident;)+) => {
        /// Calls of the protocol, each as [`CenterClient::call`].
        #[allow(clippy::missing_errors_doc, reason = "said once, above")]
        impl CenterClient {
            $($(#[$doc])*
            pub async fn $name(&mut self, request: wire::$request) -> Result<wire::$reply, RpcError> {
                self.call(|mut stub| {
                    let mut request = Request::new(request.clone());
                    request.set_timeout(CLIENT_CALL_WAIT);
                    async move { stub.$name(request).await }
                })
                .await
            }
            )+
        }
    };
}

verbs! {
    /// Submits a task. The request names its id, [`TaskId::fresh`](crate::model::TaskId::fresh) where the user has
    /// chosen none: repeated, it makes no second one.
    submit(SubmitRequest) -> Task;
    /// Has nodes check a task that is not submitted.
    check(SubmitRequest) -> CheckReply;
    /// Returns a task.
    get(TaskName) -> Task;
    /// Returns the last transitions of a task.
    events(TaskName) -> EventsReply;
    /// Returns one page of tasks.
    list(ListRequest) -> ListReply;
    /// Lets the members of a group start.
    seal(TaskName) -> Task;
    /// Cancels a task.
    cancel(CancelRequest) -> Task;
    /// Pauses a copy.
    pause(TaskName) -> Task;
    /// Resumes a paused copy.
    resume(TaskName) -> Task;
    /// Deletes a task that has ended.
    remove(TaskName) -> Task;
    /// Changes settings of a task.
    set(SetRequest) -> Task;
    /// Changes a copy's limit: all that a leader of an earlier version can change.
    set_limit(SetLimitRequest) -> Task;
    /// Has a task run on another node.
    move_task(MoveRequest) -> Task;
    /// Returns the settings of the center.
    get_settings(SettingsRequest) -> Settings;
    /// Changes settings of the center.
    set_settings(SetSettingsRequest) -> Settings;
    /// Adds a schedule, or replaces another one.
    add_schedule(AddScheduleRequest) -> Schedule;
    /// Returns a schedule.
    get_schedule(ScheduleRequest) -> Schedule;
    /// Returns one page of schedules.
    list_schedules(ListSchedulesRequest) -> ListSchedulesReply;
    /// Keeps a schedule from making tasks.
    pause_schedule(ScheduleRequest) -> Schedule;
    /// Lets a schedule make tasks again.
    resume_schedule(ScheduleRequest) -> Schedule;
    /// Has a schedule make a task now, or decide on passed instants again.
    run_schedule(RunScheduleRequest) -> Schedule;
    /// Deletes a schedule.
    remove_schedule(RemoveScheduleRequest) -> Schedule;
    /// Returns one page of nodes.
    runners(RunnersRequest) -> RunnersReply;
    /// Ends the exclusion of a node.
    include(IncludeRequest) -> IncludeReply;
    /// Drains a node, or ends that.
    drain(DrainRequest) -> DrainReply;
    /// Confirms that a node can write no more.
    fence(FenceRequest) -> FenceReply;
    /// Returns the status of the center.
    status(StatusRequest) -> CenterStatus;
}

/// Target of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// Address of the list, by its position.
    Listed(usize),
    /// Address that another node referred to, and the position to return to in the list.
    Pointed(String, usize),
}

impl CenterClient {
    /// Creates a client for a center that is reached by any of `addresses`, each `HOST:PORT`.
    ///
    /// # Errors
    /// `EBadRequest` if there is none, or one is no address.
    pub fn new(addresses: Vec<String>, channels: Channels) -> Result<Self> {
        let checked = |text: String| match HostPort::parse_peer(&text) {
            Ok(peer) => Ok(peer.to_string()),
            Err(why) => Err(Error::bad_request(format!("--center '{}': {why}", text.escape_debug()))),
        };
        let addresses = addresses.into_iter().map(checked).collect::<Result<Vec<_>>>()?;
        if addresses.is_empty() {
            return Err(Error::bad_request("no address of a center").advise("use --center or BLOCKHAUL_CENTER"));
        }
        // So that many clients do not all knock at the first one.
        let first = fastrand::usize(..addresses.len());
        Ok(Self { channels, addresses, next: Target::Listed(first), patience: CLIENT_PATIENCE, waits: |_| () })
    }

    /// Tells `hears` at once when a call has failed everywhere, and is repeated.
    #[must_use]
    pub fn telling(self, hears: fn(&str)) -> Self {
        Self { waits: hears, ..self }
    }

    /// Repeats `call` until a node has decided it.
    ///
    /// # Errors
    /// What the center says; `EUnreachable`, `ETimeout`, `ENotLeader` or `EOverloaded` if nothing else has been heard for
    /// half a minute.
    pub async fn call<T, F>(&mut self, mut call: impl FnMut(Stub) -> F) -> Result<T, RpcError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let begun = Instant::now();
        let deadline = begun + self.patience;
        let (mut rounds, mut failures) = (0, 0);
        let (mut is_told, mut found) = (false, None);
        loop {
            let answer = match self.stub() {
                Ok(stub) => answer(call(stub)).await,
                Err(fault) => Err(fault),
            };
            let fault = match answer {
                Ok(answer) => return Ok(answer),
                Err(fault) if !fault.is_passing() => return Err(fault),
                Err(fault) => fault,
            };
            if Instant::now() + RETRY.wait(rounds + 1) > deadline {
                return Err(self.at(advised(fault, found)));
            }
            let asked = self.address().to_owned();
            if self.turn(&fault) {
                continue;
            }
            failures += 1;
            if !is_told && (failures >= self.addresses.len() || begun.elapsed() >= SILENCE_MAX) {
                is_told = true;
                found = self.look_at(&asked, &fault).await;
                let RpcError { error, .. } = advised(fault, found);
                (self.waits)(&format!("waiting for the task center at {asked}: {}", error.message));
            }
            if failures % self.addresses.len() == 0 {
                rounds += 1;
                sleep(RETRY.jittered(rounds, fastrand::f64())).await;
            }
        }
    }

    /// Passes a task to `each` as it changes, until it has ended; survives the loss of the node that leads.
    ///
    /// # Errors
    /// As [`CenterClient::call`]; with the patience of somebody who waits for a task.
    pub async fn follow(&mut self, id: &str, mut each: impl FnMut(&wire::Task)) -> Result<wire::Task, RpcError> {
        self.patience = WATCH_PATIENCE;
        let mut last: Option<wire::Task> = None;
        loop {
            let name = wire::TaskName { id: id.to_owned() };
            let mut events = self.call(|stub| watch(stub, name.clone())).await?;
            while let Some(task) = next_task(&mut events).await {
                if last.as_ref() != Some(&task) {
                    each(&task);
                }
                if is_over(&task) {
                    return Ok(task);
                }
                last = Some(task);
            }
            // The stream has ended, the task has not: the new leader knows its state.
            sleep(RETRY.first).await;
        }
    }

    /// Passes all tasks and every change of any of them to `each`, from `since` on, until `each` breaks; survives the loss
    /// of the node that leads. After a break in the stream it continues after the last change that `each` has got, or
    /// starts anew with all tasks. Never passes signs of life.
    ///
    /// # Errors
    /// As [`CenterClient::call`]; once changes have been received, with the patience of somebody who waits for a task.
    pub async fn follow_all(
        &mut self,
        mut since: Option<Position>,
        mut each: impl FnMut(&wire::watch_all_event::What) -> ControlFlow<()>,
    ) -> Result<(), RpcError> {
        loop {
            let request = wire::WatchAllRequest { since: since.map(wire::Position::from) };
            let mut events = self.call(|stub| watch_all(stub, request)).await?;
            while let Some(event) = next_event(&mut events).await {
                let Some(what) = event.what else { continue };
                if each(&what).is_break() {
                    return Ok(());
                }
                since = position_after(&what, since);
                self.patience = WATCH_PATIENCE;
            }
            // The stream has ended. The node that leads now knows what comes next.
            sleep(RETRY.first).await;
        }
    }

    /// Passes the events of an attempt's log to `each` until the last one; survives the loss of the node that leads.
    ///
    /// # Errors
    /// As [`CenterClient::follow`]; and why no more of the log is shown: `EUnreachable` while its node is away, `ENotFound`
    /// if there is none.
    pub async fn logs(
        &mut self,
        mut request: wire::LogsRequest,
        mut each: impl FnMut(&wire::LogsEvent),
    ) -> Result<(), RpcError> {
        if request.follow {
            self.patience = WATCH_PATIENCE;
        }
        loop {
            let mut events = self.call(|stub| logs(stub, request.clone())).await?;
            while let Some(event) = next_event(&mut events).await {
                if event.started_ms > 0 {
                    request.started_ms = Some(event.started_ms);
                }
                request.offset = event.offset + event.text.len() as u64;
                each(&event);
                match (event.last, event.error) {
                    (_, Some(error)) => return Err(error.into()),
                    (true, None) => return Ok(()),
                    (false, None) => {}
                }
            }
            // The stream has ended, the log has not: the new leader goes on with it.
            sleep(RETRY.first).await;
        }
    }

    fn address(&self) -> &str {
        match &self.next {
            Target::Listed(index) => &self.addresses[*index],
            Target::Pointed(address, _) => address,
        }
    }

    /// Probes an address that did not answer as a center does.
    async fn look_at(&self, address: &str, fault: &RpcError) -> Option<&'static str> {
        let is_mute = matches!(fault.error.code, Code::Unreachable | Code::Protocol | Code::Timeout);
        if is_mute && !self.channels.are_secure() { probe(address).await } else { None }
    }

    fn stub(&self) -> Result<Stub, RpcError> {
        Ok(Stub::new(self.channels.to(self.address())?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Chooses the next target after a failure. True if it was referred to a node that it did not ask just now.
    fn turn(&mut self, fault: &RpcError) -> bool {
        let (index, was_pointed) = match self.next {
            Target::Listed(index) => (index, false),
            Target::Pointed(_, index) => (index, true),
        };
        match &fault.leader {
            Some(leader) if !was_pointed => {
                self.next = Target::Pointed(leader.clone(), index);
                true
            }
            Some(_) | None => {
                self.next = Target::Listed((index + 1) % self.addresses.len());
                false
            }
        }
    }

    fn at(&self, mut fault: RpcError) -> RpcError {
        let tried = self.addresses.join(", ");
        // Of several nodes it is not the same.
        fault.error.message = format!("{}: {}", self.address(), fault.error.message);
        fault.error =
            fault.error.advise(format!("no answer of a center within {} s at {tried}", self.patience.as_secs()));
        fault
    }
}

fn advised(fault: RpcError, found: Option<&'static str>) -> RpcError {
    match found {
        Some(advice) => RpcError { error: fault.error.advise(advice), ..fault },
        None => fault,
    }
}

/// Returns the answer, or an error after the deadline.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, RpcError> {
    match timeout(CLIENT_CALL_WAIT, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => {
            let message = format!("the center did not answer within {} s", CLIENT_CALL_WAIT.as_secs());
            Err(RpcError::no_answer(Code::Timeout, message))
        }
    }
}

async fn watch(mut stub: Stub, name: wire::TaskName) -> Result<Response<Streaming<wire::WatchEvent>>, Status> {
    stub.watch(Request::new(name)).await
}

async fn watch_all(
    mut stub: Stub,
    request: wire::WatchAllRequest,
) -> Result<Response<Streaming<wire::WatchAllEvent>>, Status> {
    stub.watch_all(Request::new(request)).await
}

async fn logs(mut stub: Stub, request: wire::LogsRequest) -> Result<Response<Streaming<wire::LogsEvent>>, Status> {
    stub.logs(Request::new(request)).await
}

/// Returns the position after an event; `None` while a snapshot is incomplete.
fn position_after(what: &wire::watch_all_event::What, before: Option<Position>) -> Option<Position> {
    use wire::watch_all_event::What;
    match what {
        What::Begin(_) | What::Tasks(_) => None,
        What::End(position) => Some((*position).into()),
        What::Changes(wire::TaskChanges { epoch, changes }) => {
            let last = changes.last().map(|last| Position { epoch: Epoch(*epoch), number: last.number });
            last.or(before)
        }
    }
}

/// Returns the next message; `None` when the stream has ended, failed, or been silent for too long.
async fn next_event<T>(events: &mut Streaming<T>) -> Option<T> {
    match timeout(STREAM_IDLE_MAX, events.message()).await {
        Ok(Ok(event)) => event,
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Returns the next state of a watched task; `None` when the stream has ended, failed, or been silent for too long.
async fn next_task(events: &mut Streaming<wire::WatchEvent>) -> Option<wire::Task> {
    loop {
        if let Some(task) = next_event(events).await?.task {
            return Some(task);
        }
    }
}
