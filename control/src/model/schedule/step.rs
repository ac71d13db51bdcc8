//! Decides what a schedule does next, and computes its record after that. Pure.
//!
//! Of several instants that have passed, the last one counts: the others are as if they had never been.

use super::template::{boot_id, instant_id};
use super::{CatchUp, MemberTemplate, ScheduleRecord, ScheduleState, Timer, Trigger};
use crate::model::{SignedOrder, Submission, TaskId, TaskState};
use crate::timestamp::Timestamp;
use blockhaul_engine::error::Result;
use jiff::Zoned;

/// Lateness from which an instant counts as missed: a change of leaders is shorter.
const MISSED_AFTER_MS: u64 = 60_000;
/// Lead of the last decided instant over the clock from which the clock of an earlier leader must have been wrong.
const AHEAD_MAX_MS: u64 = 5000;

/// What a schedule decides about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// This instant, in milliseconds since 1970.
    Instant(u64),
    /// The boot of this kernel's boot id.
    Boot(String),
}

/// Last task of a schedule, as long as it is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Predecessor {
    pub(crate) id: TaskId,
    pub(crate) state: TaskState,
    pub(crate) reason: String,
}

/// What a schedule sees when it decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Wall clock, in milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// Boot id of the node whose boots fire, while that node is registered.
    pub(crate) boot: Option<String>,
    pub(crate) predecessor: Option<Predecessor>,
}

/// Next step of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Make this task.
    Fire(Due, Box<Submission>),
    /// Make no task, for this reason.
    Skip(Due, SkipCause),
    /// It has no instant left, and its last task has ended.
    End,
}

/// Why an instant makes no task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SkipCause {
    /// The last task is still live.
    Live(Predecessor),
    /// Nobody was there for it.
    Missed,
    /// The template makes no valid task at this instant.
    Invalid(String),
}

impl ScheduleRecord {
    /// Returns the next step, if there is one now.
    pub(crate) fn next_step(&self, timer: &Timer, facts: &Facts) -> Option<Step> {
        if self.state != ScheduleState::Active {
            return None;
        }
        let Some(due) = self.due(timer, facts) else {
            let is_over = self.next_instant(timer).is_none() && !self.awaits_boot();
            return (is_over && facts.predecessor.is_none()).then_some(Step::End);
        };
        if let (Due::Instant(at_ms), CatchUp::None) = (&due, self.catch_up)
            && facts.now_ms.saturating_sub(*at_ms) > MISSED_AFTER_MS
        {
            return Some(Step::Skip(due, SkipCause::Missed));
        }
        if let Some(predecessor) = &facts.predecessor {
            return Some(Step::Skip(due, SkipCause::Live(predecessor.clone())));
        }
        match self.task(&due, facts.now_ms) {
            Ok(task) => Some(Step::Fire(due, Box::new(task))),
            Err(error) => Some(Step::Skip(due, SkipCause::Invalid(error.message))),
        }
    }

    /// Parses its trigger.
    ///
    /// # Errors
    /// As [`Trigger::timer`].
    pub(crate) fn timer(&self) -> Result<Timer> {
        self.trigger.timer(&self.zone, self.created_ms)
    }

    /// Returns the next instant that is not decided, in milliseconds since 1970.
    pub(crate) fn next_instant(&self, timer: &Timer) -> Option<u64> {
        timer.next(self.considered_ms)
    }

    /// Returns the next instants, at most `count`.
    pub(crate) fn next_instants(&self, timer: &Timer, count: usize) -> Vec<u64> {
        std::iter::successors(self.next_instant(timer), |last| timer.next(*last)).take(count).collect()
    }

    /// Explains why the schedule does not fire although its time may have come; `None`: it does.
    pub(crate) fn stuck_reason(&self, now_ms: u64) -> Option<String> {
        let is_ahead = self.considered_ms > now_ms.saturating_add(AHEAD_MAX_MS);
        (is_ahead && self.trigger.boots_of().is_none()).then(|| {
            format!(
                "its last instant, {}, is in the future: the clock of an earlier leader was wrong; \
                 'blockhaul schedule run {} --refire-from TIME' lets it fire again from a time on",
                Timestamp(self.considered_ms),
                self.name
            )
        })
    }

    fn due(&self, timer: &Timer, facts: &Facts) -> Option<Due> {
        if self.trigger.boots_of().is_some() {
            let boot = facts.boot.as_ref().filter(|boot| self.seen_boot.as_ref() != Some(*boot))?;
            return self.awaits_boot().then(|| Due::Boot(boot.clone()));
        }
        let last = timer.last(facts.now_ms)?;
        (last > self.considered_ms).then_some(Due::Instant(last))
    }

    /// Tells whether a boot can still fire.
    fn awaits_boot(&self) -> bool {
        match self.trigger {
            Trigger::OnBoot(_) => true,
            Trigger::NextBoot(_) => self.fired + self.skipped == 0,
            Trigger::Cron(_) | Trigger::Every { .. } | Trigger::At(_) => false,
        }
    }

    /// Returns the task of an instant or a boot.
    fn task(&self, due: &Due, now_ms: u64) -> Result<Submission> {
        match due {
            Due::Instant(at_ms) => {
                let at = self.local_time(*at_ms)?;
                self.template.task(instant_id(&self.name, &at)?, &at)
            }
            Due::Boot(boot) => self.template.task(boot_id(&self.name, boot)?, &self.local_time(now_ms)?),
        }
    }

    /// Returns the task of this very second, which its client asks for.
    ///
    /// # Errors
    /// `EBadRequest`: the template makes no valid task now.
    pub(crate) fn task_now(&self, now_ms: u64) -> Result<Submission> {
        self.task(&Due::Instant(now_ms - now_ms % 1000), now_ms)
    }

    /// Returns the task of an instant that its client has signed for it alone.
    ///
    /// # Errors
    /// `EBadRequest`: the template makes no valid task then.
    pub(crate) fn task_at(&self, at_ms: u64, order: SignedOrder) -> Result<Submission> {
        Ok(Submission { order: Some(order), ..self.task(&Due::Instant(at_ms), at_ms)? })
    }

    /// Returns the members of the group of an instant or a boot. `at_ms`: milliseconds since 1970.
    ///
    /// # Errors
    /// `EBadRequest`: the template makes no valid task at this instant.
    pub(crate) fn members<'a>(
        &self,
        members: impl IntoIterator<Item = &'a MemberTemplate>,
        group: &TaskId,
        at_ms: u64,
    ) -> Result<Vec<Submission>> {
        let at = self.local_time(at_ms)?;
        members.into_iter().map(|member| member.task(group, &at)).collect()
    }

    fn local_time(&self, unix_ms: u64) -> Result<Zoned> {
        super::trigger::local_time(unix_ms, &self.zone)
    }

    /// Returns the record after a step.
    pub(crate) fn after(&self, step: &Step, now_ms: u64) -> Self {
        let mut after = self.clone();
        match step {
            Step::Fire(due, task) => {
                after.decide(due);
                after.note_task(
                    task,
                    match due {
                        Due::Instant(at_ms) => *at_ms,
                        Due::Boot(_) => now_ms,
                    },
                );
            }
            Step::Skip(due, cause) => {
                after.decide(due);
                after.skipped += 1;
                let what = match due {
                    Due::Instant(at_ms) => Timestamp(*at_ms).to_string(),
                    Due::Boot(_) => String::from("the boot"),
                };
                after.reason = match cause {
                    SkipCause::Live(Predecessor { id, state, reason }) => {
                        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                        format!("{what} was skipped, as {id} was {}{why}", state.as_str())
                    }
                    SkipCause::Missed => format!("{what} was missed, and --catch-up is none"),
                    SkipCause::Invalid(why) => format!("{what} makes no valid task: {why}"),
                };
            }
            Step::End => after.state = ScheduleState::Ended,
        }
        after
    }

    /// Returns the record after its client has had it make a task now. That decides no instant.
    pub(crate) fn run(&self, task: &Submission, now_ms: u64) -> Self {
        let mut after = self.clone();
        after.note_task(task, now_ms - now_ms % 1000);
        after
    }

    fn note_task(&mut self, task: &Submission, at_ms: u64) {
        self.fired += 1;
        (self.last_fired_ms, self.last_task) = (Some(at_ms), Some(task.id.clone()));
        self.reason = String::new();
    }

    fn decide(&mut self, due: &Due) {
        match due {
            Due::Instant(at_ms) => self.considered_ms = *at_ms,
            Due::Boot(boot) => self.seen_boot = Some(boot.clone()),
        }
    }

    /// Returns the record after its client has resumed it: what was due meanwhile does not count.
    pub(crate) fn resumed(&self, facts: &Facts) -> Self {
        let mut after = self.clone();
        after.state = ScheduleState::Active;
        after.considered_ms = after.considered_ms.max(facts.now_ms);
        after.seen_boot = facts.boot.clone().or(after.seen_boot);
        after.reason = String::new();
        after
    }

    /// Returns the record whose instants from `from_ms` on are decided again.
    pub(crate) fn refired_from(&self, from_ms: u64) -> Self {
        let considered_ms = from_ms.saturating_sub(1);
        Self { considered_ms, state: ScheduleState::Active, reason: String::new(), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeId, NoopTask, OpId, PlacementRules, ScheduleName, TaskSpec, TaskTimes, UnknownFields};
    use proptest::prelude::*;

    fn record(trigger: Trigger) -> ScheduleRecord {
        ScheduleRecord::example("nightly", trigger, 10_000)
    }

    fn every_10_s() -> ScheduleRecord {
        record(Trigger::Every { interval_ms: 10_000, from_ms: None })
    }

    fn step(record: &ScheduleRecord, facts: &Facts) -> Option<Step> {
        record.next_step(&record.timer().unwrap(), facts)
    }

    fn at(now_ms: u64) -> Facts {
        Facts { now_ms, ..Facts::default() }
    }

    fn fired(step: Option<Step>) -> Option<String> {
        match step {
            Some(Step::Fire(_, task)) => Some(task.id.to_string()),
            _ => None,
        }
    }

    #[test]
    fn the_last_instant_that_has_passed_fires_once() {
        let record = every_10_s();
        assert_eq!(step(&record, &at(19_999)), None);
        let first = step(&record, &at(45_000)).unwrap();
        assert_eq!(fired(Some(first.clone())).unwrap(), "nightly.19700101T000040Z");
        let after = record.after(&first, 45_000);
        assert_eq!((after.considered_ms, after.last_fired_ms, after.fired), (40_000, Some(40_000), 1));
        assert_eq!(step(&after, &at(45_000)), None);
        // A clock that goes back changes nothing.
        assert_eq!(step(&after, &at(21_000)), None);
        assert!(fired(step(&after, &at(50_000))).is_some());
    }

    #[test]
    fn an_instant_whose_predecessor_is_live_is_skipped_and_says_so() {
        let record = every_10_s();
        let predecessor = Predecessor {
            id: TaskId::new("nightly.before").unwrap(),
            state: TaskState::Running,
            reason: String::from("slow"),
        };
        let facts = Facts { predecessor: Some(predecessor), ..at(20_000) };
        let skip = step(&record, &facts).unwrap();
        let after = record.after(&skip, 20_000);
        assert_eq!((after.considered_ms, after.skipped, after.fired), (20_000, 1, 0));
        assert!(after.reason.contains("as nightly.before was RUNNING: slow"), "{}", after.reason);
        let fire = step(&after, &at(30_000)).unwrap();
        assert_eq!(after.after(&fire, 30_000).reason, "");
    }

    #[test]
    fn missed_instants_fire_once_or_never_as_catch_up_says() {
        let late = at(20_000 + 3_600_000 + 61_000);
        let once = record(Trigger::At(20_000));
        assert!(fired(step(&once, &late)).is_some());
        let never = ScheduleRecord { catch_up: CatchUp::None, ..once };
        let skip = step(&never, &late).unwrap();
        assert_eq!(skip, Step::Skip(Due::Instant(20_000), SkipCause::Missed));
        // A change of leaders is no outage.
        assert!(fired(step(&never, &at(50_000))).is_some());
    }

    #[test]
    fn a_schedule_without_instants_ends_with_its_last_task() {
        let record = record(Trigger::At(20_000));
        let fire = step(&record, &at(20_000)).unwrap();
        let after = record.after(&fire, 20_000);
        let id = after.last_task.clone().unwrap();
        let live = Predecessor { id, state: TaskState::Pending, reason: String::new() };
        assert_eq!(step(&after, &Facts { predecessor: Some(live), ..at(30_000) }), None);
        assert_eq!(step(&after, &at(30_000)), Some(Step::End));
        let ended = after.after(&Step::End, 30_000);
        assert_eq!((ended.state, step(&ended, &at(40_000))), (ScheduleState::Ended, None));
    }

    #[test]
    fn boots_fire_once_each_and_a_restart_of_the_process_never() {
        let node = NodeId::new("n1").unwrap();
        let boot = |id: &str| Facts { boot: Some(id.to_owned()), ..at(50_000) };
        let each = ScheduleRecord { seen_boot: Some(String::from("a")), ..record(Trigger::OnBoot(node.clone())) };
        assert_eq!((step(&each, &boot("a")), step(&each, &at(50_000))), (None, None));
        let fire = step(&each, &boot("b")).unwrap();
        let id = fired(Some(fire.clone())).unwrap();
        let digits = id.strip_prefix("nightly.boot-").unwrap();
        assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
        let after = each.after(&fire, 50_000);
        assert_eq!(step(&after, &boot("b")), None);
        assert!(fired(step(&after, &boot("c"))).is_some());
        let next = ScheduleRecord { trigger: Trigger::NextBoot(node), ..each };
        let after = next.after(&step(&next, &boot("b")).unwrap(), 50_000);
        assert_eq!(step(&after, &boot("c")), Some(Step::End));
    }

    #[test]
    fn a_pause_leaves_out_what_was_due_and_a_future_instant_is_told_and_repaired() {
        let paused = ScheduleRecord { state: ScheduleState::Paused, ..every_10_s() };
        assert_eq!(step(&paused, &at(45_000)), None);
        let resumed = paused.resumed(&at(45_000));
        assert_eq!(step(&resumed, &at(49_999)), None);
        assert!(fired(step(&resumed, &at(50_000))).is_some());
        let ahead = ScheduleRecord { considered_ms: 1_000_000, ..every_10_s() };
        assert!(ahead.stuck_reason(45_000).unwrap().contains("--refire-from"));
        assert_eq!((step(&ahead, &at(45_000)), ahead.stuck_reason(999_000)), (None, None));
        let repaired = ahead.refired_from(40_000);
        assert_eq!(fired(step(&repaired, &at(45_000))).unwrap(), "nightly.19700101T000040Z");
    }

    proptest! {
        /// Whatever clocks do: no instant fires twice, and the last one before the end has fired.
        #[test]
        fn instants_fire_in_order_and_at_most_once(
            interval in 1..100_u64,
            clocks in prop::collection::vec(10_000..2_000_000_u64, 1..60),
        ) {
            let mut record = record(Trigger::Every { interval_ms: interval * 1000, from_ms: Some(20_000) });
            let timer = record.timer().unwrap();
            let mut fired: Vec<u64> = Vec::new();
            for now in &clocks {
                while let Some(step) = record.next_step(&timer, &at(*now)) {
                    if let Step::Fire(Due::Instant(instant), _) = &step {
                        prop_assert!(fired.last().is_none_or(|last| last < instant) && instant <= now);
                        fired.push(*instant);
                    }
                    record = record.after(&step, *now);
                }
            }
            let latest = clocks.iter().max().copied().unwrap_or_default();
            prop_assert_eq!(fired.last().copied(), timer.last(latest));
        }
    }

    impl ScheduleRecord {
        fn example(name: &str, trigger: Trigger, created_ms: u64) -> Self {
            let spec = TaskSpec::Noop(NoopTask { milliseconds: 1, node: None, unknown: UnknownFields::default() });
            let template = super::super::Template {
                spec,
                priority: 5,
                max_attempts: 1,
                times: TaskTimes::default(),
                placement: PlacementRules::default(),
                windows: Vec::new(),
                order: None,
            };
            Self {
                name: ScheduleName::new(name).unwrap(),
                request: String::new(),
                version: 1,
                trigger,
                zone: String::from("UTC"),
                template,
                parts: 0,
                catch_up: CatchUp::Once,
                keep: 10,
                state: ScheduleState::Active,
                created_ms,
                considered_ms: created_ms,
                last_fired_ms: None,
                last_task: None,
                seen_boot: None,
                fired: 0,
                skipped: 0,
                reason: String::new(),
                op: OpId(String::from("op")),
                unknown: UnknownFields::default(),
            }
        }
    }
}
