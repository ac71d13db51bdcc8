//! Resolves the address of a node in the storage network, which is configured as an address or as an interface.

use crate::host_port::parse_port;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use nix::ifaddrs::getifaddrs;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Longest name of an interface.
pub(crate) const INTERFACE_BYTES_MAX: usize = 15;

/// Address as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataAddress {
    place: Place,
    /// Port; 0: a free one.
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Address(IpAddr),
    Interface(String),
}

impl DataAddress {
    /// Parses `ADDR`, `ADDR:PORT`, `[ADDR]:PORT`, `INTERFACE` or `INTERFACE:PORT`.
    ///
    /// # Errors
    /// `EBadRequest` for anything else, and for addresses that peers cannot answer.
    pub fn parse(text: &str) -> Result<Self> {
        let refused = |why: &str| Error::bad_request(format!("--data-address '{}': {why}", text.escape_debug()));
        let (place, port) = match text.rsplit_once(':') {
            // The colons of an address of version 6, with brackets or without.
            _ if text.ends_with(']') || text.parse::<Ipv6Addr>().is_ok() => (text, 0),
            Some((place, port)) => (place, parse_port(port).map_err(refused)?),
            None => (text, 0),
        };
        let inner = place.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let place = if let Some(address) = inner.and_then(|inner| inner.parse().ok()) {
            Place::Address(IpAddr::V6(address))
        } else if let Ok(address) = place.parse() {
            Place::Address(address)
        } else if is_interface(place) && !place.contains(['[', ']']) {
            Place::Interface(place.to_owned())
        } else {
            return Err(refused("expected ADDR[:PORT] or INTERFACE[:PORT]"));
        };
        match place {
            Place::Address(address) if address.is_unspecified() || address.is_multicast() => {
                Err(refused("peers cannot answer that address: use one of this node"))
            }
            place => Ok(Self { place, port }),
        }
    }

    /// Returns the address as it is on this host now.
    ///
    /// # Errors
    /// `ENotFound` if the interface is missing or has no address.
    pub fn resolve(&self) -> Result<SocketAddr> {
        let name = match &self.place {
            Place::Address(address) => return Ok(SocketAddr::new(*address, self.port)),
            Place::Interface(name) => name,
        };
        let failed = |why: String| {
            let error = Error::new(Code::NotFound, Side::Caller, Operation::Start, why);
            Err(error.advise("name an address or an interface of the storage network with --data-address"))
        };
        let all = getifaddrs().map_err(|errno| {
            Error::io(Side::Engine, Operation::Start, &errno.into(), "list the interfaces of this host")
        })?;
        let mut of_name = all.filter(|one| one.interface_name == *name).peekable();
        if of_name.peek().is_none() {
            return failed(format!("there is no interface '{name}'"));
        }
        let addresses = of_name.filter_map(|one| one.address);
        let mut found: Vec<IpAddr> = addresses
            .filter_map(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(four), _) => Some(IpAddr::V4(four.ip())),
                (None, Some(six)) => Some(IpAddr::V6(six.ip())),
                (None, None) => None,
            })
            .filter(is_routable)
            .collect();
        found.sort_by_key(IpAddr::is_ipv6);
        match found.first() {
            Some(address) => Ok(SocketAddr::new(*address, self.port)),
            None => failed(format!("the interface '{name}' has no address that peers could answer")),
        }
    }
}

impl fmt::Display for DataAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
            Place::Interface(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Tells whether an interface can have this name.
pub(crate) fn is_interface(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/:".contains(&byte);
    (1..=INTERFACE_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain) && name != "." && name != ".."
}

/// Tells whether peers can use an address. Link-local addresses of version 6 need the interface's name on the peer.
fn is_routable(address: &IpAddr) -> bool {
    let is_link_local = |address: &Ipv6Addr| address.segments()[0] & 0xffc0 == 0xfe80;
    !matches!(address, IpAddr::V6(six) if is_link_local(six))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_interfaces_are_told_apart() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1:0"),
            ("10.0.0.1:7401", "10.0.0.1:7401"),
            ("fd00::1", "[fd00::1]:0"),
            ("[fd00::1]:7401", "[fd00::1]:7401"),
            ("[fd00::1]", "[fd00::1]:0"),
            ("eth0.100", "eth0.100:0"),
            ("eth1:7401", "eth1:7401"),
        ] {
            assert_eq!(DataAddress::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for bad in [
            "",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "eth0:x",
            "eth0:+80",
            "10.0.0.1:+80",
            "[fd00::1]:+80",
            "[10.0.0.1]",
            "[[fd00::1]]",
            "fd00::1]",
            "eth0:",
            "a b",
            "this-is-longer-than-any",
            "eth0/1",
            "eth0:99999",
        ] {
            let error = DataAddress::parse(bad).unwrap_err();
            assert!(error.code == Code::BadRequest && error.message.contains("--data-address"), "{bad}: {error}");
        }
    }

    #[test]
    fn an_interface_resolves_to_its_address() {
        let found = DataAddress::parse("lo:9").unwrap().resolve().unwrap();
        assert!(found.ip().is_loopback() && found.port() == 9);
        let error = DataAddress::parse("bh-none").unwrap().resolve().unwrap_err();
        assert!(error.code == Code::NotFound && error.message.contains("bh-none"), "{error}");
    }
}
