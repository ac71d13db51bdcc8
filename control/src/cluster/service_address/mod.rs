//! Keeps the service address, which clients use, on the leader's node.
//!
//! ```text
//!  leads, lease held --> added to the interface, answered, announced --> checked every second, added again if missing
//!                                                                        |
//!  stops deciding, lost leadership, lease short <-- connections closed, removed
//! ```
//! What always holds: the address is added only while the lease of this node has time left. It is removed before
//! another node can be elected; a leader that resigns removes it first. It is announced only while this process answers
//! through it. An address that a killed process has left behind is removed when the next one starts.

mod address;
mod announce;
mod netlink;

pub(crate) use address::InterfaceAddress;

use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Result};
use netlink::Netlink;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Time between two checks that the address is still on its interface.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Time between two checks that the lease is long enough for the address to stay.
const GUARD_EVERY: Duration = Duration::from_millis(100);
/// First checks at which the address is announced: a frame may be lost, and a neighbour may come later.
const ANNOUNCEMENTS: [u32; 3] = [0, 1, 3];
/// Number of checks from one later announcement to the next.
const ANNOUNCE_EVERY: u32 = 15;
/// Least rest of the lease with which the address may stay: enough for its removal.
const LEASE_MIN: Duration = Duration::from_secs(2);
/// Longest wait for a removal. Then leadership ends although the address may still be there.
const REMOVE_MAX: Duration = Duration::from_secs(2);
/// Wait after this process could not be reached through the address.
const ANSWER_RETRY: Duration = Duration::from_secs(5);
/// Wait after a removal that failed.
const RETRY: Duration = Duration::from_millis(100);

/// Addresses of interfaces: those of the kernel, or of a test.
#[async_trait]
pub(crate) trait Network: Send + Sync + std::fmt::Debug {
    /// Tells whether the address is on its interface.
    async fn has(&self, vip: &InterfaceAddress) -> Result<bool>;

    /// Adds the address to its interface; does nothing if it is there.
    async fn add(&self, vip: &InterfaceAddress) -> Result<()>;

    /// Removes the address; tells whether it was there.
    async fn remove(&self, vip: &InterfaceAddress) -> Result<bool>;

    /// Announces the address to the neighbours.
    async fn announce(&self, vip: &InterfaceAddress) -> Result<()>;
}

/// Services that are reached through the address: those of this process, or of a test.
#[async_trait]
pub(crate) trait Endpoint: Send + Sync + std::fmt::Debug {
    /// Accepts connections through the address, which is on this node now, and checks that this process answers there.
    ///
    /// # Errors
    /// `EUnreachable` if it does not.
    async fn begin(&self) -> Result<()>;

    /// Closes the connections through the address, and accepts no more.
    async fn end(&self);
}

/// Service address, as kept by this node. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct ServiceAddress {
    address: InterfaceAddress,
    network: Arc<dyn Network>,
    endpoint: Arc<dyn Endpoint>,
    is_on: Arc<watch::Sender<bool>>,
}

impl ServiceAddress {
    /// Checks the address on this host, and removes it if an earlier process has left it there. `own` are addresses
    /// that the node needs itself.
    ///
    /// # Errors
    /// `EBadRequest` if the address cannot be a service address, `ENotFound` if the interface is missing, `EPermission`
    /// without the rights.
    pub(crate) async fn open(address: InterfaceAddress, own: &[IpAddr], endpoint: Arc<dyn Endpoint>) -> Result<Self> {
        Self::over(Arc::new(Netlink), address, own, endpoint).await
    }

    async fn over(
        network: Arc<dyn Network>,
        address: InterfaceAddress,
        own: &[IpAddr],
        endpoint: Arc<dyn Endpoint>,
    ) -> Result<Self> {
        if own.contains(&address.address) {
            let message = format!("--vip {address}: this node's own address cannot move with the leader");
            return Err(Error::bad_request(message));
        }
        let vip = Self { address, network, endpoint, is_on: Arc::new(watch::Sender::new(false)) };
        match vip.network.remove(&vip.address).await {
            Ok(true) => tracing::warn!(vip = %vip.address, "removed a service address that an earlier process left"),
            Ok(false) => {}
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(vip = %vip.address, %error, "cannot check for a leftover service address")
            }
        }
        Ok(vip)
    }

    /// Returns the address.
    #[must_use]
    pub(crate) fn address(&self) -> &InterfaceAddress {
        &self.address
    }

    /// Tells whether the address is on this node, now and at every change.
    #[must_use]
    pub(crate) fn is_on(&self) -> watch::Receiver<bool> {
        self.is_on.subscribe()
    }

    /// Keeps the address on this node for as long as it is polled, while `left`, the rest of the lease, is at least 2
    /// s. Returns only an error that a retry cannot fix. The caller calls [`ServiceAddress::release`] afterwards in any
    /// case.
    pub(crate) async fn hold(&self, left: impl Fn() -> Duration) -> Error {
        let mut checks = 0;
        let mut check_at = Instant::now();
        loop {
            let is_leased = left() >= LEASE_MIN;
            if !is_leased && *self.is_on.borrow() {
                tracing::warn!(vip = %self.address, "lease almost over: removing the service address");
                self.release().await;
                (checks, check_at) = (0, Instant::now());
            } else if is_leased && check_at <= Instant::now() {
                check_at = Instant::now() + CHECK_EVERY;
                match self.keep(&mut checks).await {
                    Ok(()) => {}
                    Err(error) if is_final(&error) => return error,
                    Err(error) if error.code == Code::Unreachable => {
                        tracing::error!(vip = %self.address, %error, "service address not answered: removing it");
                        self.release().await;
                        check_at = Instant::now() + ANSWER_RETRY;
                    }
                    Err(error) => {
                        tracing::warn!(vip = %self.address, %error, "cannot keep the service address: retrying")
                    }
                }
            }
            sleep(GUARD_EVERY).await;
        }
    }

    async fn keep(&self, checks: &mut u32) -> Result<()> {
        let (is_present, was_on) = (self.network.has(&self.address).await?, *self.is_on.borrow());
        if !is_present {
            self.network.add(&self.address).await?;
        }
        if !(is_present && was_on) {
            self.endpoint.begin().await?;
            self.is_on.send_replace(true);
            *checks = 0;
            match was_on {
                true => tracing::warn!(vip = %self.address, "service address was missing: added again"),
                false => tracing::info!(vip = %self.address, "service address added"),
            }
        }
        let is_due = ANNOUNCEMENTS.contains(checks) || checks.is_multiple_of(ANNOUNCE_EVERY);
        *checks += 1;
        if is_due { self.network.announce(&self.address).await } else { Ok(()) }
    }

    /// Removes the address before the next leader adds it. Tries for 2 s at most.
    pub(crate) async fn release(&self) {
        let removed = timeout(REMOVE_MAX, async {
            // Before the removal: without the address the connections could not be closed properly.
            self.endpoint.end().await;
            loop {
                match self.network.remove(&self.address).await {
                    Ok(was_present) => return was_present,
                    Err(error) => {
                        tracing::warn!(vip = %self.address, %error, "cannot remove the service address: retrying")
                    }
                }
                sleep(RETRY).await;
            }
        });
        match removed.await {
            Ok(was_present) => {
                if self.is_on.send_replace(false) || was_present {
                    tracing::info!(vip = %self.address, "service address removed");
                }
            }
            Err(_) => tracing::error!(vip = %self.address, "service address not removed: remove it by hand"),
        }
    }
}

/// Tells whether only the operator can fix an error: a retry would change nothing.
fn is_final(error: &Error) -> bool {
    matches!(error.code, Code::BadRequest | Code::NotFound | Code::Permission)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::{Operation, Side};
    use std::sync::Mutex;

    /// Scripted interface and services that record their calls.
    #[derive(Debug, Default)]
    struct Scripted {
        is_present: Mutex<bool>,
        error: Mutex<Option<Code>>,
        is_unreachable: Mutex<bool>,
        calls: Mutex<Vec<&'static str>>,
    }

    impl Scripted {
        fn record(&self, verb: &'static str) -> Result<()> {
            self.calls.lock().unwrap().push(verb);
            let code = *self.error.lock().unwrap();
            code.map_or(Ok(()), |code| Err(Error::new(code, Side::Caller, Operation::Start, "as the test wants")))
        }

        fn take_calls(&self) -> Vec<&'static str> {
            std::mem::take(&mut *self.calls.lock().unwrap())
        }
    }

    #[async_trait]
    impl Network for Scripted {
        async fn has(&self, _: &InterfaceAddress) -> Result<bool> {
            let code = *self.error.lock().unwrap();
            match code {
                Some(code) => Err(Error::new(code, Side::Caller, Operation::Start, "as the test wants")),
                None => Ok(*self.is_present.lock().unwrap()),
            }
        }

        async fn add(&self, _: &InterfaceAddress) -> Result<()> {
            self.record("add")?;
            *self.is_present.lock().unwrap() = true;
            Ok(())
        }

        async fn remove(&self, _: &InterfaceAddress) -> Result<bool> {
            self.record("remove")?;
            Ok(std::mem::take(&mut *self.is_present.lock().unwrap()))
        }

        async fn announce(&self, _: &InterfaceAddress) -> Result<()> {
            self.record("announce")
        }
    }

    #[async_trait]
    impl Endpoint for Scripted {
        async fn begin(&self) -> Result<()> {
            self.record("begin")?;
            assert!(*self.is_present.lock().unwrap(), "the address was not added before the check");
            if *self.is_unreachable.lock().unwrap() {
                return Err(Error::new(Code::Unreachable, Side::Engine, Operation::Start, "as the test wants"));
            }
            Ok(())
        }

        async fn end(&self) {
            self.calls.lock().unwrap().push("end");
        }
    }

    async fn opened() -> (ServiceAddress, Arc<Scripted>) {
        let network = Arc::new(Scripted::default());
        let address = InterfaceAddress::parse("10.0.0.100/24@eth0").unwrap();
        let endpoint = Arc::clone(&network) as Arc<dyn Endpoint>;
        let vip = ServiceAddress::over(Arc::clone(&network) as Arc<dyn Network>, address, &[], endpoint).await.unwrap();
        network.take_calls();
        (vip, network)
    }

    async fn held(vip: &ServiceAddress, left: Duration, time: Duration) -> Option<Error> {
        timeout(time, vip.hold(|| left)).await.ok()
    }

    #[tokio::test]
    async fn a_leftover_address_is_removed_and_own_addresses_are_refused() {
        let network = Arc::new(Scripted::default());
        *network.is_present.lock().unwrap() = true;
        let address = InterfaceAddress::parse("10.0.0.100/24@eth0").unwrap();
        let over = Arc::clone(&network) as Arc<dyn Network>;
        let endpoint = || Arc::clone(&network) as Arc<dyn Endpoint>;
        let own = [address.address];
        let error = ServiceAddress::over(Arc::clone(&over), address.clone(), &own, endpoint()).await.unwrap_err();
        assert!(error.code == Code::BadRequest && *network.is_present.lock().unwrap(), "{error}");
        ServiceAddress::over(over, address, &[], endpoint()).await.unwrap();
        assert_eq!(network.take_calls(), ["remove"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_is_added_announced_restored_and_removed() {
        let (vip, network) = opened().await;
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(500)).await.is_none());
        assert_eq!(network.take_calls(), ["add", "begin", "announce"]);
        assert!(*vip.is_on().borrow());
        *network.is_present.lock().unwrap() = false;
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(1500)).await.is_none());
        assert_eq!(
            network.take_calls(),
            ["add", "begin", "announce", "announce"],
            "the address was removed by another process"
        );
        vip.release().await;
        assert_eq!(network.take_calls(), ["end", "remove"]);
        assert!(!*vip.is_on().borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_is_added_only_with_a_lease_and_removed_before_its_end() {
        let (vip, network) = opened().await;
        assert!(held(&vip, Duration::from_secs(1), Duration::from_secs(5)).await.is_none());
        assert!(network.take_calls().is_empty());
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(500)).await.is_none());
        network.take_calls();
        assert!(held(&vip, Duration::ZERO, Duration::from_millis(500)).await.is_none());
        assert_eq!(network.take_calls(), ["end", "remove"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_address_is_removed_and_retried() {
        let (vip, network) = opened().await;
        *network.is_unreachable.lock().unwrap() = true;
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(4500)).await.is_none());
        assert_eq!(network.take_calls(), ["add", "begin", "end", "remove"]);
        assert!(!*vip.is_on().borrow() && !*network.is_present.lock().unwrap());
        // The address is there, but this process still does not answer through it.
        *network.is_present.lock().unwrap() = true;
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(4500)).await.is_none());
        assert_eq!(network.take_calls(), ["begin", "end", "remove"]);
        *network.is_unreachable.lock().unwrap() = false;
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(500)).await.is_none());
        assert_eq!(network.take_calls(), ["add", "begin", "announce"]);
    }

    #[tokio::test(start_paused = true)]
    async fn temporary_errors_are_retried_and_final_ones_are_returned() {
        let (vip, network) = opened().await;
        *network.error.lock().unwrap() = Some(Code::Io);
        assert!(held(&vip, Duration::from_secs(8), Duration::from_secs(3)).await.is_none());
        *network.error.lock().unwrap() = None;
        assert!(held(&vip, Duration::from_secs(8), Duration::from_millis(500)).await.is_none());
        assert!(*vip.is_on().borrow());
        *network.error.lock().unwrap() = Some(Code::NotFound);
        let error = held(&vip, Duration::from_secs(8), Duration::from_secs(3)).await.expect("it gives up");
        assert_eq!(error.code, Code::NotFound);
    }
}
