//! Serves metrics for Prometheus over plain HTTP at `/metrics`: those of this node and, while it leads, those of the
//! center.
//!
//! `docs/metrics.md` describes each of them. Nothing is counted here: each request asks the roles for their state. Each
//! connection carries one request and is closed, so that the bound of [`ConnectionLimit`] for the first request bounds the
//! whole connection.

mod process;
mod text_format;

use crate::dispatcher::{DispatcherMetrics, RunnerSummary, Status};
use crate::rpc::connection_limit::{ConnectionLimit, GuardedStream};
use crate::rpc::limits::{GOODBYE_MAX, METRICS_CONNECTIONS_MAX};
use crate::rpc::local_roles::NodeRoles;
use crate::rpc::tls::Tls;
use crate::runner::{RunnerHandle, RunnerMetrics};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest wait for the dispatcher's status.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Every connection is closed after one request.
const CLOSE: (header::HeaderName, &str) = (header::CONNECTION, "close");

type Real = Gauge<f64, AtomicU64>;
type Whole = Gauge<u64, AtomicU64>;

/// Server of the metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    stopping: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Sources of the numbers.
#[derive(Clone, Debug)]
struct Sources {
    roles: NodeRoles,
    runner: RunnerHandle,
    tls: Option<Tls>,
}

impl Metrics {
    /// Serves at `address`.
    ///
    /// # Errors
    /// An error of the system.
    pub(crate) async fn open(
        address: SocketAddr,
        roles: NodeRoles,
        runner: RunnerHandle,
        tls: Option<Tls>,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::io(Side::Engine, Operation::Start, &error, format!("serve metrics at {address}"))
                .advise("use another --metrics")
        };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let (stopping, mut stopped) = watch::channel(false);
        let pages = Router::new().route("/metrics", get(page)).with_state(Sources { roles, runner, tls });
        let goodbye = async move {
            let _ = stopped.wait_for(|stopping| *stopping).await;
        };
        let serving = async move {
            let listener = LimitedListener { socket, connection_limit: ConnectionLimit::new(METRICS_CONNECTIONS_MAX) };
            let served = axum::serve(listener, pages).with_graceful_shutdown(goodbye).await;
            served.unwrap_or_else(|error| tracing::warn!(%error, "metrics server failed"));
        };
        Ok(Self { stopping, task: tokio::spawn(serving) })
    }

    /// Lets open requests finish, bounded.
    pub(crate) async fn close(self) {
        let Self { stopping, mut task } = self;
        stopping.send_replace(true);
        if timeout(GOODBYE_MAX, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// Accepts connections within the limit.
struct LimitedListener {
    socket: TcpListener,
    connection_limit: ConnectionLimit,
}

impl axum::serve::Listener for LimitedListener {
    type Io = GuardedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (GuardedStream, SocketAddr) {
        loop {
            let stream = self.connection_limit.accept(&self.socket).await;
            // One that is gone already has no address.
            if let Ok(peer) = stream.peer_addr() {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

async fn page(State(sources): State<Sources>, headers: HeaderMap) -> impl IntoResponse {
    let registry = sources.registry().await;
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) if accepted.contains("application/openmetrics-text") => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind), CLOSE], text)
        }
        Ok(()) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind), CLOSE], text_format::classic(&text))
        }
        Err(error) => {
            let kind = (header::CONTENT_TYPE, "text/plain");
            (StatusCode::INTERNAL_SERVER_ERROR, [kind, CLOSE], format!("{error}\n"))
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScheduleLabel {
    schedule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

impl Sources {
    async fn registry(&self) -> Registry {
        let mut all = Registry::default();
        process::register(&mut all);
        let registry = all.sub_registry_with_prefix("blockhaul");
        self.of_node(registry);
        let center = match self.roles.dispatcher() {
            Ok(dispatcher) => {
                let asked = async { Ok::<_, Error>((dispatcher.status().await?, dispatcher.runners().await?)) };
                timeout(ANSWER_WAIT, asked).await.ok().and_then(Result::ok)
            }
            Err(_) => None,
        };
        registry.register("leader", "Whether this node leads", whole(center.is_some().into()));
        if let Some((status, nodes)) = center {
            of_center(registry, &status);
            of_nodes(registry, &nodes);
        }
        all
    }

    fn of_node(&self, registry: &mut Registry) {
        let build = Family::<BuildLabel, Whole>::default();
        build.get_or_create(&BuildLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "Version of this process; the value is 1", build);
        let RunnerMetrics { attempts, durations, bytes } = self.runner.metrics();
        registry.register("attempts", "Attempts that have ended on this node, by outcome", attempts);
        let help = "Time from the start of an attempt's work to its end";
        registry.register_with_unit("attempt_duration", help, Unit::Seconds, durations);
        let help = "Bytes of the attempts that have ended on this node, by what was done with them";
        registry.register_with_unit("attempt", help, Unit::Bytes, bytes);
        registry.register("runner_slots", "Tasks that this node may run at once", whole(self.runner.slots().into()));
        registry.register("runner_tasks", "Tasks that this node holds", whole(self.runner.held().len() as u64));
        registry.register(
            "runner_registered",
            "Whether this node is registered",
            whole(self.runner.is_registered().into()),
        );
        let leads = self.roles.leadership.borrow().dispatcher.is_some();
        let serves = *self.roles.serving.borrow() && (leads || self.runner.is_registered());
        let help = "Whether this node has its roles: not without a session, nor while its storage network is lost";
        registry.register("serving", help, whole(serves.into()));
        let margin = Real::default();
        margin.set(self.runner.lease_left().as_secs_f64());
        let help = "Time left of this node's lease; zero without one";
        registry.register_with_unit("lease_margin", help, Unit::Seconds, margin);
        if let Some(tls) = &self.tls {
            let help = "Time at which the first certificate of this node expires, since 1970";
            registry.register_with_unit("tls_not_after", help, Unit::Seconds, whole(tls.expires().as_secs()));
        }
    }
}

fn of_center(registry: &mut Registry, status: &Status) {
    let epoch = Gauge::<i64>::default();
    epoch.set(status.epoch.0);
    registry.register("leader_epoch", "Epoch of the leader's term: grows with every election", epoch);
    let tasks = Family::<StateLabel, Whole>::default();
    for (state, count) in &status.tasks {
        tasks.get_or_create(&StateLabel { state: state.as_str() }).set(*count as u64);
    }
    registry.register("tasks", "Tasks by state", tasks);
    let unreadable = whole(status.undecodable.len() as u64);
    registry.register("unreadable_records", "Records that cannot be decoded and are left alone", unreadable);
    for (name, help, bytes) in [
        ("running_planned", "Sizes of the sources of running copies", status.running.planned_bytes),
        ("running_durable", "Durable bytes of running copies", status.running.durable_bytes),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, whole(bytes));
    }
    registry.register(
        "running_rate_bytes_per_second",
        "Rate of all running copies",
        whole(status.running.rate_bytes_per_second),
    );
    let successes = Family::<ScheduleLabel, Real>::default();
    for (schedule, ended_ms) in &status.last_successes {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let seconds = *ended_ms as f64 / 1000.0;
        successes.get_or_create(&ScheduleLabel { schedule: schedule.to_string() }).set(seconds);
    }
    let help = "When a task of a schedule has succeeded last, since 1970, of the tasks that are kept";
    registry.register_with_unit("schedule_last_success_time", help, Unit::Seconds, successes);
    let DispatcherMetrics { assignments, schedules_fired, schedules_skipped, store, queue_wait, assignment } =
        status.metrics.clone();
    registry.register("assignments", "Tasks assigned by this process", assignments);
    registry.register("schedules_fired", "Tasks made from schedules by this process", schedules_fired);
    registry.register("schedules_skipped", "Instants of schedules without a task", schedules_skipped);
    for (name, help, latency) in [
        ("queue_wait", "Time from submission to assignment", queue_wait),
        ("assignment", "Time from the decision to assign to the runner's acceptance", assignment),
        ("coordination", "Time of writes to the coordination service", store),
    ] {
        registry.register_with_unit(name, help, Unit::Seconds, latency);
    }
}

/// Registers what the leader knows of the nodes.
fn of_nodes(registry: &mut Registry, nodes: &[RunnerSummary]) {
    let there = nodes.iter().filter(|node| node.registration.is_some());
    registry.register("nodes_registered", "Nodes that are registered", whole(there.count() as u64));
    let excluded = nodes.iter().filter(|node| node.excluded.is_some()).count() as u64;
    registry.register("nodes_excluded", "Nodes that get no tasks, as they failed several", whole(excluded));
    let draining = nodes.iter().filter(|node| node.drain.is_some()).count() as u64;
    registry.register("nodes_draining", "Nodes that an operator drains", whole(draining));
    let offsets = Family::<NodeLabel, Real>::default();
    for node in nodes {
        let Some(offset_ms) = node.clock_offset_ms else { continue };
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let seconds = offset_ms as f64 / 1000.0;
        offsets.get_or_create(&NodeLabel { node: node.node.to_string() }).set(seconds);
    }
    let help = "Time by which the wall clock of a node is ahead of its peers'";
    registry.register_with_unit("node_clock_offset", help, Unit::Seconds, offsets);
}

fn whole(number: u64) -> Whole {
    let gauge = Whole::default();
    gauge.set(number);
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::RunningTotals;
    use crate::model::{Epoch, Leader, ScheduleName, TaskState};

    #[test]
    fn every_number_of_a_center_has_a_line() {
        let metrics = DispatcherMetrics::default();
        metrics.assignments.inc_by(9);
        for latency in [&metrics.store, &metrics.queue_wait, &metrics.assignment] {
            latency.observe(0.25);
        }
        let status = Status {
            leader: Leader::example("n1"),
            epoch: Epoch(7),
            tasks: vec![(TaskState::Pending, 3)],
            undecodable: vec![(String::from("/tasks/00/x"), String::from("no JSON"))],
            runners: 1,
            restarts: 0,
            level: None,
            last_successes: [(ScheduleName::new("nightly").unwrap(), 1500)].into(),
            running: RunningTotals { planned_bytes: 10, durable_bytes: 4, rate_bytes_per_second: 2 },
            metrics,
        };
        let mut registry = Registry::with_prefix("blockhaul");
        of_center(&mut registry, &status);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "blockhaul_leader_epoch 7",
            "blockhaul_tasks{state=\"PENDING\"} 3",
            "blockhaul_unreadable_records 1",
            "blockhaul_running_durable_bytes 4",
            "blockhaul_running_rate_bytes_per_second 2",
            "blockhaul_assignments_total 9",
            "blockhaul_schedule_last_success_time_seconds{schedule=\"nightly\"} 1.5",
            "blockhaul_queue_wait_seconds_count 1",
            "blockhaul_assignment_seconds_sum 0.25",
            "blockhaul_coordination_seconds_bucket{le=\"0.256\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
    }
}
