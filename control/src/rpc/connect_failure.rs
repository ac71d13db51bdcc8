//! Explains what a failed connection most likely means, and what the caller can do about it.
//!
//! The types of the errors tell where there are some. An error on an open connection has passed through a library that
//! keeps only the text. A library for HTTP/2 reports every other protocol as an invalid frame, so what listens at that
//! address is probed once more, separately ([`probe`]).

use super::limits::CONNECT_WAIT;
use crate::timestamp::Timestamp;
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use std::borrow::Cow;
use std::error::Error;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Client preface of HTTP/2, and an empty frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Returns advice about an error of the transport, if one of its causes tells.
pub(super) fn advice(error: &(dyn Error + 'static)) -> Option<Cow<'static, str>> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>().and_then(of_io) {
            return Some(found);
        }
        if let Some(found) = error.downcast_ref::<TlsError>().and_then(of_tls) {
            return Some(found);
        }
        if let Some(found) = of_words(&error.to_string()) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Recognises an alert after the handshake, by which a server of TLS 1.3 refuses a certificate.
fn of_words(words: &str) -> Option<Cow<'static, str>> {
    let (_, alert) = words.split_once("received fatal alert: ")?;
    let known = [
        AlertDescription::CertificateExpired,
        AlertDescription::UnknownCA,
        AlertDescription::BadCertificate,
        AlertDescription::CertificateUnknown,
        AlertDescription::CertificateRequired,
        AlertDescription::DecryptError,
    ];
    known
        .into_iter()
        .find(|known| alert.trim() == format!("{known:?}"))
        .and_then(|known| of_tls(&TlsError::AlertReceived(known)))
}

fn of_io(error: &io::Error) -> Option<Cow<'static, str>> {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        return of_tls(tls);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some("no taskd listens there: start it, or use another address".into()),
        _ => None,
    }
}

fn of_tls(error: &TlsError) -> Option<Cow<'static, str>> {
    if let TlsError::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) = error {
        let at = Timestamp::seconds(not_after.as_secs());
        return Some(
            format!("the certificate of that node has expired at {at}, or a clock is wrong: renew it there").into(),
        );
    }
    let known = match error {
        TlsError::InvalidMessage(_) => {
            Some("no TLS at that address: omit --tls-cert, --tls-key and --tls-ca, or use another port")
        }
        TlsError::InvalidCertificate(CertificateError::Expired) => {
            Some("the certificate of that node has expired, or a clock is wrong: renew it there")
        }
        TlsError::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            Some("the certificate of that node is not valid yet, or a clock is wrong")
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("the certificate of that node bears other names: call it by one of them"),
        TlsError::InvalidCertificate(_) => Some("no authority in --tls-ca has signed the certificate of that node"),
        TlsError::AlertReceived(AlertDescription::CertificateExpired) => {
            Some("the certificate in --tls-cert has expired, or a clock is wrong: renew it")
        }
        TlsError::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError,
        ) => Some("that node refuses the certificate in --tls-cert: use one that the center's authority has signed"),
        _ => None,
    };
    known.map(Cow::Borrowed)
}

/// Describes what listens at an address that was called without TLS, if it is no task center.
pub(super) async fn probe(address: &str) -> Option<&'static str> {
    let asked = async {
        let mut peer = TcpStream::connect(address).await?;
        peer.write_all(PREFACE).await?;
        let mut head = [0; 5];
        let mut len = 0;
        while len < head.len() {
            match peer.read(&mut head[len..]).await? {
                0 => break,
                some => len += some,
            }
        }
        io::Result::Ok(known(&head[..len]))
    };
    timeout(CONNECT_WAIT, asked).await.ok()?.ok()?
}

/// Recognises a protocol by the first bytes of its answer.
fn known(head: &[u8]) -> Option<&'static str> {
    const TLS_ALERT: u8 = 21;
    const SETTINGS: u8 = 4;
    match head {
        [TLS_ALERT, 3, ..] => Some("that address needs TLS: use --tls-cert, --tls-key and --tls-ca"),
        [b'H', b'T', b'T', b'P', ..] => Some("another HTTP server answers there: use the address of a taskd"),
        [_, _, _, SETTINGS, ..] | [] => None,
        _ => Some("no task center at that address: use the address of a taskd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_below_others() {
        let refused = io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(advice(refused.get_ref().unwrap()).unwrap().contains("no taskd"));
        for (error, word) in [
            (TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "no TLS"),
            (TlsError::InvalidCertificate(CertificateError::Expired), "expired"),
            (TlsError::InvalidCertificate(CertificateError::UnknownIssuer), "authority"),
            (TlsError::AlertReceived(AlertDescription::CertificateExpired), "--tls-cert has expired"),
            (TlsError::AlertReceived(AlertDescription::UnknownCA), "center's authority"),
        ] {
            let found = advice(&io::Error::new(io::ErrorKind::InvalidData, error)).unwrap();
            assert!(found.contains(word), "{word}: {found}");
        }
        assert_eq!(advice(&io::Error::from(io::ErrorKind::BrokenPipe)), None);
        let only_words = io::Error::other("connection error: received fatal alert: CertificateExpired");
        assert!(advice(&only_words).unwrap().contains("--tls-cert has expired"));
    }

    #[test]
    fn the_first_bytes_tell_who_it_is() {
        for (head, word) in [
            (&[21, 3, 3, 0, 2][..], Some("needs TLS")),
            (b"HTTP/", Some("HTTP server")),
            (b"SSH-2", Some("no task center")),
            (&[0, 0, 18, 4, 0], None),
            (&[], None),
        ] {
            assert_eq!(known(head).is_some(), word.is_some());
            assert!(known(head).zip(word).is_none_or(|(found, word)| found.contains(word)), "{head:?}");
        }
    }
}
