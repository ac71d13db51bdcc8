//! Registers a node among the runners: an ephemeral node in the store, created again whenever it is gone.
//!
//! An existing registration under this node's name is of an earlier process of this node, or of another process that
//! uses the same name. It is of an earlier process if the node's state directory knows the incarnation: this process
//! holds the lock of that directory, so every earlier process has ended. Then the registration is replaced at once.
//! Otherwise an error is logged, and registering is retried.
//!
//! What always holds: when a registration is gone, its write lease ends first, and with it every copy that needs the
//! lease. Only then can there be another registration.

use super::context::RunnerPhase;
use super::state::RunnerState;
use super::write_lease::{ActiveRegistration, WriteLease};
use crate::cluster::lease::{Lease, LeaseTiming};
use crate::coord::NODE_BYTES_MAX;
use crate::coord::paths;
use crate::coord::session_keeper::Sessions;
use crate::coord::{CoordError, CreateMode, Done, Op, Refusal, Session, Watch, Znode};
use crate::model::{Abilities, NodeId, OpId, Record, Registration, Renewal};
use blockhaul_engine::job::StopReason;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Time between two attempts to register.
const RETRY: Duration = Duration::from_secs(1);
/// Time after which a missing registration is logged again.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// Wait before another attempt to remove the registration.
const DEREGISTER_RETRY: Duration = Duration::from_millis(200);
/// Wait before another attempt to update the registration.
const UPDATE_RETRY: Duration = Duration::from_millis(50);
/// Time between two checks of an undisturbed registration.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Reason for a failed registration.
#[derive(Debug)]
enum NotRegistered {
    /// Another process, perhaps on another host, is registered under this node's name.
    Duplicate(Box<Registration>),
    /// A failure that is retried.
    Coord(CoordError),
    /// The node's state cannot be written, or the existing registration cannot be read.
    Refused(String),
}

impl From<CoordError> for NotRegistered {
    fn from(error: CoordError) -> Self {
        Self::Coord(error)
    }
}

impl ActiveRegistration {
    /// Returns the first operation of every write: the registration exists.
    pub(super) fn check(&self, node: &NodeId) -> Op {
        Op::Check { path: paths::runner(node.as_str()), version: self.version }
    }
}

/// Keeps the node registered while the runner's phase is not `Absent`, for as long as it is polled.
pub(super) async fn keep_registered(state: &RunnerState, mut sessions: Sessions) {
    let mut phases = state.context.phase.subscribe();
    let mut logged: Option<(String, Duration)> = None;
    let mut was_refused = false;
    loop {
        let _ = phases.wait_for(|&phase| phase != RunnerPhase::Absent).await;
        let Ok(session) = sessions.wait_for(Option::is_some).await.map(|session| session.clone()) else {
            // The session keeper is gone: there will be no other session.
            return std::future::pending().await;
        };
        let Some(session) = session else { continue };
        match register(state, &session).await {
            Ok((registration, stored)) => {
                tracing::info!(node = %state.context.config.node, session = ?session.id(), "registered");
                logged = None;
                state.context.registration.send_replace(Some(registration));
                // Records may have changed while there was no registration: every held task is read again.
                state.assignments.all().iter().for_each(|attempt| attempt.recheck_record());
                if std::mem::take(&mut was_refused) {
                    withdraw_refusal(state, &*session).await;
                }
                maintain(state, &session, &mut sessions, stored).await;
                end_write_lease(state);
            }
            Err(why) => {
                if let NotRegistered::Duplicate(_) = why {
                    was_refused = true;
                    tell_refusal(state, &*session).await;
                }
                let (text, now) = (format!("{why:?}"), state.context.now());
                if logged.as_ref().is_none_or(|(before, at)| *before != text || now >= *at + LOG_EVERY) {
                    log_failure(state, &why);
                    logged = Some((text, now));
                }
                let mut states = session.states();
                let over = states.wait_for(|state| state.is_over());
                if timeout(RETRY, over).await.is_ok() {
                    // The session keeper may see the end of the session a moment later.
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

/// Ends the write lease: the gate closes, and copies that need the lease stop.
pub(super) fn end_write_lease(state: &RunnerState) {
    let Some(registration) = state.context.registration.send_replace(None) else { return };
    registration.write_lease.end();
    for attempt in state.assignments.all() {
        if attempt.write_lease().is_some_and(|write_lease| Arc::ptr_eq(&write_lease, &registration.write_lease)) {
            attempt.stop(StopReason::LeaseLost);
        }
    }
}

/// Removes the registration, as the last write of a runner.
///
/// # Errors
/// The error of the write: then the registration stays until the end of its session.
pub(super) async fn deregister(state: &RunnerState) -> Result<(), CoordError> {
    let Some(registration) = state.context.registration.borrow().clone() else { return Ok(()) };
    let path = path(state);
    end_write_lease(state);
    registration.session.multi(vec![Op::Delete { path, version: registration.version }]).await.map(drop)
}

/// Removes the registration while the process continues: retries until the registration or its session is gone.
pub(super) async fn deregister_until_gone(state: &RunnerState) {
    let Some(ActiveRegistration { session, mut version, .. }) = state.context.registration.borrow().clone() else {
        return;
    };
    let path = path(state);
    end_write_lease(state);
    loop {
        match session.multi(vec![Op::Delete { path: path.clone(), version }]).await {
            Ok(_) | Err(CoordError::Ended(_) | CoordError::Refused { why: Refusal::NoNode, .. }) => return,
            Err(error) => tracing::debug!(%error, "cannot remove the registration: retrying"),
        }
        // The outcome may be unknown: if the registration exists, its version is read again.
        match session.get(&path).await {
            Ok(Some(node)) if node.stat.owner == Some(session.id()) => version = node.stat.version,
            Ok(_) | Err(CoordError::Ended(_)) => return,
            Err(_) => {}
        }
        sleep(DEREGISTER_RETRY).await;
    }
}

/// Creates the registration. Returns it with the mutable fields as they were written.
async fn register(
    state: &RunnerState,
    session: &Arc<dyn Session>,
) -> Result<(ActiveRegistration, MutableFields), NotRegistered> {
    let incarnation = &state.context.config.incarnation;
    state
        .context
        .dependencies
        .state
        .remember(incarnation)
        .map_err(|error| NotRegistered::Refused(error.to_string()))?;
    let lease_version = lease_version(state, &**session).await?;
    let path = path(state);
    let able_path = paths::abilities(state.context.config.node.as_str());
    loop {
        let mine = record(state);
        let able = session.get(&able_path).await?;
        let status = session.get(&path).await?;
        if let Some(node) = &status
            && node.stat.owner != Some(session.id())
        {
            check_replaceable(state, node)?;
        }
        let old = status.map(|node| Op::Delete { path: path.clone(), version: node.stat.version });
        let old_able = able.map(|node| Op::Delete { path: able_path.clone(), version: node.stat.version });
        let data = mine.encode();
        let create = Op::Create { path: path.clone(), data, mode: CreateMode::Ephemeral };
        let data = Abilities::of_this_program(incarnation.clone()).encode();
        let announce = Op::Create { path: able_path.clone(), data, mode: CreateMode::Ephemeral };
        let sent = state.context.now();
        let renewal = Op::Set { path: lease_path(state), data: renewal(state, 0).encode(), version: lease_version };
        let ops = old.into_iter().chain(old_able).chain([create, announce, renewal]);
        match session.multi(ops.collect()).await {
            Ok(_) => return Ok((active(session, sent), MutableFields::of(&mine))),
            // The registration was created or deleted since it was read.
            Err(CoordError::Refused { why: Refusal::NodeExists | Refusal::NoNode, .. }) => {}
            Err(CoordError::Unknown(_)) => {
                session.sync().await?;
                let found = session.get(&path).await?;
                let is_done = |node: &Znode| {
                    node.stat.owner == Some(session.id())
                        && Registration::decode(&node.data).is_ok_and(|found| found.op == mine.op)
                };
                if found.as_ref().is_some_and(is_done) {
                    return Ok((active(session, sent), MutableFields::of(&mine)));
                }
                return Err(CoordError::Unknown(String::from("registering")).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn active(session: &Arc<dyn Session>, sent: Duration) -> ActiveRegistration {
    let mut lease = Lease::new(LeaseTiming::from(session.timeout()));
    lease.committed(sent);
    ActiveRegistration { session: Arc::clone(session), version: 0, write_lease: Arc::new(WriteLease::new(lease)) }
}

/// Checks that a registration of another session is of an earlier process of this node, and may be replaced.
fn check_replaceable(state: &RunnerState, node: &Znode) -> Result<(), NotRegistered> {
    let found = Registration::decode(&node.data)
        .map_err(|error| NotRegistered::Refused(format!("the registration of this node cannot be read: {error}")))?;
    let ours =
        state.context.dependencies.state.incarnations().map_err(|error| NotRegistered::Refused(error.to_string()))?;
    if ours.contains(&found.incarnation) { Ok(()) } else { Err(NotRegistered::Duplicate(Box::new(found))) }
}

/// Lets operators see a process that another one of its name keeps from registering, for as long as its session lives.
async fn tell_refusal(state: &RunnerState, session: &dyn Session) {
    let path = refusal_path(state);
    if let Ok(None) = session.get(&path).await {
        let op = Op::Create { path, data: record(state).encode(), mode: CreateMode::Ephemeral };
        if let Err(error) = session.multi(vec![op]).await {
            tracing::debug!(%error, "cannot tell that the registration is refused");
        }
    }
}

/// Takes that back, once this process is registered.
async fn withdraw_refusal(state: &RunnerState, session: &dyn Session) {
    let path = refusal_path(state);
    if let Ok(Some(node)) = session.get(&path).await {
        // It goes with the session in any case.
        let _ = session.multi(vec![Op::Delete { path, version: node.stat.version }]).await;
    }
}

fn refusal_path(state: &RunnerState) -> String {
    let config = &state.context.config;
    paths::refused(config.node.as_str(), &config.incarnation.0)
}

fn log_failure(state: &RunnerState, why: &NotRegistered) {
    let node = &state.context.config.node;
    match why {
        NotRegistered::Duplicate(other) => tracing::error!(
            %node, address = %other.address, incarnation = %other.incarnation.0,
            "registration refused: another taskd is registered under this node's name; give one of them another --node-id"
        ),
        NotRegistered::Coord(error) => tracing::warn!(%node, %error, "registration failed: retrying"),
        NotRegistered::Refused(error) => tracing::error!(%node, %error, "registration refused"),
    }
}

/// Fields of a registration that change while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MutableFields {
    stopping: bool,
    slots: u32,
}

impl MutableFields {
    fn of(&Registration { stopping, slots, .. }: &Registration) -> Self {
        Self { stopping, slots }
    }

    /// Returns the fields of a registration as it was read; `None` if this process did not write it.
    fn decode(state: &RunnerState, data: &[u8]) -> Option<Self> {
        let found = Registration::decode(data).ok()?;
        (found.incarnation == state.context.config.incarnation).then(|| Self::of(&found))
    }
}

/// Keeps the registration up to date (whether the runner is stopping, and its slots) until it is gone or is to be
/// removed.
async fn maintain(state: &RunnerState, session: &Arc<dyn Session>, sessions: &mut Sessions, stored: MutableFields) {
    let mut states = session.states();
    let mut phases = state.context.phase.subscribe();
    let mut stored = Some(stored);
    loop {
        let phase = *phases.borrow_and_update();
        // Also returns if the registration has ended, so that a new one is made.
        if phase == RunnerPhase::Absent || state.context.registration.borrow().is_none() {
            return;
        }
        let wanted = MutableFields { stopping: phase == RunnerPhase::Stopping, slots: state.context.slots() };
        if stored != Some(wanted) {
            match update(state, session, wanted).await {
                Ok(()) => stored = Some(wanted),
                Err(CoordError::Refused { .. } | CoordError::Ended(_)) => return,
                Err(_) => {
                    // The outcome is unknown: the registration is written again, as it should be by then.
                    stored = None;
                    sleep(UPDATE_RETRY).await;
                    continue;
                }
            }
        }
        let watch = match watch_registration(state, session, &mut stored).await {
            // The write of an earlier process of this node arrived late, and its version was that of this registration.
            Ok(Some(_)) if stored != Some(wanted) => continue,
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
            _ = phases.changed() => {}
            () = state.context.check_registration.notified() => {}
            () = fired => {}
            () = sleep(CHECK_EVERY) => {}
        }
    }
}

/// Reads the registration; `None` if it is no longer this session's. A newer version is adopted, with its fields.
async fn watch_registration(
    state: &RunnerState,
    session: &Arc<dyn Session>,
    stored: &mut Option<MutableFields>,
) -> Result<Option<Watch>, CoordError> {
    let (found, watch) = session.get_and_watch(&path(state)).await?;
    let Some(Znode { stat, data, .. }) = found.filter(|node| node.stat.owner == Some(session.id())) else {
        return Ok(None);
    };
    if set_version(state, stat.version) {
        *stored = MutableFields::decode(state, &data);
    }
    Ok(Some(watch))
}

/// Adopts a newer version of the registration; says whether it is newer than the one that was known.
fn set_version(state: &RunnerState, version: i32) -> bool {
    state.context.registration.send_if_modified(|registration| match registration {
        // A stale read has an older version than this runner's last write.
        Some(registration) if registration.version < version => {
            registration.version = version;
            true
        }
        Some(_) | None => false,
    })
}

/// Writes the registration with these values.
async fn update(state: &RunnerState, session: &Arc<dyn Session>, wanted: MutableFields) -> Result<(), CoordError> {
    let Some(version) = state.context.registration.borrow().as_ref().map(|registration| registration.version) else {
        return Ok(());
    };
    let MutableFields { stopping, slots } = wanted;
    let updated = Registration { stopping, slots, ..record(state) };
    let path = path(state);
    match session.multi(vec![Op::Set { path: path.clone(), data: updated.encode(), version }]).await {
        Ok(done) => {
            if let Some(Done::Set(stat)) = done.last() {
                set_version(state, stat.version);
            }
            Ok(())
        }
        Err(error @ CoordError::Unknown(_)) => {
            session.sync().await?;
            let found = session.get(&path).await?;
            let Some(node) = found else { return Err(error) };
            set_version(state, node.stat.version);
            match Registration::decode(&node.data) {
                Ok(found) if found.op == updated.op => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn record(state: &RunnerState) -> Registration {
    let config = &state.context.config;
    let full = Registration {
        node: config.node.clone(),
        incarnation: config.incarnation.clone(),
        boot_id: config.boot_id.clone(),
        address: config.address.clone(),
        slots: state.context.slots(),
        labels: config.labels.clone(),
        allow_paths: config.allow_paths.clone(),
        allow_nbd: config.allow_nbd.clone(),
        build: config.build.clone(),
        stopping: *state.context.phase.borrow() == RunnerPhase::Stopping,
        data: config.data,
        restarts: config.restarts,
        last_end: config.last_end.clone(),
        op: OpId::fresh(),
    };
    // How the last run ended is for information only.
    if full.encode().len() > NODE_BYTES_MAX { Registration { last_end: None, ..full } } else { full }
}

fn path(state: &RunnerState) -> String {
    paths::runner(state.context.config.node.as_str())
}

pub(super) fn lease_path(state: &RunnerState) -> String {
    paths::lease(state.context.config.node.as_str())
}

pub(super) fn renewal(state: &RunnerState, count: u64) -> Renewal {
    Renewal { incarnation: state.context.config.incarnation.clone(), count, unix_ms: state.context.unix_ms() }
}

/// Returns the version of the node's lease record, which is created where it is missing.
pub(super) async fn lease_version(state: &RunnerState, session: &dyn Session) -> Result<i32, CoordError> {
    let path = lease_path(state);
    loop {
        session.sync().await?;
        if let Some(node) = session.get(&path).await? {
            return Ok(node.stat.version);
        }
        let data = renewal(state, 0).encode();
        match session.multi(vec![Op::Create { path: path.clone(), data, mode: CreateMode::Persistent }]).await {
            Ok(_) | Err(CoordError::Refused { why: Refusal::NodeExists, .. }) => {}
            Err(error) => return Err(error),
        }
    }
}
