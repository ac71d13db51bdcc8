//! Lists, adds and removes addresses of this host's interfaces, through rtnetlink.

use super::announce::{self, Mac};
use super::{InterfaceAddress, Network};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use nix::errno::Errno;
use rtnetlink::{AddressMessageBuilder, Handle, new_connection};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;
use tokio_stream::StreamExt;

/// Longest wait for an answer of the kernel, which takes microseconds.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// The interfaces of this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Netlink;

/// Interface as it is now.
#[derive(Clone, Copy, Debug)]
struct Link {
    index: u32,
    /// `None` where there are no neighbours.
    mac: Option<Mac>,
}

#[async_trait]
impl Network for Netlink {
    async fn has(&self, vip: &InterfaceAddress) -> Result<bool> {
        with_netlink(vip, async |handle| {
            let link = link(handle, vip).await?;
            Ok(!assigned(handle, vip, link).await?.is_empty())
        })
        .await
    }

    async fn add(&self, vip: &InterfaceAddress) -> Result<()> {
        with_netlink(vip, async |handle| {
            let link = link(handle, vip).await?;
            let mut request = handle.address().add(link.index, vip.address, vip.prefix);
            if vip.address.is_ipv6() {
                // The election keeps the address on one node. The kernel's detection of duplicates would delay the
                // address by a second.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            match request.execute().await {
                Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
                result => result.map_err(|error| of_kernel(&error, "add", vip)),
            }
        })
        .await
    }

    async fn remove(&self, vip: &InterfaceAddress) -> Result<bool> {
        with_netlink(vip, async |handle| {
            let link = link(handle, vip).await?;
            let mut assigned = assigned(handle, vip, link).await?;
            let is_present = !assigned.is_empty();
            if !is_present {
                // An attempt to delete also shows whether this process has the rights.
                assigned.push(message(vip, link));
            }
            for message in assigned {
                match handle.address().del(message).execute().await {
                    Err(error) if errno(&error) == Some(Errno::EADDRNOTAVAIL) => {}
                    result => result.map_err(|error| of_kernel(&error, "remove", vip))?,
                }
            }
            Ok(is_present)
        })
        .await
    }

    async fn announce(&self, vip: &InterfaceAddress) -> Result<()> {
        let link = with_netlink(vip, async |handle| link(handle, vip).await).await?;
        let Some(mac) = link.mac else { return Ok(()) };
        let frame = announce::frame(vip.address, mac);
        let sent = tokio::task::spawn_blocking(move || announce::send(link.index, &frame)).await;
        let sent = sent.map_err(|error| Error::internal(Operation::Write, error.to_string()))?;
        sent.map_err(|error| {
            let failed =
                Error::io(Side::Engine, Operation::Write, &error, format!("announce the service address {vip}"));
            if failed.code == Code::Permission { needs_rights(failed) } else { failed }
        })
    }
}

/// Asks the kernel over a connection of its own, within the bound.
async fn with_netlink<T>(vip: &InterfaceAddress, question: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let failed = |error| Error::io(Side::Engine, Operation::Start, &error, "open a netlink socket");
    let (connection, handle, _) = new_connection().map_err(failed)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(timeout(ANSWER_WAIT, question(&handle)));
    let answered = std::future::poll_fn(|context| {
        // The connection runs while there is a handle, so `question` ends first.
        let _ = connection.as_mut().poll(context);
        answer.as_mut().poll(context)
    });
    answered.await.unwrap_or_else(|_| {
        let message = format!("no answer of the kernel about the service address {vip}");
        Err(Error { retryable: true, ..Error::new(Code::Timeout, Side::Engine, Operation::Start, message) })
    })
}

async fn link(handle: &Handle, vip: &InterfaceAddress) -> Result<Link> {
    let mut links = pin!(handle.link().get().match_name(vip.interface.clone()).execute());
    let found = match links.next().await {
        Some(Ok(found)) => found,
        Some(Err(error)) => return Err(of_kernel(&error, "find the interface of", vip)),
        None => return Err(of_errno(Errno::ENODEV, "find the interface of", vip)),
    };
    let is_deaf = found.header.flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp);
    let mac = found.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    Ok(Link { index: found.header.index, mac: mac.filter(|_| !is_deaf) })
}

/// Lists the address as it is on its interface, with any prefix.
async fn assigned(handle: &Handle, vip: &InterfaceAddress, link: Link) -> Result<Vec<AddressMessage>> {
    let mut all = pin!(handle.address().get().set_link_index_filter(link.index).execute());
    let mut found = Vec::new();
    while let Some(address) = all.next().await {
        let address = address.map_err(|error| of_kernel(&error, "find", vip))?;
        // Of a point-to-point link only the local one is this host's.
        let local = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(local) => Some(*local),
            _ => None,
        });
        let plain = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(plain) => Some(*plain),
            _ => None,
        });
        if local.or(plain) == Some(vip.address) {
            found.push(address);
        }
    }
    Ok(found)
}

fn message(vip: &InterfaceAddress, link: Link) -> AddressMessage {
    match vip.address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(address, vip.prefix).build()
        }
        IpAddr::V6(address) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(link.index).address(address, vip.prefix).build()
        }
    }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(message.raw_code().saturating_abs())),
        _ => None,
    }
}

fn of_kernel(error: &rtnetlink::Error, verb: &str, vip: &InterfaceAddress) -> Error {
    match errno(error) {
        Some(errno) => of_errno(errno, verb, vip),
        None => {
            let message = format!("{verb} the service address {vip}: {error}");
            Error { retryable: true, ..Error::new(Code::Io, Side::Engine, Operation::Start, message) }
        }
    }
}

/// Translates an errno: `EBadRequest`, `ENotFound` or `EPermission` if the operator has to change something; any other
/// error may be temporary.
fn of_errno(errno: Errno, verb: &str, vip: &InterfaceAddress) -> Error {
    let failed = Error::os(Side::Caller, Operation::Start, errno, format!("{verb} the service address {vip}"));
    match errno {
        Errno::ENODEV | Errno::ENXIO => {
            failed.with_code(Code::NotFound).advise("there is no such interface: use another one with --vip")
        }
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL => {
            failed.with_code(Code::NotFound).advise("there is no route to it over that interface: use another --vip")
        }
        Errno::EINVAL | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP => {
            failed.with_code(Code::BadRequest).advise("that interface cannot have that address: use another --vip")
        }
        Errno::EPERM | Errno::EACCES => needs_rights(failed.with_code(Code::Permission)),
        _ => Error { retryable: true, ..failed.with_code(Code::Io) },
    }
}

fn needs_rights(error: Error) -> Error {
    error.advise("--vip needs CAP_NET_ADMIN and CAP_NET_RAW: see docs/task-center.md, or run without --vip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_for_the_operator_are_told_from_temporary_ones() {
        let vip = InterfaceAddress::parse("10.0.0.100/24@eth0").unwrap();
        for (errno, code) in [
            (Errno::ENODEV, Code::NotFound),
            (Errno::ENETUNREACH, Code::NotFound),
            (Errno::EINVAL, Code::BadRequest),
            (Errno::EPERM, Code::Permission),
            (Errno::ENETDOWN, Code::Io),
            (Errno::ENOBUFS, Code::Io),
        ] {
            let error = of_errno(errno, "add", &vip);
            assert_eq!((error.code, super::super::is_final(&error)), (code, code != Code::Io), "{error}");
            assert!(error.message.contains("10.0.0.100/24@eth0"), "{error}");
        }
    }
}
