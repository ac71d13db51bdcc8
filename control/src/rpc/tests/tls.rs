//! Tests mutual TLS: a process without a valid certificate of the authority is not served, and does not serve.

use super::mock::{MockDispatcher, Node, name, noop};
use crate::clock::{Clock, HostClock};
use crate::rpc::channels::Channels;
use crate::rpc::client::CenterClient;
use crate::rpc::tls::{RawTls, Tls};
use blockhaul_testkit::authority::{Authority, Identity};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);

fn raw(identity: &Identity) -> RawTls {
    let Identity { certificate, key, authority } = identity.clone();
    RawTls { tls_cert: Some(certificate), tls_key: Some(key), tls_ca: Some(authority) }
}

pub(super) fn read(identity: &Identity) -> Tls {
    Tls::read(&raw(identity), &HostClock).unwrap().unwrap()
}

/// A clock that is two hours slow, so that certificates which have expired seem to be valid.
#[derive(Debug)]
struct SlowClock;

impl Clock for SlowClock {
    fn boot_time(&self) -> Duration {
        HostClock.boot_time()
    }

    fn unix_ms(&self) -> u64 {
        HostClock.unix_ms() - 2 * u64::try_from(HOUR.as_millis()).unwrap()
    }
}

/// As a process with a slow clock reads a certificate that has expired an hour ago.
fn read_expired(authority: &Authority, name: &str) -> Tls {
    let now = SystemTime::now();
    let expired = raw(&authority.certify_for(name, now - 24 * HOUR, now - HOUR));
    let error = Tls::read(&expired, &HostClock).expect_err("the clock of this host is right");
    assert!(error.message.contains("has expired at"), "{error}");
    Tls::read(&expired, &SlowClock).unwrap().unwrap()
}

/// One try, without the patience of a client.
async fn asks(node: &Node, tls: Option<Tls>) -> Result<(), String> {
    use crate::rpc::wire::center_client::CenterClient as Stub;
    let channel = Channels::new(tls).to(&node.address()).map_err(|fault| fault.to_string())?;
    let answer = Stub::new(channel).get(name("t")).await;
    answer.map(drop).map_err(|status| crate::rpc::error::RpcError::from(status).to_string())
}

#[tokio::test]
async fn only_certificates_of_the_authority_are_taken_on_either_side() {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let node = Node::with_tls(Some(&read(&ours.certify("node")))).await;
    node.lead(&Arc::new(MockDispatcher::default()));
    let caller = ours.certify("caller");
    let mut client = CenterClient::new(vec![node.address()], Channels::new(Some(read(&caller)))).unwrap();
    assert_eq!(client.submit(noop("t")).await.unwrap().id, "t");
    assert_eq!(asks(&node, Some(read(&caller))).await, Ok(()));

    assert!(asks(&node, None).await.is_err(), "a caller without TLS");
    let stranger = foreign.certify("stranger");
    let refused = asks(&node, Some(read(&stranger))).await.expect_err("both of another authority");
    assert!(refused.contains("no authority in --tls-ca"), "{refused}");
    let unsigned = Identity { authority: caller.authority.clone(), ..stranger.clone() };
    let refused = asks(&node, Some(read(&unsigned))).await.expect_err("a caller that our authority did not sign");
    assert!(refused.contains("--tls-cert"), "{refused}");
    let distrustful = Identity { authority: stranger.authority, ..caller.clone() };
    let refused = asks(&node, Some(read(&distrustful))).await.expect_err("a node that its authority did not sign");
    assert!(refused.contains("no authority in --tls-ca"), "{refused}");
    let plain = Node::start().await;
    let refused = asks(&plain, Some(read(&caller))).await.expect_err("a node without TLS");
    assert!(refused.contains("no TLS at that address"), "{refused}");
}

/// Whose clock is right refuses the certificate of whose clock is slow, and the caller hears which one it is.
#[tokio::test]
async fn an_expired_certificate_is_named_on_either_side() {
    let ours = Authority::new();
    let node = Node::with_tls(Some(&read(&ours.certify("node")))).await;
    node.lead(&Arc::new(MockDispatcher::default()));
    let old = read_expired(&ours, "old");
    for _ in 0..10 {
        let refused = asks(&node, Some(old.clone())).await.expect_err("the caller's has expired");
        assert!(refused.contains("the certificate in --tls-cert has expired"), "{refused}");
    }
    let lapsed = Node::with_tls(Some(&read_expired(&ours, "lapsed"))).await;
    let refused = asks(&lapsed, Some(read(&ours.certify("caller")))).await.expect_err("the node's has expired");
    assert!(refused.contains("the certificate of that node has expired at 20"), "{refused}");
}

/// Peers that connect and say nothing, or begin and stop, hold up nobody.
#[tokio::test]
async fn a_handshake_that_stalls_holds_up_nobody() {
    let ours = Authority::new();
    let node = Node::with_tls(Some(&read(&ours.certify("node")))).await;
    node.lead(&Arc::new(MockDispatcher::default()));
    let mut stalled = Vec::new();
    for first in [&b""[..], b"\x16\x03\x01"] {
        let mut stream = tokio::net::TcpStream::connect(node.address()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, first).await.unwrap();
        stalled.push(stream);
    }
    let caller = read(&ours.certify("caller"));
    let mut client = CenterClient::new(vec![node.address()], Channels::new(Some(caller))).unwrap();
    assert_eq!(client.submit(noop("t")).await.unwrap().id, "t");
    for mut stream in stalled {
        let end = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
        assert_eq!(end.unwrap_or(0), 0, "it is given up");
    }
}
