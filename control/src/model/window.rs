//! Defines windows of time that come back every week, and rates that hold inside of them.
//!
//! A window is written `[DAYS] FROM-TO [ZONE]`, as `mon-fri 22:00-06:00 Europe/Berlin`. DAYS are `mon` to `sun`, ranges of them
//! and lists (`mon-wed,fri`); without them it is every day. FROM and TO are the clock's hours and minutes; if TO is not after
//! FROM, the window ends on the day after, and belongs to the day on which it begins. ZONE is an IANA name; the default is UTC.
//!
//! Rates are written `[WINDOW] RATE`, several of them separated by `;`: of those whose window is open the first counts, and
//! while none is open there is no limit.

use super::schedule::parse_zone;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::units::parse_rate;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Days of the week, as windows name them.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const MINUTES_A_DAY: u16 = 24 * 60;
/// Changes of a zone's clocks that are looked at: more than there are in nine days.
const LEAPS_LOOKED_AT: usize = 4;
/// Most windows of a task, and their bytes together.
const WINDOWS_MAX: usize = 8;
const WINDOWS_BYTES_MAX: usize = 512;
/// Most rates of one setting.
const RATES_MAX: usize = 32;

/// Time that comes back on some days of the week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The days on which it begins, Monday first.
    days: [bool; 7],
    /// Minutes of the day.
    from: u16,
    to: u16,
    zone: TimeZone,
}

impl Window {
    /// Parses a window.
    ///
    /// # Errors
    /// `EBadRequest`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        Self::of(&words).ok_or_else(|| {
            let text = text.chars().take(80).collect::<String>();
            let message = format!("'{}' is not a window", text.escape_debug());
            Error::bad_request(message).advise("use [DAYS] FROM-TO [ZONE], as 'mon-fri 22:00-06:00 Europe/Berlin'")
        })
    }

    fn of(words: &[&str]) -> Option<Self> {
        let (days, rest) = match words.split_first()? {
            (first, rest) if !first.contains(':') => (days(first)?, rest),
            _ => ([true; 7], words),
        };
        let (times, zone) = match rest {
            [times] => (times, TimeZone::UTC),
            [times, zone] => (times, parse_zone(zone).ok()?),
            _ => return None,
        };
        let (from, to) = times.split_once('-')?;
        let (from, to) = (minutes(from)?, minutes(to)?);
        (from < MINUTES_A_DAY).then_some(Self { days, from, to, zone })
    }

    /// Tells whether it is open at a time, in milliseconds since 1970.
    pub(crate) fn is_open(&self, unix_ms: u64) -> bool {
        let Some(at) = timestamp(unix_ms) else { return false };
        let at = at.to_zoned(self.zone.clone());
        let today = usize::try_from(at.weekday().to_monday_zero_offset()).unwrap_or_default();
        let minute = u16::try_from(i32::from(at.hour()) * 60 + i32::from(at.minute())).unwrap_or_default();
        if self.from < self.to {
            return self.days[today] && (self.from..self.to).contains(&minute);
        }
        (self.days[today] && minute >= self.from) || (self.days[(today + 6) % 7] && minute < self.to)
    }

    /// Returns when it opens next, or closes next if it is open, in milliseconds since 1970; `None`: never.
    pub(crate) fn next_change(&self, unix_ms: u64) -> Option<u64> {
        let is_open = self.is_open(unix_ms);
        let now = timestamp(unix_ms)?;
        let start = now.to_zoned(self.zone.clone()).date();
        // Where clocks are changed, a time may not exist, or exist twice.
        let leaps = self.zone.following(now).take(LEAPS_LOOKED_AT).map(|leap| leap.timestamp());
        let mut changes: Vec<Timestamp> = leaps.collect();
        // The longest closed time is less than a week. A day more, as clocks may be changed meanwhile.
        for day in -1..=8 {
            let Ok(date) = start.checked_add(day.days()) else { continue };
            for minute in [self.from, self.to] {
                let Ok(at) = date.at(0, 0, 0, 0).checked_add(i64::from(minute).minutes()) else { continue };
                let at = self.zone.to_ambiguous_zoned(at);
                let both = [at.clone().earlier(), at.later()];
                changes.extend(both.into_iter().flatten().map(|at| at.timestamp()));
            }
        }
        let mut changes: Vec<u64> =
            changes.into_iter().filter_map(|at| u64::try_from(at.as_millisecond()).ok()).collect();
        changes.sort_unstable();
        changes.into_iter().find(|change| *change > unix_ms && self.is_open(*change) != is_open)
    }
}

/// Windows of a task: it may run while one of them is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Windows(Vec<Window>);

impl Windows {
    /// Parses the windows of a task; none are always open.
    ///
    /// # Errors
    /// `EBadRequest`: there are too many, or one of them is none.
    pub(crate) fn parse(texts: &[String]) -> Result<Self> {
        let bytes: usize = texts.iter().map(String::len).sum();
        if texts.len() > WINDOWS_MAX || bytes > WINDOWS_BYTES_MAX {
            let message = format!("a task has at most {WINDOWS_MAX} windows of {WINDOWS_BYTES_MAX} bytes together");
            return Err(Error::bad_request(message));
        }
        texts.iter().map(|text| Window::parse(text)).collect::<Result<_>>().map(Self)
    }

    /// Tells whether the task may run at a time, in milliseconds since 1970.
    pub(crate) fn is_open(&self, unix_ms: u64) -> bool {
        self.0.is_empty() || self.0.iter().any(|window| window.is_open(unix_ms))
    }

    /// Returns when that changes, or may change, in milliseconds since 1970; `None`: never.
    pub(crate) fn next_change(&self, unix_ms: u64) -> Option<u64> {
        self.0.iter().filter_map(|window| window.next_change(unix_ms)).min()
    }
}

/// Rates by windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateSchedule(Vec<(Option<Window>, Option<u64>)>);

impl RateSchedule {
    /// Parses `none`, or rates.
    ///
    /// # Errors
    /// `EBadRequest`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let entries: Vec<&str> = text.split(';').collect();
        if entries.len() > RATES_MAX {
            return Err(Error::bad_request(format!("{} rates: use at most {RATES_MAX}", entries.len())));
        }
        entries.into_iter().map(rate).collect::<Result<_>>().map(Self)
    }

    /// Returns the limit at a time, in milliseconds since 1970, in bytes per second; `None`: there is none.
    pub(crate) fn rate(&self, unix_ms: u64) -> Option<u64> {
        let is_open = |window: &Option<Window>| window.as_ref().is_none_or(|window| window.is_open(unix_ms));
        self.0.iter().find(|(window, _)| is_open(window)).and_then(|(_, rate)| *rate)
    }
}

fn rate(entry: &str) -> Result<(Option<Window>, Option<u64>)> {
    let entry = entry.trim();
    let (window, rate) = entry.rsplit_once(|c: char| c.is_ascii_whitespace()).unwrap_or(("", entry));
    let window = (!window.trim().is_empty()).then(|| Window::parse(window)).transpose()?;
    let rate = if rate == "none" { None } else { Some(parse_rate(rate).map_err(Error::bad_request)?) };
    Ok((window, rate))
}

fn timestamp(unix_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}

fn days(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| DAYS.iter().position(|day| *day == name);
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        // A range may pass the end of the week.
        let count = (last + 7 - first) % 7;
        (first..=first + count).for_each(|day| days[day % 7] = true);
    }
    Some(days)
}

fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str, digits: usize| {
        let is_number = (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2).filter(|_| minutes.len() == 2)?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= MINUTES_A_DAY).then_some(minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    /// 2026-11-30 is a Monday.
    #[test]
    fn a_window_is_open_from_its_first_minute_to_its_last() {
        for (window, open, closed) in [
            ("08:00-18:00", &["2026-11-30T08:00:00Z", "2026-12-06T17:59:59Z"][..], &["2026-11-30T18:00:00Z"][..]),
            ("mon-fri 08:00-18:00", &["2026-12-04T12:00:00Z"], &["2026-12-05T12:00:00Z", "2026-11-30T07:59:59Z"]),
            (
                "fri 22:00-06:00",
                &["2026-12-04T22:00:00Z", "2026-12-05T05:59:59Z"],
                &["2026-12-04T05:00:00Z", "2026-12-05T22:30:00Z", "2026-12-05T06:00:00Z"],
            ),
            ("sat-mon 00:00-24:00", &["2026-12-06T23:59:00Z", "2026-11-30T00:00:00Z"], &["2026-12-01T00:00:00Z"]),
            ("sun,wed 9:30-9:30", &["2026-12-06T09:30:00Z", "2026-12-07T09:29:00Z"], &["2026-12-07T09:30:00Z"]),
            ("08:00-18:00 Europe/Berlin", &["2026-11-30T07:00:00Z"], &["2026-11-30T17:00:00Z"]),
        ] {
            let parsed = Window::parse(window).unwrap();
            open.iter().for_each(|time| assert!(parsed.is_open(at(time)), "{window} at {time}"));
            closed.iter().for_each(|time| assert!(!parsed.is_open(at(time)), "{window} at {time}"));
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for bad in [
            "",
            "mon",
            "08:00",
            "8-18",
            "08:00-25:00",
            "24:00-08:00",
            "08:60-09:00",
            "8:0-9:00",
            "may 08:00-18:00",
            "mon- 08:00-18:00",
            "08:00-18:00 Mars/Base",
            "mon 08:00-18:00 UTC UTC",
            "-1:00-02:00",
            "+8:00-09:00",
        ] {
            assert!(Window::parse(bad).is_err(), "{bad}");
        }
    }

    /// Compares with a look at every minute of two weeks around each change of clocks.
    #[test]
    fn the_next_change_is_the_first_minute_that_differs() {
        for window in ["mon-fri 22:00-06:00 Europe/Berlin", "sun 02:30-03:30 Europe/Berlin", "tue 00:00-24:00"] {
            let window = Window::parse(window).unwrap();
            for start in [at("2026-03-23T00:00:00Z"), at("2026-10-19T00:00:00Z")] {
                for hour in (0..14 * 24).step_by(5) {
                    let from = start + hour * 3_600_000;
                    let is_open = window.is_open(from);
                    let wanted = (1..14 * 1440).map(|minute| from + minute * 60_000);
                    let wanted = wanted.into_iter().find(|time| window.is_open(*time) != is_open);
                    assert_eq!(window.next_change(from), wanted, "{window:?} after {from}");
                }
            }
        }
        assert_eq!(Window::parse("00:00-24:00").unwrap().next_change(at("2026-11-30T00:00:00Z")), None);
    }

    #[test]
    fn a_task_may_run_while_one_of_its_windows_is_open() {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let windows = Windows::parse(&texts(&["sat 00:00-24:00", "sun 00:00-12:00"])).unwrap();
        let (friday, saturday, sunday) =
            (at("2026-12-04T12:00:00Z"), at("2026-12-05T00:00:00Z"), at("2026-12-06T12:00:00Z"));
        assert!(!windows.is_open(friday) && windows.is_open(saturday) && !windows.is_open(sunday));
        assert_eq!(windows.next_change(friday), Some(saturday));
        assert!(Windows::default().is_open(0) && Windows::default().next_change(0).is_none());
        assert!(Windows::parse(&texts(&["08:00-18:00"; 9])).is_err() && Windows::parse(&texts(&["soon"])).is_err());
    }

    #[test]
    fn the_first_rate_whose_window_is_open_counts() {
        let rates = RateSchedule::parse("mon-fri 08:00-18:00 50MiB/s; sat 00:00-24:00 none; 200MiB/s").unwrap();
        let rate = |time: &str| rates.rate(at(time));
        assert_eq!(rate("2026-11-30T08:00:00Z"), Some(50 << 20));
        assert_eq!(rate("2026-11-30T18:00:00Z"), Some(200 << 20));
        assert_eq!(rate("2026-12-05T08:00:00Z"), None);
        assert_eq!(RateSchedule::parse("none").unwrap().rate(0), None);
        assert_eq!(RateSchedule::parse("08:00-18:00 1MiB/s").unwrap().rate(0), None);
        for bad in ["", "fast", "50MiB", "1MiB/s;", "mon 1MiB/s", &["1MiB/s"; 33].join(";")] {
            assert!(RateSchedule::parse(bad).is_err(), "{bad}");
        }
    }
}
