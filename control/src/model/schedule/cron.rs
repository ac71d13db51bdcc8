//! Finds the instants at which a cron expression fires in a time zone. Pure.
//!
//! The transitions of the zone cut time into segments of one offset each. Inside a segment local time and real time run
//! alike, so the expression is matched against local time there. Between two segments:
//!
//! - A local time that does not exist (the clocks go forward) fires at the transition, which is the next local time that
//!   does exist. An expression with `*` in its hour leaves it out.
//! - A local time that exists twice (the clocks go back) fires the first time. An expression with `*` in its hour fires
//!   both times.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};

/// Cron expression in a time zone.
#[derive(Clone, Debug)]
pub(crate) struct CronSchedule {
    cron: Cron,
    zone: TimeZone,
    /// Whether the hour of the expression has a `*`.
    is_any_hour: bool,
}

/// Time in which the zone has one offset.
struct Segment {
    offset: Offset,
    /// Its first instant; `None`: it has no begin.
    start: Option<Timestamp>,
    /// Its end, which does not belong to it; `None`: it has no end.
    end: Option<Timestamp>,
}

/// Days in which each day of a month falls on each day of a week, leap days included: 40 years.
const DAYS_SEARCHED: usize = 14_610;

const SECOND: SignedDuration = SignedDuration::from_secs(1);

impl CronSchedule {
    /// Parses an expression of five fields, or of six with seconds first.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(expression: &str, zone: TimeZone) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(expression).map_err(|error| error.to_string())?;
        let fields: Vec<&str> = expression.split_whitespace().collect();
        let hour = match fields[..] {
            [_, hour, _, _, _] | [_, _, hour, _, _, _] => hour,
            // The parser knows `@daily` and the like, too.
            [name] => return Ok(Self { cron, zone, is_any_hour: name.eq_ignore_ascii_case("@hourly") }),
            _ => return Err(String::from("an expression has five fields, or six with seconds first")),
        };
        let is_any_hour = hour.contains('*');
        Ok(Self { cron, zone, is_any_hour })
    }

    /// Tells whether the expression names any day of the 40 years from this time on: the days of a week and the leap days
    /// are the same again after that. Much cheaper than to search for a day that does not come.
    pub(crate) fn has_instants(&self, from: Timestamp) -> bool {
        let pattern = &self.cron.pattern;
        let is_named = |day: Date| {
            let (year, month, number) = (i32::from(day.year()), day.month().unsigned_abs(), day.day().unsigned_abs());
            let weekday = day.weekday().to_sunday_zero_offset().unsigned_abs();
            let weekday = croner::Weekday::from_days_from_sunday(weekday.into());
            pattern.month_match(month.into()).unwrap_or(false)
                && pattern.day_match(year, month.into(), number.into(), weekday).unwrap_or(false)
        };
        let days = from.to_zoned(self.zone.clone()).date().series(1.day());
        days.take(DAYS_SEARCHED).any(is_named)
    }

    /// Returns the first instant after `after`; `None`: there is none.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let mut segment = self.segment(after);
        let mut first = segment.offset.to_datetime(after).checked_add(SECOND).ok()?;
        let mut searched: Option<(DateTime, DateTime)> = None;
        loop {
            if !self.is_any_hour {
                first = first.max(self.repeated_until(&segment));
            }
            // Searched again only if the last result may not hold: a segment is half a year, and February 29 is far.
            let local = match searched {
                Some((from, found)) if (from..=found).contains(&first) => found,
                _ => self.cron.find_next_occurrence(&first, true).ok()?,
            };
            searched = Some((first, local));
            let Some(end) = segment.end.filter(|end| segment.offset.to_datetime(*end) <= local) else {
                return segment.offset.to_timestamp(local).ok();
            };
            segment = self.segment(end);
            first = segment.offset.to_datetime(end);
            if !self.is_any_hour && local < first {
                return Some(end);
            }
        }
    }

    /// Returns the last instant that is not after `until`; `None`: there is none.
    pub(crate) fn last(&self, until: Timestamp) -> Option<Timestamp> {
        let mut segment = self.segment(until);
        let mut latest = segment.offset.to_datetime(until);
        loop {
            let local = self.cron.find_previous_occurrence(&latest, true).ok();
            let Some(start) = segment.start else { return segment.offset.to_timestamp(local?).ok() };
            let begin = segment.offset.to_datetime(start);
            let first = if self.is_any_hour { begin } else { begin.max(self.repeated_until(&segment)) };
            if let Some(local) = local.filter(|local| first <= *local) {
                return segment.offset.to_timestamp(local).ok();
            }
            let earlier = self.segment(start.checked_sub(SECOND).ok()?);
            let before = earlier.offset.to_datetime(start);
            if !self.is_any_hour && before < begin {
                let missing = begin.checked_sub(SECOND).ok()?;
                let local = self.cron.find_previous_occurrence(&missing, true).ok();
                if local.is_some_and(|local| before <= local) {
                    return Some(start);
                }
            }
            latest = before.checked_sub(SECOND).ok()?;
            segment = earlier;
        }
    }

    /// Returns the segment of an instant on a whole second.
    fn segment(&self, at: Timestamp) -> Segment {
        let not_after = at.checked_add(SECOND).unwrap_or(at);
        Segment {
            offset: self.zone.to_offset(at),
            start: self.zone.preceding(not_after).next().map(|transition| transition.timestamp()),
            end: self.zone.following(at).next().map(|transition| transition.timestamp()),
        }
    }

    /// Returns the first local time of a segment that has not been there before its start.
    fn repeated_until(&self, segment: &Segment) -> DateTime {
        let before = segment.start.and_then(|start| {
            let earlier = start.checked_sub(SECOND).ok()?;
            Some(self.zone.to_offset(earlier).to_datetime(start))
        });
        before.unwrap_or(DateTime::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn schedule(expression: &str, zone: &str) -> CronSchedule {
        CronSchedule::parse(expression, TimeZone::get(zone).unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Returns the next instants, as local times of the zone.
    fn next(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = schedule(expression, zone);
        let mut last = at(after);
        let mut found = Vec::new();
        for _ in 0..count {
            let Some(instant) = schedule.next(last) else { break };
            found.push(instant.to_zoned(schedule.zone.clone()).strftime("%m-%d %H:%M:%S%:z").to_string());
            last = instant;
        }
        found
    }

    #[test]
    fn a_local_time_that_does_not_exist_fires_at_the_next_one_that_does() {
        let around = "2026-03-28T00:00:00Z";
        let berlin = |expression, count| next(expression, "Europe/Berlin", around, count);
        assert_eq!(berlin("30 2 * * *", 3), ["03-28 02:30:00+01:00", "03-29 03:00:00+02:00", "03-30 02:30:00+02:00"]);
        // All that are missing fire once together, and with what falls on that time by itself.
        assert_eq!(
            berlin("*/20 2,3 * * *", 9)[6..],
            ["03-29 03:00:00+02:00", "03-29 03:20:00+02:00", "03-29 03:40:00+02:00"]
        );
        assert_eq!(
            next("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 2),
            ["03-29 01:30:00+01:00", "03-29 03:30:00+02:00"]
        );
    }

    #[test]
    fn a_local_time_that_exists_twice_fires_once_but_every_hour_does_in_both() {
        let around = "2026-10-24T20:00:00Z";
        let berlin = |expression, count| next(expression, "Europe/Berlin", around, count);
        assert_eq!(berlin("30 2 * * *", 2), ["10-25 02:30:00+02:00", "10-26 02:30:00+01:00"]);
        assert_eq!(
            next("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 3),
            ["10-25 02:30:00+02:00", "10-25 02:30:00+01:00", "10-25 03:30:00+01:00"]
        );
        assert_eq!(berlin("0 */2 * * *", 3)[1..], ["10-25 02:00:00+02:00", "10-25 02:00:00+01:00"]);
    }

    #[test]
    fn seconds_leap_days_and_what_never_matches() {
        assert_eq!(
            next("*/20 59 23 31 12 *", "UTC", "2026-01-01T00:00:00Z", 2),
            ["12-31 23:59:00+00:00", "12-31 23:59:20+00:00"]
        );
        let leap = schedule("0 0 29 2 *", "Europe/Berlin");
        assert_eq!(leap.next(at("2096-03-01T00:00:00Z")), Some(at("2104-02-28T23:00:00Z")));
        assert_eq!(leap.last(at("2104-01-01T00:00:00Z")), Some(at("2096-02-28T23:00:00Z")));
        let now = at("2026-01-01T00:00:00Z");
        let never = schedule("0 0 30 2 *", "Europe/Berlin");
        assert_eq!((never.next(now), never.has_instants(now)), (None, false));
        assert!(leap.has_instants(now) && schedule("0 0 29 2 1#5", "UTC").has_instants(now));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in ["", "* * * *", "60 * * * *", "* * * * * * *", "a b c d e", "* * 32 * *", "@never", "*/0 * * * *"] {
            assert!(CronSchedule::parse(bad, TimeZone::UTC).is_err(), "{bad}");
        }
    }

    /// Returns the instants in a window as the rules say, minute by minute.
    fn expected(schedule: &CronSchedule, transition: Timestamp, window: i64) -> BTreeSet<Timestamp> {
        let minute = SignedDuration::from_mins(1);
        let local = |at: Timestamp| schedule.zone.to_offset(at).to_datetime(at);
        let matches = |local: DateTime| schedule.cron.is_time_matching(&local).unwrap();
        let (mut fired, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for step in -window - 180..=window {
            let instant = transition + SignedDuration::from_mins(step);
            let is_new = seen.insert(local(instant));
            let is_after_gap = || {
                let mut missing = local(instant - minute) + minute;
                let mut is_due = false;
                while missing < local(instant) {
                    is_due |= matches(missing);
                    missing += minute;
                }
                is_due
            };
            let is_due = matches(local(instant)) && (is_new || schedule.is_any_hour);
            if step > -window && (is_due || (!schedule.is_any_hour && is_after_gap())) {
                fired.insert(instant);
            }
        }
        fired
    }

    #[test]
    fn in_every_zone_the_instants_around_each_change_of_clocks_are_as_the_rules_say() {
        // Zones that change alike are one case.
        let mut cases: BTreeMap<Vec<(Timestamp, i32)>, String> = BTreeMap::new();
        let mut zones = 0;
        for name in jiff::tz::db().available() {
            let zone = TimeZone::get(name.as_str()).unwrap();
            zones += 1;
            let until = at("2028-01-01T00:00:00Z");
            let changes = zone.following(at("2024-01-01T00:00:00Z")).take_while(|change| change.timestamp() < until);
            let key: Vec<_> = changes.map(|change| (change.timestamp(), change.offset().seconds())).collect();
            cases.entry(key).or_insert_with(|| name.to_string());
        }
        assert!(zones > 400 && cases.len() > 20, "{zones} zones, {} ways to change", cases.len());
        let window = 5 * 60;
        for (changes, name) in &cases {
            for expression in ["30 2 * * *", "*/15 * * * *", "10,50 0-3 * * *", "0 */2 * * *", "59 23 * * 6"] {
                let schedule = schedule(expression, name);
                for (change, _) in changes {
                    let begin = *change - SignedDuration::from_mins(window);
                    let end = *change + SignedDuration::from_mins(window);
                    let wanted = expected(&schedule, *change, window);
                    let mut forward = BTreeSet::new();
                    let mut instant = begin;
                    while let Some(next) = schedule.next(instant).filter(|next| *next <= end) {
                        forward.insert(next);
                        instant = next;
                    }
                    assert_eq!(forward, wanted, "{expression} in {name} around {change}");
                    let mut backward = BTreeSet::new();
                    let mut instant = end;
                    while let Some(last) = schedule.last(instant).filter(|last| *last > begin) {
                        backward.insert(last);
                        instant = last - SECOND;
                    }
                    assert_eq!(backward, wanted, "{expression} in {name} around {change}, backwards");
                }
            }
        }
    }
}
