//! Formats quantities for people: three significant digits and the unit that keeps them short.

use crate::results::Metric;
use std::borrow::Cow;

const KIB: f64 = 1024.0;

/// A unit of a quantity: the quantity is the shown number times `divisor`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub divisor: f64,
    pub name: &'static str,
}

const BYTES: [Unit; 5] = [
    Unit { divisor: 1.0, name: "B" },
    Unit { divisor: KIB, name: "KiB" },
    Unit { divisor: KIB * KIB, name: "MiB" },
    Unit { divisor: KIB * KIB * KIB, name: "GiB" },
    Unit { divisor: KIB * KIB * KIB * KIB, name: "TiB" },
];

const RATES: [Unit; 5] = [
    Unit { divisor: 1.0, name: "B/s" },
    Unit { divisor: KIB, name: "KiB/s" },
    Unit { divisor: KIB * KIB, name: "MiB/s" },
    Unit { divisor: KIB * KIB * KIB, name: "GiB/s" },
    Unit { divisor: KIB * KIB * KIB * KIB, name: "TiB/s" },
];

const SECONDS: [Unit; 3] =
    [Unit { divisor: 1e-6, name: "µs" }, Unit { divisor: 1e-3, name: "ms" }, Unit { divisor: 1.0, name: "s" }];

const MICROSECONDS: [Unit; 3] =
    [Unit { divisor: 1.0, name: "µs" }, Unit { divisor: 1e3, name: "ms" }, Unit { divisor: 1e6, name: "s" }];

const CPU_SECONDS_PER_GIB: [Unit; 1] = [Unit { divisor: 1.0, name: "CPU s/GiB" }];

impl Unit {
    /// Formats the quantity in this unit, without the unit's name.
    pub(crate) fn number(&self, quantity: f64) -> String {
        significant(quantity / self.divisor)
    }

    fn show(&self, quantity: f64) -> String {
        format!("{} {}", self.number(quantity), self.name)
    }
}

/// Returns the largest unit in which the quantity is at least one.
fn fitting(units: &'static [Unit], quantity: f64) -> &'static Unit {
    units.iter().rfind(|unit| quantity.abs() >= unit.divisor).unwrap_or(&units[0])
}

impl Metric {
    /// Returns the unit for quantities up to `largest`.
    pub(crate) fn unit(self, largest: f64) -> &'static Unit {
        let units: &'static [Unit] = match self {
            Self::BytesPerSecond => &RATES,
            Self::Seconds => &SECONDS,
            Self::CpuSecondsPerGib => &CPU_SECONDS_PER_GIB,
            Self::Microseconds => &MICROSECONDS,
            Self::Bytes => &BYTES,
        };
        fitting(units, largest)
    }

    /// Formats the quantity with its unit.
    pub(crate) fn show(self, quantity: f64) -> String {
        self.unit(quantity).show(quantity)
    }

    /// Returns the name of what is measured.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BytesPerSecond => "speed",
            Self::Seconds => "time",
            Self::CpuSecondsPerGib => "CPU",
            Self::Microseconds => "latency",
            Self::Bytes => "size",
        }
    }

    /// Returns whether larger values are better.
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::BytesPerSecond
    }
}

/// Formats bytes, such as `1.50 GiB`.
pub(crate) fn bytes(quantity: u64) -> String {
    Metric::Bytes.show(quantity as f64)
}

/// Formats seconds, such as `12.3 ms`.
pub(crate) fn seconds(quantity: f64) -> String {
    Metric::Seconds.show(quantity)
}

/// Formats a share such as 0.012 as `±1.2 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("±{:.1} %", share * 100.0)
}

/// Formats a number whose name ends with its unit.
pub(crate) fn named(name: &str, quantity: f64) -> String {
    let units = [
        ("_bytes_per_second", Metric::BytesPerSecond),
        ("_bytes", Metric::Bytes),
        ("_seconds", Metric::Seconds),
        ("_us", Metric::Microseconds),
    ];
    match units.iter().find(|(ending, _)| name.ends_with(ending)) {
        Some((_, metric)) => metric.show(quantity),
        None if quantity.fract() == 0.0 && quantity.abs() < 1e15 => format!("{quantity:.0}"),
        None => significant(quantity),
    }
}

/// Formats with three significant digits, and with an exponent only if the number is very large or very small.
pub(crate) fn significant(number: f64) -> String {
    match number.abs() {
        size if !size.is_finite() => number.to_string(),
        0.0 => "0".to_owned(),
        // Numbers that round up to the next power of ten are shown as that.
        size if size >= 1e9 => format!("{number:.2e}"),
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        size if size >= 0.0995 => format!("{number:.2}"),
        size if size >= 0.000_995 => format!("{number:.4}"),
        _ => format!("{number:.2e}"),
    }
}

/// Replaces control characters by `?`, so that the text cannot disturb a terminal.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short_and_carry_their_unit() {
        let gib = KIB * KIB * KIB;
        for (metric, quantity, shown) in [
            (Metric::BytesPerSecond, 1.5 * gib, "1.50 GiB/s"),
            (Metric::BytesPerSecond, 0.0, "0 B/s"),
            (Metric::BytesPerSecond, 999.7 * KIB, "1000 KiB/s"),
            (Metric::Seconds, 0.0123, "12.3 ms"),
            (Metric::Seconds, 75.0, "75.0 s"),
            (Metric::Seconds, 1e-7, "0.10 µs"),
            (Metric::Microseconds, 31_400.0, "31.4 ms"),
            (Metric::CpuSecondsPerGib, 0.049_6, "0.0496 CPU s/GiB"),
            (Metric::Bytes, 8.0 * gib * KIB, "8.00 TiB"),
        ] {
            assert_eq!(metric.show(quantity), shown);
        }
        assert_eq!(bytes(4096), "4.00 KiB");
        assert_eq!(percent(0.0123), "±1.2 %");
        assert_eq!(named("copy_bytes_per_second", 1.5 * gib), "1.50 GiB/s");
        assert_eq!(named("copied_again_bytes", 4096.0), "4.00 KiB");
        assert_eq!([named("calls", 57.0), named("calls", 57.25)], ["57", "57.2"]);
    }

    #[test]
    fn odd_numbers_stay_legible() {
        assert_eq!(significant(f64::INFINITY), "inf");
        assert_eq!(significant(99.96), "100");
        assert_eq!(significant(9.996), "10.0");
        assert_eq!(significant(1e12), "1.00e12");
        assert_eq!(significant(-2.5), "-2.50");
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(plain("qemu-img \u{1b}[31m\n"), "qemu-img ?[31m?");
        assert_eq!(plain("fio-3.33"), "fio-3.33");
    }
}
