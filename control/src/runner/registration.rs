//! A node's place among the runners: an ephemeral node in the store, made anew whenever it is gone.
//!
//! A registration of this node that is there already is either an earlier one of ours, or somebody else claims to be us.
//! It is ours if this process holds the node's lock (so that every earlier process is dead) _and_ the node remembers its
//! life: then it is replaced at once. Otherwise nobody can tell: the alarm is raised, and it is tried again.
//!
//! What always holds: when a registration is gone, its tenure ends first, and with it every copy that lives by its lease;
//! only then there can be another one.

use super::context::{Hub, Mood};
use super::tenure::{Seat, Tenure};
use crate::cluster::lease::{Lease, LeaseTerms};
use crate::coord::paths;
use crate::coord::session_keeper::Sessions;
use crate::coord::{CoordError, Done, Life, Node, Op, Refusal, Session, Watch};
use crate::model::{NodeId, OpId, Record, Registration, Renewal};
use blockhaul_engine::job::Reason;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Between two tries to register.
const RETRY: Duration = Duration::from_secs(1);
/// The log says so often why the node is not registered.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to remove it.
const WITHDRAW_AGAIN: Duration = Duration::from_millis(200);
/// Between two tries to say in it how the runner is.
const SAY_AGAIN: Duration = Duration::from_millis(50);
/// Between two looks at a registration that nobody has complained about.
const LOOK: Duration = Duration::from_secs(30);

/// Why there is no registration yet.
#[derive(Debug)]
enum NotRegistered {
    /// Another process, maybe on another host, is registered under this node's name.
    Duplicate(Box<Registration>),
    /// Tried again.
    Coord(CoordError),
    /// The node's memory cannot be written, or what stands there cannot be read.
    Refused(String),
}

impl From<CoordError> for NotRegistered {
    fn from(error: CoordError) -> Self {
        Self::Coord(error)
    }
}

impl Seat {
    /// That the registration stands: the first operation of every write.
    pub(super) fn check(&self, node: &NodeId) -> Op {
        Op::Check { path: paths::runner(node.as_str()), version: self.version }
    }
}

/// Keeps the node registered while the runner wants to be there, for as long as it is polled.
pub(super) async fn keep_registered(hub: &Hub, mut sessions: Sessions) {
    let mut moods = hub.mood.subscribe();
    let mut said: Option<(String, Duration)> = None;
    loop {
        let _ = moods.wait_for(|&mood| mood != Mood::Absent).await;
        let Ok(session) = sessions.wait_for(Option::is_some).await.map(|session| session.clone()) else {
            // Whoever opens sessions is gone: nothing more will come.
            return std::future::pending().await;
        };
        let Some(session) = session else { continue };
        let slots = hub.slots();
        match register(hub, &session).await {
            Ok(seat) => {
                tracing::info!(node = %hub.config.node, session = ?session.id(), "registered");
                said = None;
                hub.seat.send_replace(Some(seat));
                // Whatever was decided meanwhile: everything that is held is looked at.
                hub.book.all().iter().for_each(|attempt| attempt.look());
                hold(hub, &session, &mut sessions, slots).await;
                give_up(hub);
            }
            Err(why) => {
                let (news, now) = (format!("{why:?}"), hub.now());
                if said.as_ref().is_none_or(|(before, at)| *before != news || now >= *at + REPORT_EVERY) {
                    report(hub, &why);
                    said = Some((news, now));
                }
                let mut states = session.states();
                let over = states.wait_for(|state| state.is_over());
                if timeout(RETRY, over).await.is_ok() {
                    // The keeper replaces it; it may take a moment to see the same.
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

/// Ends the tenure: the gate is shut, and copies that live by it stop.
pub(super) fn give_up(hub: &Hub) {
    let Some(seat) = hub.seat.send_replace(None) else { return };
    seat.tenure.end();
    for attempt in hub.book.all() {
        if attempt.tenure().is_some_and(|tenure| Arc::ptr_eq(&tenure, &seat.tenure)) {
            attempt.stop(Reason::LeaseLost);
        }
    }
}

/// Removes the registration: the last write of a runner.
///
/// # Errors
/// Why it stays; it goes with its session.
pub(super) async fn deregister(hub: &Hub) -> Result<(), CoordError> {
    let Some(seat) = hub.seat.borrow().clone() else { return Ok(()) };
    let path = path(hub);
    give_up(hub);
    seat.session.multi(vec![Op::Delete { path, version: seat.version }]).await.map(drop)
}

/// Removes the registration while the process lives on: tries until it is gone, or its session is.
pub(super) async fn withdraw(hub: &Hub) {
    let Some(Seat { session, mut version, .. }) = hub.seat.borrow().clone() else { return };
    let path = path(hub);
    give_up(hub);
    loop {
        match session.multi(vec![Op::Delete { path: path.clone(), version }]).await {
            Ok(_) | Err(CoordError::Ended(_) | CoordError::Refused { why: Refusal::NoNode, .. }) => return,
            Err(error) => tracing::debug!(%error, "cannot remove the registration yet"),
        }
        // Whatever became of it: if it stands, its version is read anew.
        match session.get(&path).await {
            Ok(Some(node)) if node.stat.owner == Some(session.id()) => version = node.stat.version,
            Ok(_) | Err(CoordError::Ended(_)) => return,
            Err(_) => {}
        }
        sleep(WITHDRAW_AGAIN).await;
    }
}

async fn register(hub: &Hub, session: &Arc<dyn Session>) -> Result<Seat, NotRegistered> {
    let incarnation = &hub.config.incarnation;
    hub.seams.state.remember(incarnation).map_err(|error| NotRegistered::Refused(error.to_string()))?;
    let lease_version = lease_version(hub, &**session).await?;
    let path = path(hub);
    loop {
        let mine = registration(hub);
        let standing = session.get(&path).await?;
        if let Some(node) = &standing
            && node.stat.owner != Some(session.id())
        {
            judge(hub, node)?;
        }
        let old = standing.map(|node| Op::Delete { path: path.clone(), version: node.stat.version });
        let data = mine.encode();
        let create = Op::Create { path: path.clone(), data, life: Life::Ephemeral };
        let sent = hub.now();
        let renewal = Op::Set { path: lease_path(hub), data: renewal(hub, 0).encode(), version: lease_version };
        match session.multi(old.into_iter().chain([create, renewal]).collect()).await {
            Ok(_) => return Ok(seat(session, sent)),
            // Created or gone since it was looked at.
            Err(CoordError::Refused { why: Refusal::NodeExists | Refusal::NoNode, .. }) => {}
            Err(CoordError::Unknown(_)) => {
                session.sync().await?;
                let found = session.get(&path).await?;
                let is_done = |node: &Node| {
                    node.stat.owner == Some(session.id())
                        && Registration::decode(&node.data).is_ok_and(|found| found.op == mine.op)
                };
                if found.as_ref().is_some_and(is_done) {
                    return Ok(seat(session, sent));
                }
                return Err(CoordError::Unknown(String::from("registering")).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn seat(session: &Arc<dyn Session>, sent: Duration) -> Seat {
    let mut lease = Lease::new(LeaseTerms::from(session.timeout()));
    lease.committed(sent);
    Seat { session: Arc::clone(session), version: 0, tenure: Arc::new(Tenure::new(lease)) }
}

/// Whether a registration of another session may be replaced.
fn judge(hub: &Hub, node: &Node) -> Result<(), NotRegistered> {
    let found = Registration::decode(&node.data)
        .map_err(|error| NotRegistered::Refused(format!("the registration of this node cannot be read: {error}")))?;
    let ours = hub.seams.state.incarnations().map_err(|error| NotRegistered::Refused(error.to_string()))?;
    if ours.contains(&found.incarnation) { Ok(()) } else { Err(NotRegistered::Duplicate(Box::new(found))) }
}

fn report(hub: &Hub, why: &NotRegistered) {
    let node = &hub.config.node;
    match why {
        NotRegistered::Duplicate(other) => tracing::error!(
            %node, address = %other.address, incarnation = %other.incarnation.0,
            "another taskd is registered under this node's name: give one of them another --node-id"
        ),
        NotRegistered::Coord(error) => tracing::warn!(%node, %error, "not registered yet"),
        NotRegistered::Refused(error) => tracing::error!(%node, %error, "cannot register"),
    }
}

/// Stays until the registration is gone or is to go, and keeps saying there whether the runner is stopping
/// and how many tasks it takes.
async fn hold(hub: &Hub, session: &Arc<dyn Session>, sessions: &mut Sessions, slots: u32) {
    let mut states = session.states();
    let mut moods = hub.mood.subscribe();
    let mut said = Some((false, slots));
    loop {
        let mood = *moods.borrow_and_update();
        // Given up while nobody looked: there has to be another one.
        if mood == Mood::Absent || hub.seat.borrow().is_none() {
            return;
        }
        let to_say = (mood == Mood::Stopping, hub.slots());
        if said != Some(to_say) {
            match mark(hub, session, to_say.0).await {
                Ok(()) => said = Some(to_say),
                Err(CoordError::Refused { .. } | CoordError::Ended(_)) => return,
                Err(_) => {
                    // It may have been said or not: it is said again, whatever is to be said by then.
                    said = None;
                    sleep(SAY_AGAIN).await;
                    continue;
                }
            }
        }
        let watch = match watch_own(hub, session).await {
            Ok(Some(watch)) => Some(watch),
            Ok(None) | Err(CoordError::Ended(_)) => return,
            Err(_) => None,
        };
        let fired = async {
            match watch {
                Some(watch) => watch.fired().await,
                None => sleep(RETRY).await,
            }
        };
        tokio::select! { biased;
            _ = states.wait_for(|state| state.is_over()) => return,
            _ = sessions.wait_for(|now| now.as_ref().is_none_or(|now| now.id() != session.id())) => return,
            _ = moods.changed() => {}
            () = hub.doubt.notified() => {}
            () = fired => {}
            () = sleep(LOOK) => {}
        }
    }
}

/// Looks at the registration; `None` if it is not this session's any more. A version that has changed is taken over.
async fn watch_own(hub: &Hub, session: &Arc<dyn Session>) -> Result<Option<Watch>, CoordError> {
    let (found, watch) = session.get_and_watch(&path(hub)).await?;
    let Some(Node { stat, .. }) = found.filter(|node| node.stat.owner == Some(session.id())) else {
        return Ok(None);
    };
    set_version(hub, stat.version);
    Ok(Some(watch))
}

fn set_version(hub: &Hub, version: i32) {
    hub.seat.send_if_modified(|seat| match seat {
        // A stale reading is older than what was written here.
        Some(seat) if seat.version < version => {
            seat.version = version;
            true
        }
        Some(_) | None => false,
    });
}

/// Writes whether the runner is stopping.
async fn mark(hub: &Hub, session: &Arc<dyn Session>, stopping: bool) -> Result<(), CoordError> {
    let Some(version) = hub.seat.borrow().as_ref().map(|seat| seat.version) else { return Ok(()) };
    let mut marked = registration(hub);
    marked.stopping = stopping;
    let path = path(hub);
    match session.multi(vec![Op::Set { path: path.clone(), data: marked.encode(), version }]).await {
        Ok(done) => {
            if let Some(Done::Set(stat)) = done.last() {
                set_version(hub, stat.version);
            }
            Ok(())
        }
        Err(error @ CoordError::Unknown(_)) => {
            session.sync().await?;
            let found = session.get(&path).await?;
            let Some(node) = found else { return Err(error) };
            set_version(hub, node.stat.version);
            match Registration::decode(&node.data) {
                Ok(found) if found.op == marked.op => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn registration(hub: &Hub) -> Registration {
    let config = &hub.config;
    Registration {
        node: config.node.clone(),
        incarnation: config.incarnation.clone(),
        boot_id: config.boot_id.clone(),
        address: config.address.clone(),
        slots: hub.slots(),
        labels: config.labels.clone(),
        allow_paths: config.allow_paths.clone(),
        allow_nbd: config.allow_nbd.clone(),
        build: config.build.clone(),
        stopping: *hub.mood.borrow() == Mood::Stopping,
        data: config.data,
        restarts: config.restarts,
        op: OpId::fresh(),
    }
}

fn path(hub: &Hub) -> String {
    paths::runner(hub.config.node.as_str())
}

pub(super) fn lease_path(hub: &Hub) -> String {
    paths::lease(hub.config.node.as_str())
}

pub(super) fn renewal(hub: &Hub, count: u64) -> Renewal {
    Renewal { incarnation: hub.config.incarnation.clone(), count, unix_ms: hub.unix_ms() }
}

/// The version of the node's lease record, which is created where it is missing.
pub(super) async fn lease_version(hub: &Hub, session: &dyn Session) -> Result<i32, CoordError> {
    let path = lease_path(hub);
    loop {
        session.sync().await?;
        if let Some(node) = session.get(&path).await? {
            return Ok(node.stat.version);
        }
        let data = renewal(hub, 0).encode();
        match session.multi(vec![Op::Create { path: path.clone(), data, life: Life::Persistent }]).await {
            Ok(_) | Err(CoordError::Refused { why: Refusal::NodeExists, .. }) => {}
            Err(error) => return Err(error),
        }
    }
}
