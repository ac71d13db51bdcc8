//! Sets up mutual TLS between all processes of a center: one certificate, its key, and the authority that signed all of
//! them.
//!
//! A node listens and calls with the same certificate. So the certificate needs both `serverAuth` and `clientAuth`
//! where it limits its use, and the names or addresses by which others reach the node. A command line needs
//! `clientAuth` only. A certificate of that authority gives every right, unless `--roles` says otherwise (`access`).
//!
//! The files are read again when they change: new connections use what was read last, open ones stay as they are. What
//! always holds: certificates in use were valid when they were read; unusable files replace nothing.

use super::certificates::{Certificates, Files, ValidityStatus};
use crate::access::certificate_name;
use crate::clock::Clock;
use crate::timestamp::Timestamp;
use blockhaul_engine::error::{Error, Operation, Result};
use clap::Args;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tonic::transport::ClientTlsConfig;

/// Time between two checks of the files: soon enough when a certificate is replaced days before it expires.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Time after which certificates that expire soon, or have expired, are logged again.
const SAY_EVERY: Duration = Duration::from_secs(24 * 3600);

/// TLS flags of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct RawTls {
    /// Certificate of this process, as PEM, intermediate ones after it
    #[arg(long, value_name = "FILE", env = "BLOCKHAUL_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate, as PEM
    #[arg(long, value_name = "FILE", env = "BLOCKHAUL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of the authorities that peers must be signed by, as PEM
    #[arg(long, value_name = "FILE", env = "BLOCKHAUL_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
}

/// Certificates of this process, as they were read last. Clones share them.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    paths: Files<PathBuf>,
    current: watch::Sender<Arc<Current>>,
    /// Whether they are valid now.
    valid: watch::Sender<bool>,
    /// Wakes the loop to read the files again now.
    asked: Notify,
}

struct Current {
    reading: u64,
    contents: Files<Vec<u8>>,
    certificates: Certificates,
}

impl Tls {
    /// Reads the files; `None` if none is named.
    ///
    /// # Errors
    /// `EBadRequest` if only some are named, one holds no PEM or the key is another certificate's; `ENotFound`;
    /// `EPermission` if one cannot be read, has expired, or is not valid yet.
    pub fn read(raw: &RawTls, clock: &dyn Clock) -> Result<Option<Self>> {
        let RawTls { tls_cert, tls_key, tls_ca } = raw.clone();
        let paths = match (tls_cert, tls_key, tls_ca) {
            (None, None, None) => return Ok(None),
            (Some(certificate), Some(key), Some(authority)) => Files { certificate, key, authority },
            _ => {
                let message = "--tls-cert, --tls-key and --tls-ca need each other: use all three or none";
                return Err(Error::bad_request(message));
            }
        };
        let current = Current::new(0, paths.read()?, &paths, clock.unix_ms())?;
        let (current, valid) = (watch::Sender::new(Arc::new(current)), watch::Sender::new(true));
        Ok(Some(Self(Arc::new(Inner { paths, current, valid, asked: Notify::new() }))))
    }

    /// Returns the configuration for connections that peers open from now on.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.current.borrow().certificates.server)
    }

    /// Returns the configuration for connections to peers: they must show a certificate of an authority that bears the
    /// name or address by which they are called.
    pub(super) fn client(&self) -> ClientTlsConfig {
        self.0.current.borrow().certificates.client.clone()
    }

    /// Tells whether a peer's certificate is this process's own, whose key nobody else has.
    pub(super) fn is_own(&self, certificate: &CertificateDer<'_>) -> bool {
        self.0.current.borrow().certificates.own == *certificate
    }

    /// Returns the name in this process's own certificate, as others see it.
    pub(crate) fn own_name(&self) -> Option<String> {
        certificate_name(&self.0.current.borrow().certificates.own)
    }

    /// Returns the files, by their flags.
    pub(crate) fn paths(&self) -> [(&'static str, &Path); 3] {
        let Files { certificate, key, authority } = &self.0.paths;
        [("--tls-cert", certificate.as_path()), ("--tls-key", key.as_path()), ("--tls-ca", authority.as_path())]
    }

    /// Returns the generation, which grows whenever other certificates are used from then on.
    pub(super) fn reading(&self) -> u64 {
        self.0.current.borrow().reading
    }

    /// Tells whether the certificates are valid, as of the last check of [`Tls::keep`].
    pub(crate) fn valid(&self) -> watch::Receiver<bool> {
        self.0.valid.subscribe()
    }

    /// Returns when the first of them expires, since 1970.
    pub(crate) fn expires(&self) -> Duration {
        self.0.current.borrow().certificates.validity.ends()
    }

    /// Reads the files now, and logs the result.
    pub(crate) fn read_again(&self) {
        self.0.asked.notify_one();
    }

    /// Reads the files again whenever they change, and checks validity by this clock, for as long as it is polled.
    pub(crate) async fn keep(&self, clock: &dyn Clock) {
        let mut reminder = Reminder::default();
        // What was found last, so that nothing is said of it twice.
        let mut last = None;
        loop {
            let now = clock.unix_ms();
            let until_next = self.judge(now, &mut reminder);
            let is_asked = tokio::select! { biased;
                () = self.0.asked.notified() => true,
                () = sleep(until_next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) => false,
            };
            let found = self.find().await;
            let is_news = is_asked || last.as_ref() != Some(&found);
            if is_asked || found.as_ref() != Ok(&self.0.current.borrow().contents) {
                self.replace(found.clone(), clock.unix_ms(), is_news);
            }
            last = Some(found);
        }
    }

    async fn find(&self) -> Result<Files<Vec<u8>>> {
        let paths = self.0.paths.clone();
        let read = tokio::task::spawn_blocking(move || paths.read()).await;
        read.unwrap_or_else(|error| Err(Error::internal(Operation::Parse, error.to_string())))
    }

    fn replace(&self, found: Result<Files<Vec<u8>>>, now: u64, is_news: bool) {
        match found.and_then(|contents| Current::new(self.reading() + 1, contents, &self.0.paths, now)) {
            Ok(new) => {
                let until = Timestamp::seconds(new.certificates.validity.ends().as_secs());
                tracing::info!(%until, "certificates reloaded");
                self.0.current.send_replace(Arc::new(new));
            }
            Err(error) if is_news => tracing::error!(%error, "cannot reload certificates: keeping the old ones"),
            Err(_) => (),
        }
    }

    /// Logs the status of the certificates; returns how long it lasts.
    fn judge(&self, now: u64, reminder: &mut Reminder) -> Option<Duration> {
        let current = Arc::clone(&self.0.current.borrow());
        let validity = &current.certificates.validity;
        let standing = validity.standing(now);
        let is_valid = matches!(standing, ValidityStatus::Valid | ValidityStatus::ExpiresSoon);
        self.0.valid.send_if_modified(|valid| std::mem::replace(valid, is_valid) != is_valid);
        if reminder.is_due(standing, now) {
            let words = validity.describe(now);
            match standing {
                ValidityStatus::Valid => (),
                ValidityStatus::ExpiresSoon => tracing::warn!("{words}"),
                ValidityStatus::Future | ValidityStatus::Expired => {
                    tracing::error!("no valid certificate: this node is unreachable and does not lead: {words}");
                }
            }
        }
        validity.next(now)
    }
}

impl fmt::Debug for Tls {
    /// Shows no keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.paths).finish()
    }
}

impl Current {
    fn new(reading: u64, contents: Files<Vec<u8>>, paths: &Files<PathBuf>, now: u64) -> Result<Self> {
        let certificates = Certificates::parse(&contents, paths)?;
        certificates.validity.check(now)?;
        Ok(Self { reading, contents, certificates })
    }
}

/// Decides when certificates are logged: at once when the status changes, then once a day.
#[derive(Debug, Default)]
struct Reminder(Option<(ValidityStatus, u64)>);

impl Reminder {
    fn is_due(&mut self, standing: ValidityStatus, now: u64) -> bool {
        let wait = u64::try_from(SAY_EVERY.as_millis()).unwrap_or(u64::MAX);
        if let Some((said, at)) = self.0
            && said == standing
            // A clock that was set back may not silence it for longer.
            && now.abs_diff(at) < wait
        {
            return false;
        }
        self.0 = Some((standing, now));
        standing != ValidityStatus::Valid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{HostClock, TestClock};
    use blockhaul_engine::error::Code;
    use blockhaul_testkit::authority::{Authority, Identity};
    use blockhaul_testkit::{Need, need};
    use std::time::{SystemTime, UNIX_EPOCH};

    const DAY_MS: u64 = 24 * 3600 * 1000;

    /// Returns so many days after the start of a [`TestClock`].
    fn day(days: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + days * DAY_MS)
    }

    fn long_ago() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_600_000_000)
    }

    fn authority() -> Authority {
        Authority::lasting(long_ago(), day(1000))
    }

    fn raw(identity: &Identity) -> RawTls {
        let Identity { certificate, key, authority } = identity.clone();
        RawTls { tls_cert: Some(certificate), tls_key: Some(key), tls_ca: Some(authority) }
    }

    /// Waits until it holds: a few checks of the files are enough.
    async fn comes(what: &str, holds: impl Fn() -> bool) {
        for _ in 0..5 {
            if holds() {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
        assert!(holds(), "it does not come: {what}");
    }

    #[test]
    fn all_three_files_or_none() {
        let clock = HostClock;
        assert!(Tls::read(&RawTls::default(), &clock).unwrap().is_none());
        let some = RawTls { tls_key: Some(PathBuf::from("/k")), ..RawTls::default() };
        assert!(Tls::read(&some, &clock).unwrap_err().message.contains("--tls-ca"));
    }

    #[tokio::test]
    async fn what_is_of_no_use_is_refused_with_the_reason() {
        need!("what_is_of_no_use_is_refused_with_the_reason", &[Need::Program("openssl")]);
        let (ours, clock) = (authority(), TestClock::start());
        let node = raw(&ours.certify_for("node", long_ago(), day(30)));
        assert!(Tls::read(&node, &clock).unwrap().is_some());
        let refused = |raw: RawTls| {
            let error = Tls::read(&raw, &clock).unwrap_err();
            (error.code, error.message)
        };
        let (code, why) = refused(RawTls { tls_key: node.tls_cert.clone(), ..node.clone() });
        assert!(code == Code::BadRequest && why.contains("PRIVATE KEY"), "{why}");
        let (code, why) = refused(RawTls { tls_key: Some(PathBuf::from("/does/not/exist")), ..node.clone() });
        assert!(code == Code::NotFound && why.contains("/does/not/exist"), "{why}");
        let other = ours.certify_for("other", long_ago(), day(30)).key;
        let (code, why) = refused(RawTls { tls_key: Some(other), ..node.clone() });
        assert!(code == Code::BadRequest && why.contains("--tls-key"), "{why}");
        let expired = ours.certify_for("expired", long_ago(), day(0));
        let (code, why) = refused(raw(&expired));
        assert!(code == Code::Permission && why.contains("'CN=expired'") && why.contains("has expired at"), "{why}");
        let (code, why) = refused(raw(&ours.certify_for("early", day(1), day(30))));
        assert!(code == Code::Permission && why.contains("'CN=early'") && why.contains("is valid from"), "{why}");
        let (code, why) =
            refused(raw(&Authority::lasting(long_ago(), day(0)).certify_for("node", long_ago(), day(30))));
        assert!(code == Code::Permission && why.contains("'CN=authority'"), "an authority that has expired: {why}");
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_change_are_read_again_and_what_is_of_no_use_replaces_nothing() {
        need!("files_that_change_are_read_again_and_what_is_of_no_use_replaces_nothing", &[Need::Program("openssl")]);
        let (ours, clock) = (authority(), TestClock::start());
        let live = ours.certify_for("live", long_ago(), day(30));
        let tls = Tls::read(&raw(&live), &clock).unwrap().unwrap();
        let story = async {
            let second = ours.certify_for("second", long_ago(), day(40));
            live.replace(&second);
            comes("the second one", || tls.reading() == 1).await;
            assert_eq!(UNIX_EPOCH + tls.expires(), day(40));
            live.replace(&ours.certify_for("expired", long_ago(), day(0)));
            sleep(LOOK_EVERY * 3).await;
            live.replace(&Identity { key: ours.certify_for("other", long_ago(), day(50)).key, ..second });
            sleep(LOOK_EVERY * 3).await;
            std::fs::remove_file(&live.certificate).unwrap();
            sleep(LOOK_EVERY * 3).await;
            assert_eq!((tls.reading(), UNIX_EPOCH + tls.expires(), *tls.valid().borrow()), (1, day(40), true));
            // It was put there a little too early.
            live.replace(&ours.certify_for("third", day(1), day(60)));
            sleep(LOOK_EVERY * 3).await;
            assert_eq!(tls.reading(), 1);
            clock.jump(DAY_MS);
            comes("the third one", || tls.reading() == 2).await;
            assert_eq!(UNIX_EPOCH + tls.expires(), day(60));
        };
        tokio::select! {
            () = tls.keep(&clock) => unreachable!("it never ends"),
            () = story => (),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_that_expire_are_told_until_there_are_new_ones() {
        need!("certificates_that_expire_are_told_until_there_are_new_ones", &[Need::Program("openssl")]);
        let (ours, clock) = (authority(), TestClock::start());
        let live = ours.certify_for("live", long_ago(), day(30));
        let tls = Tls::read(&raw(&live), &clock).unwrap().unwrap();
        let mut valid = tls.valid();
        let story = async {
            clock.jump(29 * DAY_MS);
            sleep(LOOK_EVERY * 3).await;
            assert!(*valid.borrow());
            clock.jump(31 * DAY_MS);
            valid.wait_for(|valid| !valid).await.unwrap();
            live.replace(&ours.certify_for("new", long_ago(), day(60)));
            tls.read_again();
            valid.wait_for(|valid| *valid).await.unwrap();
            assert_eq!(UNIX_EPOCH + tls.expires(), day(60));
        };
        tokio::select! {
            () = tls.keep(&clock) => unreachable!("it never ends"),
            () = story => (),
        }
    }

    #[test]
    fn little_time_is_told_at_once_and_then_daily() {
        let mut reminder = Reminder::default();
        let mut due = |standing, now| reminder.is_due(standing, now);
        assert!(!due(ValidityStatus::Valid, 0));
        assert!(due(ValidityStatus::ExpiresSoon, 10));
        assert!(!due(ValidityStatus::ExpiresSoon, DAY_MS));
        assert!(due(ValidityStatus::ExpiresSoon, DAY_MS + 10));
        assert!(due(ValidityStatus::Expired, DAY_MS + 11), "another thing to say");
        assert!(!due(ValidityStatus::Expired, DAY_MS + 12));
        assert!(due(ValidityStatus::Expired, 5), "the clock was set back");
        assert!(!due(ValidityStatus::Valid, 6));
        assert!(due(ValidityStatus::ExpiresSoon, 7), "the next one ends");
    }
}
