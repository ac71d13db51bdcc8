//! Chooses the peers that a node probes: the nodes after it in the order of names that are registered with an address
//! in the storage network.
//!
//! Names are sorted into a ring. So every node is probed by as many nodes as it probes, and no node reads more
//! registrations than it needs.

use super::PEERS_MAX;
use crate::coord::paths;
use crate::coord::session_keeper::Sessions;
use crate::coord::{CoordError, Session, Watch};
use crate::model::{NodeId, Record, Registration};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Longest time between two reads: watches may be lost.
const READ_EVERY: Duration = Duration::from_secs(10);
/// Wait after a read that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Peers that are registered and probed: at most [`PEERS_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerAddresses(pub(super) BTreeMap<NodeId, SocketAddr>);

/// Publishes the peers by the registrations, for as long as it is polled. Without a session the last ones stay.
pub(super) async fn follow(me: &NodeId, mut sessions: Sessions, peer_addresses: &watch::Sender<PeerAddresses>) {
    loop {
        let open = sessions.wait_for(Option::is_some).await.map(|session| session.clone());
        let Ok(Some(session)) = open else { return std::future::pending().await };
        let mut states = session.states();
        match read(me, &session).await {
            Ok((peers, watch)) => {
                peer_addresses.send_if_modified(|known| {
                    let is_new = *known != peers;
                    *known = peers;
                    is_new
                });
                tokio::select! { biased;
                    _ = states.wait_for(|state| state.is_over()) => {}
                    () = watch.fired() => {}
                    () = sleep(READ_EVERY) => {}
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the registrations");
                sleep(RETRY).await;
            }
        }
    }
}

async fn read(me: &NodeId, session: &Arc<dyn Session>) -> Result<(PeerAddresses, Watch), CoordError> {
    let (names, watch) = session.children_and_watch(paths::RUNNERS).await?;
    let mut peers = PeerAddresses::default();
    for name in after(me, &names) {
        if peers.0.len() == PEERS_MAX {
            break;
        }
        let Some(node) = session.get(&paths::runner(name)).await? else { continue };
        // A registration that cannot be decoded has no known address.
        let Ok(Registration { node, data: Some(data), .. }) = Registration::decode(&node.data) else { continue };
        peers.0.insert(node, data);
    }
    Ok((peers, watch))
}

/// Returns all other names in order, the first one after this node's, then from the beginning.
fn after<'a>(me: &NodeId, names: &'a [String]) -> impl Iterator<Item = &'a String> {
    let own = me.as_str().to_owned();
    let later = names.iter().filter({
        let own = own.clone();
        move |name| **name > own
    });
    later.chain(names.iter().filter(move |name| **name < own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_probed_by_as_many_as_it_probes() {
        let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
        let mut probes = BTreeMap::<&String, usize>::new();
        for me in &names {
            let chosen: Vec<_> = after(&NodeId::new(me.clone()).unwrap(), &names).take(PEERS_MAX).collect();
            assert!(chosen.len() == PEERS_MAX && !chosen.contains(&me));
            chosen.into_iter().for_each(|peer| *probes.entry(peer).or_default() += 1);
        }
        assert!(probes.len() == 40 && probes.values().all(|&count| count == PEERS_MAX), "{probes:?}");
    }
}
