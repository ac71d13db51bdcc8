//! Names the process at the other end of a connection, by its certificate.
//!
//! The name is the first DNS name of the certificate, and its common name only if it has no DNS name. What always holds:
//! a certificate that cannot be read in full names nobody. Its common name does not stand in for alternative names that
//! are not understood.

use std::net::SocketAddr;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

/// Longest name in bytes, that of a host.
pub(super) const NAME_BYTES_MAX: usize = 253;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Process that has opened a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// Name in its certificate; `None` if it has shown none, or one that names nobody.
    pub(crate) name: Option<Arc<str>>,
    /// Its address.
    pub(crate) address: Option<SocketAddr>,
    /// Whether its certificate is the one of this process, whose key nobody else has.
    pub(crate) is_self: bool,
}

/// Returns the name of the owner of a certificate; `None` if it has none, or more than 253 bytes.
pub(crate) fn certificate_name(der: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(der).ok()?;
    let certificate = certificate.tbs_certificate();
    let alternatives = certificate.get_extension::<SubjectAltName>().ok()?;
    let dns_name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        _ => None,
    };
    let first = alternatives.and_then(|(_, SubjectAltName(names))| names.iter().find_map(dns_name));
    let name = first.or_else(|| common_name(certificate.subject()))?;
    (1..=NAME_BYTES_MAX).contains(&name.len()).then_some(name)
}

/// Returns the common name, if there is exactly one.
fn common_name(subject: &Name) -> Option<String> {
    if subject.iter().filter(|attribute| attribute.oid == COMMON_NAME).count() != 1 {
        return None;
    }
    subject.common_name().ok()?.map(|name| name.value().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_testkit::authority::Authority;
    use blockhaul_testkit::{Need, need};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    fn name(authority: &Authority, subject: &str, alternatives: &str) -> Option<String> {
        let identity = authority.certify_as("it", subject, alternatives);
        certificate_name(&CertificateDer::from_pem_file(&identity.certificate).unwrap())
    }

    #[test]
    fn a_certificate_is_named_by_its_first_dns_name_and_else_by_its_common_name() {
        need!("a_certificate_is_named_by_its_first_dns_name_and_else_by_its_common_name", &[Need::Program("openssl")]);
        let ours = Authority::new();
        let long = "x".repeat(60);
        let too_long = format!("{long}.{long}.{long}.{long}.{long}");
        for (subject, alternatives, expected) in [
            ("/CN=a", "IP:127.0.0.1,DNS:b.example,DNS:c.example", Some("b.example")),
            ("/CN=a", "DNS:B.Example", Some("B.Example")),
            ("/CN=a", "IP:127.0.0.1", Some("a")),
            ("/CN=a", "email:root@example", Some("a")),
            ("/CN=Jane Doe", "IP:127.0.0.1", Some("Jane Doe")),
            ("/CN=a/CN=b", "IP:127.0.0.1", None),
            ("/CN=a", &format!("DNS:{too_long}"), None),
        ] {
            assert_eq!(name(&ours, subject, alternatives).as_deref(), expected, "{subject} {alternatives}");
        }
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert_eq!(certificate_name(b""), None);
        assert_eq!(certificate_name(&[0x30, 0]), None);
    }
}
