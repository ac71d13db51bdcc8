//! Mutual TLS between all of a center's processes: one certificate, its key, and the authority that signed all of them.
//!
//! The same certificate serves where a node listens and where it calls, so it needs both `serverAuth` and `clientAuth`
//! where it limits its use, and the names or addresses by which others reach the node. A command line needs `clientAuth`
//! only. Who has a certificate of that authority may do everything.

use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use clap::Args;
use std::path::{Path, PathBuf};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use super::limits::CONNECT_WAIT;

/// The flags of a command line.
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

/// What both ends need.
#[derive(Clone, Debug)]
pub struct Tls {
    identity: Identity,
    authority: Certificate,
}

impl Tls {
    /// Reads the files; `None` if none is named.
    ///
    /// # Errors
    /// `EBadRequest` if only some are named or one holds no PEM, `ENotFound`, `EPermission`.
    pub fn read(raw: &RawTls) -> Result<Option<Self>> {
        let RawTls { tls_cert, tls_key, tls_ca } = raw;
        match (tls_cert, tls_key, tls_ca) {
            (None, None, None) => Ok(None),
            (Some(certificate), Some(key), Some(authority)) => {
                let (certificate, key) = (pem(certificate, "CERTIFICATE")?, pem(key, "PRIVATE KEY")?);
                let authority = Certificate::from_pem(pem(authority, "CERTIFICATE")?);
                Ok(Some(Self { identity: Identity::from_pem(certificate, key), authority }))
            }
            _ => Err(Error::bad_request("--tls-cert, --tls-key and --tls-ca belong together: name all three or none")),
        }
    }

    /// For a listener: peers must show a certificate of the authority.
    #[must_use]
    pub fn of_server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.authority.clone())
            .timeout(CONNECT_WAIT)
    }

    /// For calls: the peer must show a certificate of the authority that bears the name or address it was called by.
    #[must_use]
    pub fn of_client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .timeout(CONNECT_WAIT)
    }
}

fn pem(file: &Path, kind: &str) -> Result<Vec<u8>> {
    let what = format!("read {}", file.shown());
    let text = std::fs::read(file).map_err(|error| Error::io(Side::Caller, Operation::Parse, &error, what))?;
    let holds = |wanted: &str| text.windows(wanted.len()).any(|window| window == wanted.as_bytes());
    if holds("-----BEGIN ") && holds(&format!("{kind}-----")) {
        return Ok(text);
    }
    let message = format!("{} holds no {kind} in PEM", file.shown());
    Err(Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_files_or_none() {
        assert!(Tls::read(&RawTls::default()).unwrap().is_none());
        let some = RawTls { tls_key: Some(PathBuf::from("/k")), ..RawTls::default() };
        assert!(Tls::read(&some).unwrap_err().message.contains("--tls-ca"));
    }

    #[test]
    fn a_file_of_another_kind_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(scratch.path().join(name), text).unwrap();
            Some(scratch.path().join(name))
        };
        let certificate = file("cert", "-----BEGIN CERTIFICATE-----\n");
        let raw = RawTls { tls_cert: certificate.clone(), tls_key: certificate.clone(), tls_ca: certificate };
        let error = Tls::read(&raw).unwrap_err();
        assert_eq!(error.code, Code::BadRequest);
        assert!(error.message.contains("PRIVATE KEY"), "{error}");
        let missing = RawTls { tls_key: Some(scratch.path().join("none")), ..raw };
        assert_eq!(Tls::read(&missing).unwrap_err().code, Code::NotFound);
    }
}
