//! Parses a service address: `ADDR/PREFIX@INTERFACE`.

use crate::cluster::storage_probe::is_interface;
use blockhaul_engine::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;

/// Address and the interface that gets it. Always an address of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    /// The address itself.
    pub address: IpAddr,
    /// Length of the network prefix in bits.
    pub prefix: u8,
    /// Interface that gets the address.
    pub interface: String,
}

impl InterfaceAddress {
    /// Parses the value of `--vip`.
    ///
    /// # Errors
    /// `EBadRequest` for an address that is not of one host, and for malformed text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let refused = |why: &str| Error::bad_request(format!("--vip '{}': {why}", text.escape_debug()));
        let form = "expected ADDR/PREFIX@INTERFACE, for example 10.0.0.100/24@eth0";
        let (network, interface) = text.split_once('@').ok_or_else(|| refused(form))?;
        let (address, prefix) = network.split_once('/').ok_or_else(|| refused(form))?;
        let address: IpAddr = address.parse().map_err(|_| refused("invalid IP address"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| (1..=bits).contains(prefix));
        let prefix = prefix.ok_or_else(|| refused(&format!("the prefix must be a number from 1 to {bits}")))?;
        if !is_interface(interface) {
            return Err(refused("invalid interface name"));
        }
        check_host_address(address, prefix).map_err(refused)?;
        Ok(Self { address, prefix, interface: interface.to_owned() })
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.address, self.prefix, self.interface)
    }
}

/// Checks that an address can be a service address; else returns the reason.
fn check_host_address(address: IpAddr, prefix: u8) -> std::result::Result<(), &'static str> {
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err("clients cannot reach a special address");
    }
    if matches!(address, IpAddr::V6(six) if six.is_unicast_link_local() || six.to_ipv4_mapped().is_some()) {
        return Err("clients cannot call a link-local or mapped address");
    }
    if let IpAddr::V4(four) = address {
        let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let own = u32::from(four) & host;
        if four.is_broadcast() || four.octets()[0] == 0 || (prefix < 31 && (own == 0 || own == host)) {
            return Err("a network or broadcast address, not that of a host");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Code;

    #[test]
    fn an_address_has_its_prefix_and_its_interface() {
        for text in ["10.0.0.100/24@eth0", "10.0.0.100/32@bond0.17", "fd00::100/64@eth0", "10.0.0.0/31@eth0"] {
            assert_eq!(InterfaceAddress::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn addresses_that_are_not_of_a_host_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "ADDR/PREFIX@INTERFACE"),
            ("10.0.0.100/24", "ADDR/PREFIX@INTERFACE"),
            ("10.0.0.100@eth0", "ADDR/PREFIX@INTERFACE"),
            ("10.0.0.300/24@eth0", "invalid IP address"),
            ("host/24@eth0", "invalid IP address"),
            ("10.0.0.100/33@eth0", "1 to 32"),
            ("10.0.0.100/0@eth0", "1 to 32"),
            ("fd00::1/129@eth0", "1 to 128"),
            ("10.0.0.100/24@", "interface"),
            ("10.0.0.100/24@eth0/1", "interface"),
            ("10.0.0.100/24@an-interface-too-long", "interface"),
            ("0.0.0.0/24@eth0", "special"),
            ("127.0.0.1/8@lo", "special"),
            ("224.0.0.1/24@eth0", "special"),
            ("::/64@eth0", "special"),
            ("fe80::1/64@eth0", "link-local"),
            ("::ffff:10.0.0.1/128@eth0", "mapped"),
            ("10.0.0.0/24@eth0", "network"),
            ("10.0.0.255/24@eth0", "broadcast"),
            ("255.255.255.255/32@eth0", "broadcast"),
        ] {
            let error = InterfaceAddress::parse(text).unwrap_err();
            assert!(error.code == Code::BadRequest && error.message.contains(why), "{text}: {error}");
            assert!(error.message.contains("--vip"), "{error}");
        }
    }
}
