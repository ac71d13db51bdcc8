//! Puts the date and time of an instant into the names of a schedule's volumes. Pure.
//!
//! | pattern | becomes | | pattern | becomes |
//! | --- | --- | --- | --- | --- |
//! | `%Y` | year, four digits | | `%H` | hour, 00 to 23 |
//! | `%m` | month, 01 to 12 | | `%M` | minute, 00 to 59 |
//! | `%d` | day of the month, 01 to 31 | | `%S` | second, 00 to 59 |
//! | `%j` | day of the year, 001 to 366 | | `%%` | a percent sign |
//!
//! In a path, nothing else may follow a percent sign. In a URI only the name of the export has patterns. There `%` and
//! two hexadecimal digits stay the escape that they are, except where `%d` begins them, and `%%` becomes `%25`.

use blockhaul_engine::error::{Error, Result};
use jiff::Zoned;

/// Returns the name of a volume at an instant, in the time zone of the instant.
///
/// # Errors
/// `EBadRequest`: something else follows a percent sign.
pub(crate) fn resolve_volume(name: &str, at: &Zoned) -> Result<String> {
    let Some((scheme, rest)) = name.split_once("://") else { return resolve(name, at, false) };
    if scheme == "file" {
        return Ok(format!("{scheme}://{}", resolve(rest, at, false)?));
    }
    let path = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path);
    let query = path.find(['?', '#']).unwrap_or(path.len());
    let (export, query) = path.split_at(query);
    Ok(format!("{scheme}://{authority}{}{query}", resolve(export, at, true)?))
}

fn resolve(text: &str, at: &Zoned, is_escaped: bool) -> Result<String> {
    let mut resolved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        resolved.push_str(before);
        let pattern = after.chars().next();
        match pattern {
            Some('Y') => resolved.push_str(&format!("{:04}", at.year())),
            Some('m') => resolved.push_str(&format!("{:02}", at.month())),
            Some('d') => resolved.push_str(&format!("{:02}", at.day())),
            Some('H') => resolved.push_str(&format!("{:02}", at.hour())),
            Some('M') => resolved.push_str(&format!("{:02}", at.minute())),
            Some('S') => resolved.push_str(&format!("{:02}", at.second())),
            Some('j') => resolved.push_str(&format!("{:03}", at.day_of_year())),
            Some('%') => resolved.push_str(if is_escaped { "%25" } else { "%" }),
            Some(digit) if is_escaped && digit.is_ascii_hexdigit() => {
                resolved.push('%');
                resolved.push(digit);
            }
            _ => {
                let found: String = after.chars().take(1).collect();
                let message = format!(
                    "'%{}' in '{}' is no pattern: use %Y %m %d %H %M %S %j, or %% for a percent sign",
                    found.escape_debug(),
                    text.chars().take(200).collect::<String>().escape_debug()
                );
                return Err(Error::bad_request(message));
            }
        }
        rest = &after[pattern.map_or(0, char::len_utf8)..];
    }
    resolved.push_str(rest);
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(name: &str) -> Option<String> {
        let at: Zoned = "2026-03-09T02:05:07[Europe/Berlin]".parse().unwrap();
        resolve_volume(name, &at).ok()
    }

    #[test]
    fn paths_and_export_names_have_patterns_and_nothing_else_of_a_uri() {
        for (name, wanted) in [
            ("/srv/vm-%Y%m%d-%H%M%S.raw", "/srv/vm-20260309-020507.raw"),
            ("file://n1/srv/%j/100%%", "file://n1/srv/068/100%"),
            ("nbd://h:10809/vm-%Y%m%d", "nbd://h:10809/vm-20260309"),
            ("nbd://h/a%20b%2Fc%%", "nbd://h/a%20b%2Fc%25"),
            ("nbd+unix:///vm-%j?socket=/run/%d", "nbd+unix:///vm-068?socket=/run/%d"),
            ("nbd://h%d", "nbd://h%d"),
            ("/plain", "/plain"),
        ] {
            assert_eq!(resolved(name).as_deref(), Some(wanted), "{name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for name in ["/a%", "/a%x", "/a%ä", "nbd://h/%z", "file://n/%20"] {
            assert_eq!(resolved(name), None, "{name}");
        }
    }
}
