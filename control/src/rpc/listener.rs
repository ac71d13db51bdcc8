//! Listens for the services, with bounds on everything, and stops in bounded time whatever its peers do.
//!
//! Connections are accepted here and not by the transport, so that there are never too many of them and an idle one
//! does not keep its place (`connection_limit`). At the end streams are told first, then calls may finish for
//! [`GOODBYE_MAX`]. Connections that are still open then end with the process.

use super::addressee;
use super::center::CenterService;
use super::connection_limit::{ConnectionLimit, connections_max, raise_descriptors};
use super::error::RpcError;
use super::guarded_center::GuardedCenter;
use super::handshake::{Connection, ConnectionInfo, caller_of, shake_hands};
use super::limits::{
    CALLS_MAX, CALLS_PER_CONNECTION_MAX, CLIENT_CALL_WAIT, CONNECTION_AGE_MAX, CONNECTION_GRACE, GOODBYE_MAX,
    KEEPALIVE_EVERY, KEEPALIVE_WAIT, MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX,
};
use super::local_roles::NodeRoles;
use super::nodes::{DispatcherService, RunnerService};
use super::service_endpoint::ServiceEndpoint;
use super::tls::Tls;
use super::wire::{
    self, center_server::CenterServer, dispatcher_server::DispatcherServer, runner_server::RunnerServer,
};
use crate::access::AccessControl;
use crate::audit::AuditLog;
use crate::model::NodeId;
use crate::order::OrderVerifier;
use crate::peers::LocalIdentity;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::util::MapRequestLayer;

/// Who may call the services, and what is kept of it.
#[derive(Clone, Debug)]
pub struct Protection {
    /// Certificates; `None`: everybody may call.
    pub tls: Option<Tls>,
    /// Rights by the names in certificates; `None`: every caller has every right.
    pub access: Option<AccessControl>,
    /// Checks what clients have signed; `None`: they need not sign.
    pub orders: Option<OrderVerifier>,
    /// Audit log of the changes that clients ask for.
    pub audit: AuditLog,
}

impl Protection {
    /// Lets everybody call, and keeps the audit log of `node` in its state directory.
    ///
    /// # Errors
    /// The error of starting the thread that writes the log.
    pub fn open_to_all(state_dir: &Path, node: NodeId) -> Result<Self> {
        Ok(Self { tls: None, access: None, orders: None, audit: AuditLog::start(state_dir, node)? })
    }
}

/// Services of a node at one address.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    service: Option<ServiceEndpoint>,
    center: Arc<GuardedCenter>,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Listener {
    /// Listens at `address`, port 0 being a free one, as `identity`. `here` is the node of plain paths where there is
    /// only one node. `service` is the service address, where the same services listen at the same port.
    ///
    /// # Errors
    /// `EBusy`, `EPermission`, `ENotFound` or another code of the system.
    pub async fn open(
        address: SocketAddr,
        protection: Protection,
        identity: LocalIdentity,
        roles: NodeRoles,
        here: Option<NodeId>,
        service: Option<IpAddr>,
    ) -> Result<Self> {
        let socket = bind(address).await?;
        let (service, second) = service.map(|ip| ServiceEndpoint::open(ip, &socket)).transpose()?.unzip();
        let address = socket.local_addr().map_err(|error| of_address(&error, address))?;
        let (stopping, stopped) = watch::channel(false);
        let Protection { tls: _, access, orders, audit } = protection.clone();
        let center = CenterService::new(roles.clone(), identity.center.clone(), here, orders, stopped.clone());
        let center = Arc::new(GuardedCenter::new(center, access, audit));
        let (health, services) = services(&protection, identity, &roles, Arc::clone(&center))?;
        let tls = protection.tls;
        let (connections, incoming) = mpsc::channel(1);
        let connection_limit = ConnectionLimit::new(connections_max(raise_descriptors()));
        let mut over = stopped.clone();
        let goodbye = async move {
            let _ = over.wait_for(|stopping| *stopping).await;
        };
        let serving = async move {
            let served = services.serve_with_incoming_shutdown(ReceiverStream::new(incoming), goodbye).await;
            served.unwrap_or_else(|error| tracing::error!(%error, "services failed"));
        };
        let accept = |socket| {
            let (connection_limit, service, tls) = (connection_limit.clone(), service.clone(), tls.clone());
            accept(socket, connection_limit, service, tls, connections.clone(), stopped.clone())
        };
        let accepting = [Some(socket), second.flatten()].into_iter().flatten().map(accept).map(tokio::spawn);
        let mut tasks: Vec<_> = accepting.collect();
        drop(connections);
        tasks.push(tokio::spawn(serving));
        tasks.push(tokio::spawn(report_health(health, roles, stopped)));
        Ok(Self { address, service, center, stopping, tasks })
    }

    /// Returns the service address's endpoint, if there is one.
    pub(crate) fn service(&self) -> Option<ServiceEndpoint> {
        self.service.clone()
    }

    /// Returns the service of clients, behind its guard.
    pub(crate) fn center(&self) -> Arc<GuardedCenter> {
        Arc::clone(&self.center)
    }

    /// Returns the address that it listens at.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, ends streams, and lets open calls finish: within [`GOODBYE_MAX`], whatever peers
    /// do.
    pub async fn close(self) {
        let Self { stopping, tasks, .. } = self;
        stopping.send_replace(true);
        let deadline = tokio::time::Instant::now() + GOODBYE_MAX;
        for mut task in tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| of_address(&error, address))
}

fn of_address(error: &io::Error, address: SocketAddr) -> Error {
    let failed = Error::io(Side::Engine, Operation::Start, error, format!("listen at {address}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            failed.with_code(Code::Busy).advise("another process listens there: use another --listen")
        }
        io::ErrorKind::AddrNotAvailable => {
            failed.with_code(Code::NotFound).advise("this host has no such address: use another --listen")
        }
        _ => failed,
    }
}

type Request = http::Request<Body>;

type Seen = MapRequestLayer<fn(Request) -> Request>;

type Services = Router<Stack<GlobalConcurrencyLimitLayer, Stack<Seen, Identity>>>;

fn services(
    protection: &Protection,
    identity: LocalIdentity,
    roles: &NodeRoles,
    center: Arc<GuardedCenter>,
) -> Result<(HealthReporter, Services)> {
    let mut server = Server::builder()
        .layer(MapRequestLayer::new(seen as fn(Request) -> Request))
        .layer(GlobalConcurrencyLimitLayer::new(CALLS_MAX))
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .load_shed(true)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .timeout(CLIENT_CALL_WAIT)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT))
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_connection_age_grace(CONNECTION_GRACE);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::internal(Operation::Start, format!("describe the protocol: {error}")))?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let access = protection.access.clone();
    let center = CenterServer::from_arc(center);
    let runner = RunnerServer::new(RunnerService::new(roles.clone()));
    let dispatcher = DispatcherServer::new(DispatcherService::new(roles.clone()));
    let services = server
        .add_service(health)
        .add_service(reflection)
        .add_service(center.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(InterceptedService::new(
            runner.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX),
            node_call(access.clone(), identity.clone()),
        ))
        .add_service(InterceptedService::new(
            dispatcher.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX),
            node_call(access, identity),
        ));
    Ok((reporter, services))
}

/// Refuses a call between nodes that no node makes, or that is for another process.
fn node_call(
    access: Option<AccessControl>,
    identity: LocalIdentity,
) -> impl FnMut(tonic::Request<()>) -> std::result::Result<tonic::Request<()>, Status> + Clone + Send + Sync {
    let mut addressee = addressee::guard(identity);
    move |request| {
        if let Some(access) = &access {
            access.authorize_node(&caller_of(&request)).map_err(RpcError::from)?;
        }
        addressee(request)
    }
}

/// Publishes health: the node is serving while it has roles; a role is while it exists. Without roles the service still
/// answers.
async fn report_health(health: HealthReporter, mut roles: NodeRoles, mut stopping: watch::Receiver<bool>) {
    loop {
        let is_over = *stopping.borrow_and_update();
        let leads = roles.leadership.borrow_and_update().dispatcher.is_some() && !is_over;
        let serves = *roles.serving.borrow_and_update() && !is_over;
        let runs = roles.runner.borrow_and_update().is_some() && serves;
        for (service, serves) in [
            ("", serves),
            ("blockhaul.v1.Center", leads),
            ("blockhaul.v1.Dispatcher", leads),
            ("blockhaul.v1.Runner", runs),
        ] {
            let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            health.set_service_status(service, status).await;
        }
        if is_over {
            return;
        }
        tokio::select! {
            biased;
            _ = stopping.changed() => (),
            changed = roles.leadership.changed() => if changed.is_err() { return },
            changed = roles.runner.changed() => if changed.is_err() { return },
            changed = roles.serving.changed() => if changed.is_err() { return },
        }
    }
}

/// Hands connections to the transport until the end, each as soon as its handshake is over.
pub(crate) async fn accept(
    socket: TcpListener,
    connection_limit: ConnectionLimit,
    service: Option<ServiceEndpoint>,
    tls: Option<Tls>,
    connections: mpsc::Sender<io::Result<Connection>>,
    mut stopping: watch::Receiver<bool>,
) {
    let accepting = async {
        loop {
            let stream = connection_limit.accept(&socket).await;
            let taken = match &service {
                Some(service) => service.take(stream),
                None => Some(stream),
            };
            let Some(stream) = taken else { continue };
            let (tls, connections) = (tls.clone(), connections.clone());
            tokio::spawn(async move {
                if let Some(connection) = shake_hands(stream, tls.as_ref()).await {
                    // The services have ended meanwhile: so does the connection.
                    let _ = connections.send(Ok(connection)).await;
                }
            });
        }
    };
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => (),
        () = accepting => unreachable!("it never ends"),
    }
}

/// Marks the connection of a request: it may stay.
fn seen(request: Request) -> Request {
    if let Some(info) = request.extensions().get::<ConnectionInfo>() {
        info.asked.set();
    }
    request
}
