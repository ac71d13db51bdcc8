//! Defines the triggers of schedules, and computes the instants at which they fire. Pure.
//!
//! Instants are whole seconds: the ids of the tasks that a schedule makes name them.

use super::cron::CronSchedule;
use crate::model::NodeId;
use blockhaul_engine::error::{Detail, Error, Result};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

/// Longest interval: 1,000 days.
const INTERVAL_MAX_MS: u64 = 1000 * 24 * 60 * 60 * 1000;
/// Instants from which the rate of an expression is estimated.
const RATE_SAMPLE: usize = 64;
/// Length of a cron expression at most, in bytes.
const EXPRESSION_BYTES_MAX: usize = 200;

/// When a schedule fires, as its client asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// A cron expression, in the zone of the schedule.
    Cron(String),
    /// Again and again.
    Every {
        /// Time between two instants, in milliseconds.
        interval_ms: u64,
        /// An instant that the others count from; `None`: when the schedule was added, which is no instant itself. In
        /// milliseconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from_ms: Option<u64>,
    },
    /// Once, at this instant, in milliseconds since 1970.
    At(u64),
    /// Each boot of this node.
    OnBoot(NodeId),
    /// The next boot of this node.
    NextBoot(NodeId),
}

/// Trigger whose expression and zone have been parsed.
#[derive(Clone, Debug)]
pub(crate) enum Timer {
    Cron(Box<CronSchedule>),
    Every {
        interval_ms: u64,
        first_ms: u64,
    },
    At(u64),
    /// No instant, but the boots of a node.
    Boot,
}

impl Trigger {
    /// Parses the trigger of a schedule in this time zone that was added then.
    ///
    /// # Errors
    /// `EBadRequest` with the detail `InvalidTimeZone`, `InvalidCron`, `InvalidInterval`, `IntervalTooLarge` or
    /// `InvalidTime`.
    pub(crate) fn timer(&self, zone: &str, created_ms: u64) -> Result<Timer> {
        let zone = parse_zone(zone)?;
        match self {
            Self::Cron(expression) if expression.len() > EXPRESSION_BYTES_MAX => {
                let message = format!("the cron expression has more than {EXPRESSION_BYTES_MAX} bytes");
                Err(Error::bad_request(message).with_detail(Detail::InvalidCron))
            }
            Self::Cron(expression) => {
                CronSchedule::parse(expression, zone).map(|cron| Timer::Cron(Box::new(cron))).map_err(|why| {
                    let message = format!("invalid cron expression '{}': {why}", expression.escape_debug());
                    Error::bad_request(message).with_detail(Detail::InvalidCron)
                })
            }
            Self::Every { interval_ms, .. } if *interval_ms == 0 || !interval_ms.is_multiple_of(1000) => {
                let message = "an interval is a number of whole seconds, and at least one";
                Err(Error::bad_request(message).with_detail(Detail::InvalidInterval))
            }
            Self::Every { interval_ms, .. } if *interval_ms > INTERVAL_MAX_MS => {
                Err(Error::bad_request("an interval is at most 1,000 days").with_detail(Detail::IntervalTooLarge))
            }
            Self::Every { from_ms: Some(instant), .. } | Self::At(instant) if !is_instant(*instant) => {
                let message = format!("{instant} ms since 1970 is no instant of a schedule: whole seconds until 9999");
                Err(Error::bad_request(message).with_detail(Detail::InvalidTime))
            }
            Self::Every { interval_ms, from_ms } => {
                let first_ms = from_ms.unwrap_or(created_ms - created_ms % 1000 + interval_ms);
                Ok(Timer::Every { interval_ms: *interval_ms, first_ms })
            }
            Self::At(at) => Ok(Timer::At(*at)),
            Self::OnBoot(_) | Self::NextBoot(_) => Ok(Timer::Boot),
        }
    }

    /// Returns the node whose boots fire.
    pub(crate) fn boots_of(&self) -> Option<&NodeId> {
        match self {
            Self::OnBoot(node) | Self::NextBoot(node) => Some(node),
            Self::Cron(_) | Self::Every { .. } | Self::At(_) => None,
        }
    }
}

/// Returns the time zone of this IANA name.
///
/// # Errors
/// `EBadRequest` with the detail `InvalidTimeZone`.
pub(crate) fn parse_zone(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|_| {
        let name = name.chars().take(60).collect::<String>();
        let message = format!("unknown time zone '{}': use an IANA name, as Europe/Berlin", name.escape_debug());
        Error::bad_request(message).with_detail(Detail::InvalidTimeZone)
    })
}

/// Tells whether a schedule can fire at this time: a whole second that tools can print.
fn is_instant(unix_ms: u64) -> bool {
    unix_ms.is_multiple_of(1000) && timestamp(unix_ms).is_some()
}

fn timestamp(unix_ms: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(unix_ms / 1000).ok()?).ok()
}

/// Returns a time as clocks of this zone show it.
///
/// # Errors
/// `EBadRequest`: the zone is unknown, or the time is after the year 9999.
pub(crate) fn local_time(unix_ms: u64, zone: &str) -> Result<Zoned> {
    let no_instant = || Error::bad_request(format!("{unix_ms} ms since 1970 is after the year 9999"));
    Ok(timestamp(unix_ms).ok_or_else(no_instant)?.to_zoned(parse_zone(zone)?))
}

fn unix_ms(instant: Timestamp) -> Option<u64> {
    u64::try_from(instant.as_second()).ok()?.checked_mul(1000)
}

impl Timer {
    /// Tells whether there is an instant after `after_ms`, or may be one. Cheap also where there is none.
    pub(crate) fn has_instants(&self, after_ms: u64) -> bool {
        match self {
            Self::Cron(schedule) => timestamp(after_ms).is_some_and(|after| schedule.has_instants(after)),
            Self::Every { .. } | Self::At(_) => self.next(after_ms).is_some(),
            Self::Boot => true,
        }
    }

    /// Returns the first instant after `after_ms`, in milliseconds since 1970; `None`: there is none.
    pub(crate) fn next(&self, after_ms: u64) -> Option<u64> {
        match self {
            Self::Cron(schedule) => schedule.next(timestamp(after_ms)?).and_then(unix_ms),
            Self::Every { first_ms, .. } if after_ms < *first_ms => Some(*first_ms),
            Self::Every { interval_ms, first_ms } => {
                let passed = (after_ms - first_ms) / interval_ms;
                first_ms.checked_add((passed + 1).checked_mul(*interval_ms)?).filter(|next| is_instant(*next))
            }
            Self::At(at_ms) => (after_ms < *at_ms).then_some(*at_ms),
            Self::Boot => None,
        }
    }

    /// Returns the last instant that is not after `until_ms`, in milliseconds since 1970; `None`: there is none.
    pub(crate) fn last(&self, until_ms: u64) -> Option<u64> {
        match self {
            Self::Cron(schedule) => schedule.last(timestamp(until_ms)?).and_then(unix_ms),
            Self::Every { interval_ms, first_ms } => {
                let passed = until_ms.checked_sub(*first_ms)? / interval_ms;
                Some(first_ms + passed * interval_ms)
            }
            Self::At(at_ms) => (*at_ms <= until_ms).then_some(*at_ms),
            Self::Boot => None,
        }
    }

    /// Estimates how often it fires, in instants a second, from the instants after `after_ms`.
    pub(crate) fn rate(&self, after_ms: u64) -> f64 {
        match self {
            Self::Every { interval_ms, .. } => 1000.0 / *interval_ms as f64,
            Self::Cron(_) => {
                let instants = std::iter::successors(self.next(after_ms), |last| self.next(*last)).take(RATE_SAMPLE);
                let instants: Vec<u64> = instants.collect();
                match (instants.first(), instants.last()) {
                    (Some(first), Some(last)) if first < last => {
                        (instants.len() - 1) as f64 * 1000.0 / (last - first) as f64
                    }
                    _ => 0.0,
                }
            }
            Self::At(_) | Self::Boot => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn detail(trigger: &Trigger, zone: &str) -> Option<&'static str> {
        trigger.timer(zone, 0).err().and_then(|error| error.detail).map(Detail::as_str)
    }

    #[test]
    fn bad_triggers_are_refused_with_a_constant_detail() {
        let every = |interval_ms, from_ms| Trigger::Every { interval_ms, from_ms: Some(from_ms) };
        let cron = |text: &str| Trigger::Cron(text.to_owned());
        for (trigger, zone, wanted) in [
            (cron("* * * * *"), "Mars/Base", Some("InvalidTimeZone")),
            (cron("nonsense"), "UTC", Some("InvalidCron")),
            (cron(&"*".repeat(300)), "UTC", Some("InvalidCron")),
            (every(0, 0), "UTC", Some("InvalidInterval")),
            (every(1500, 0), "UTC", Some("InvalidInterval")),
            (every(INTERVAL_MAX_MS + 1000, 0), "UTC", Some("IntervalTooLarge")),
            (every(1000, u64::MAX), "UTC", Some("InvalidTime")),
            (every(1000, 1), "UTC", Some("InvalidTime")),
            (Trigger::At(u64::MAX - u64::MAX % 1000), "UTC", Some("InvalidTime")),
            (every(INTERVAL_MAX_MS, 0), "UTC", None),
            (Trigger::At(5000), "UTC", None),
        ] {
            assert_eq!(detail(&trigger, zone), wanted, "{trigger:?}");
        }
    }

    #[test]
    fn a_trigger_is_stored_under_a_plain_name() {
        let node = NodeId::new("n1").unwrap();
        for (trigger, text) in [
            (Trigger::Cron(String::from("0 2 * * *")), r#"{"cron":"0 2 * * *"}"#),
            (Trigger::Every { interval_ms: 1000, from_ms: Some(0) }, r#"{"every":{"interval_ms":1000,"from_ms":0}}"#),
            (Trigger::Every { interval_ms: 1000, from_ms: None }, r#"{"every":{"interval_ms":1000}}"#),
            (Trigger::At(1000), r#"{"at":1000}"#),
            (Trigger::OnBoot(node.clone()), r#"{"on-boot":"n1"}"#),
            (Trigger::NextBoot(node), r#"{"next-boot":"n1"}"#),
        ] {
            assert_eq!(serde_json::to_string(&trigger).unwrap(), text);
            assert_eq!(serde_json::from_str::<Trigger>(text).unwrap(), trigger);
        }
    }

    #[test]
    fn rates_are_estimated() {
        let rate = |trigger: Trigger| (trigger.timer("UTC", 0).unwrap().rate(0) * 3600.0).round();
        assert_eq!(rate(Trigger::Cron(String::from("*/5 * * * *"))), 12.0);
        assert_eq!(rate(Trigger::Cron(String::from("* * * * * *"))), 3600.0);
        assert_eq!(rate(Trigger::Every { interval_ms: 2000, from_ms: None }), 1800.0);
        assert_eq!(rate(Trigger::At(1000)), 0.0);
    }

    proptest! {
        /// The last instant before a time and the next one after it have nothing in between.
        #[test]
        fn last_and_next_agree(
            at in 0..4_000_000_000_000_u64,
            interval in 1..INTERVAL_MAX_MS / 1000,
            first in 0..4_000_000_000_u64,
            cron in prop::sample::select(vec!["*/7 3-5 * * *", "0 0 29 2 *", "30 2 * * 1", "15 * 1,15 * *"]),
        ) {
            let timers = [
                Trigger::Every { interval_ms: interval * 1000, from_ms: Some(first * 1000) },
                Trigger::At(first * 1000),
                Trigger::Cron(cron.to_owned()),
            ];
            for trigger in timers {
                let timer = trigger.timer("America/New_York", 0).unwrap();
                if let Some(next) = timer.next(at) {
                    prop_assert!(next > at && timer.last(next) == Some(next), "{trigger:?}");
                    prop_assert!(timer.last(next - 1) == timer.last(at), "{trigger:?}");
                }
                if let Some(last) = timer.last(at) {
                    prop_assert!(last <= at && timer.last(last) == Some(last), "{trigger:?}");
                    prop_assert!(timer.next(last) == timer.next(at), "{trigger:?}");
                }
            }
        }
    }
}
