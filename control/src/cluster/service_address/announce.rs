//! Announces to the neighbours that the address is on this node now: a gratuitous ARP for version 4, an unsolicited
//! neighbour advertisement for version 6. Without the announcement they would send to the previous node until their
//! caches expire.

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send as send_frame, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// Hardware address of an interface.
pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// Ethernet address of `ff02::1`.
const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Longest wait for a frame to leave the host, in milliseconds.
const SEND_MAX_MS: i64 = 500;

/// Builds the frame that announces `address` at `mac`.
pub(super) fn frame(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(address, mac),
        IpAddr::V6(address) => advertisement(address, mac),
    }
}

/// Sends a frame over the interface with this index; blocks for at most half a second. Needs `CAP_NET_RAW`.
///
/// # Errors
/// `ENODEV` without such an interface; another error of the system.
pub(super) fn send(index: u32, frame: &[u8]) -> io::Result<()> {
    // No protocol: the socket only sends.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(SEND_MAX_MS))?;
    let mut links = getifaddrs()?.filter_map(|interface| interface.address?.as_link_addr().copied());
    let interface = links.find(|link| link.ifindex() == index as usize).ok_or(Errno::ENODEV)?;
    bind(socket.as_raw_fd(), &interface)?;
    send_frame(socket.as_raw_fd(), frame, MsgFlags::empty())?;
    Ok(())
}

/// Builds a request in which the sender asks for itself: more neighbours understand it than an unsolicited reply.
fn arp(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &mac, &0x0806_u16.to_be_bytes()].concat();
    // Ethernet, IPv4, their lengths, a request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    // Neighbour advertisement, code 0, no checksum yet, "override", the address, option 2: the card, one unit of 8
    // bytes.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let sum = checksum(address, ALL_NODES_ADDRESS, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&ALL_NODES[..], &mac, &0x86dd_u16.to_be_bytes()].concat();
    // Version 6, the length of the message, ICMPv6, hop limit 255: the message was not routed.
    frame.extend([0x60, 0, 0, 0, 0, u8::try_from(message.len()).expect("it has 32 bytes"), 58, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES_ADDRESS.octets());
    frame.extend(message);
    frame
}

/// Computes the checksum of ICMPv6: the ones' complement sum of a pseudo header and the message, whose own field is
/// zero.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).expect("it has 32 bytes");
    let words = [&from.octets()[..], &to.octets(), &length.to_be_bytes(), &[0, 0, 0, 58], message].concat();
    let sum: u32 =
        words.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("it has been folded twice")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0, 0, 0, 0, 0x01];

    #[test]
    fn a_gratuitous_arp_asks_for_its_own_address() {
        let frame = frame("10.0.0.100".parse().unwrap(), MAC);
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 1, 10, 0, 0, 100]);
        assert_eq!(frame[32..], [0, 0, 0, 0, 0, 0, 10, 0, 0, 100]);
    }

    #[test]
    fn an_advertisement_is_one_that_neighbours_accept() {
        let address: Ipv6Addr = "fd00::100".parse().unwrap();
        let frame = frame(address.into(), MAC);
        assert_eq!(frame.len(), 86);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!((frame[20], frame[21]), (58, 255), "anything but hop limit 255 is dropped");
        let message = &frame[54..];
        assert_eq!((message[0], message[4] & 0xe0), (136, 0x20), "an advertisement that overrides what is known");
        assert_eq!(message[8..24], address.octets());
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(checksum(address, ALL_NODES_ADDRESS, message), 0, "a sum over a right checksum is zero");
    }
}
