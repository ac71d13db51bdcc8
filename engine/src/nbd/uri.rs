//! Parses the name of an export: the URI syntax of the NBD project.
//!
//! ```text
//! nbd://HOST[:PORT]/EXPORT                     nbds://...       the same through TLS
//! nbd+unix:///EXPORT?socket=PATH               nbds+unix://...
//! ?tls-certificates=DIRECTORY&tls-hostname=NAME&tls-verify-peer=0|1&tls-type=x509
//! ```
//! Parsed once into a type that cannot be wrong. What is displayed is the canonical form, which names a volume in
//! journals and messages: two spellings of one export give the same text, and how its peer is verified is no part of
//! it. `parse(display(x)) = x` for every `x` without parameters of TLS.

use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The port that is registered for NBD.
const PORT: u16 = 10809;
/// Bytes of an export's name, as the protocol bounds strings.
const EXPORT_BYTES_MAX: usize = 4096;
/// Bytes of a unix socket's path: what the kernel's address has room for, less the NUL at its end.
const SOCKET_BYTES_MAX: usize = 107;

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri {
    pub(crate) address: Address,
    /// The name the server knows it by. Empty for its default export.
    pub(crate) export: String,
    /// `None` for connections in clear text.
    pub(crate) tls: Option<TlsOptions>,
}

/// Address of the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// A name in lower case or an address without brackets.
    Tcp { host: String, port: u16 },
    /// An absolute path.
    Unix(PathBuf),
}

/// TLS settings: how both sides authenticate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsOptions {
    /// A directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`. `None`: the system's roots, and no
    /// certificate of our own.
    pub certificates: Option<PathBuf>,
    /// The name the server's certificate must bear, where it is not the host's.
    pub hostname: Option<String>,
    /// Whether the server's certificate is verified.
    pub verify_peer: bool,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self { certificates: None, hostname: None, verify_peer: true }
    }
}

impl NbdUri {
    /// Returns whether `text` is meant to be parsed here: it starts with `nbd` or `nbds`, maybe a transport, and `://`.
    pub(crate) fn recognises(text: &str) -> bool {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        let family = scheme.split_once('+').map_or(&*scheme, |(family, _)| family);
        ["nbd", "nbds"].contains(&family)
    }

    /// Parses a URI. A relative socket or directory is taken from the working directory.
    ///
    /// # Errors
    /// `EBadRequest` for what is no such URI, names an unknown parameter or one that does not fit the scheme.
    /// `EUnsupported` for vsock and ssh, abstract sockets, pre-shared keys and anonymous TLS.
    pub fn parse(text: &str) -> Result<Self> {
        parts(text).map_err(|error| Error { message: format!("{text}: {}", error.message), ..error })
    }

    /// Returns whether an export is named. Where none is, a server may have a default one, or a list of them.
    #[must_use]
    pub fn names_export(&self) -> bool {
        !self.export.is_empty()
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls.is_some() { "s" } else { "" };
        let export = encode(self.export.as_bytes(), b"/:@!$&'()*+,;=");
        match &self.address {
            Address::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "nbd{secure}://{open}{host}{close}")?;
                if *port != PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{export}")
            }
            Address::Unix(path) => {
                let path = encode(path.as_os_str().as_bytes(), b"/:@,");
                write!(f, "nbd{secure}+unix:///{export}?socket={path}")
            }
        }
    }
}

fn parts(text: &str) -> Result<NbdUri> {
    let malformed = || bad("not a URI of the form nbd://HOST[:PORT]/EXPORT");
    let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
    let scheme = scheme.to_ascii_lowercase();
    let (family, transport) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let secure = match family {
        "nbd" => false,
        "nbds" => true,
        _ => return Err(malformed()),
    };
    if rest.contains('#') {
        return Err(bad("a '#' in a name is spelled %23"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let parameters = Parameters::parse(query)?;
    let address = match transport {
        "" => tcp(authority, parameters.socket.as_deref())?,
        "unix" => unix(authority, parameters.socket.as_deref())?,
        other => {
            return Err(unsupported(format!("connections over {other} are not supported: use TCP or a unix socket")));
        }
    };
    Ok(NbdUri { address, export: export_name(export)?, tls: parameters.terms(secure)? })
}

fn export_name(encoded: &str) -> Result<String> {
    let name = text_of("the name of the export", decode(encoded)?)?;
    match name.len() {
        0..=EXPORT_BYTES_MAX => Ok(name),
        len => Err(bad(format!("the name of the export has {len} bytes, the protocol allows {EXPORT_BYTES_MAX}"))),
    }
}

fn tcp(authority: &str, socket: Option<&Path>) -> Result<Address> {
    if socket.is_some() {
        return Err(bad("socket= belongs to nbd+unix:// and nbds+unix://"));
    }
    if authority.contains('@') {
        return Err(unsupported("user names serve pre-shared keys of TLS only, which are not supported"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(|| bad("'[' without ']' around an IPv6 address"))?;
            let parsed = address.parse::<Ipv6Addr>().map_err(|_| bad(format!("'{address}' is no IPv6 address")))?;
            let after_bracket = port.is_empty() || port.starts_with(':');
            after_bracket.then_some(()).ok_or_else(|| bad(format!("'{port}' after the IPv6 address")))?;
            (parsed.to_string(), port.strip_prefix(':').unwrap_or(""))
        }
        None => {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            (host_name(host)?, port)
        }
    };
    Ok(Address::Tcp { host, port: port_number(port)? })
}

fn host_name(host: &str) -> Result<String> {
    if host.is_empty() {
        return Err(bad("no host is named (a unix socket is nbd+unix:///EXPORT?socket=PATH)"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match host.chars().find(|c| !plain(*c)) {
        None => Ok(host.to_ascii_lowercase()),
        Some(c) => Err(bad(format!("'{c}' in the host's name: letters, digits, '-', '.' and '_' make one"))),
    }
}

fn port_number(text: &str) -> Result<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        _ if text.is_empty() => Ok(PORT),
        Ok(port @ 1..) if digits => Ok(port),
        _ => Err(bad(format!("'{text}' is no port: 1 to 65535"))),
    }
}

fn unix(authority: &str, socket: Option<&Path>) -> Result<Address> {
    if !authority.is_empty() {
        return Err(bad("a unix socket has no host: three slashes, as in nbd+unix:///EXPORT?socket=PATH"));
    }
    let socket = socket.ok_or_else(|| bad("?socket=PATH is missing: where the server listens"))?;
    if socket.as_os_str().as_bytes().starts_with(b"\0") {
        return Err(unsupported("abstract sockets are not supported: have the server listen on a path"));
    }
    let path = absolute(socket)?;
    match path.as_os_str().len() {
        0..=SOCKET_BYTES_MAX => Ok(Address::Unix(path)),
        len => Err(bad(format!("the socket's absolute path has {len} bytes, Linux allows {SOCKET_BYTES_MAX}"))),
    }
}

/// Parameters behind the question mark, each at most once.
#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    certificates: Option<PathBuf>,
    hostname: Option<String>,
    verify_peer: Option<bool>,
    tls_type: Option<()>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self> {
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.take(key, decode(value)?)?;
        }
        Ok(parameters)
    }

    fn take(&mut self, key: &str, value: Vec<u8>) -> Result<()> {
        match key {
            "tls-psk" | "tls-psk-file" | "tls-username" => Err(unsupported(format!(
                "{key}: pre-shared keys are not supported: use certificates (tls-certificates=DIRECTORY)"
            ))),
            _ if value.is_empty() => Err(bad(format!("{key}= needs a value"))),
            "socket" => once(key, &mut self.socket, PathBuf::from(OsString::from_vec(value))),
            "tls-certificates" => {
                let directory = PathBuf::from(OsString::from_vec(value));
                once(key, &mut self.certificates, absolute(&directory)?)
            }
            "tls-hostname" => once(key, &mut self.hostname, text_of(key, value)?),
            "tls-verify-peer" => match &*value {
                b"0" | b"false" => once(key, &mut self.verify_peer, false),
                b"1" | b"true" => once(key, &mut self.verify_peer, true),
                _ => Err(bad(format!("{key} is 0 or 1"))),
            },
            "tls-type" => match &*value {
                b"x509" => once(key, &mut self.tls_type, ()),
                _ => Err(unsupported(format!("{key}: only x509 is supported, that is, certificates"))),
            },
            _ => Err(bad(format!(
                "unknown parameter '{key}': socket, tls-certificates, tls-hostname, tls-verify-peer and tls-type are \
                 known"
            ))),
        }
    }

    /// Returns how to use TLS, if at all. Terms that would silently have no effect are refused.
    fn terms(self, secure: bool) -> Result<Option<TlsOptions>> {
        let Self { socket: _, certificates, hostname, verify_peer, tls_type } = self;
        if secure {
            return Ok(Some(TlsOptions { certificates, hostname, verify_peer: verify_peer.unwrap_or(true) }));
        }
        if certificates.is_some() || hostname.is_some() || verify_peer.is_some() || tls_type.is_some() {
            return Err(bad("parameters of TLS belong to nbds:// and nbds+unix://"));
        }
        Ok(None)
    }
}

fn once<T>(key: &str, place: &mut Option<T>, value: T) -> Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad(format!("{key}= is given twice"))),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(bad("a path contains a NUL byte"));
    }
    std::path::absolute(path).map_err(|error| {
        Error::io(Side::Caller, Operation::Parse, &error, format!("find the working directory for {}", path.shown()))
    })
}

fn text_of(what: &str, bytes: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(bytes).map_err(|_| bad(format!("{what} is not UTF-8")))?;
    if text.contains('\0') {
        return Err(bad(format!("{what} contains a NUL byte")));
    }
    Ok(text)
}

/// Every byte but letters, digits, `-._~` and those in `plain` as `%XX`.
fn encode<'a>(bytes: &'a [u8], plain: &[u8]) -> Cow<'a, str> {
    let keeps = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || plain.contains(&b);
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().all(|b| keeps(*b)) => Cow::Borrowed(text),
        _ => bytes.iter().map(|&b| if keeps(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect(),
    }
}

fn decode(text: &str) -> Result<Vec<u8>> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let digits = piece.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| bad("a '%' needs two hexadecimal digits after it; itself it is spelled %25"))?);
        bytes.extend(&piece.as_bytes()[2..]);
    }
    Ok(bytes)
}

fn bad(message: impl Into<String>) -> Error {
    Error::bad_request(message)
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Code::Unsupported, Side::Caller, Operation::Parse, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri { address: Address::Tcp { host: host.to_owned(), port }, export: export.to_owned(), tls: None }
    }

    fn unix(path: &str, export: &str) -> NbdUri {
        NbdUri { address: Address::Unix(path.into()), export: export.to_owned(), tls: None }
    }

    #[test]
    fn the_examples_of_the_specification_mean_what_it_says() {
        let examples = [
            ("nbd://example.com/disk", tcp("example.com", 10809, "disk")),
            ("NBD://Example.COM:10809", tcp("example.com", 10809, "")),
            ("nbd://example.com/", tcp("example.com", 10809, "")),
            ("nbd://example.com//disk", tcp("example.com", 10809, "/disk")),
            ("nbd://example.com/hello%20world", tcp("example.com", 10809, "hello world")),
            ("nbd://example.com:1/a?", tcp("example.com", 1, "a")),
            ("nbd://[::1]:99/a", tcp("::1", 99, "a")),
            ("nbd://[0:0::1]", tcp("::1", 10809, "")),
            ("nbd+unix:///disk?socket=/run/sock", unix("/run/sock", "disk")),
            ("nbd+unix://?socket=%2Frun%2fa%26b", unix("/run/a&b", "")),
        ];
        for (text, expected) in examples {
            assert_eq!(NbdUri::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn terms_of_tls_are_parsed_and_not_displayed() {
        let text = "nbds+unix:///x?socket=/s&tls-certificates=/etc/pki&tls-hostname=h&tls-verify-peer=0&tls-type=x509";
        let uri = NbdUri::parse(text).unwrap();
        let terms =
            TlsOptions { certificates: Some("/etc/pki".into()), hostname: Some("h".into()), verify_peer: false };
        assert_eq!(uri.tls, Some(terms));
        assert_eq!(uri.to_string(), "nbds+unix:///x?socket=/s");
        assert_eq!(NbdUri::parse("nbds://h").unwrap().tls, Some(TlsOptions::default()));
    }

    #[test]
    fn a_relative_socket_is_taken_from_the_working_directory() {
        let Address::Unix(path) = NbdUri::parse("nbd+unix:///?socket=nbd.sock").unwrap().address else {
            panic!("a unix socket");
        };
        assert_eq!(path, std::env::current_dir().unwrap().join("nbd.sock"));
    }

    #[test]
    fn a_displayed_uri_is_canonical() {
        for (text, canonical) in [
            ("nbd://H:10809", "nbd://h/"),
            ("nbds://h:10810/a%2Fb%3f", "nbds://h:10810/a/b%3F"),
            ("nbd://[::0001]/a", "nbd://[::1]/a"),
            ("nbd+unix:///%61?socket=/a/./b%20c", "nbd+unix:///a?socket=/a/b%20c"),
        ] {
            assert_eq!(NbdUri::parse(text).unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn refusals_say_what_to_change() {
        for (text, words) in [
            ("nbd:host", "nbd://HOST"),
            ("http://host/x", "nbd://HOST"),
            ("nbd://", "no host"),
            ("nbd:///dev/sdb", "nbd+unix"),
            ("nbd://ho st/x", "' '"),
            ("nbd://h%41/x", "'%'"),
            ("nbd://h:0/x", "no port"),
            ("nbd://h:65536/x", "no port"),
            ("nbd://h:+1/x", "no port"),
            ("nbd://[::1/x", "']'"),
            ("nbd://[1.2.3.4]/x", "no IPv6"),
            ("nbd://[::1]99/x", "after the IPv6"),
            ("nbd://h/x?socket=/s", "nbd+unix"),
            ("nbd://h/x#y", "%23"),
            ("nbd://h/100%", "%25"),
            ("nbd://h/%+1", "%25"),
            ("nbd://h/%é", "%25"),
            ("nbd://h/%00", "NUL"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/x?color=red", "unknown parameter 'color'"),
            ("nbd://h/x?tls-hostname=y", "nbds://"),
            ("nbd://h/x?tls-verify-peer=0", "nbds://"),
            ("nbd://h/x?tls-certificates=/d", "nbds://"),
            ("nbd://h/x?tls-type=x509", "nbds://"),
            ("nbds://h/x?tls-verify-peer=maybe", "0 or 1"),
            ("nbds://h/x?tls-hostname=a&tls-hostname=b", "twice"),
            ("nbds://h/x?tls-certificates", "needs a value"),
            ("nbds://h/x?tls-certificates=%00", "NUL"),
            ("nbd+unix://h/x?socket=/s", "no host"),
            ("nbd+unix:///x", "socket=PATH"),
            ("nbd+unix:///x?socket=", "needs a value"),
            ("nbd+unix:///x?socket=/a%00b", "NUL"),
        ] {
            let error = NbdUri::parse(text).expect_err(text);
            assert_eq!(error.code, Code::BadRequest, "{error}");
            assert!(error.message.contains(words) && error.message.starts_with(text), "'{words}' in {error}");
        }
        let long = "x".repeat(EXPORT_BYTES_MAX + 1);
        assert!(NbdUri::parse(&format!("nbd://h/{long}")).unwrap_err().message.contains("4097 bytes"));
        let long = format!("nbd+unix:///?socket=/{}", "s".repeat(SOCKET_BYTES_MAX));
        assert!(NbdUri::parse(&long).unwrap_err().message.contains("108 bytes"));
    }

    #[test]
    fn unsupported_parameters_are_named() {
        for (text, words) in [
            ("nbd+vsock://2/x", "vsock"),
            ("nbds+ssh://h/x", "ssh"),
            ("nbd://user@h/x", "user names"),
            ("nbds://h/x?tls-psk-file=/keys", "pre-shared keys"),
            ("nbds://h/x?tls-psk=secret", "pre-shared keys"),
            ("nbds://h/x?tls-username=me", "pre-shared keys"),
            ("nbds://h/x?tls-type=anon", "x509"),
            ("nbd+unix:///x?socket=%00abstract", "abstract"),
        ] {
            let error = NbdUri::parse(text).expect_err(text);
            assert_eq!(error.code, Code::Unsupported, "{error}");
            assert!(error.message.contains(words), "'{words}' in {error}");
        }
    }

    fn any_address() -> impl Strategy<Value = Address> {
        let name = ("[a-z0-9_][a-z0-9._-]{0,20}", 1_u16..);
        let ipv6 = (any::<u128>(), 1_u16..);
        prop_oneof![
            name.prop_map(|(host, port)| Address::Tcp { host, port }),
            ipv6.prop_map(|(bits, port)| Address::Tcp { host: Ipv6Addr::from(bits).to_string(), port }),
            proptest::collection::vec(1_u8.., 1..60).prop_map(|bytes| {
                let path = PathBuf::from(OsString::from_vec([b"/", &*bytes].concat()));
                Address::Unix(std::path::absolute(path).unwrap())
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_displayed_uri_parses_back(address in any_address(), export in "[^\0]{0,40}", secure: bool) {
            let uri = NbdUri { address, export, tls: secure.then(TlsOptions::default) };
            prop_assert_eq!(NbdUri::parse(&uri.to_string()).unwrap(), uri);
        }

        #[test]
        fn no_text_makes_it_panic_and_the_canonical_form_is_stable(
            text in "nbds?(\\+unix)?://[a-zA-Z0-9:%.\\[\\]@]{0,12}/?[^#]{0,12}(\\?(socket=|tls-hostname=)?.{0,12})?"
        ) {
            if let Ok(uri) = NbdUri::parse(&text) {
                let canonical = uri.to_string();
                prop_assert_eq!(NbdUri::parse(&canonical).unwrap().to_string(), canonical);
            }
        }
    }
}
