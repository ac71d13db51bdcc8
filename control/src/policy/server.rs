//! Checks which servers may be used: `--allow-nbd HOST[:PORT]`.

use super::{Policy, permission};
use crate::host_port::parse_server;
use blockhaul_engine::error::{Error, Result, Side};
use blockhaul_engine::volume::NbdUri;
use std::path::PathBuf;

/// Registered port of NBD.
const PORT: u16 = 10809;

/// Host, at one port or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AllowedServer {
    host: String,
    port: Option<u16>,
}

impl AllowedServer {
    /// Parses `HOST`, `HOST:PORT`, an IPv6 address in brackets.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (host, port) = parse_server(text)
            .map_err(|why| Error::bad_request(format!("--allow-nbd '{}': {why}", text.escape_debug())))?;
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

impl Policy {
    /// Checks the server of an export: hosts by `--allow-nbd`, unix sockets and folders with certificates by
    /// `--allow-path`. `text` is the URI as it was given.
    ///
    /// # Errors
    /// `EPermission` outside the policy.
    pub(crate) fn check_server(&self, text: &str, uri: &NbdUri, side: Side) -> Result<()> {
        for path in local_paths(text) {
            self.find_other(&path, side)?;
        }
        let canonical = uri.to_string();
        let Some((scheme, rest)) = canonical.split_once("://") else {
            return Err(Error::bad_request(format!("invalid URI '{canonical}'")));
        };
        if scheme.ends_with("+unix") || self.servers.is_empty() {
            return Ok(());
        }
        let is_allowed = parse_server(rest.split('/').next().unwrap_or_default()).is_ok_and(|(host, port)| {
            let port = port.unwrap_or(PORT);
            let matches = |allowed: &AllowedServer| allowed.host == host && allowed.port.is_none_or(|is| is == port);
            self.servers.iter().any(matches)
        });
        if is_allowed {
            return Ok(());
        }
        let what = format!("the server of the {side} {canonical} is not allowed on this node");
        Err(permission(side, what).advise("allow it with --allow-nbd of taskd"))
    }
}

/// Returns the paths of this node that the parameters of a URI name.
fn local_paths(text: &str) -> Vec<PathBuf> {
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let named = query.split(['&', ';']).filter_map(|parameter| parameter.split_once('='));
    let paths = named.filter(|(name, _)| ["socket", "tls-certificates"].contains(name));
    paths.map(|(_, value)| PathBuf::from(decode(value))).collect()
}

/// Decodes `%XX`. Anything else stays: the engine's own parser decides what is malformed.
fn decode(value: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let bytes = value.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = (bytes[at] == b'%').then(|| value.get(at + 1..at + 3)).flatten();
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain)
}
