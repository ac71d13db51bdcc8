//! Carries requests to servers and answers to clients, each in order, late, or not at all, and runs timed events.
//!
//! A connection has one task each way. A request waits while its path is broken, as bytes in a socket do. When the
//! connection ends meanwhile, a write may still be carried out, long after its client got the answer that its outcome
//! is unknown.

use super::client::{Delivery, Reply, Request, Sent};
use super::service::Core;
use super::{Shared, TICK, lock};
use crate::coord::{ConnectionState, CoordError, SessionEnd, SessionId};
use std::sync::Weak;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// Time between two checks of a broken path.
const RETRANSMIT: Duration = Duration::from_millis(40);
/// Time between two pings.
const PING: Duration = Duration::from_millis(500);
/// Longest delay of a write whose client has given up.
const LATE_MS_MAX: u64 = 9_000;

/// Starts the two tasks of a new connection.
pub(super) fn connect(shared: &Shared, session: SessionId) {
    let (up, requests) = mpsc::unbounded_channel();
    let (down, deliveries) = mpsc::unbounded_channel();
    let mut core = lock(shared);
    let Some(client) = core.clients.get_mut(&session) else { return };
    (client.up, client.down) = (Some(up), Some(down));
    let connection = client.connection;
    drop(core);
    tokio::spawn(uplink(shared.clone(), session, connection, requests));
    tokio::spawn(downlink(shared.clone(), session, connection, deliveries));
}

/// State of the path between a client and its server, for a message in flight.
enum PathState {
    Open,
    Broken,
    /// The connection is closed.
    Over,
}

fn path_state(core: &Core, session: SessionId, connection: u64, needs_leader: bool) -> PathState {
    let Some(client) = core.clients.get(&session) else { return PathState::Over };
    if client.connection != connection {
        return PathState::Over;
    }
    let is_open = core.reaches(&client.node, client.server) && (!needs_leader || core.has_leader(client.server));
    if is_open { PathState::Open } else { PathState::Broken }
}

async fn uplink(shared: Shared, session: SessionId, connection: u64, mut requests: mpsc::UnboundedReceiver<Sent>) {
    while let Some((arrival, id, request)) = requests.recv().await {
        sleep_until(arrival).await;
        let mut request = Some(request);
        while !deliver_to_server(&shared, session, connection, id, &mut request) {
            sleep(RETRANSMIT).await;
        }
    }
}

/// Delivers a request to its server; tells whether it has arrived or never will.
fn deliver_to_server(
    shared: &Shared,
    session: SessionId,
    connection: u64,
    id: u64,
    request: &mut Option<Request>,
) -> bool {
    let needs_leader = !matches!(request, Some(Request::Get { .. } | Request::Children { .. }));
    let mut core = lock(shared);
    match (path_state(&core, session, connection, needs_leader), request.take()) {
        (_, None) => {}
        (PathState::Open, Some(request)) => {
            answer(&mut core, session, id, request);
            replicate(shared, &mut core);
        }
        (PathState::Over, Some(request)) => carry_out_late(shared, &mut core, session, request),
        (PathState::Broken, Some(still)) => {
            *request = Some(still);
            return false;
        }
    }
    true
}

/// Answers a request at its server.
fn answer(core: &mut Core, session: SessionId, id: u64, request: Request) {
    let is_write = matches!(request, Request::Multi(_));
    let reply = core.serve(session, request);
    let lost = core.fault_rates.lost_reply;
    if is_write && core.chance(lost) {
        let breaks = core.rng.bool();
        let Some(client) = core.clients.get_mut(&session) else { return };
        if breaks {
            client.disconnect();
        } else if let Some(answer) = client.pending.remove(&id) {
            let _ = answer.send(Err(CoordError::Unknown(String::from("no response"))));
        }
        return;
    }
    let latency = core.latency();
    let Some(client) = core.clients.get(&session) else { return };
    let seen = core.seen(client.server);
    client.deliver(latency, Delivery::Reply { id, reply, seen });
}

/// Carries out a write of a closed connection later, by chance.
fn carry_out_late(shared: &Shared, core: &mut Core, session: SessionId, request: Request) {
    let Request::Multi(ops) = request else { return };
    let late = core.fault_rates.late_write;
    if !core.chance(late) {
        return;
    }
    let wait = Duration::from_millis(core.rng.u64(0..=LATE_MS_MAX));
    let shared = shared.clone();
    tokio::spawn(async move {
        sleep(wait).await;
        let mut core = lock(&shared);
        let node = core.clients.get(&session).map(|client| client.node.clone()).unwrap_or_default();
        if (0..core.servers()).any(|server| core.has_leader(server)) {
            let _ = core.multi(session, &node, &ops, None);
            replicate(&shared, &mut core);
        }
    });
}

async fn downlink(
    shared: Shared,
    session: SessionId,
    connection: u64,
    mut deliveries: mpsc::UnboundedReceiver<(Instant, Delivery)>,
) {
    while let Some((arrival, delivery)) = deliveries.recv().await {
        sleep_until(arrival).await;
        let mut delivery = Some(delivery);
        while !deliver_to_client(&shared, session, connection, &mut delivery, &mut deliveries) {
            sleep(RETRANSMIT).await;
        }
    }
}

/// Delivers to a client; tells whether it has arrived or never will over this connection.
fn deliver_to_client(
    shared: &Shared,
    session: SessionId,
    connection: u64,
    delivery: &mut Option<Delivery>,
    rest: &mut mpsc::UnboundedReceiver<(Instant, Delivery)>,
) -> bool {
    let mut core = lock(shared);
    match (path_state(&core, session, connection, false), delivery.take()) {
        (_, None) => {}
        (PathState::Open, Some(delivery)) => {
            if let Some(client) = core.clients.get_mut(&session) {
                client.receive(delivery);
            }
        }
        (PathState::Over, Some(delivery)) => requeue(&mut core, session, delivery, rest),
        (PathState::Broken, Some(still)) => {
            *delivery = Some(still);
            return false;
        }
    }
    true
}

/// Handles a broken connection: events on it are sent again over the next one, answers are not.
fn requeue(
    core: &mut Core,
    session: SessionId,
    first: Delivery,
    rest: &mut mpsc::UnboundedReceiver<(Instant, Delivery)>,
) {
    let rest = std::iter::from_fn(|| rest.try_recv().ok().map(|(_, delivery)| delivery));
    let fires = std::iter::once(first).chain(rest).filter_map(|delivery| match delivery {
        Delivery::Fire(fire) => Some(fire),
        Delivery::Reply { .. } => None,
    });
    let Some(client) = core.clients.get_mut(&session).filter(|client| !client.state().is_over()) else { return };
    for fire in fires {
        if client.is_connected() {
            client.deliver(Duration::ZERO, Delivery::Fire(fire));
        } else {
            client.undelivered.push(fire);
        }
    }
}

/// Sends the servers what was committed since the last call.
pub(super) fn replicate(shared: &Shared, core: &mut Core) {
    for (server, upto, lag) in core.take_unreplicated() {
        let shared = shared.clone();
        tokio::spawn(async move {
            sleep(lag).await;
            lock(&shared).catch_up(server, upto);
        });
    }
}

/// Expires sessions by the leader's ticks, as long as the service is in use.
pub(super) async fn tick(shared: Weak<std::sync::Mutex<Core>>) {
    let mut next = Instant::now() + TICK;
    loop {
        sleep_until(next).await;
        next += TICK;
        let Some(shared) = shared.upgrade() else { return };
        let mut core = lock(&shared);
        core.tick();
        replicate(&shared, &mut core);
    }
}

/// Runs the client's part of a session: sends pings, detects silence, reconnects, and ends the session when it must
/// have expired. Runs in the client's process while the session's handle lives; then closes the session if possible.
pub(super) async fn run_session(shared: Shared, session: SessionId, alive: Weak<()>) {
    while alive.strong_count() > 0 {
        let wait = {
            let mut core = lock(&shared);
            let Some(client) = core.clients.get(&session) else { return };
            match client.state().connection {
                ConnectionState::Over(_) => return,
                ConnectionState::Connected => {
                    ping(&mut core, session);
                    PING
                }
                ConnectionState::Disconnected => Duration::from_millis(core.rng.u64(20..=300)),
            }
        };
        sleep(wait).await;
        let is_lost = lock(&shared)
            .clients
            .get(&session)
            .is_some_and(|client| client.state().connection == ConnectionState::Disconnected);
        if is_lost && reconnect(&mut lock(&shared), session) {
            connect(&shared, session);
            let mut core = lock(&shared);
            core.fire_missed_watches(session);
        }
    }
    let _ = tokio::time::timeout(super::CLOSE_TIMEOUT, ask(&shared, session, Request::Close)).await;
    if let Some(client) = lock(&shared).clients.get_mut(&session) {
        client.end(SessionEnd::Closed);
    }
}

fn ping(core: &mut Core, session: SessionId) {
    let silence_max = core.silence_max();
    let Some(client) = core.clients.get(&session) else { return };
    let (reaches, has_leader) = (core.reaches(&client.node, client.server), core.has_leader(client.server));
    if Instant::now() - client.last_received > silence_max {
        return core.clients.get_mut(&session).into_iter().for_each(super::client::Client::disconnect);
    }
    if !reaches {
        return;
    }
    if has_leader && !core.is_alive(session) {
        return core.clients.get_mut(&session).into_iter().for_each(|client| client.end(SessionEnd::Expired));
    }
    if has_leader {
        core.extend_session(session);
    }
    core.clients.get_mut(&session).into_iter().for_each(|client| client.last_received = Instant::now());
}

/// Looks for a server that accepts the client. Returns `true` if a connection is to be made.
fn reconnect(core: &mut Core, session: SessionId) -> bool {
    let limit = core.timeout.mul_f64(1.4);
    let Some(client) = core.clients.get(&session) else { return false };
    let (node, seen, silent) = (client.node.clone(), client.seen, client.last_received.elapsed());
    let server = core.any_server(&node, seen);
    let is_alive = core.is_alive(session);
    let Some(client) = core.clients.get_mut(&session) else { return false };
    match server {
        Some(_) if !is_alive => client.end(SessionEnd::Expired),
        Some(server) => {
            client.connect(server);
            return true;
        }
        None if silent > limit => client.end(SessionEnd::Expired),
        None => {}
    }
    false
}

/// Sends a request, and waits for the answer.
pub(super) async fn ask(shared: &Shared, session: SessionId, request: Request) -> Result<Reply, CoordError> {
    let answered = {
        let mut core = lock(shared);
        let latency = core.latency();
        let client = core.clients.get_mut(&session).ok_or(super::service::EXPIRED)?;
        client.send(request, latency)?
    };
    answered.await.unwrap_or_else(|_| Err(CoordError::Unknown(String::from("the connection has ended"))))
}
