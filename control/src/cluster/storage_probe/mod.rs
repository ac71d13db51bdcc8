//! Probes the peers over the storage network and publishes whether this node can use it.
//!
//! ```text
//!  /runners --> probe every interval --> peer's echo --> answer with the nonce --> failure detector --> verdict
//! ```
//! Every node echoes the probes of its peers to their senders, even while it has lost the network itself. It probes up
//! to [`PEERS_MAX`] peers. The node acts on the verdict; this module only publishes it.
//!
//! What always holds: an answer counts only if it carries the nonce of a probe and comes from the address that the
//! probe was sent to.

mod address;
mod packet;
mod failure_detector;
mod peers;

pub(crate) use address::DataAddress;
pub(crate) use address::is_interface;
pub(crate) use failure_detector::{ProbeTiming, Verdict};

use crate::clock::Clock;
use crate::coord::session_keeper::Sessions;
use crate::model::NodeId;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use failure_detector::FailureDetector;
use packet::{LENGTH, Nonce, Packet};
use peers::PeerAddresses;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Number of peers that a node probes. More would not improve a verdict.
const PEERS_MAX: usize = 8;

/// Wait after the socket itself has failed.
const RETRY: Duration = Duration::from_millis(100);

/// State of the storage network.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProbeStatus {
    /// Whether the storage network is usable.
    pub verdict: Verdict,
    /// Peers that are probed, and for how long each has been silent.
    pub peers: Vec<(NodeId, Duration)>,
}

/// Socket of a node in the storage network.
#[derive(Debug)]
pub(crate) struct StorageProbe {
    socket: UdpSocket,
    address: SocketAddr,
    timing: ProbeTiming,
    seen: watch::Sender<ProbeStatus>,
}

/// State of the probe loop from one packet to the next.
struct ProbeLoop<'a> {
    probe: &'a StorageProbe,
    clock: &'a dyn Clock,
    detector: FailureDetector,
    addresses: BTreeMap<NodeId, SocketAddr>,
    /// Probes that may still be answered.
    open: HashMap<Nonce, Probe>,
}

struct Probe {
    peer: NodeId,
    address: SocketAddr,
    sent: Duration,
}

impl StorageProbe {
    /// Binds the socket.
    ///
    /// # Errors
    /// `ENotFound` if this host has no such interface or address, `EBusy` if the port is taken, and other errors of the
    /// system.
    pub(crate) async fn open(address: &DataAddress, timing: ProbeTiming) -> Result<Self> {
        let wanted = address.resolve()?;
        let socket = UdpSocket::bind(wanted).await.map_err(|error| of_address(&error, wanted))?;
        let address = socket.local_addr().map_err(|error| of_address(&error, wanted))?;
        Ok(Self { socket, address, timing, seen: watch::Sender::new(ProbeStatus::default()) })
    }

    /// Returns the address that peers probe.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the state, now and at every change.
    #[must_use]
    pub(crate) fn seen(&self) -> watch::Receiver<ProbeStatus> {
        self.seen.subscribe()
    }

    /// Echoes probes, sends probes and publishes verdicts for as long as it is polled.
    pub(crate) async fn run(&self, me: &NodeId, sessions: Sessions, clock: &Arc<dyn Clock>) {
        let (peer_addresses, known) = watch::channel(PeerAddresses::default());
        let probing = ProbeLoop {
            probe: self,
            clock: &**clock,
            detector: FailureDetector::new(self.timing),
            addresses: BTreeMap::new(),
            open: HashMap::new(),
        };
        tokio::join!(peers::follow(me, sessions, &peer_addresses), probing.run(known));
    }
}

impl ProbeLoop<'_> {
    async fn run(mut self, mut peer_addresses: watch::Receiver<PeerAddresses>) {
        let mut rounds = interval(self.probe.timing.interval);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One byte longer than a packet, to detect longer datagrams.
        let mut buffer = [0; LENGTH + 1];
        loop {
            tokio::select! { biased;
                received = self.probe.socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.receive(&buffer[..length], from),
                    Err(error) => {
                        tracing::debug!(%error, "storage probe: socket failed");
                        sleep(RETRY).await;
                    }
                },
                Ok(()) = peer_addresses.changed() => {
                    let peers = peer_addresses.borrow_and_update().clone();
                    self.observe(peers);
                    self.probe();
                }
                _ = rounds.tick() => {
                    self.probe();
                    if self.update_verdict() {
                        // Earlier peers that are no longer registered are dropped.
                        let peers = peer_addresses.borrow().clone();
                        self.observe(peers);
                    }
                }
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], from: SocketAddr) {
        match Packet::decode(bytes) {
            Some(Packet::Probe(nonce)) => self.send(Packet::Answer(nonce), from),
            Some(Packet::Answer(nonce)) => {
                if self.open.get(&nonce).is_some_and(|probe| probe.address == from)
                    && let Some(probe) = self.open.remove(&nonce)
                {
                    self.detector.answered(self.clock.boot_time(), &probe.peer);
                }
            }
            None => tracing::debug!(%from, "storage probe: malformed packet"),
        }
    }

    fn observe(&mut self, PeerAddresses(peers): PeerAddresses) {
        let probed = peers.keys().cloned().collect();
        self.detector.observe(self.clock.boot_time(), &probed, peers.len());
        self.addresses.extend(peers);
    }

    fn probe(&mut self) {
        let (now, timeout) = (self.clock.boot_time(), self.probe.timing.timeout);
        self.open.retain(|_, probe| now.saturating_sub(probe.sent) < timeout);
        let peers: Vec<NodeId> = self.detector.probed().cloned().collect();
        self.addresses.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            let Some(&address) = self.addresses.get(&peer) else { continue };
            let nonce = Nonce::fresh();
            self.open.insert(nonce, Probe { peer, address, sent: now });
            self.send(Packet::Probe(nonce), address);
        }
    }

    /// Sends a packet. A failure to send counts as loss on the way.
    fn send(&self, packet: Packet, to: SocketAddr) {
        if let Err(error) = self.probe.socket.try_send_to(&packet.encode(), to) {
            tracing::trace!(%to, %error, "storage probe: cannot send");
        }
    }

    /// Applies the verdict; tells whether the storage network is back.
    fn update_verdict(&mut self) -> bool {
        let now = self.clock.boot_time();
        let verdict = self.detector.verdict(now, fastrand::f64());
        let peers = self.detector.silences(now).map(|(peer, silent)| (peer.clone(), silent)).collect();
        let seen = ProbeStatus { verdict, peers };
        let before = self.probe.seen.send_replace(seen).verdict;
        let is_back = (before, verdict) == (Verdict::Lost, Verdict::Usable);
        if is_back {
            tracing::warn!(address = %self.probe.address, "storage network usable again");
        } else if before != verdict {
            tracing::error!(address = %self.probe.address, "storage network lost: no peer answers");
        }
        is_back
    }
}

fn of_address(error: &io::Error, address: SocketAddr) -> Error {
    let failed = Error::io(Side::Engine, Operation::Start, error, format!("open the storage probe at {address}"));
    let (code, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            (Code::Busy, "another process has that port: use another one, or none for a free one")
        }
        io::ErrorKind::AddrNotAvailable => {
            (Code::NotFound, "this host has no such address: use another --data-address")
        }
        _ => return failed,
    };
    failed.with_code(code).advise(advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HostClock;
    use crate::coord::embedded::Embedded;
    use crate::coord::paths;
    use crate::coord::session_keeper::SessionKeeper;
    use crate::coord::{CoordClient, CreateMode, Op};
    use crate::model::{Record, Registration};

    const TIMING: ProbeTiming =
        ProbeTiming { interval: Duration::from_millis(20), timeout: Duration::from_millis(200) };

    fn registration(name: &str, data: Option<SocketAddr>) -> Op {
        let mut registration = Registration::example(name);
        registration.data = data;
        let (path, data) = (paths::runner(name), registration.encode());
        Op::Create { path, data, mode: CreateMode::Persistent }
    }

    async fn bound(address: &str) -> StorageProbe {
        StorageProbe::open(&DataAddress::parse(address).unwrap(), TIMING).await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_counts_only_with_its_nonce_and_from_its_peer() {
        let probe = bound("127.0.0.1").await;
        let (peer, stranger) = (bound("127.0.0.1").await, bound("127.0.0.1").await);
        let name = NodeId::new("peer").unwrap();
        let mut probing = ProbeLoop {
            probe: &probe,
            clock: &HostClock,
            detector: FailureDetector::new(TIMING),
            addresses: BTreeMap::new(),
            open: HashMap::new(),
        };
        probing.observe(PeerAddresses([(name.clone(), peer.address())].into()));
        probing.probe();
        let sent = *probing.open.keys().next().unwrap();
        probing.receive(&Packet::Answer(Nonce::fresh()).encode(), peer.address());
        probing.receive(&Packet::Answer(sent).encode(), stranger.address());
        probing.receive(b"BHC1 and something else", peer.address());
        assert!(probing.open.contains_key(&sent), "none of these answers it");
        probing.receive(&Packet::Answer(sent).encode(), peer.address());
        assert!(probing.open.is_empty(), "a nonce is good for one answer");
    }

    /// Three nodes on the loopback interface; the socket of one of them stops receiving and recovers.
    #[tokio::test]
    async fn a_node_without_answers_loses_the_storage_network_and_recovers() {
        let scratch = tempfile::tempdir().unwrap();
        let service: Arc<dyn CoordClient> = Arc::new(Embedded::open(&scratch.path().join("store")).unwrap());
        let session = service.open().await.unwrap();
        let folder = Op::Create { path: paths::RUNNERS.to_owned(), data: Vec::new(), mode: CreateMode::Persistent };
        let (me, others) = (bound("127.0.0.1").await, [bound("127.0.0.1").await, bound("127.0.0.1").await]);
        let ops = vec![
            folder,
            registration("a", Some(me.address())),
            registration("b", Some(others[0].address())),
            registration("c", Some(others[1].address())),
            registration("without", None),
        ];
        session.multi(ops).await.unwrap();
        let keeper = SessionKeeper::new(service);
        let (sessions, clock) = (keeper.sessions(), Arc::new(HostClock) as Arc<dyn Clock>);
        let (hears, is_heard) = watch::channel(true);
        let echo = async |probe: &StorageProbe| {
            let mut buffer = [0; LENGTH];
            loop {
                let (length, from) = probe.socket.recv_from(&mut buffer).await.unwrap();
                if let (Some(Packet::Probe(nonce)), true) = (Packet::decode(&buffer[..length]), *is_heard.borrow()) {
                    probe.socket.send_to(&Packet::Answer(nonce).encode(), from).await.unwrap();
                }
            }
        };
        let name = NodeId::new("a").unwrap();
        let script = async {
            let mut seen = me.seen();
            seen.wait_for(|seen| seen.peers.len() == 2).await.unwrap();
            sleep(TIMING.timeout * 2).await;
            assert_eq!(seen.borrow().verdict, Verdict::Usable);
            hears.send_replace(false);
            seen.wait_for(|seen| seen.verdict == Verdict::Lost).await.unwrap();
            hears.send_replace(true);
            seen.wait_for(|seen| seen.verdict == Verdict::Usable).await.unwrap();
        };
        tokio::select! {
            () = script => {}
            () = me.run(&name, sessions, &clock) => unreachable!("it never ends"),
            () = keeper.run() => unreachable!("it never ends"),
            () = echo(&others[0]) => {}
            () = echo(&others[1]) => {}
        }
    }
}
