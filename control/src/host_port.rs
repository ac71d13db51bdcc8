//! Parses `HOST:PORT` in the one way that flags, registrations and answers share.
//!
//! An address that a library would half understand (and dial another port, for one) is refused.

use std::fmt;
use std::net::Ipv6Addr;

/// Host and one of its ports. An IPv6 address is written in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Host as it was written, brackets included.
    host: String,
    port: u16,
}

impl HostPort {
    /// Parses `HOST:PORT`. Port 0 is accepted; the caller decides what it means.
    ///
    /// # Errors
    /// What is wrong with the text, for a sentence that names it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (host, port) = text.rsplit_once(':').ok_or("no port: expected HOST:PORT")?;
        Ok(Self { host: parse_host(host)?, port: parse_port(port)? })
    }

    /// Parses the address of a peer to call.
    ///
    /// # Errors
    /// As [`HostPort::parse`]; also for port 0.
    pub fn parse_peer(text: &str) -> Result<Self, &'static str> {
        match Self::parse(text)? {
            Self { port: 0, .. } => Err("port 0 cannot be called"),
            peer => Ok(peer),
        }
    }
}

/// Parses a host that may have a port: `HOST` or `HOST:PORT`.
///
/// # Errors
/// As [`HostPort::parse_peer`].
pub(crate) fn parse_server(text: &str) -> Result<(String, Option<u16>), &'static str> {
    // The colons of an IPv6 address are inside of its brackets.
    if text.contains(':') && !text.ends_with(']') {
        let HostPort { host, port } = HostPort::parse_peer(text)?;
        return Ok((host, Some(port)));
    }
    Ok((parse_host(text)?, None))
}

/// Parses a port alone: digits, where `str::parse` would accept a sign, too.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn parse_port(text: &str) -> Result<u16, &'static str> {
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or("the port must be a number from 0 to 65535")
}

fn parse_host(host: &str) -> Result<String, &'static str> {
    let is_host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || "-._".contains(c)),
    };
    is_host.then(|| host.to_owned()).ok_or("invalid host: expected HOST:PORT, an IPv6 address in brackets")
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        for text in ["host:7400", "10.0.0.1:1", "[::1]:65535", "a-b.c_d:0", "[2001:db8::7]:80"] {
            assert_eq!(HostPort::parse(text).unwrap().to_string(), text);
        }
        assert!(HostPort::parse_peer("host:0").is_err() && HostPort::parse_peer("host:1").is_ok());
    }

    #[test]
    fn a_server_may_have_a_port() {
        for (text, host, port) in [
            ("host", "host", None),
            ("host:80", "host", Some(80)),
            ("[::1]", "[::1]", None),
            ("[::1]:9", "[::1]", Some(9)),
        ] {
            assert_eq!(parse_server(text), Ok((host.to_owned(), port)));
        }
        for text in
            ["", ":80", "host:", "host:+80", "host:0", "host:99999", "::1", "[::1]x", "[x]", "a/b", "u@h", "a b"]
        {
            assert!(parse_server(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_rest_is_refused() {
        for text in [
            "",
            "host",
            ":1",
            "host:",
            "host:90936",
            "host:+80",
            "host:-1",
            "host:8 0",
            "h ost:1",
            "host:1\n",
            "::1:80",
            "[::1]",
            "[::1]80",
            "[x]:1",
            "[[::1]:1",
            "a/b:1",
            "user@host:1",
            "http://host:1",
            "host:1/path",
            "host?:1",
        ] {
            assert!(HostPort::parse(text).is_err(), "{text:?}");
        }
    }
}
