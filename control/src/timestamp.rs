//! Formats times as text: `2026-01-31T12:00:00.000Z` reads well, and sorts as text.

use serde::{Serialize, Serializer};
use std::fmt;

/// Milliseconds since 1970-01-01 UTC. What is after the year 9999 is shown as its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Parses a time as `2026-01-31T12:00:00Z` or `2026-01-31T13:00:00+01:00`.
    ///
    /// # Errors
    /// What is expected, if it is anything else or before 1970.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
        parsed.map(Self).ok_or_else(|| {
            format!("'{}' is not a time: write 2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00", text.escape_debug())
        })
    }

    /// Returns the day and the second, without a fraction.
    pub(crate) fn seconds(unix_seconds: u64) -> String {
        moment(unix_seconds.saturating_mul(1000)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

fn moment(unix_ms: u64) -> jiff::Timestamp {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .unwrap_or(jiff::Timestamp::MAX)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", moment(self.0).strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_the_calendar() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (1_582_934_399_999, "2020-02-28T23:59:59.999Z"),
            (1_795_276_800_000, "2026-11-21T16:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(milliseconds).to_string(), text);
        }
        assert!(!Timestamp(u64::MAX).to_string().is_empty());
    }

    #[test]
    fn a_time_is_parsed_with_its_offset() {
        assert_eq!(Timestamp::parse("1970-01-01T00:00:01Z"), Ok(Timestamp(1000)));
        assert_eq!(Timestamp::parse("2026-01-31T13:00:00+01:00"), Timestamp::parse("2026-01-31T12:00:00Z"));
        for text in
            ["", "tomorrow", "2026-01-31", "2026-01-31T12:00:00", "1969-12-31T00:00:00Z", "2026-13-01T00:00:00Z"]
        {
            assert!(Timestamp::parse(text).unwrap_err().contains("is not a time"), "{text}");
        }
    }
}
