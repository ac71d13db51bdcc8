//! Renders a schedule for its readers: the one JSON object of the commands about schedules.

use super::wire;
use crate::model::{Summary, TaskSpec, duration_text};
use crate::timestamp::Timestamp;
use serde::Serialize;

/// Schedule for people and scripts. What does not apply is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScheduleInfo {
    /// Its name.
    pub name: String,
    /// `ACTIVE`, `PAUSED` or `ENDED`.
    pub state: String,
    /// Why its last instant has made no task, or why it makes none now; empty if it does.
    pub reason: String,
    /// When it fires, as its flags say: `--cron '0 2 * * *'`.
    pub trigger: String,
    /// IANA name of its time zone.
    pub zone: String,
    /// `once` or `none`.
    pub catch_up: &'static str,
    /// Number of its ended tasks that are kept.
    pub keep: u32,
    /// 1 when it was added, one more with each replacement.
    pub version: u32,
    /// When it was added.
    pub created_at: Timestamp,
    /// Last instant that has fired.
    pub last_fired_at: Option<Timestamp>,
    /// Last task that it has made.
    pub last_task: Option<String>,
    /// Whether that task is live.
    pub is_live: bool,
    /// Next instants, at most five.
    pub next_at: Vec<Timestamp>,
    /// Number of tasks that it has made.
    pub fired: u64,
    /// Number of instants at which it has made none.
    pub skipped: u64,
    /// Kind of its tasks: `copy`, `verify`, `run`, `noop` or `group`.
    pub kind: &'static str,
    /// Number of members of each of its groups.
    pub members: Option<u32>,
    /// Hook that they run.
    pub hook: Option<String>,
    /// Volume or receipt that they read, with patterns.
    pub source: Option<String>,
    /// Volume that they write or check, with patterns.
    pub destination: Option<String>,
    /// The only node that may run them.
    pub node: Option<String>,
}

impl From<wire::Schedule> for ScheduleInfo {
    fn from(schedule: wire::Schedule) -> Self {
        // A node of a later version may know kinds that this client does not.
        let unknown = || Summary { kind: "unknown", ..Summary::default() };
        let spec = TaskSpec::try_from(schedule.task.and_then(|task| task.spec));
        let members = spec.as_ref().ok().and_then(|spec| spec.kind().group()).map(|group| group.members);
        let Summary { kind, hook, source, destination, node, .. } =
            spec.map_or_else(|_| unknown(), |spec| spec.kind().summary());
        Self {
            name: schedule.name,
            state: schedule.state,
            reason: schedule.reason,
            trigger: flags(schedule.trigger),
            zone: schedule.zone,
            catch_up: if schedule.no_catch_up { "none" } else { "once" },
            keep: schedule.keep,
            version: schedule.version,
            created_at: Timestamp(schedule.created_ms),
            last_fired_at: schedule.last_fired_ms.map(Timestamp),
            last_task: schedule.last_task,
            is_live: schedule.is_live,
            next_at: schedule.next_ms.into_iter().map(Timestamp).collect(),
            fired: schedule.fired,
            skipped: schedule.skipped,
            kind,
            members,
            hook,
            source,
            destination,
            node: node.map(String::from),
        }
    }
}

impl ScheduleInfo {
    /// Tells whether it makes no task any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == "ENDED"
    }
}

/// Returns a trigger as the flags that ask for it.
fn flags(trigger: Option<wire::Trigger>) -> String {
    use wire::trigger::When;
    let duration = duration_text;
    match trigger.and_then(|trigger| trigger.when) {
        Some(When::Cron(expression)) => format!("--cron '{expression}'"),
        Some(When::Every(wire::Interval { interval_ms, from_ms: None })) => {
            format!("--every {}", duration(interval_ms))
        }
        Some(When::Every(wire::Interval { interval_ms, from_ms: Some(from_ms) })) => {
            format!("--every {} --from {}", duration(interval_ms), Timestamp(from_ms))
        }
        Some(When::AtMs(at_ms)) => format!("--at {}", Timestamp(at_ms)),
        Some(When::OnBoot(node)) => format!("--on-boot {node}"),
        Some(When::NextBoot(node)) => format!("--next-boot {node}"),
        None => String::from("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::trigger::When;

    #[test]
    fn a_trigger_is_shown_as_its_flags() {
        let shown = |when| flags(Some(wire::Trigger { when: Some(when) }));
        assert_eq!(shown(When::Cron(String::from("0 2 * * *"))), "--cron '0 2 * * *'");
        let every = |from_ms| When::Every(wire::Interval { interval_ms: 5_400_000, from_ms });
        assert_eq!(shown(every(None)), "--every 90m");
        assert_eq!(shown(every(Some(0))), "--every 90m --from 1970-01-01T00:00:00.000Z");
        assert_eq!(shown(When::AtMs(1000)), "--at 1970-01-01T00:00:01.000Z");
        assert_eq!(flags(None), "unknown");
    }
}
