//! Holds the certificates of a process as read at one moment, and checks whether they are valid now.
//!
//! ```text
//! not yet valid --- notBefore ---> valid --- 14 days before the end ---> ending --- notAfter ---> expired
//! ```
//! What always holds: key and certificate belong together, and every file holds what its flag says. Every certificate
//! of the process's own chain must be valid. One valid authority is enough, because old ones stay in that file as long
//! as certificates that they have signed are in use.

use super::error::with_cause;
use super::limits::CONNECT_WAIT;
use crate::timestamp::Timestamp;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use x509_cert::der::Decode;

/// Notice before certificates expire: time to get new ones.
const ENDING: Duration = Duration::from_secs(14 * 24 * 3600);

/// ALPN protocol of connections.
const HTTP_2: &[u8] = b"h2";

/// Files of a process, by their flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files<T> {
    pub(super) certificate: T,
    pub(super) key: T,
    pub(super) authority: T,
}

impl Files<PathBuf> {
    /// Reads their contents.
    ///
    /// # Errors
    /// `ENotFound`, `EPermission` or another code of the system, naming the file.
    pub(super) fn read(&self) -> Result<Files<Vec<u8>>> {
        let content = |file: &Path| {
            let what = format!("read {}", file.shown());
            std::fs::read(file).map_err(|error| Error::io(Side::Caller, Operation::Parse, &error, what))
        };
        Ok(Files {
            certificate: content(&self.certificate)?,
            key: content(&self.key)?,
            authority: content(&self.authority)?,
        })
    }
}

/// TLS configuration for both ends of connections.
pub(super) struct Certificates {
    /// The process's own certificate.
    pub(super) own: CertificateDer<'static>,
    pub(super) validity: Validity,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: ClientTlsConfig,
}

impl Certificates {
    /// Parses the contents of the files.
    ///
    /// # Errors
    /// `EBadRequest` if one holds something else, or the key is another certificate's. An expired one is none.
    pub(super) fn parse(contents: &Files<Vec<u8>>, paths: &Files<PathBuf>) -> Result<Self> {
        let chain = certificates(&contents.certificate, &paths.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| useless(&paths.key, "PRIVATE KEY"))?;
        let authorities = certificates(&contents.authority, &paths.authority)?;
        let own = chain.iter().map(|der| Validity::of(der, &paths.certificate)).collect::<Result<Vec<_>>>()?;
        // One that cannot be parsed is not trusted either.
        let trusted = authorities.iter().filter_map(|der| Validity::of(der, &paths.authority).ok());
        let trusted = trusted.reduce(Validity::or).ok_or_else(|| useless(&paths.authority, "CERTIFICATE"))?;
        let validity = own.into_iter().fold(trusted, Validity::and);
        let client = ClientTlsConfig::new()
            .identity(Identity::from_pem(&contents.certificate, &contents.key))
            .ca_certificate(Certificate::from_pem(&contents.authority))
            .timeout(CONNECT_WAIT);
        let unfit =
            |why: String| Error::bad_request(format!("--tls-cert, --tls-key and --tls-ca do not fit together: {why}"));
        // The transport looks at them only when it makes an endpoint.
        Endpoint::from_static("https://127.0.0.1:1")
            .tls_config(client.clone())
            .map_err(|error| unfit(with_cause(&error)))?;
        let own_certificate = chain[0].clone();
        let server = server(chain, key, authorities).map_err(|error| unfit(error.to_string()))?;
        Ok(Self { own: own_certificate, validity, server: Arc::new(server), client })
    }
}

/// Peers must show a certificate of an authority.
fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
) -> std::result::Result<ServerConfig, Box<dyn std::error::Error>> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols.push(HTTP_2.to_vec());
    // A session that is resumed shows no certificates: one that has expired since would be taken for good.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(text: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(|| useless(file, "CERTIFICATE"))
}

fn useless(file: &Path, kind: &str) -> Error {
    Error::bad_request(format!("{} holds no {kind} in PEM", file.shown()))
}

/// Time in which certificates are valid, and which of them bound it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    begins: Bound,
    ends: Bound,
}

/// One end of a validity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bound {
    /// Seconds since 1970.
    seconds: u64,
    /// Certificate that sets the bound: subject and file.
    certificate: String,
}

/// Status of a validity at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValidityStatus {
    /// It has not begun.
    Future,
    /// It is valid.
    Valid,
    /// It ends within two weeks.
    ExpiresSoon,
    /// It has ended.
    Expired,
}

impl Validity {
    fn of(der: &CertificateDer<'_>, file: &Path) -> Result<Self> {
        let certificate = x509_cert::Certificate::from_der(der)
            .map_err(|error| Error::bad_request(format!("{} holds no certificate: {error}", file.shown())))?;
        let certificate = certificate.tbs_certificate();
        let name = format!("'{}' in {}", certificate.subject().to_string().shown(), file.shown());
        let bound = |time: &x509_cert::time::Time| Bound {
            seconds: time.to_unix_duration().as_secs(),
            certificate: name.clone(),
        };
        let x509_cert::time::Validity { not_before, not_after, .. } = certificate.validity();
        Ok(Self { begins: bound(not_before), ends: bound(not_after) })
    }

    /// Returns the time in which both are valid.
    fn and(self, other: Self) -> Self {
        Self { begins: self.begins.max(other.begins), ends: self.ends.min(other.ends) }
    }

    /// Returns the time in which at least one is valid, if they overlap.
    fn or(self, other: Self) -> Self {
        Self { begins: self.begins.min(other.begins), ends: self.ends.max(other.ends) }
    }

    /// Returns the status at this time, in milliseconds since 1970.
    pub(super) fn standing(&self, unix_ms: u64) -> ValidityStatus {
        let now = Duration::from_millis(unix_ms);
        if now < self.begins() {
            ValidityStatus::Future
        } else if now >= self.ends() {
            ValidityStatus::Expired
        } else if now + ENDING >= self.ends() {
            ValidityStatus::ExpiresSoon
        } else {
            ValidityStatus::Valid
        }
    }

    /// Describes the status at this time.
    pub(super) fn describe(&self, unix_ms: u64) -> String {
        let Self { begins, ends } = self;
        match self.standing(unix_ms) {
            ValidityStatus::Future => format!(
                "the certificate of {} is valid from {} on: wait until then, or set this host's clock, which shows {}",
                begins.certificate,
                Timestamp::seconds(begins.seconds),
                Timestamp::seconds(unix_ms / 1000)
            ),
            ValidityStatus::Valid | ValidityStatus::ExpiresSoon => format!(
                "the certificate of {} is valid until {}: replace it before",
                ends.certificate,
                Timestamp::seconds(ends.seconds)
            ),
            ValidityStatus::Expired => format!(
                "the certificate of {} has expired at {}: replace it",
                ends.certificate,
                Timestamp::seconds(ends.seconds)
            ),
        }
    }

    /// # Errors
    /// `EPermission` outside of it.
    pub(super) fn check(&self, unix_ms: u64) -> Result<()> {
        match self.standing(unix_ms) {
            ValidityStatus::Valid | ValidityStatus::ExpiresSoon => Ok(()),
            ValidityStatus::Future | ValidityStatus::Expired => {
                Err(Error::new(Code::Permission, Side::Caller, Operation::Parse, self.describe(unix_ms)))
            }
        }
    }

    /// Returns the time from now until it begins or ends; `None` when it has ended.
    pub(super) fn next(&self, unix_ms: u64) -> Option<Duration> {
        let now = Duration::from_millis(unix_ms);
        [self.begins(), self.ends()].into_iter().find(|&bound| bound > now).map(|bound| bound - now)
    }

    fn begins(&self) -> Duration {
        Duration::from_secs(self.begins.seconds)
    }

    /// Returns the end, since 1970.
    pub(super) fn ends(&self) -> Duration {
        Duration::from_secs(self.ends.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Certificate of 'CN=n1', from 2023-11-01 to 2023-12-01.
    const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIUK7SEelVGIq5x+zP9CwLjwNtRaaUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MB4XDTIzMTEwMTAwMDAwMFoXDTIzMTIwMTAw
MDAwMFowDTELMAkGA1UEAwwCbjEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARD
x7O0WD03XF4VZX1Yz6sDz/KHSTBbk3P6FhcBOAXJQ7Ae5Vvh7qEsjaX/io8vbUX/
+nP0Q3bXZJV1S76K7oeno3IwcDAPBgNVHREECDAGhwR/AAABMB0GA1UdJQQWMBQG
CCsGAQUFBwMBBggrBgEFBQcDAjAdBgNVHQ4EFgQUJBarIZ+OJZfjwBZ9Sw3Ygr9n
86wwHwYDVR0jBBgwFoAU3lG4NP2VL1DEbJs30419hrKvbYAwCgYIKoZIzj0EAwID
SQAwRgIhAN+LPE40Irbpia5fWozrQyCI0VSGGHGaMwPMDi2/Se13AiEA1yE8tbyl
ANVshjfToAtiQWPveH6JRiG9M3Podh55IpA=
-----END CERTIFICATE-----
";
    const BEGINS: u64 = 1_698_796_800;
    const ENDS: u64 = 1_701_388_800;
    const DAY: u64 = 24 * 3600;

    fn validity() -> Validity {
        let file = Path::new("n1.pem");
        let chain = certificates(PEM, file).unwrap();
        Validity::of(&chain[0], file).unwrap()
    }

    fn bound(seconds: u64, name: &str) -> Bound {
        Bound { seconds, certificate: name.to_owned() }
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_when_it_is_valid() {
        let name = "'CN=n1' in n1.pem";
        assert_eq!(validity(), Validity { begins: bound(BEGINS, name), ends: bound(ENDS, name) });
        let said = validity().check(ENDS * 1000).unwrap_err();
        assert_eq!(said.code, Code::Permission);
        let words = "the certificate of 'CN=n1' in n1.pem has expired at 2023-12-01T00:00:00Z: replace it";
        assert_eq!(said.message, words);
        let early = validity().check(BEGINS * 1000 - 1).unwrap_err().message;
        assert!(early.contains("from 2023-11-01T00:00:00Z") && early.contains("shows 2023-10-31T23:59:59Z"), "{early}");
    }

    #[test]
    fn two_weeks_before_its_end_a_certificate_is_ending() {
        for (seconds, standing, left) in [
            (BEGINS - 1, ValidityStatus::Future, Some(1)),
            (BEGINS, ValidityStatus::Valid, Some(30 * DAY)),
            (ENDS - 14 * DAY - 1, ValidityStatus::Valid, Some(14 * DAY + 1)),
            (ENDS - 14 * DAY, ValidityStatus::ExpiresSoon, Some(14 * DAY)),
            (ENDS - 1, ValidityStatus::ExpiresSoon, Some(1)),
            (ENDS, ValidityStatus::Expired, None),
        ] {
            assert_eq!(validity().standing(seconds * 1000), standing, "{seconds}");
            assert_eq!(validity().next(seconds * 1000), left.map(Duration::from_secs), "{seconds}");
            let is_valid = matches!(standing, ValidityStatus::Valid | ValidityStatus::ExpiresSoon);
            assert_eq!(validity().check(seconds * 1000).is_ok(), is_valid, "{seconds}");
        }
    }

    #[test]
    fn a_whole_chain_is_as_good_as_its_worst_certificate_and_authorities_as_their_best() {
        let of = |begins, ends, name: &str| Validity { begins: bound(begins, name), ends: bound(ends, name) };
        let (long, short) = (of(10, 90, "long"), of(20, 30, "short"));
        let both = Validity { begins: bound(20, "short"), ends: bound(30, "short") };
        assert_eq!(long.clone().and(short.clone()), both);
        assert_eq!(short.clone().and(long.clone()), both);
        assert_eq!(long.clone().or(short.clone()), long);
        assert_eq!(short.or(long.clone()), long);
    }

    #[test]
    fn what_is_no_certificate_is_refused_by_the_name_of_its_file() {
        let file = Path::new("n1.pem");
        for text in
            [&b""[..], b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"]
        {
            let error = certificates(text, file).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (Code::BadRequest, "n1.pem holds no CERTIFICATE in PEM"));
        }
        let error = Validity::of(&CertificateDer::from(vec![0x30, 0]), file).unwrap_err();
        assert!(error.code == Code::BadRequest && error.message.contains("n1.pem"), "{error}");
    }

    #[test]
    fn times_of_any_size_have_a_date() {
        assert!(Timestamp::seconds(u64::MAX).starts_with("9999-12-3"));
    }
}
