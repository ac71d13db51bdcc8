//! Carries out what clients ask of schedules: one write at a time for each, on the record as it is then.

use super::Dispatcher;
use super::event::ScheduleOrigin;
use super::handle::{NewSchedule, PAGE_MAX, Reply, ScheduleCommand, ScheduleView};
use super::level::check_level;
use super::now::Now;
use super::requests::{NEW_BYTES_MAX, check_size, order_bytes};
use super::schedule_groups::needs_template;
use super::schedules::{ScheduleEntry, facts};
use super::write_schedule::ScheduleUpdate;
use crate::model::schedule::{Facts, Predecessor, check_members, encode_members};
use crate::model::{
    Actor, MemberTemplate, OpId, Record, ScheduleName, ScheduleRecord, ScheduleState, Submission, TaskId, TaskRecord,
    Trigger,
};
use blockhaul_engine::error::{Code, Detail, Error, Operation, Result, Side};
use std::collections::VecDeque;

/// Most firings of all schedules together, a second.
const RATE_MAX: f64 = 5.0;
/// Most schedules.
const SCHEDULES_MAX: usize = 20_000;
/// Number of instants that a client is shown.
const NEXT_SHOWN: usize = 5;

/// Command that waits for an earlier write of its schedule.
#[derive(Debug)]
pub(crate) struct ScheduleRequest {
    name: ScheduleName,
    command: ScheduleCommand,
    by: Actor,
    reply: Reply<ScheduleView>,
}

/// Change that a command makes.
struct Change {
    update: ScheduleUpdate,
    /// Task that is cancelled after it.
    cancelled: Option<TaskId>,
}

impl Dispatcher {
    /// Queues a command of a client.
    pub(crate) fn queue_schedule_request(
        &mut self,
        name: ScheduleName,
        command: ScheduleCommand,
        by: Actor,
        reply: Reply<ScheduleView>,
    ) {
        self.schedule_requests.push_back(ScheduleRequest { name, command, by, reply });
    }

    /// Starts the writes of all commands whose schedules have no other write under way.
    pub(crate) fn start_schedule_requests(&mut self, now: Now) {
        let mut waiting = VecDeque::new();
        for request in std::mem::take(&mut self.schedule_requests) {
            let is_earlier = |earlier: &ScheduleRequest| earlier.name == request.name;
            let is_held = self.cluster.schedules.is_being_written(&request.name) || self.has_to_wait(&request);
            if is_held || waiting.iter().any(is_earlier) {
                waiting.push_back(request);
            } else {
                self.start_schedule_request(request, now);
            }
        }
        self.schedule_requests = waiting;
    }

    /// Tells whether a request has to wait until the members of the schedule's last group are stored, as they are made
    /// from the template that it replaces or removes.
    fn has_to_wait(&self, ScheduleRequest { name, command, .. }: &ScheduleRequest) -> bool {
        let changes_template = match command {
            ScheduleCommand::Add(new) => {
                let known = self.cluster.schedules.get(name);
                !new.cancel_live && known.is_some_and(|entry| entry.record.request != new.request)
            }
            ScheduleCommand::Remove { cancel_live } => !cancel_live,
            ScheduleCommand::Pause
            | ScheduleCommand::Resume
            | ScheduleCommand::Run
            | ScheduleCommand::RunSigned { .. }
            | ScheduleCommand::RefireFrom(_) => false,
        };
        changes_template && needs_template(&self.cluster, name)
    }

    fn start_schedule_request(&mut self, request: ScheduleRequest, now: Now) {
        let ScheduleRequest { name, command, by, reply } = request;
        let change = match command {
            ScheduleCommand::Add(new) => self.addition(*new, now),
            command => self.change(&name, &command, &by, now).map(Some),
        };
        match change {
            Err(error) => {
                let _ = reply.send(Err(error));
            }
            Ok(None) => {
                let view = self.view_schedule(&name, now).map(|view| ScheduleView { existed: true, ..view });
                let _ = reply.send(view);
            }
            Ok(Some(Change { update, cancelled })) => {
                let removed =
                    update.after.is_none().then(|| self.view_schedule(&name, now).ok().map(Box::new)).flatten();
                self.write_schedule(update, ScheduleOrigin::Client { reply, removed, cancelled, by });
            }
        }
    }

    /// Returns the change that adds or replaces a schedule; `None`: it is there already.
    fn addition(&self, new: NewSchedule, now: Now) -> Result<Option<Change>> {
        let known = self.cluster.schedules.get(&new.name);
        if let Some(entry) = known {
            let is_signed_anew = new.replace && entry.record.template.order != new.template.order;
            if entry.record.request == new.request && new.if_version.is_none() && !is_signed_anew {
                return Ok(None);
            }
            check_replacement(entry, &new)?;
        } else if new.if_version.is_some() {
            return Err(not_found(&new.name));
        } else if self.cluster.schedules.len() >= SCHEDULES_MAX {
            return Err(overloaded(format!("there are {SCHEDULES_MAX} schedules: remove some")));
        }
        let (version, cancels) = (known.map(|entry| entry.version), new.cancel_live);
        let last_task = known.and_then(|entry| entry.record.last_task.clone());
        let replaced = known.map_or(0, |entry| entry.record.version);
        let parts = encode_members(&new.members)?;
        let record = self.new_schedule(new, replaced + 1, last_task, now)?;
        let live = facts(&self.cluster, &record, now).predecessor;
        let cancelled = live.map(|live| live.id).filter(|_| cancels);
        let update = ScheduleUpdate {
            name: record.name.clone(),
            known: version,
            after: Some(record),
            members: Some(parts),
            task: None,
            unchanged: None,
        };
        Ok(Some(Change { update, cancelled }))
    }

    fn new_schedule(
        &self,
        new: NewSchedule,
        version: u32,
        last_task: Option<TaskId>,
        now: Now,
    ) -> Result<ScheduleRecord> {
        let NewSchedule { name, request, trigger, zone, template, members, catch_up, keep, .. } = new;
        let boot = trigger.boots_of().and_then(|node| self.cluster.fleet.get(node));
        let record = ScheduleRecord {
            request,
            version,
            seen_boot: boot.map(|there| there.boot_id.clone()),
            trigger,
            zone,
            template,
            parts: encode_members(&members)?.len() as u64,
            catch_up,
            keep,
            state: ScheduleState::Active,
            created_ms: now.unix_ms,
            considered_ms: now.unix_ms,
            last_fired_ms: None,
            last_task,
            fired: 0,
            skipped: 0,
            reason: String::new(),
            op: OpId::fresh(),
            unknown: crate::model::UnknownFields::default(),
            name,
        };
        let timer = record.timer()?;
        if !timer.has_instants(now.unix_ms) {
            return Err(match record.trigger {
                Trigger::Cron(_) => {
                    Error::bad_request("the cron expression never matches").with_detail(Detail::InvalidCron)
                }
                _ => Error::bad_request("that time has passed").with_detail(Detail::Expired),
            });
        }
        let rate = self.cluster.schedules.rate_without(&record.name) + timer.rate(now.unix_ms);
        if rate > RATE_MAX {
            let message =
                format!("all schedules together would fire {rate:.1} times a second: at most {RATE_MAX} will");
            return Err(overloaded(message));
        }
        self.check_tasks(&record, &members, now)?;
        match record.encode().len() - order_bytes(record.template.order.as_ref()) {
            0..=NEW_BYTES_MAX => Ok(record),
            bytes => Err(Error::bad_request(format!("the schedule has {bytes} bytes, at most {NEW_BYTES_MAX} fit"))),
        }
    }

    /// Checks the task that a new schedule would make now, and its members.
    fn check_tasks(&self, record: &ScheduleRecord, members: &[MemberTemplate], now: Now) -> Result<()> {
        let first = record.task_now(now.unix_ms)?;
        self.check_fence(&first)?;
        check_level(&self.cluster, &first)?;
        let wanted = first.spec.kind().group().map_or(0, |group| group.members as usize);
        if wanted != members.len() {
            return Err(Error::bad_request(format!("the batch has {} members, not {wanted}", members.len())));
        }
        check_members(members)?;
        for member in record.members(members, &first.id, now.unix_ms)? {
            self.check_fence(&member)?;
            check_size(&TaskRecord::new(member, now.unix_ms))?;
        }
        Ok(())
    }

    /// Returns the change that a command makes to a schedule that exists.
    fn change(&self, name: &ScheduleName, command: &ScheduleCommand, by: &Actor, now: Now) -> Result<Change> {
        let entry = self.cluster.schedules.get(name).ok_or_else(|| not_found(name))?;
        let facts = facts(&self.cluster, &entry.record, now);
        let record = &*entry.record;
        let mut task = None;
        let after = match command {
            ScheduleCommand::Pause if record.state == ScheduleState::Ended => return Err(ended(record)),
            ScheduleCommand::Pause => Some(ScheduleRecord { state: ScheduleState::Paused, ..record.clone() }),
            ScheduleCommand::Resume if record.state == ScheduleState::Ended => return Err(ended(record)),
            ScheduleCommand::Resume if record.state == ScheduleState::Active => Some(record.clone()),
            ScheduleCommand::Resume => Some(record.resumed(&facts)),
            ScheduleCommand::RefireFrom(from_ms) if *from_ms > now.unix_ms => {
                return Err(Error::bad_request("that time has not come: give one that has passed"));
            }
            ScheduleCommand::RefireFrom(from_ms) => Some(record.refired_from(*from_ms)),
            ScheduleCommand::Run => {
                let submission = idle_task(record, &facts, |record| record.task_now(facts.now_ms))?;
                let after = record.run(&submission, now.unix_ms);
                task = Some(self.task_of_schedule(name, submission, by.clone(), now));
                Some(after)
            }
            ScheduleCommand::RunSigned { at_ms, order } => {
                let submission = idle_task(record, &facts, |record| record.task_at(*at_ms, order.clone()))?;
                let after = record.run(&submission, *at_ms);
                task = Some(self.task_of_schedule(name, submission, by.clone(), now));
                Some(after)
            }
            ScheduleCommand::Remove { .. } | ScheduleCommand::Add(_) => None,
        };
        let after = after.map(|after| ScheduleRecord { op: OpId::fresh(), ..after });
        let is_cancelled = matches!(command, ScheduleCommand::Remove { cancel_live: true });
        let cancelled = facts.predecessor.map(|live| live.id).filter(|_| is_cancelled);
        let known = Some(entry.version);
        let update = ScheduleUpdate { name: name.clone(), known, after, members: None, task, unchanged: None };
        Ok(Change { update, cancelled })
    }

    /// Answers a client with a schedule as it is now.
    pub(crate) fn answer_about_schedule(&mut self, name: &ScheduleName, reply: Reply<ScheduleView>) {
        let _ = reply.send(self.view_schedule(name, self.now()));
    }

    fn view_schedule(&self, name: &ScheduleName, now: Now) -> Result<ScheduleView> {
        let entry = self.cluster.schedules.get(name).ok_or_else(|| not_found(name))?;
        Ok(self.view(entry, now))
    }

    /// Returns a page of schedules.
    pub(crate) fn list_schedules(&self, after: Option<&ScheduleName>) -> Vec<ScheduleView> {
        let now = self.now();
        self.cluster.schedules.page(after).take(PAGE_MAX).map(|entry| self.view(entry, now)).collect()
    }

    fn view(&self, entry: &ScheduleEntry, now: Now) -> ScheduleView {
        let mut record = (*entry.record).clone();
        if record.state == ScheduleState::Active
            && let Some(reason) = self.standstill_reason(entry, now)
        {
            record.reason = if record.reason.is_empty() { reason } else { format!("{reason} ({})", record.reason) };
        }
        let live = facts(&self.cluster, &entry.record, now).predecessor;
        let next_ms = match record.state {
            ScheduleState::Active => record.next_instants(&entry.timer, NEXT_SHOWN),
            ScheduleState::Paused | ScheduleState::Ended => Vec::new(),
        };
        ScheduleView { record, next_ms, live_task: live.map(|live| live.id), existed: false }
    }

    /// Explains why a schedule makes no task although it may be time; `None`: it will.
    fn standstill_reason(&self, entry: &ScheduleEntry, now: Now) -> Option<String> {
        if let Some(failure) = &entry.failure {
            return Some(failure.clone());
        }
        if let Some(reason) = entry.record.stuck_reason(now.unix_ms) {
            return Some(reason);
        }
        if !now.is_clock_right {
            let node = &self.writer.leader_term.leader().node;
            return Some(format!("the clock of the leader {node} is off its peers', or not compared yet"));
        }
        let is_due = entry.record.next_instant(&entry.timer).is_some_and(|instant| instant <= now.unix_ms);
        if is_due && self.cluster.tasks.len() - self.cluster.tasks.ended().len() >= self.limits.tasks_max {
            return Some(String::from("too many tasks have not ended: wait for some, or cancel them"));
        }
        let node = entry.record.trigger.boots_of()?;
        self.cluster.fleet.get(node).is_none().then(|| format!("{node} is not registered"))
    }
}

/// Refuses to replace a schedule unless its client means exactly that one.
fn check_replacement(entry: &ScheduleEntry, new: &NewSchedule) -> Result<()> {
    let version = entry.record.version;
    let message = match new.if_version {
        Some(wanted) if wanted != version => format!("schedule {} has version {version}, not {wanted}", new.name),
        _ if !new.replace => {
            format!("another schedule has the name {}: choose another name, or add --replace", new.name)
        }
        _ => return Ok(()),
    };
    Err(Error::new(Code::Exists, Side::Caller, Operation::Parse, message))
}

/// Returns the task that a schedule makes now, unless its last one is live.
fn idle_task(
    record: &ScheduleRecord,
    facts: &Facts,
    task: impl FnOnce(&ScheduleRecord) -> Result<Submission>,
) -> Result<Submission> {
    match &facts.predecessor {
        None => task(record),
        Some(Predecessor { id, state, .. }) => {
            let message = format!("its last task {id} is {}: wait for its end, or cancel it", state.as_str());
            Err(Error::new(Code::Busy, Side::Caller, Operation::Parse, message))
        }
    }
}

fn ended(record: &ScheduleRecord) -> Error {
    let message = format!("schedule {} has ended: it has no instant left", record.name);
    Error { retryable: false, ..Error::new(Code::Busy, Side::Caller, Operation::Parse, message) }
}

fn not_found(name: &ScheduleName) -> Error {
    Error::new(Code::NotFound, Side::Caller, Operation::Parse, format!("no schedule {name}"))
}

fn overloaded(message: String) -> Error {
    Error::new(Code::Overloaded, Side::Coordination, Operation::Write, message)
}
