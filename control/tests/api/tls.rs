//! Mutual TLS: who has no certificate of the authority is not listened to, and does not listen.

use crate::mock::{MockDesk, Node, name, noop};
use blockhaul_control::api::channels::Channels;
use blockhaul_control::api::client::CenterClient;
use blockhaul_control::api::tls::{RawTls, Tls};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A certificate authority in a folder of its own.
struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        let extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign,cRLSign"];
        let (key, certificate) = (authority.path("ca-key.pem"), authority.path("ca.pem"));
        let files = ["-subj", "/CN=authority", "-keyout", text(&key), "-out", text(&certificate)];
        openssl(&[&["req", "-x509", "-days", "2"], &NEW_KEY[..], &extensions, &files].concat());
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A process's certificate, for listening and for calling.
    fn certify(&self, name: &str) -> RawTls {
        let (key, request) = (self.path(&format!("{name}-key.pem")), self.path("request.pem"));
        let certificate = self.path(&format!("{name}.pem"));
        let files = ["-subj", "/CN=node", "-keyout", text(&key), "-out", text(&request)];
        openssl(&[&["req"], &NEW_KEY[..], &files].concat());
        let extensions = self.path("extensions");
        let usage = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(&extensions, usage).unwrap();
        let (ca, ca_key) = (self.path("ca.pem"), self.path("ca-key.pem"));
        let signed = ["x509", "-req", "-days", "2", "-in", text(&request), "-CA", text(&ca), "-CAkey", text(&ca_key)];
        let out = ["-CAcreateserial", "-extfile", text(&extensions), "-out", text(&certificate)];
        openssl(&[&signed[..], &out].concat());
        RawTls { tls_cert: Some(certificate), tls_key: Some(key), tls_ca: Some(ca) }
    }
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn read(raw: &RawTls) -> Tls {
    Tls::read(raw).unwrap().unwrap()
}

/// One try, without the patience of a client.
async fn asks(node: &Node, tls: Option<Tls>) -> Result<(), String> {
    use blockhaul_control::api::wire::center_client::CenterClient as Stub;
    let channel = Channels::new(tls).to(&node.address()).map_err(|fault| fault.to_string())?;
    let answer = Stub::new(channel).get(name("t")).await;
    answer.map(drop).map_err(|status| blockhaul_control::api::fault::Fault::from(status).to_string())
}

#[tokio::test]
async fn only_certificates_of_the_authority_are_taken_on_either_side() {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let node = Node::with_tls(Some(&read(&ours.certify("node")))).await;
    node.lead(&Arc::new(MockDesk::default()));
    let caller = ours.certify("caller");
    let mut client = CenterClient::new(vec![node.address()], Channels::new(Some(read(&caller)))).unwrap();
    assert_eq!(client.submit(noop("t")).await.unwrap().id, "t");
    assert_eq!(asks(&node, Some(read(&caller))).await, Ok(()));

    assert!(asks(&node, None).await.is_err(), "a caller without TLS");
    let stranger = foreign.certify("stranger");
    let refused = asks(&node, Some(read(&stranger))).await.expect_err("both of another authority");
    assert!(refused.contains("no authority in --tls-ca"), "{refused}");
    let unsigned = RawTls { tls_ca: caller.tls_ca.clone(), ..stranger.clone() };
    let refused = asks(&node, Some(read(&unsigned))).await.expect_err("a caller that our authority did not sign");
    assert!(refused.contains("--tls-cert"), "{refused}");
    let distrustful = RawTls { tls_ca: stranger.tls_ca, ..caller.clone() };
    let refused = asks(&node, Some(read(&distrustful))).await.expect_err("a node that its authority did not sign");
    assert!(refused.contains("no authority in --tls-ca"), "{refused}");
    let plain = Node::start().await;
    let refused = asks(&plain, Some(read(&caller))).await.expect_err("a node without TLS");
    assert!(refused.contains("speaks no TLS"), "{refused}");
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_refused_when_listening_begins() {
    let ours = Authority::new();
    let (node, other) = (ours.certify("node"), ours.certify("other"));
    let raw = RawTls { tls_key: other.tls_key, ..node };
    let roles = blockhaul_control::api::desk::Roles {
        leadership: tokio::sync::watch::channel(Default::default()).1,
        serving: tokio::sync::watch::channel(true).1,
        floor: tokio::sync::watch::channel(None).1,
    };
    let address = "127.0.0.1:0".parse().unwrap();
    let tls = read(&raw);
    let listening =
        blockhaul_control::api::listener::Listener::open(address, Some(&tls), crate::mock::identity(), roles, None);
    assert!(listening.await.unwrap_err().message.contains("--tls-key"));
}
