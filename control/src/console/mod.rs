//! Serves a web console: pages about tasks, nodes, schedules and settings, rendered here and usable without scripts.
//!
//! | file | what |
//! | --- | --- |
//! | `view` | what an address shows, and how it is fetched and rendered |
//! | `calls` | calls of the center's service on behalf of a browser |
//! | `change` | changes: the question, and the call |
//! | `live` | server-sent events: a page that is open, rendered again |
//! | `guard` | which requests are answered at all, and the headers of each answer |
//! | `layout`, `format` | the frame of all pages; times, sizes and foreign text |
//! | `overview`, `tasks`, `task`, `graph`, `nodes`, `schedules`, `settings` | the pages |
//!
//! ```text
//! browser -> guard -> view or change -> calls -> GuardedCenter: roles, audit log -> dispatcher
//! ```
//! What always holds: a page is fetched and a change is made with the rights of the certificate of its connection, through
//! the same guard as any other client's calls. Without `--console-write` no request changes anything. The leader answers;
//! other nodes refer to its console, which listens at the same port.

mod calls;
mod change;
mod format;
mod graph;
mod guard;
mod layout;
mod live;
mod nodes;
mod overview;
mod schedules;
mod settings;
mod task;
mod tasks;
mod view;

use crate::host_port::parse_server;
use crate::rpc::connection_limit::ConnectionLimit;
use crate::rpc::error::RpcError;
use crate::rpc::guarded_center::GuardedCenter;
use crate::rpc::handshake::{Connection, ConnectionInfo};
use crate::rpc::limits::{CLIENT_CALL_WAIT, CONSOLE_CONNECTIONS_MAX, GOODBYE_MAX};
use crate::rpc::listener::accept;
use crate::rpc::tls::Tls;
use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get};
use axum::serve::IncomingStream;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use calls::Calls;
use change::Change;
use layout::{Frame, Page};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use view::View;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");

/// How a console is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Address that it listens at.
    pub address: SocketAddr,
    /// Whether its users may change anything.
    pub may_write: bool,
}

/// A console that is served.
#[derive(Debug)]
pub(crate) struct Console {
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What every request needs.
#[derive(Clone, Debug)]
struct Site {
    center: Arc<GuardedCenter>,
    port: u16,
    is_encrypted: bool,
    may_write: bool,
    /// Pages that are kept up to date.
    live: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl Console {
    /// Serves the pages of `center`.
    ///
    /// # Errors
    /// An error of the system.
    pub(crate) async fn open(config: ConsoleConfig, center: Arc<GuardedCenter>, tls: Option<Tls>) -> Result<Self> {
        let ConsoleConfig { address, may_write } = config;
        let failed = |error: io::Error| {
            Error::io(Side::Engine, Operation::Start, &error, format!("serve the console at {address}"))
                .advise("use another --console")
        };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        tracing::info!(console = %address, "serving the console");
        let (stopping, stopped) = watch::channel(false);
        let site = Site {
            center,
            port: address.port(),
            is_encrypted: tls.is_some(),
            may_write,
            live: Arc::new(Semaphore::new(live::PAGES_MAX)),
            stopping: stopped.clone(),
        };
        let pages = Router::new()
            .route("/style.css", get(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)))
            .route("/live.js", get(([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)))
            .route("/live", get(live::events))
            .fallback(any(answer))
            .layer(middleware::from_fn_with_state(site.clone(), guard::pass))
            .with_state(site);
        let (connections, incoming) = mpsc::channel(1);
        let limit = ConnectionLimit::new(CONSOLE_CONNECTIONS_MAX);
        let accepting = tokio::spawn(accept(socket, limit, None, tls, connections, stopped.clone()));
        let mut over = stopped;
        let goodbye = async move {
            let _ = over.wait_for(|stopping| *stopping).await;
        };
        let serving = async move {
            let pages = pages.into_make_service_with_connect_info::<ConnectionInfo>();
            let served = axum::serve(Handshaken(incoming), pages).with_graceful_shutdown(goodbye).await;
            served.unwrap_or_else(|error| tracing::warn!(%error, "console failed"));
        };
        Ok(Self { stopping, tasks: vec![accepting, tokio::spawn(serving)] })
    }

    /// Ends open pages and lets requests finish, bounded.
    pub(crate) async fn close(self) {
        let Self { stopping, tasks } = self;
        stopping.send_replace(true);
        for mut task in tasks {
            if timeout(GOODBYE_MAX, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// Connections whose handshakes are over.
struct Handshaken(mpsc::Receiver<io::Result<Connection>>);

impl axum::serve::Listener for Handshaken {
    type Io = Connection;
    type Addr = ConnectionInfo;

    async fn accept(&mut self) -> (Connection, ConnectionInfo) {
        loop {
            match self.0.recv().await {
                Some(Ok(connection)) => {
                    let info = tonic::transport::server::Connected::connect_info(&connection);
                    return (connection, info);
                }
                Some(Err(_)) => {}
                // Nobody accepts any more.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<ConnectionInfo> {
        Ok(ConnectionInfo::nobody())
    }
}

impl Connected<IncomingStream<'_, Handshaken>> for ConnectionInfo {
    fn connect_info(stream: IncomingStream<'_, Handshaken>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Answers with a page, or makes a change and leads back to what was changed.
async fn answer(
    State(site): State<Site>,
    ConnectInfo(info): ConnectInfo<ConnectionInfo>,
    request: Request,
) -> Response {
    let (uri, method, headers) = (request.uri().clone(), request.method().clone(), request.headers().clone());
    let calls = Calls::new(Arc::clone(&site.center), info);
    let answered = timeout(CLIENT_CALL_WAIT, async {
        match (&method, View::parse(&uri)) {
            (&Method::GET | &Method::HEAD, Some(view)) => show(&site, &calls, &view, &uri).await,
            (&Method::POST, Some(View::Question(change))) if site.may_write => make(&calls, &change).await,
            (_, None) => Err(Failure::unknown(&uri)),
            _ => Err(Failure(StatusCode::METHOD_NOT_ALLOWED, String::from("This page only shows."))),
        }
    });
    let slow = || Err(Failure(StatusCode::GATEWAY_TIMEOUT, String::from("The center does not answer.")));
    answered.await.unwrap_or_else(|_| slow()).unwrap_or_else(|failure| failure.page(&site, &headers, &uri))
}

async fn show(site: &Site, calls: &Calls, view: &View, uri: &Uri) -> std::result::Result<Response, Failure> {
    if matches!(view, View::Question(_)) && !site.may_write {
        let message = "This console only shows: start taskd with --console-write to change things here.";
        return Err(Failure(StatusCode::FORBIDDEN, message.into()));
    }
    let page = view.render(calls, site.may_write).await?;
    Ok(layout::page(&page, Frame::of(uri)).into_response())
}

async fn make(calls: &Calls, change: &Change) -> std::result::Result<Response, Failure> {
    change.make(calls).await?;
    Ok(Redirect::to(&change.leads_to()).into_response())
}

/// Why there is no page.
#[derive(Debug)]
struct Failure(StatusCode, String);

impl Failure {
    fn unknown(uri: &Uri) -> Self {
        Self(StatusCode::NOT_FOUND, format!("There is no page {}.", uri.path()))
    }

    fn page(self, site: &Site, headers: &HeaderMap, uri: &Uri) -> Response {
        let Self(status, message) = self;
        if status == StatusCode::MISDIRECTED_REQUEST {
            return site.refer(&message, headers, uri);
        }
        let page = Page::failure(status, &message);
        (status, layout::page(&page, Frame::of(uri))).into_response()
    }
}

impl From<RpcError> for Failure {
    fn from(failed: RpcError) -> Self {
        let RpcError { error, leader, .. } = failed;
        let status = match error.code {
            // The message is the address of the leader.
            Code::NotLeader => return Self(StatusCode::MISDIRECTED_REQUEST, leader.unwrap_or_default()),
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Permission => StatusCode::FORBIDDEN,
            Code::BadRequest => StatusCode::BAD_REQUEST,
            Code::Busy | Code::Exists => StatusCode::CONFLICT,
            Code::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl Site {
    /// Leads to the same page of the leader's console.
    fn refer(&self, leader: &str, headers: &HeaderMap, uri: &Uri) -> Response {
        let Ok((host, _)) = parse_server(leader) else {
            let failure = Failure(StatusCode::SERVICE_UNAVAILABLE, String::from("No leader is known: one is elected."));
            return failure.page(self, headers, uri);
        };
        let scheme = if self.is_encrypted { "https" } else { "http" };
        Redirect::to(&format!("{scheme}://{host}:{}{}", self.port, uri.path())).into_response()
    }
}
