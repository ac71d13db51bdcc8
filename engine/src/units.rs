//! Parses and formats sizes, rates and durations as people write them.
//!
//! Parsing lives here so that flags, configuration files and reports agree on one grammar. Every parser refuses what it
//! does not understand. None rounds silently.

use crate::error::{Error, Result};
use std::time::Duration;

/// 1 KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub const GIB: u64 = 1 << 30;

/// The longest duration there is, a century: it means "for ever", and whatever is added to it or made of it still fits
/// every clock.
pub const DURATION_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// Binary first: `1M` means 1 MiB, as in every storage tool, and `MB` is refused because it is read both ways.
const SIZE_SUFFIXES: [(&str, u32); 10] = [
    ("KiB", 10),
    ("MiB", 20),
    ("GiB", 30),
    ("TiB", 40),
    ("PiB", 50),
    ("K", 10),
    ("M", 20),
    ("G", 30),
    ("T", 40),
    ("B", 0),
];

/// Reads a size: `4096`, `64KiB`, `1MiB`, `1.5GiB`, `8T`. Units are binary.
///
/// # Errors
/// A sentence that names the text and the accepted forms; also for values over 2^64 - 1 and fractions of a byte.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let refused = || format!("'{text}' is not a size: write bytes (4096) or a binary unit (64KiB, 1MiB, 2GiB, 8TiB)");
    let (number, shift) = SIZE_SUFFIXES
        .iter()
        .find_map(|(suffix, shift)| text.strip_suffix(suffix).map(|number| (number, *shift)))
        .unwrap_or((text, 0));
    let number = number.trim_end();
    if let Some((whole, fraction)) = number.split_once('.') {
        let whole = parse_digits(whole).ok_or_else(refused)?;
        let digits =
            u32::try_from(fraction.len()).ok().filter(|digits| (1..=9).contains(digits)).ok_or_else(refused)?;
        let scale = 10_u128.pow(digits);
        let scaled = (u128::from(whole) * scale + u128::from(parse_digits(fraction).ok_or_else(refused)?)) << shift;
        return if scaled.is_multiple_of(scale) {
            u64::try_from(scaled / scale).map_err(|_| refused())
        } else {
            Err(refused())
        };
    }
    let value = parse_digits(number).ok_or_else(refused)?;
    value.checked_mul(1 << shift).ok_or_else(refused)
}

/// `u64::from_str` also takes a leading `+`; sizes do not.
fn parse_digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Reads a rate in bytes per second: a size followed by `/s`, such as `200MiB/s`. At least 1 byte per second.
///
/// # Errors
/// A sentence that names the text and the accepted form.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text
        .trim()
        .strip_suffix("/s")
        .ok_or_else(|| format!("'{text}' is not a rate: write a size per second, such as 200MiB/s"))?;
    match parse_size(size)? {
        0 => Err(format!("'{text}' is not a rate: at least 1 byte per second is needed (pause the copy instead)")),
        rate => Ok(rate),
    }
}

/// Reads a duration: `500us`, `500ms`, `10s`, `5m`, `2h`, `7d`. At most [`DURATION_MAX`].
///
/// # Errors
/// A sentence that names the text and the accepted forms. A number without a unit is refused: it is read both ways.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let refused =
        || format!("'{text}' is not a duration: write a whole number and a unit (500us, 500ms, 10s, 5m, 2h, 7d)");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
    let (number, unit) = text.split_at(digits);
    let (of_unit, seconds): (fn(u64) -> Duration, u64) = match unit {
        "us" => (Duration::from_micros, 1),
        "ms" => (Duration::from_millis, 1),
        "s" => (Duration::from_secs, 1),
        "m" => (Duration::from_secs, 60),
        "h" => (Duration::from_secs, 3600),
        "d" => (Duration::from_secs, 86_400),
        _ => return Err(refused()),
    };
    if number.is_empty() {
        return Err(refused());
    }
    let value = parse_digits(number).and_then(|value| value.checked_mul(seconds)).map(of_unit);
    let longest = DURATION_MAX.as_secs() / 86_400;
    value.filter(|value| *value <= DURATION_MAX).ok_or_else(|| format!("'{text}' is too long: at most {longest}d"))
}

/// Writes a size for people: `0 B`, `4.0 KiB`, `1.5 GiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    format!("{value:.1} {}", UNITS[unit])
}

/// Refuses a duration that cannot be added to any time.
pub(crate) fn check_duration(name: &str, duration: Duration) -> Result<()> {
    if duration <= DURATION_MAX {
        return Ok(());
    }
    let longest = DURATION_MAX.as_secs() / 86_400;
    Err(Error::bad_request(format!("{name} is too long: name at most {longest} days")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_binary_and_exact() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 64 * KIB),
            ("1MiB", MIB),
            ("1M", MIB),
            ("1.5GiB", 3 * GIB / 2),
            ("8TiB", 8 << 40),
            ("12 MiB", 12 * MIB),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn an_invalid_size_is_refused() {
        for text in
            ["", "MiB", "-1", "+1", "1MB", "1.3B", "1..2K", "0x10", "1 2", "16777216TiB", "18446744073709551616"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_and_durations_need_their_unit() {
        assert_eq!(parse_rate("200MiB/s"), Ok(200 * MIB));
        assert!(parse_rate("200MiB").is_err() && parse_rate("0/s").is_err());
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for text in ["", "10", "s", "1.5s", "-1s", "10 s", "99999999999999999999s", "999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("36500d"), Ok(DURATION_MAX));
        assert!(parse_duration("36501d").unwrap_err().contains("at most 36500d"));
    }

    proptest! {
        #[test]
        fn no_parser_overflows(number in any::<u128>(), digits in 0..40_usize, unit in "[a-zA-Z/.]{0,4}") {
            let number = number.to_string();
            let text = format!("{}{unit}", &number[..digits.min(number.len())]);
            let _ = (parse_size(&text), parse_rate(&text));
            if let Ok(duration) = parse_duration(&text) {
                prop_assert!(duration <= DURATION_MAX);
                let _ = std::time::Instant::now() + duration * 12;
            }
        }

        #[test]
        fn a_duration_is_parsed_to_its_seconds(number in any::<u64>(), unit in 0..4_usize) {
            let (name, seconds) = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)][unit];
            let expected = u128::from(number) * seconds;
            let fits = expected <= u128::from(DURATION_MAX.as_secs());
            let parsed = parse_duration(&format!("{number}{name}")).ok().map(|duration| u128::from(duration.as_secs()));
            prop_assert_eq!(parsed, fits.then_some(expected));
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(
            [0, 1, 1023, 4096, 3 * GIB / 2, u64::MAX].map(format_size),
            ["0 B", "1 B", "1023 B", "4.0 KiB", "1.5 GiB", "16.0 EiB"]
        );
    }
}
