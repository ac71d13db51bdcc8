//! Configures TLS between a connection and its server: trusted authorities, and the client's certificate.
//!
//! A directory of certificates holds, under the names that libnbd and nbdkit give them: `ca-cert.pem`, the authorities
//! of servers; `ca-crl.pem` (may be missing), revoked certificates; `client-cert.pem` and `client-key.pem` (both or
//! neither), the client's own. Without a directory the system's authorities are trusted. Loaded once, before anything
//! is connected.

use super::bounded_stream::BoundedStream;
use super::uri::{Address, NbdUri, TlsOptions};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::shown::Shown;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The name in the certificate of a server behind a unix socket, unless `tls-hostname` says otherwise.
const LOCAL_NAME: &str = "localhost";

/// TLS settings of the connections to one server.
pub(super) struct TlsConfig {
    config: Arc<ClientConfig>,
    /// Whom the server's certificate must name.
    name: ServerName<'static>,
    has_client_certificate: bool,
}

impl TlsConfig {
    /// # Errors
    /// `EBadRequest`, naming the file.
    pub(super) fn load(uri: &NbdUri, terms: &TlsOptions, side: Side) -> Result<Self> {
        let files = CertificateFiles { directory: terms.certificates.as_deref(), side };
        let host = match &uri.address {
            Address::Tcp { host, .. } => host,
            Address::Unix(_) => LOCAL_NAME,
        };
        let host = terms.hostname.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| files.bad(format!("'{host}' cannot be the name in a certificate: {error}")))?;
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if terms.verify_peer {
            files.verifier(&provider)?
        } else {
            tracing::warn!(%uri, host, "the server's certificate is not verified: the server may be an impostor (tls-verify-peer=0)");
            Arc::new(AcceptAnyCertificate(Arc::clone(&provider)))
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal(Operation::Open, format!("set up TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let identity = files.identity()?;
        let has_client_certificate = identity.is_some();
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
                files.bad(format!("client-cert.pem and client-key.pem do not make an identity: {error}"))
            })?,
        };
        Ok(Self { config: Arc::new(config), name, has_client_certificate })
    }

    pub(super) fn has_client_certificate(&self) -> bool {
        self.has_client_certificate
    }

    /// Performs the TLS handshake over a stream whose next byte belongs to TLS.
    ///
    /// # Errors
    /// Errors of the stream, or of `rustls` in that form. A refusal by the server may show only in the first read
    /// afterwards.
    pub(super) fn handshake<'a>(
        &self,
        stream: BoundedStream<'a>,
    ) -> io::Result<StreamOwned<ClientConnection, BoundedStream<'a>>> {
        let connection =
            ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

/// Source of the certificates.
struct CertificateFiles<'a> {
    directory: Option<&'a Path>,
    side: Side,
}

impl CertificateFiles<'_> {
    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
        let roots = Arc::new(self.roots()?);
        let revoked: Vec<CertificateRevocationListDer<'static>> = self.all_in("ca-crl.pem")?.unwrap_or_default();
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
            .with_crls(revoked)
            // A list speaks for the authorities that issued it only.
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| self.bad(format!("the authorities cannot be used: {error}")))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let Some(directory) = self.directory else {
            let found = rustls_native_certs::load_native_certs();
            // Systems have some certificates that cannot be parsed; the others suffice.
            roots.add_parsable_certificates(found.certs);
            return match roots.is_empty() {
                false => Ok(roots),
                true => Err(self
                    .bad(format!("the system has no trusted authorities {:?}", found.errors))
                    .advise("tls-certificates=DIRECTORY says where ca-cert.pem is")),
            };
        };
        let path = directory.join("ca-cert.pem");
        let authorities: Vec<CertificateDer<'static>> =
            self.all_in("ca-cert.pem")?.ok_or_else(|| self.bad(format!("{} does not exist", path.shown())))?;
        for authority in authorities {
            roots.add(authority).map_err(|error| self.bad(format!("{}: {error}", path.shown())))?;
        }
        Ok(roots)
    }

    /// Our certificate with those that vouch for it, and its key.
    fn identity(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
        let chain = self.all_in("client-cert.pem")?;
        let key = self.all_in("client-key.pem")?.and_then(|keys: Vec<_>| keys.into_iter().next());
        match (chain, key) {
            (Some(chain), Some(key)) => Ok(Some((chain, key))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.bad(format!("client-cert.pem without client-key.pem in {self}"))),
            (None, Some(_)) => Err(self.bad(format!("client-key.pem without client-cert.pem in {self}"))),
        }
    }

    /// Every item of a kind in a file, at least one; `None` where there is no such file.
    fn all_in<T: PemObject>(&self, name: &str) -> Result<Option<Vec<T>>> {
        let Some(path) = self.directory.map(|directory| directory.join(name)) else { return Ok(None) };
        let items = T::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<T>, _>>);
        match items {
            Ok(items) if items.is_empty() => Err(self.unreadable(&path, &"nothing of that kind in PEM format")),
            Ok(items) => Ok(Some(items)),
            Err(pem::Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unreadable(&path, &error)),
        }
    }

    fn unreadable(&self, path: &Path, why: &dyn fmt::Display) -> Error {
        self.bad(format!("read {}: {why}", path.shown()))
    }

    fn bad(&self, message: String) -> Error {
        Error::new(Code::BadRequest, self.side, Operation::Open, message)
    }
}

impl fmt::Display for CertificateFiles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.directory.unwrap_or(Path::new("")).shown().fmt(f)
    }
}

/// Accepts every certificate. The peer must still prove that it has the key.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
