//! Reads the store: everything at the start, and later the records that may have changed, by full scans and after
//! hints.
//!
//! Only a holder and this leader change a record. So a full scan lists all tasks, but reads again only those that are
//! held, unknown or undecodable.

use super::Dispatcher;
use super::event::{Event, FleetRead};
use super::level::CenterLevel;
use super::rollback_detection::RecordVersion;
use crate::coord::paths;
use crate::coord::{CoordError, Session, Watch, Znode};
use crate::model::level::LEVEL;
use crate::model::{Abilities, Drain, Meta, NodeId, Record, Registration, Renewal, ScheduleRecord, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Reads under way at once.
const READS_MAX: usize = 256;
/// Wait after a read that failed.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Shortest time between two lists of the runners, however many come and go.
const FLEET_EVERY: Duration = Duration::from_millis(100);
/// Time between two lists while a runner is stopping: no watch tells when it accepts tasks again.
const STOPPING_CHECK_EVERY: Duration = Duration::from_secs(1);

/// Reads that are due or under way.
#[derive(Default)]
pub(crate) struct Reads {
    /// Whether all tasks and runners have been read once.
    pub(crate) is_loaded: bool,
    /// Boot time of the next full scan.
    pub(crate) reconcile_at: Option<Duration>,
    /// Boot time of the next read of the runners.
    pub(crate) fleet_at: Option<Duration>,
    /// Earliest time at which the runners are read.
    fleet_not_before: Duration,
    is_listing: bool,
    is_listed: bool,
    is_reading_fleet: bool,
    /// Record to read after a reconnect before anything is decided: if history was lost, this record most likely shows
    /// it.
    in_doubt: Option<TaskId>,
    watch: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    queued: BTreeSet<TaskId>,
    inflight: BTreeSet<TaskId>,
    paused_until: Duration,
}

impl std::fmt::Debug for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reads").field("is_loaded", &self.is_loaded).field("queued", &self.queued.len()).finish()
    }
}

impl Reads {
    /// Queues a read of a task whose record may have changed.
    pub(crate) fn queue_read(&mut self, id: TaskId) {
        self.queued.insert(id);
    }

    /// Returns the number of reads that are under way or wait.
    pub(crate) fn len(&self) -> usize {
        self.queued.len() + self.inflight.len()
    }

    /// Handles a reconnect: watches may have been lost. Jittered, as every node does the same. The record of the
    /// `latest` change is read at once.
    pub(crate) fn on_reconnect(&mut self, now: Duration, latest: Option<TaskId>) {
        self.fleet_at = Some(now);
        self.reconcile_at = Some(now + Duration::from_millis(fastrand::u64(0..1000)));
        self.queued.extend(latest.clone());
        self.in_doubt = latest;
    }

    /// Tells whether decisions may be made: everything has been read, and the record in doubt has been read again.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_loaded && self.in_doubt.is_none()
    }

    /// Waits for the watch on the runners; then they are due to be read.
    pub(crate) async fn fleet_changed(&mut self) {
        match &mut self.watch {
            None => std::future::pending().await,
            Some(watch) => watch.await,
        }
        self.watch = None;
        self.queue_fleet_read();
    }

    /// Makes the runners due to be read soon.
    pub(crate) fn queue_fleet_read(&mut self) {
        self.fleet_at = Some(self.fleet_not_before);
    }

    /// Returns the time of the next read.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let tasks = (!self.queued.is_empty()).then_some(self.paused_until);
        let fleet = self.fleet_at.filter(|_| !self.is_reading_fleet);
        let list = self.reconcile_at.filter(|_| !self.is_listing);
        [tasks, fleet, list].into_iter().flatten().min().map(|at| at.max(self.paused_until))
    }
}

impl Dispatcher {
    /// Starts the reads that are due.
    pub(crate) fn start_reads(&mut self, now: Duration, is_connected: bool) {
        if !is_connected || self.reads.paused_until > now {
            return;
        }
        if !self.reads.is_listing && self.reads.reconcile_at.is_some_and(|at| at <= now) {
            (self.reads.is_listing, self.reads.reconcile_at) = (true, None);
            let session = self.writer.session.clone();
            crate::async_spawn::spawn_into(&mut self.jobs, async move { Event::Listed(list_tasks(session).await) });
        }
        while self.reads.inflight.len() < READS_MAX {
            let Some(id) = self.reads.queued.iter().find(|id| !self.reads.inflight.contains(id)).cloned() else {
                break;
            };
            self.reads.queued.remove(&id);
            self.reads.inflight.insert(id.clone());
            let (session, is_hint) = (self.writer.session.clone(), self.reads.is_loaded);
            let known = self.cluster.tasks.get(&id).map(RecordVersion::of);
            crate::async_spawn::spawn_into(&mut self.jobs, async move {
                Event::Read { read: read_task(&*session, &id, is_hint).await, task: id, known }
            });
        }
        // The runners are read after the tasks. Otherwise a runner that registers in between would look lost.
        let is_settled = self.reads.is_loaded || (self.reads.is_listed && self.reads.len() == 0);
        if is_settled && !self.reads.is_reading_fleet && self.reads.fleet_at.is_some_and(|at| at <= now) {
            (self.reads.is_reading_fleet, self.reads.fleet_at) = (true, None);
            let (session, is_first) = (self.writer.session.clone(), !self.reads.is_loaded);
            let observed = self.cluster.observed();
            crate::async_spawn::spawn_into(&mut self.jobs, async move {
                let read = read_fleet(session, is_first).await;
                Event::Fleet(read.map(|(fleet, watch)| (FleetRead { observed, ..fleet }, watch)))
            });
        }
    }

    /// Applies the list of all tasks: unknown ones and those that may have changed are read.
    pub(crate) fn apply_list(&mut self, listed: Result<Vec<String>, CoordError>) {
        let now = self.clock.boot_time();
        self.reads.is_listing = false;
        let names = match listed {
            Ok(names) => names,
            Err(error) => return self.read_failed(&error, |reads| reads.reconcile_at = Some(now + RETRY_AFTER)),
        };
        let every = self.config.reconcile_every;
        self.reads.reconcile_at = Some(now + every.mul_f64(0.9 + 0.2 * fastrand::f64()));
        self.reads.is_listed = true;
        self.reads.queue_fleet_read();
        let mut listed_ids = BTreeSet::new();
        for name in names {
            match TaskId::new(name.clone()) {
                Ok(id) => {
                    listed_ids.insert(id);
                }
                Err(error) => self.report_undecodable(format!("{}/../{name}", paths::TASKS), error.message),
            }
        }
        let held: Vec<TaskId> = self.cluster.tasks.held().cloned().collect();
        let gone: Vec<TaskId> = self.cluster.tasks.ids().filter(|id| !listed_ids.contains(id)).cloned().collect();
        self.reads.queued.extend(held.into_iter().chain(gone));
        self.reads.queued.extend(listed_ids.into_iter().filter(|id| self.cluster.tasks.get(id).is_none()));
    }

    /// Applies a record that was read; `known` is the state of the record when the read started.
    pub(crate) fn apply_read(
        &mut self,
        id: &TaskId,
        known: Option<&RecordVersion>,
        read: Result<Option<Znode>, CoordError>,
    ) {
        self.reads.inflight.remove(id);
        let was_in_doubt = read.is_ok() && self.reads.in_doubt.take_if(|in_doubt| in_doubt == id).is_some();
        if was_in_doubt && matches!(read, Ok(None)) {
            // Other records may be deleted, too: all are read again.
            self.reads.queued.extend(self.cluster.tasks.ids().cloned());
        }
        match read {
            Ok(node) if known.is_some_and(|known| known.is_contradicted_by_node(node.as_ref())) => {
                self.on_history_lost(&paths::task(id))
            }
            Ok(node) => self.observe_node(id, node),
            Err(error) => {
                let id = id.clone();
                self.read_failed(&error, |reads| reads.queue_read(id));
            }
        }
    }

    /// Applies the runners that were read.
    pub(crate) fn apply_fleet(&mut self, read: Result<(FleetRead, Watch), CoordError>) {
        let now = self.clock.boot_time();
        self.reads.is_reading_fleet = false;
        let (fleet, watch) = match read {
            Ok(read) => read,
            Err(error) => return self.read_failed(&error, |reads| reads.fleet_at = Some(now + RETRY_AFTER)),
        };
        self.reads.watch = Some(Box::pin(watch.fired()));
        self.reads.fleet_not_before = now + FLEET_EVERY;
        self.reads.fleet_at = self.reads.fleet_at.map(|at| at.max(now + FLEET_EVERY));
        if fleet.runners.values().any(|registration| registration.stopping) {
            self.reads.fleet_at.get_or_insert(now + STOPPING_CHECK_EVERY);
        }
        self.cluster.set_level(fleet.level);
        self.cluster.fleet.set_abilities(fleet.abilities);
        self.cluster.fleet.refused = fleet.refused;
        self.cluster.set_unreadable(fleet.unreadable, now);
        self.cluster.observe_runners(fleet.runners, fleet.observed, now);
        for (address, nodes) in self.cluster.fleet.find_conflicts() {
            let nodes = nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                address,
                nodes,
                "several nodes have registered one address: give each its own by --advertise"
            );
        }
        for (path, why) in &fleet.undecodable {
            if self.cluster.fleet.undecodable.get(path) != Some(why) {
                tracing::error!(path, why, "cannot decode a record: leaving it alone");
            }
        }
        self.cluster.fleet.undecodable = fleet.undecodable;
        if !self.reads.is_loaded {
            for (node, drain) in fleet.drains {
                if drain.0.now {
                    self.cluster.interrupts.insert(node.clone(), now);
                }
                self.cluster.fleet.set_drain(&node, Some(drain));
            }
            if let Some(node) = &fleet.settings {
                self.load_settings(node);
            }
            for (name, node) in fleet.schedules {
                self.load_schedule(&name, &node);
            }
            self.reads.is_loaded = true;
            tracing::info!(
                tasks = self.cluster.tasks.len(),
                epoch = self.writer.leader_term.epoch().0,
                "all tasks read"
            );
        }
    }

    /// Applies a schedule as it was read. Afterwards this leader alone changes it.
    fn load_schedule(&mut self, name: &str, node: &Znode) {
        let path = format!("{}/{name}", paths::SCHEDULES);
        let why = match ScheduleRecord::decode(&node.data) {
            Ok(record) if record.name.as_str() == name => {
                return self.observe_schedule(record, node.stat.version, self.now());
            }
            Ok(record) => format!("names itself {}", record.name),
            Err(error) => error.to_string(),
        };
        tracing::error!(path, why, "cannot decode a record: leaving it alone");
        self.cluster.schedules.undecodable.insert(path, why);
    }

    fn read_failed(&mut self, error: &CoordError, again: impl FnOnce(&mut Reads)) {
        if let CoordError::Ended(_) = error {
            self.ending = Some(super::TermEnd::SessionOver);
        }
        tracing::debug!(%error, "read failed");
        again(&mut self.reads);
        self.reads.paused_until = self.clock.boot_time() + RETRY_AFTER;
    }
}

/// Reads a record. A hint may overtake the write that it is about, so after a hint the read includes every write that
/// was committed before.
async fn read_task(session: &dyn Session, id: &TaskId, is_hint: bool) -> Result<Option<Znode>, CoordError> {
    if is_hint {
        session.sync().await?;
    }
    session.get(&paths::task(id)).await
}

/// Lists the names of all tasks.
async fn list_tasks(session: Arc<dyn Session>) -> Result<Vec<String>, CoordError> {
    session.sync().await?;
    let folders = paths::shards().map(|shard| format!("{}/{shard}", paths::TASKS));
    let listed = read_all(folders.collect(), {
        let session = session.clone();
        move |folder| {
            let session = session.clone();
            async move { session.children(&folder).await }
        }
    });
    Ok(listed.await?.into_values().flatten().collect())
}

/// Reads the registered runners and the drain records, the first time also settings and schedules, and sets a watch that
/// fires when a runner comes or goes.
async fn read_fleet(session: Arc<dyn Session>, is_first: bool) -> Result<(FleetRead, Watch), CoordError> {
    session.sync().await?;
    let (nodes, watch) = session.children_and_watch(paths::RUNNERS).await?;
    let drains = session.children(paths::DRAINS).await?;
    let refused = session.children(paths::REFUSED).await?;
    let schedules = if is_first { session.children(paths::SCHEDULES).await? } else { Vec::new() };
    let schedules = schedules.iter().map(|name| format!("{}/{name}", paths::SCHEDULES));
    let runners = nodes.iter().map(|node| paths::runner(node));
    let runners = runners.chain(nodes.iter().map(|node| paths::abilities(node)));
    let runners = runners.chain(refused.iter().map(|name| format!("{}/{name}", paths::REFUSED)));
    let paths = runners.chain(drains.iter().map(|node| paths::drain(node))).chain(schedules);
    let read = read_all(paths.collect(), {
        let session = session.clone();
        move |path| {
            let session = session.clone();
            async move { session.get(&path).await }
        }
    });
    let settings = if is_first { session.get(paths::SETTINGS).await? } else { None };
    let mut fleet = FleetRead { settings, ..FleetRead::default() };
    for (path, node) in read.await? {
        let Some(node) = node else { continue };
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        if path.starts_with(paths::SCHEDULES) {
            fleet.schedules.push((name, node));
            continue;
        }
        if path.starts_with(paths::ABILITIES) {
            // What cannot be decoded announces nothing.
            if let Ok((name, able)) = decode::<Abilities>(&node.data, name) {
                fleet.abilities.insert(name, able);
            }
            continue;
        }
        if path.starts_with(paths::REFUSED) {
            if let Ok(process) = Registration::decode(&node.data) {
                fleet.refused.entry(process.node).or_default().insert(process.address);
            }
            continue;
        }
        let decoded = if path.starts_with(paths::RUNNERS) {
            fleet.unreadable.extend(NodeId::new(name.as_str()));
            decode::<Registration>(&node.data, name).and_then(|(name, registration)| {
                if registration.node != name {
                    return Err(format!("names itself {}", registration.node));
                }
                fleet.unreadable.remove(&name);
                fleet.runners.insert(name, registration);
                Ok(())
            })
        } else {
            decode::<Drain>(&node.data, name).map(|(name, drain)| {
                fleet.drains.insert(name, (drain, node.stat.version));
            })
        };
        if let Err(why) = decoded {
            fleet.undecodable.insert(path, why);
        }
    }
    let meta = session.get(paths::META).await?;
    fleet.level = match meta.and_then(|node| Some((Meta::decode(&node.data).ok()?, node.stat.version))) {
        Some((meta, version)) if meta.schema < LEVEL => {
            let absent = read_absent(&session, &fleet).await?;
            Some(CenterLevel { meta, version, absent })
        }
        Some((meta, version)) => Some(CenterLevel { meta, version, absent: BTreeMap::new() }),
        None => None,
    };
    Ok((fleet, watch))
}

/// Reads when each node that was registered once, and is not now, has renewed its lease last.
async fn read_absent(session: &Arc<dyn Session>, fleet: &FleetRead) -> Result<BTreeMap<String, u64>, CoordError> {
    let mut absent = BTreeMap::new();
    for name in session.children(paths::LEASES).await? {
        let is_there = |node: NodeId| fleet.runners.contains_key(&node);
        if NodeId::new(name.as_str()).is_ok_and(is_there) {
            continue;
        }
        let node = session.get(&paths::lease(&name)).await?;
        let renewal = node.and_then(|node| Renewal::decode(&node.data).ok());
        // One that cannot be read is as good as a new one.
        absent.insert(name, renewal.map_or(u64::MAX, |renewal| renewal.unix_ms));
    }
    Ok(absent)
}

fn decode<R: Record>(data: &[u8], name: String) -> Result<(NodeId, R), String> {
    let name = NodeId::new(name).map_err(|error| error.message)?;
    R::decode(data).map(|record| (name, record)).map_err(|error| error.to_string())
}

/// Reads paths, many at once, into one result by path.
async fn read_all<T, F>(paths: Vec<String>, read: impl Fn(String) -> F) -> Result<BTreeMap<String, T>, CoordError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, CoordError>> + Send + 'static,
{
    let mut jobs = JoinSet::new();
    let mut found = BTreeMap::new();
    let mut paths = paths.into_iter();
    loop {
        while jobs.len() < READS_MAX
            && let Some(path) = paths.next()
        {
            let job = read(path.clone());
            crate::async_spawn::spawn_into(&mut jobs, async move { (path, job.await) });
        }
        match jobs.join_next().await {
            None => return Ok(found),
            Some(Ok((path, read))) => found.insert(path, read?),
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) => None,
        };
    }
}
